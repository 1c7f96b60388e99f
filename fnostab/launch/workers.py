"""Jobs in several processes of this machine, each of which takes one after the other."""

import contextlib
import json
import os
import queue
import signal
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from typing import Final

from fnostab.io.endings import Interrupted
from fnostab.launch.jobs import (
    NOT_STARTED,
    TICK_S,
    Job,
    OnUpdate,
    Run,
    Send,
    Update,
    collected_signals,
    run_job,
)

#: Lines that are kept of what a process said, for the case that it dies.
_KEPT_LINES: Final = 20


def run_processes(jobs: Sequence[Job], command: Sequence[str], on_update: OnUpdate, workers: int) -> list[Update]:
    """Carry out the jobs in `workers` processes of their own; returns how each ended.

    `command` starts a process that takes one job after the other (see `serve_jobs`); after one that does not end
    `done`, the next has a new process. SIGTERM and Ctrl-C end all of them, and raise `Interrupted` once they have
    stored what they had.
    """
    news: queue.SimpleQueue[tuple[int, Update]] = queue.SimpleQueue()
    waiting: queue.SimpleQueue[tuple[int, Job]] = queue.SimpleQueue()
    for place, job in enumerate(jobs):
        waiting.put((place, job))
    ends = [NOT_STARTED] * len(jobs)
    processes = [_Process(command) for _ in range(min(workers, len(jobs)))]
    stopping = threading.Event()

    def work(process: _Process) -> None:
        with process, contextlib.suppress(queue.Empty):
            while not stopping.is_set():
                place, job = waiting.get_nowait()
                ends[place] = process.run_job(job, partial(_put, news, place), stopping)

    with collected_signals() as caught, ThreadPoolExecutor(max(1, len(processes))) as pool:
        futures = [pool.submit(work, process) for process in processes]
        while not all(future.done() for future in futures) or not news.empty():
            with contextlib.suppress(queue.Empty):
                on_update(*news.get(timeout=TICK_S))
            if caught and not stopping.is_set():
                stopping.set()
                for process in processes:
                    process.terminate()
        for future in futures:
            future.result()
    if caught:
        raise Interrupted(caught[0])
    return ends


def _put(news: "queue.SimpleQueue[tuple[int, Update]]", place: int, update: Update) -> None:
    news.put((place, update))


def serve_jobs(run: Run) -> int:
    """Be a process of `run_processes`: read jobs from stdin, a JSON line each, and tell on stdout; returns 0.

    Everything else that is printed goes to stderr. The process ends when the one that started it closes the pipe or
    dies, however that came about: at once between two jobs, as after SIGTERM during one.
    """
    news = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    jobs: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    busy, alone = threading.Lock(), threading.Event()
    threading.Thread(target=_read_jobs, args=(jobs, busy, alone), daemon=True).start()

    def send(update: Update) -> None:
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps(asdict(update)), file=news, flush=True)

    while line := jobs.get():
        with busy:
            if alone.is_set():
                break
            run_job(run, Job(**json.loads(line)), send)
    return 0


def _read_jobs(jobs: "queue.SimpleQueue[bytes]", busy: threading.Lock, alone: threading.Event) -> None:
    """Hand on the lines of stdin, and an empty one at its end; what is being done then is stopped.

    From the file descriptor: a thread that waits in `sys.stdin` when the process ends makes Python abort.
    """
    text = b""
    while piece := os.read(0, 2**16):
        *lines, text = (text + piece).split(b"\n")
        for line in lines:
            jobs.put(line)
    alone.set()
    jobs.put(b"")
    if busy.locked():
        os.kill(os.getpid(), signal.SIGTERM)


class _Process:
    """A process that `command` starts when there is a job for it; it ends if this one does.

    What it says on stderr is kept, for the case that it dies.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self._command = command
        self._process: subprocess.Popen[str] | None = None
        self._open = contextlib.ExitStack()

    def __enter__(self) -> "_Process":
        self._said = self._open.enter_context(tempfile.TemporaryFile("w+", errors="replace"))
        return self

    def __exit__(self, *exception: object) -> None:
        with self._open:
            self._end()

    def run_job(self, job: Job, send: Send, stopping: threading.Event) -> Update:
        """Have `job` carried out; passes on what is told, and returns the last of it."""
        process = self._process or self._start()
        self._said.seek(0)
        self._said.truncate()
        if stopping.is_set():  # `terminate` may have come before there was a process
            process.terminate()
        last = Update("running")
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps(asdict(job)), file=process.stdin, flush=True)
        while last.state == "running" and (line := process.stdout.readline()):
            last = Update(**json.loads(line))
            if last.state == "running":
                send(last)
        if last.state == "running":
            last = self._how_it_ended(self._end(), last, stopping)
        elif last.state != "done":
            self._end()  # the next one shall not suffer from what is left of this one
        send(last)
        return last

    def terminate(self) -> None:
        """Have it store what it has."""
        if process := self._process:
            process.terminate()

    def _start(self) -> subprocess.Popen[str]:
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
            start_new_session=True,  # Ctrl-C comes here alone, and one SIGTERM goes to each run
        )
        return self._process

    def _end(self) -> int:
        """Let the process end, and return its exit code."""
        process, self._process = self._process, None
        if process is None:
            return 0
        with process, contextlib.suppress(BrokenPipeError):
            assert process.stdin is not None
            process.stdin.close()
        return process.returncode

    def _how_it_ended(self, code: int, last: Update, stopping: threading.Event) -> Update:
        """How a job ended that did not say so itself."""
        if stopping.is_set() and code == -signal.SIGTERM:
            return replace(last, state="interrupted", text="stopped before it began")
        self._said.seek(0)
        words = self._said.read().strip().splitlines()[-_KEPT_LINES:]
        return Update("failed", _how_it_died(code, words), run_id=last.run_id, details="\n".join(words))


def _how_it_died(code: int, words: Sequence[str]) -> str:
    if code < 0:
        memory = "; the memory may not suffice for so many at once" if -code == signal.SIGKILL else ""
        return f"its process was ended by {signal.Signals(-code).name}{memory}"
    return words[-1] if words else f"its process ended with exit code {code}"
