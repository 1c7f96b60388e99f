"""Jobs as tasks of SLURM arrays, which go on when this process ends, and are found again by the next one."""

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from fnostab.config import ConfigError
from fnostab.io.endings import CommandFailed, Interrupted
from fnostab.io.untrusted import shown
from fnostab.launch.jobs import NOT_STARTED, TICK_S, Job, OnUpdate, Supervisor, Update, Waiting, supervised
from fnostab.launch.slurm_cluster import LOST, array_of, cancel_named, check_cluster, has_ended, job_states
from fnostab.launch.slurm_config import PREFIX, SlurmConfig
from fnostab.launch.slurm_submission import SlurmArray, TaskNews, Unit, known_arrays, submit_array
from fnostab.launch.slurm_task import RunTask

#: Seconds between two looks at what the tasks wrote, and between two questions to SLURM, which many users ask.
READ_EVERY_S: Final = 2.0
ASK_EVERY_S: Final = 10.0
#: A job has ended if SLURM says so that often: what its task wrote last may take some seconds to be seen here.
_TIMES_ENDED: Final = 2
#: Time that jobs have to leave the queue after their last word.
_TO_LEAVE_S: Final = 60.0
#: In place of a state where SLURM does not answer.
NO_ANSWER: Final = ""
#: Tasks of one array: SLURM's own limit, unless the cluster's administrator has set another.
_MOST_TASKS: Final = 1000


def check_slurm(config: SlurmConfig, cpus: int, cache: Path) -> None:
    """Raise `ConfigError` if runs with `cpus` CPUs cannot be SLURM jobs whose files lie below `cache`."""
    if "%" in str(cache.absolute()):
        raise ConfigError(f"`FNOSTAB_CACHE` (={shown(cache)}) must have no % in its path, which SLURM would replace")
    check_cluster(config, cpus)


def run_slurm(
    jobs: Sequence[Job],
    run: RunTask,
    on_update: OnUpdate,
    config: SlurmConfig,
    *,
    folder: Path,
    label: str,
    at_once: int | None = None,
) -> list[Update]:
    """Carry out the jobs as tasks of SLURM arrays; returns how each ended.

    `folder` remembers the arrays: jobs of an earlier call that wait or run are waited for, and the others submitted,
    under the name `label`, at most `at_once` of an array at a time. The jobs of a group are one task. A task whose job
    is lost, by a time-out, preemption or its node, is submitted again and goes on from its checkpoint. Signals, and
    exceptions of `on_update`, end this call and not the jobs: `Interrupted` says how to cancel them.
    """
    queue = _Queue(jobs, run, config, folder.absolute(), label, at_once or _MOST_TASKS)
    with _jobs_go_on(queue), supervised(len(jobs), on_update, stop=lambda: None) as supervisor:
        queue.fill(supervisor)
        while queue.tasks and supervisor.cause is None:
            queue.look(supervisor)
            _sleep(READ_EVERY_S, supervisor)
        queue.clear(supervisor)
    return supervisor.ends


@contextmanager
def _jobs_go_on(queue: "_Queue") -> Iterator[None]:
    """Say, where a signal ends the block, that jobs go on."""
    try:
        yield
    except Interrupted as interrupt:
        if not queue.tasks:
            raise
        arrays = " ".join(dict.fromkeys(array_of(task.news.job_id) for task in queue.tasks))
        text = f"its SLURM jobs go on, and the same command waits for them; to cancel them: scancel {arrays}"
        raise Interrupted(interrupt.signum, text) from None


def _sleep(seconds: float, supervisor: Supervisor) -> None:
    """Sleep, but not on when a signal came."""
    until = time.monotonic() + seconds
    while supervisor.cause is None and time.monotonic() < until:
        time.sleep(TICK_S)
        supervisor.check()


@dataclass
class _Task:
    """A task of an array that this call waits for: what it says, and `places`, those of its jobs in the call.

    A place is None for a job that this call does not want.
    """

    news: TaskNews
    places: Sequence[int | None]
    times_ended: int = 0

    def left(self, supervisor: Supervisor) -> list[int]:
        """The places of this call at which no run has ended."""
        return [place for place in self.places if place is not None and supervisor.ends[place] is NOT_STARTED]

    def hear(self, supervisor: Supervisor) -> None:
        """Pass on what is new; whether a run that was stopped is over, SLURM says."""
        for index, update in self.news.new():
            place = self.places[index]
            if place in self.left(supervisor) and place is not None:
                supervisor.hear(place, replace(update, state="running") if update.state == "interrupted" else update)


