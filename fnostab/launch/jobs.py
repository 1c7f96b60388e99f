"""Runs as jobs: what is asked for, what is heard of them, and how they go one after the other in this process."""

import contextlib
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import FrameType
from typing import Any, Final, Literal

Launcher = Literal["inline", "processes", "ray"]
State = Literal["running", "done", "failed", "interrupted"]

#: Seconds between two looks for news and for signals.
TICK_S: Final = 0.2


@dataclass(frozen=True)
class LaunchConfig:
    """Where runs execute; `workers` None: as many as cores and memory allow, one where there is a GPU."""

    launcher: Launcher = "processes"
    workers: int | None = None
    gpus_per_run: float = 0.0
    ray_address: str | None = None


@dataclass(frozen=True)
class Job:
    """One run: `config` as JSON takes it, MLflow tags for it, and the CPUs that it keeps busy."""

    name: str
    config: Mapping[str, Any]
    tags: Mapping[str, str] = field(default_factory=dict)
    cpus: int = 1


@dataclass(frozen=True)
class Update:
    """How a run stands; `done` whatever its verdict, `failed` if it has none.

    `text` is for people, in one line; `details`, such as a traceback, for those who mend it.
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
    details: str = ""


Send = Callable[[Update], None]
Run = Callable[[Job, Send], None]
OnUpdate = Callable[[int, Update], None]

NOT_STARTED: Final = Update("interrupted", "not begun")


def run_inline(jobs: Sequence[Job], run: Run, on_update: OnUpdate) -> list[Update]:
    """Carry out the jobs one after the other in this process; returns how each ended.

    A signal is the run's own affair: one that ends `interrupted` ends the rest, which are not begun.
    """
    ends: list[Update] = []
    for place, job in enumerate(jobs):
        ends.append(run_job(run, job, partial(on_update, place)))
        if ends[-1].state == "interrupted":
            break
    return ends + [NOT_STARTED] * (len(jobs) - len(ends))


def run_job(run: Run, job: Job, send: Send) -> Update:
    """Carry out `job` in this process and pass on what it tells; returns the last of it."""
    last = Update("failed", "it said nothing")

    def listen(update: Update) -> None:
        nonlocal last
        last = update
        send(update)

    run(job, listen)
    return last


@contextlib.contextmanager
def collected_signals() -> Iterator[list[int]]:
    """Collect SIGTERM and Ctrl-C instead of dying from them."""
    caught: list[int] = []

    def catch(signum: int, frame: FrameType | None) -> None:
        caught.append(signum)

    previous = {signum: signal.signal(signum, catch) for signum in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield caught
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)
