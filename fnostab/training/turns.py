"""Threads that take turns, and meet where each asks for its part of what is computed for all."""

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Generic, TypeVar

Q = TypeVar("Q")
A = TypeVar("A")


class Turns(Generic[Q, A]):
    """Runs threads of which only one is awake at a time, so that they share a process without races.

    A thread is awake until it calls `ask`, or ends; then the next one is, in the order of their places. Once all that
    have not ended have asked, `answer` is called with what they asked, by place, and each goes on with its own part of
    what that returns, in the same order. What `answer` raises is raised in all of them. The order is always the same.
    """

    def __init__(self, answer: Callable[[Mapping[int, Q]], Mapping[int, A]]) -> None:
        self._answer = answer
        self._turns: list[threading.Semaphore] = []
        self._alive: list[int] = []
        self._questions: dict[int, Q] = {}
        self._answers: Mapping[int, A] = {}
        self._errors: dict[int, BaseException] = {}
        self._abandoned: BaseException | None = None

    def run(self, works: Sequence[Callable[[], None]]) -> list[BaseException | None]:
        """Call each of `works` in a thread of its own, and wait for all; returns what each raised, or None.

        The thread that calls this only waits, so that Python's signal handlers run in it. If one of them raises, the
        others are abandoned: each gets that exception where it asks next.
        """
        ends: list[BaseException | None] = [None] * len(works)

        def work(place: int) -> None:
            self._turns[place].acquire()
            try:
                works[place]()
            except BaseException as error:
                ends[place] = error
            finally:
                self._alive.remove(place)
                if self._alive:
                    self._wake_next(place)

        self._alive = list(range(len(works)))
        self._turns = [threading.Semaphore(0) for _ in works]
        threads = [threading.Thread(target=work, args=(place,), daemon=True) for place in self._alive]
        for thread in threads:
            thread.start()
        self._turns[0].release()
        try:
            for thread in threads:
                while thread.is_alive():
                    thread.join(0.1)  # not for ever: signals are handled in between
        except BaseException as error:
            self._abandoned = error
            raise
        return ends

    def ask(self, place: int, question: Q) -> A:
        """Ask, in the thread at `place`, and sleep until there is an answer and it is this thread's turn."""
        self._questions[place] = question
        self._wake_next(place)
        self._turns[place].acquire()
        if error := self._abandoned or self._errors.pop(place, None):
            raise error
        return self._answers[place]

    def _wake_next(self, place: int) -> None:
        """Wake the next thread that has not asked, after `place`; if all have, answer them, and wake the first."""
        if len(self._questions) == len(self._alive):
            questions, self._questions = self._questions, {}
            try:
                self._answers = self._answer(questions)
            except BaseException as error:
                self._errors = dict.fromkeys(questions, error)
            place = -1
        waiting = [other for other in self._alive if other not in self._questions]
        self._turns[next((other for other in waiting if other > place), waiting[0])].release()
