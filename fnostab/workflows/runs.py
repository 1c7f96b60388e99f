"""The runs of a study: which have ended, which are missing, and how those are trained wherever it is wanted."""

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

import numpy as np
import psutil
import torch

from fnostab import launch
from fnostab.config import ARCHITECTURES, ArmConfig
from fnostab.io.cache import cache_folder
from fnostab.io.environment import kept_environment
from fnostab.launch import Job, LaunchConfig, OnUpdate, RunTask, Update
from fnostab.study.plan import Planned, StudyPlan
from fnostab.study.stored_run import StoredRun
from fnostab.tracking.studies import end_runs
from fnostab.workflows.child import train_job, train_together

#: What carries out a job in another process, and what trains a group of them.
_RUN: Final = RunTask("fnostab.workflows.child", "train_job", "train_together")
_CHILD: Final = (sys.executable, "-m", "fnostab.launch.worker", *_RUN)
#: Memory that a run is counted with when the number of workers is not given.
_MEMORY_A_RUN: Final = 2 * 2**30


class StudyDisplay(Protocol):
    """Shows people how the runs of a study stand."""

    def begin(self, runs: Sequence[Planned], finished: Mapping[int, Update]) -> None:
        """Show all runs that are planned so far; `finished` are those, by place, that have ended already."""

    def update(self, place: int, update: Update) -> None:
        """Show what the run at `place` says of itself."""

    def look(self, text: str) -> None:
        """Show a line about the study as a whole, such as what is decided and what is open."""


@dataclass
class Runs:
    """The runs of a study: `all` that are planned so far, and by their place in it how they ended.

    `stored` are those that have a result in the store, by arm, seed and hash of the config; `folder` is where runs are
    remembered that execute beyond this process. `on_end` is called after each run that ends.
    """

    plan: StudyPlan
    where: LaunchConfig
    view: StudyDisplay
    stored: Mapping[tuple[str, int, str | None], StoredRun]
    folder: Path
    all: list[Planned] = field(default_factory=list)
    ends: dict[int, Update] = field(default_factory=dict)
    on_end: Callable[[], None] = lambda: None

    def plan_more(self, runs: Iterable[Planned], *, only_finished: bool = False) -> None:
        """Take `runs` into the study, or only those of them that have a result in the store."""
        for run in runs:
            found = self.stored.get((run.arm, run.seed, run.config.sha256()))
            if found is not None:
                self.ends[len(self.all)] = _finished_before(found)
            if found is not None or not only_finished:
                self.all.append(run)
        if self.all:
            self.view.begin(self.all, self.ends)

    @property
    def missing(self) -> list[int]:
        """The places of the runs that have not ended."""
        return [place for place in range(len(self.all)) if place not in self.ends]

    @property
    def trained(self) -> set[tuple[str, int]]:
        """The arms and seeds that have a result."""
        return {(self.all[place].arm, self.all[place].seed) for place, end in self.ends.items() if end.state == "done"}

    def train(self, parent_run_id: str) -> None:
        """Train the runs that are missing, as children of the parent run."""
        places = self.missing
        if not places:
            return

        def watch(index: int, update: Update) -> None:
            self.view.update(places[index], update)
            if update.state != "running":
                self.ends[places[index]] = update
                self.on_end()

        missing = [self.all[place] for place in places]
        ends = _launch(self.plan, missing, self.where, watch, parent_run_id, self.folder)
        self.ends |= dict(zip(places, ends, strict=True))


def _finished_before(run: StoredRun) -> Update:
    """How a run ended that has its result; how many epochs that took is in its history alone, as it may be stopped."""
    loss, verdict = run.metrics.get("best_val_loss"), run.tags["verdict"]
    return Update("done", "finished before", val_loss=loss, verdict=verdict, run_id=run.run_id)


