"""Runs as jobs: what is asked for, what is heard of them, what stops them, and a launcher for this process."""

import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from types import FrameType
from typing import Any, Final, Literal

from fnostab.io.endings import STOP_SIGNALS, Interrupted
from fnostab.launch.slurm_config import SlurmConfig

Launcher = Literal["processes", "inline", "ray", "slurm"]
State = Literal["running", "done", "failed", "interrupted"]

#: Seconds between two looks for updates and for signals.
TICK_S: Final = 0.2


@dataclass(frozen=True)
class LaunchConfig:
    """Where runs execute; `workers` None: as many as cores and memory allow, one where there is a GPU.

    Up to `seeds_at_once` runs of an arm are trained together, as one group of jobs.
    """

    launcher: Launcher = "processes"
    workers: int | None = None
    seeds_at_once: int = 1
    gpus_per_run: float = 0.0
    ray_address: str | None = None
    slurm: SlurmConfig = SlurmConfig()


@dataclass(frozen=True)
class Job:
    """One run: `config` as JSON takes it, MLflow tags for it, and the CPUs that it keeps busy.

    Jobs of the same `group` are trained together first, and then each is carried out like any other.
    """

    name: str
    config: Mapping[str, Any]
    tags: Mapping[str, str] = field(default_factory=dict)
    cpus: int = 1
    group: int | None = None


@dataclass(frozen=True)
class Update:
    """How a run stands: `done` whatever its verdict, `failed` if it has none, `interrupted` by the signal `signum`.

    `text` is one line for people; `details`, such as a traceback, is for those who mend it. `died` says that the run's
    process ended without a word.
    """

    state: State
    text: str = ""
    epoch: int = 0
    epochs: int = 0
    val_loss: float | None = None
    seconds_left: float | None = None
    verdict: str | None = None
    run_id: str | None = None
    pid: int | None = None
    signum: int = signal.SIGTERM
    details: str = ""
    died: bool = False


Send = Callable[[Update], None]
Run = Callable[[Job, Send], None]
OnUpdate = Callable[[int, Update], None]
#: Trains the jobs of a group together, as far as that goes. Of the updates, by place in the group, those that end a job
#: count; jobs without one are to be carried out for themselves, and go on from where they stand.
RunTogether = Callable[[Sequence[Job], OnUpdate], None]

NOT_STARTED: Final = Update("interrupted", "not begun")


class _Collector:
    """A signal handler that keeps the signals that came."""

    def __init__(self) -> None:
        self.caught: list[int] = []

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        self.caught.append(signum)


@contextmanager
def collected_signals() -> Iterator[list[int]]:
    """Collect the signals that ask this process to stop, instead of dying from them.

    Inside of another such block it is the same list. A signal that is ignored, as under nohup, stays ignored.
    """
    current = signal.getsignal(signal.SIGTERM)
    if isinstance(current, _Collector):
        yield current.caught
        return
    collector = _Collector()
    heeded = [signum for signum in STOP_SIGNALS if signal.getsignal(signum) is not signal.SIG_IGN]
    previous = {signum: signal.signal(signum, collector) for signum in heeded}
    try:
        yield collector.caught
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)


class Supervisor:
    """Passes on what `jobs` runs say of themselves, and stops them at the first signal or failure of `on_update`."""

    def __init__(self, jobs: int, on_update: OnUpdate, stop: Callable[[], None], caught: Sequence[int]) -> None:
        #: How each run ended.
        self.ends = [NOT_STARTED] * jobs
        #: Why the runs are to stop; it is raised once they have.
        self.cause: BaseException | None = None
        self._on_update = on_update
        self._stop = stop
        self._caught = caught

    def hear(self, place: int, update: Update) -> None:
        """Pass on what the run at `place` says."""
        if update.state != "running":
            self.ends[place] = update
        try:
            self._on_update(place, update)
        except BrokenPipeError:  # nobody reads what is shown: most programs die of this signal then
            self.stop(Interrupted(signal.SIGPIPE))
        except BaseException as error:
            self.stop(error)

    def left_of(self, unit: Sequence[int]) -> list[int]:
        """The places of a group that has been trained together at which no run has ended."""
        return [place for place in unit if self.ends[place] is NOT_STARTED] if len(unit) > 1 else []

    def check(self) -> None:
        """Stop the runs if a signal came."""
        if self._caught:
            self.stop(Interrupted(self._caught[0]))

    def stop(self, cause: BaseException) -> None:
        """Stop the runs; only the first cause counts."""
        if self.cause is None:
            self.cause = cause
            self._stop()


