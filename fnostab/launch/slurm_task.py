"""What a task of a SLURM array does: carry out its runs, and ask to be queued again if its time is up."""

import importlib
import json
import os
import platform
import signal
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, NamedTuple

from fnostab.io.endings import Interrupted
from fnostab.io.garbage import lasting_imports
from fnostab.launch.jobs import Job, Update, collected_signals, run_inline
from fnostab.launch.slurm_cluster import requeue_this_job

#: Signals by which SLURM says that a job's time is up; SIGTERM comes where it is cancelled, or queued again anyway.
_TIME_IS_UP: Final = (signal.SIGUSR1, signal.SIGUSR2)


class RunTask(NamedTuple):
    """What carries out a run, and what trains a group of them, by name: two functions of a module."""

    module: str
    run: str
    run_together: str


def run_task(folder: str, number: str, module: str, run: str, run_together: str, requeues: str) -> None:
    """Carry out what the task `number` of the array in `folder` runs, in a SLURM job.

    All arguments are text, since submitit pickles them. A run that SLURM tells to stop because its time is up stores a
    checkpoint; then its job goes into the queue again, unless it was begun anew `requeues` times already. A run that is
    stopped otherwise ends the job: SLURM begins it again if it is its own doing. Raises `SystemExit` for a run that was
    stopped.
    """
    path = Path(folder)
    unit = json.loads((path / "array.json").read_text(encoding="utf-8"))["units"][int(number)]
    said = path / f"{number}.jsonl"
    with said.open("ab") as stream:  # a process before this one may have been killed in the middle of a line
        stream.write(b"\n")
    try:
        with collected_signals():  # from now on, and not only once the run has begun
            _say(said, {"begun": platform.node()})
            with lasting_imports():
                imported = importlib.import_module(module)

            def send(place: int, update: Update) -> None:
                _say(said, {"place": place, "update": asdict(update)})

            jobs = [Job(**job) for job in unit["jobs"]]
            run_inline(jobs, getattr(imported, run), send, getattr(imported, run_together))
    except Interrupted as interrupt:
        restarts = unit["restarts"] + int(os.environ.get("SLURM_RESTART_COUNT", "0"))
        if interrupt.signum in _TIME_IS_UP and restarts < int(requeues):
            _say(said, {"again": str(interrupt)})
            if refused := requeue_this_job():  # the study submits it again then
                print(f"fnostab: the job could not be queued again: {refused}", flush=True)
        raise SystemExit(128 + interrupt.signum) from None


def _say(file: Path, line: Mapping[str, Any]) -> None:
    """Append a line; closed each time, so that network file systems show it to others."""
    with file.open("ab") as stream:
        stream.write(json.dumps(line).encode() + b"\n")