def _launch(
    plan: StudyPlan,
    runs: Sequence[Planned],
    where: LaunchConfig,
    on_update: OnUpdate,
    parent_run_id: str,
    folder: Path,
) -> list[Update]:
    """Train the runs, and return how each ended."""
    tags = {"mlflow.parentRunId": parent_run_id, "varied": ",".join(plan.varied)}
    groups = _groups(runs, where.seeds_at_once)
    jobs = [
        Job(run.name, run.config.model_dump(mode="json"), tags, _cpus(run.config), group)
        for run, group in zip(runs, groups, strict=True)
    ]
    statuses = {}

    def watch(index: int, update: Update) -> None:
        if update.state == "interrupted" or update.died:
            statuses[runs[index].arm, runs[index].seed] = "FAILED" if update.died else "KILLED"
        on_update(index, update)

    try:
        if where.launcher == "inline":
            return launch.run_inline(jobs, train_job, watch, train_together)
        if where.launcher == "ray":
            gpus = where.gpus_per_run
            return launch.run_ray(jobs, train_job, watch, train_together, workers=where.workers, gpus_per_run=gpus)
        if where.launcher == "slurm":
            at_once = where.workers
            return launch.run_slurm(jobs, _RUN, watch, where.slurm, folder=folder, label=plan.study, at_once=at_once)
        workers = where.workers or _workers(plan.common, len(jobs))
        # What comes after a training together keeps no GPU busy.
        finishers = 0 if where.workers else min(where.seeds_at_once, _fitting(plan.common, len(jobs)))
        return launch.run_processes(jobs, _CHILD, watch, workers, finishers)
    finally:
        end_runs(plan.study, parent_run_id, statuses)


def _cpus(config: ArmConfig) -> int:
    """CPUs that a run keeps busy."""
    return (config.train.threads or 1) * config.train.devices


def _workers(config: ArmConfig, jobs: int) -> int:
    """As many processes as cores and free memory allow; one at a time where they would share a GPU."""
    if config.train.accelerator != "cpu" and (torch.cuda.is_available() or torch.backends.mps.is_available()):
        return 1
    return _fitting(config, jobs)


def _fitting(config: ArmConfig, jobs: int) -> int:
    """As many processes as cores and free memory allow."""
    cores = (os.cpu_count() or 1) // _cpus(config)
    memory = int(psutil.virtual_memory().available // _MEMORY_A_RUN)
    return max(1, min(cores, memory, jobs))


def _groups(runs: Sequence[Planned], at_once: int) -> list[int | None]:
    """The number of the group that each run is trained in, or None for one that is trained alone."""
    places: dict[str, list[int]] = {}
    for place, run in enumerate(runs):
        if trains_alone(run.config) is None:
            places.setdefault(run.arm, []).append(place)
    groups: list[int | None] = [None] * len(runs)
    number = 0
    for of_arm in places.values():
        for part in np.array_split(of_arm, -(-len(of_arm) // at_once)):  # of sizes as equal as can be
            number += 1
            for place in part if len(part) > 1 else ():
                groups[place] = number
    return groups


def trains_alone(config: ArmConfig) -> str | None:
    """Why the runs of an arm cannot be trained together; None if they can."""
    if config.model.arch not in ARCHITECTURES:
        return f"model.arch={config.model.arch} is a network of your own"
    if config.train.devices * config.train.nodes > 1 or config.train.strategy == "ddp":
        return "each of its runs takes several devices"
    return None


def check_launcher(plan: StudyPlan, where: LaunchConfig) -> None:
    """Raise `ConfigError` if SLURM is to run the study and would not take its jobs."""
    if where.launcher == "slurm":
        launch.check_slurm(where.slurm, max(_cpus(config) for config in plan.arms.values()), cache_folder())


def cluster(plan: StudyPlan, where: LaunchConfig, *, needed: bool) -> AbstractContextManager[None]:
    """Be connected to Ray where its launcher has, or may have, runs to train."""
    if where.launcher != "ray" or not needed:
        return nullcontext()
    cpus = (where.workers or 1) * _cpus(plan.common)
    return launch.ray_cluster(where.ray_address, cpus=cpus, gpus_per_run=where.gpus_per_run)


@contextmanager
def environment(store_uri: str, experiment_id: str) -> Iterator[None]:
    """Let every run, wherever it executes, write to this store and into this experiment."""
    wanted = {"MLFLOW_TRACKING_URI": store_uri, "MLFLOW_EXPERIMENT_ID": experiment_id}
    with kept_environment(*wanted, "MLFLOW_EXPERIMENT_NAME"):
        os.environ.pop("MLFLOW_EXPERIMENT_NAME", None)
        os.environ.update(wanted)
        yield