@contextmanager
def supervised(jobs: int, on_update: OnUpdate, stop: Callable[[], None]) -> Iterator[Supervisor]:
    """Supervise `jobs` runs inside the block, and raise at its end what stopped them; `stop` asks all runs to end."""
    with collected_signals() as caught:
        supervisor = Supervisor(jobs, on_update, stop, caught)
        supervisor.check()
        yield supervisor
        if supervisor.cause is not None:
            raise supervisor.cause


class Waiting:
    """The jobs that wait, by their places: those of a group stand together until they have been trained together."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        groups: dict[tuple[int, int], list[int]] = {}
        for place, job in enumerate(jobs):
            groups.setdefault((-1, place) if job.group is None else (job.group, -1), []).append(place)
        self._new = list(groups.values())
        self._trained: list[list[int]] = []

    def take(self, *, new: bool = True) -> list[int]:
        """What is next: the places of a group, or of one job; nothing if none waits, or only `new` ones do."""
        units = self._trained or (self._new if new else [])
        return units.pop(0) if units else []

    def add_trained(self, places: Iterable[int]) -> None:
        """Let the jobs at `places`, which have been trained together, be next, each for itself."""
        self._trained += [[place] for place in places]

    def clear(self) -> None:
        """Forget all."""
        self._new.clear()
        self._trained.clear()


def run_inline(
    jobs: Sequence[Job], run: Run, on_update: OnUpdate, run_together: RunTogether | None = None
) -> list[Update]:
    """Carry out the jobs one after the other in this process; returns how each ended.

    A run may handle signals itself: if it ends `interrupted`, the rest is not begun. Raises `Interrupted` then.
    """
    with supervised(len(jobs), on_update, stop=lambda: None) as supervisor:

        def send(place: int, update: Update) -> None:
            supervisor.hear(place, update)
            supervisor.check()
            # Before a run handles signals it would not hear one: the next time it says something is early enough.
            heeded = unit[1:] or not isinstance(signal.getsignal(signal.SIGTERM), _Collector)
            if supervisor.cause and heeded and not told:
                told.append(True)
                signal.raise_signal(signal.SIGTERM)

        told: list[bool] = []
        waiting = Waiting(jobs)
        while (unit := waiting.take()) and not supervisor.cause:
            run_unit(
                run, run_together, [jobs[place] for place in unit], lambda index, update: send(unit[index], update)
            )
            waiting.add_trained(supervisor.left_of(unit))
            for end in (supervisor.ends[place] for place in unit):
                if end.state == "interrupted" and end is not NOT_STARTED:
                    supervisor.stop(Interrupted(end.signum))
    return supervisor.ends


def run_unit(run: Run, run_together: RunTogether | None, jobs: Sequence[Job], send: OnUpdate) -> None:
    """Carry out one job, or train several together, in this process; `send` gets the updates of each."""
    if len(jobs) == 1:
        run_job(run, jobs[0], partial(send, 0))
    else:
        assert run_together is not None
        run_together(jobs, send)


def run_job(run: Run, job: Job, send: Send) -> Update:
    """Carry out `job` in this process and pass on its updates; returns the last of them."""
    last = Update("failed", "it said nothing")

    def listen(update: Update) -> None:
        nonlocal last
        last = update
        send(update)

    run(job, listen)
    return last