@dataclass
class _Queue:
    """The tasks that a call of `run_slurm` waits for, and the arrays that they belong to."""

    jobs: Sequence[Job]
    run: RunTask
    config: SlurmConfig
    folder: Path
    label: str
    at_once: int
    tasks: list[_Task] = field(default_factory=list)
    _arrays: list[SlurmArray] = field(default_factory=list)
    _asked_at: float = -math.inf

    def fill(self, supervisor: Supervisor) -> None:
        """Find the jobs that SLURM has already, and submit the others."""
        wanted = {_key(job): place for place, job in enumerate(self.jobs)}
        for array, number in self._living_tasks(supervisor):
            places = [wanted.pop(_key(job), None) for job in array.units[number].jobs]
            if any(place is not None for place in places):
                self._wait_for(array, number, places, "goes on", supervisor)
        new = sorted(wanted.values())
        waiting, units = Waiting([self.jobs[place] for place in new]), []
        while unit := waiting.take():
            units.append(([new[place] for place in unit], 0))
        self._submit(units, supervisor)

    def look(self, supervisor: Supervisor) -> None:
        """Hear what the tasks say, and now and then ask SLURM how their jobs stand."""
        for task in self.tasks:
            task.hear(supervisor)
        self.tasks = [task for task in self.tasks if task.left(supervisor)]
        if not self.tasks or time.monotonic() < self._asked_at + ASK_EVERY_S:
            return
        states = job_states([task.news.job_id for task in self.tasks])
        self._asked_at = time.monotonic()
        lost = []
        for task in list(self.tasks):
            state = states.get(task.news.job_id, NO_ANSWER)
            task.times_ended = task.times_ended + 1 if has_ended(state) else 0
            if task.times_ended < _TIMES_ENDED:
                continue
            task.hear(supervisor)
            self.tasks.remove(task)
            restarts = task.news.unit.restarts + max(task.news.begun, 1)
            if _is_lost(state, task.news) and restarts <= self.config.requeues:
                lost.append((task.left(supervisor), restarts))
                continue
            for place in task.left(supervisor):
                supervisor.hear(place, _end(state, task.news, self.config.requeues))
        lost = [(places, restarts) for places, restarts in lost if places]
        try:
            self._submit(lost, supervisor)
        except CommandFailed as error:  # the other runs go on
            for place in (place for places, _ in lost for place in places):
                supervisor.hear(place, Update("interrupted", str(error)))

    def clear(self, supervisor: Supervisor) -> None:
        """Once their jobs are gone, remove the files of the arrays if every run has a result; else people need them."""
        until = time.monotonic() + _TO_LEAVE_S
        all_done = all(end.state == "done" for end in supervisor.ends)
        while all_done and self._arrays and supervisor.cause is None and time.monotonic() < until:
            states = job_states([job_id for array in self._arrays for job_id in array.job_ids])
            gone = [array for array in self._arrays if states and _is_gone(array, states)]
            for array in gone:
                array.remove()
            self._arrays = [array for array in self._arrays if array not in gone]
            if self._arrays:
                _sleep(READ_EVERY_S, supervisor)

    def _living_tasks(self, supervisor: Supervisor) -> Iterator[tuple[SlurmArray, int]]:
        """The tasks of earlier arrays whose jobs wait or run; of arrays without any, all files are removed.

        What was cut off while it was submitted is cancelled, in case that SLURM has it.
        """
        arrays = known_arrays(self.folder)
        for array in arrays:
            if not array.job_ids:
                cancel_named(array.name)
                array.remove()
        arrays = [array for array in arrays if array.job_ids]
        states: dict[str, str] = {}
        while arrays and not states and supervisor.cause is None:  # else they might be submitted twice
            states = job_states([job_id for array in arrays for job_id in array.job_ids])
            if not states:
                _sleep(ASK_EVERY_S, supervisor)
        for array in arrays if states else ():
            if _is_gone(array, states):
                array.remove()
                continue
            self._arrays.append(array)
            for number, job_id in enumerate(array.job_ids):
                if not has_ended(states[job_id]):
                    yield array, number

    def _submit(self, units: Sequence[tuple[Sequence[int], int]], supervisor: Supervisor) -> None:
        """Submit the jobs of each unit, by place, with how often they were begun before."""
        for first in range(0, len(units), _MOST_TASKS):
            if supervisor.cause:
                return
            part = units[first : first + _MOST_TASKS]
            made = [Unit([self.jobs[place] for place in places], restarts) for places, restarts in part]
            flags = self.config.flags(max(job.cpus for unit in made for job in unit.jobs))
            array = submit_array(self.folder, self.label, made, self.run, flags, self.config.requeues, self.at_once)
            self._arrays.append(array)
            for number, (places, restarts) in enumerate(part):
                self._wait_for(array, number, places, "is queued again" if restarts else "is queued", supervisor)

    def _wait_for(
        self, array: SlurmArray, number: int, places: Sequence[int | None], how: str, supervisor: Supervisor
    ) -> None:
        """Take a task among those that are waited for, and say so."""
        task = _Task(TaskNews(array, number), places)
        self.tasks.append(task)
        for place in places:
            if place is not None:
                supervisor.hear(place, Update("running", f"SLURM job {task.news.job_id} {how}"))


def _is_gone(array: SlurmArray, states: Mapping[str, str]) -> bool:
    return all(has_ended(states[job_id]) for job_id in array.job_ids)


def _key(job: Job) -> str:
    """What tells the run of a job from those of others."""
    return json.dumps([job.name, job.config], sort_keys=True)


def _is_lost(state: str, news: TaskNews) -> bool:
    """Whether a job that has ended is to be submitted again: it was no fault of its own, nor anybody's wish."""
    return state in LOST or (news.wants_again and state != "CANCELLED")


def _end(state: str, news: TaskNews, requeues: int) -> Update:
    """How a run ended whose job has ended without a word about it."""
    job = f"its SLURM job {news.job_id}"
    if _is_lost(state, news):
        rule = f"`{PREFIX}requeues` (={requeues}) times"
        return Update("interrupted", f"{job} ended ({state}) after it was begun again {rule}")
    if state in ("CANCELLED", "DEADLINE") or news.was_stopped:
        return Update("interrupted", f"{job} was stopped ({state})")
    details = news.array.last_words(news.number)
    text = _last_words(details) or f"does its node see {news.array.folder}?"
    return Update("failed", f"{job} ended ({state}): {shown(text)}", details=details, died=True)


def _last_words(log: str) -> str:
    """What the end of a job's log says of its end: the last line of its process, and the last error that srun names."""
    lines = [line for line in log.splitlines() if line.strip()]
    own = [line.strip() for line in lines if not line.startswith(("srun: ", "slurmstepd"))]
    named = [line.removeprefix("srun: error: ") for line in lines if line.startswith("srun: error: ")]
    return "; ".join([*own[-1:], *named[-1:]])
