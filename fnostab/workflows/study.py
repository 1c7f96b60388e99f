"""Run a study: one dataset, a parent run, a child per arm and seed; only what is missing is trained."""

import hashlib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Final, Protocol

import psutil
import torch

import fnostab
from fnostab import launch
from fnostab.config import ArmConfig, ConfigError, stored_config
from fnostab.dataset import Dataset, OnPatterns
from fnostab.io.cache import cache_folder
from fnostab.launch import Job, LaunchConfig, Update
from fnostab.study.plan import STAGE_B_BLOCKS, Planned, StudyPlan, plan_stage_b
from fnostab.tracking.artifacts import read_config
from fnostab.tracking.checkout import git_commit
from fnostab.tracking.run import how_to_open
from fnostab.tracking.store import check_store, open_store
from fnostab.tracking.studies import StudyFolder, end_runs, find_results, open_parent
from fnostab.training.trainer import check_accelerator, check_devices, check_network
from fnostab.workflows import build_dataset
from fnostab.workflows.child import train_job
from fnostab.workflows.compare import rank_study
from fnostab.workflows.runfolder import held_alone

_CHILD: Final = (sys.executable, "-m", "fnostab.workflows.child")
#: Memory that a run is counted with when the number of workers is not given.
_MEMORY_A_RUN: Final = 2 * 2**30


class StudyDisplay(Protocol):
    """Shows people how the runs of a study stand."""

    def begin(self, runs: Sequence[Planned], finished: Mapping[int, Update]) -> None:
        """Show all runs; `finished` are those, by place, that need not be trained any more."""

    def update(self, place: int, update: Update) -> None:
        """Show what the run at `place` says of itself."""


@dataclass(frozen=True)
class StudyOutcome:
    """A study that has come to its end: how each run ended, and where its parent run is."""

    plan: StudyPlan
    run_id: str
    how_to_open: str
    ends: Sequence[tuple[Planned, Update]]

    @property
    def without_result(self) -> list[tuple[Planned, Update]]:
        """Runs that crashed or were not begun; failed verdicts are results."""
        return [(run, end) for run, end in self.ends if end.state != "done"]

    @property
    def results(self) -> str:
        """How many runs have a result, in words."""
        return f"{len(self.ends) - len(self.without_result)} of {len(self.ends)} runs have a result"


def run_study(
    plan: StudyPlan, where: LaunchConfig, view: StudyDisplay, data_progress: OnPatterns | None = None
) -> StudyOutcome:
    """Train what is missing of `plan`, and return how every run ended.

    Finished runs of the same study, arm, seed, config and dataset are not trained again. Raises `ConfigError` for bad
    input before anything is written, `AlreadyRunning` if another process runs this study, and `Interrupted` after
    SIGTERM or Ctrl-C, once the runs have stored what they had; the same call then goes on.
    """
    _check(plan)
    store_uri = check_store(for_new_run=True)
    dataset = build_dataset(plan.common.data, data_progress)
    open_store()
    identity = plan.identity(dataset.sha256)
    locks = cache_folder() / "studies"
    locks.mkdir(parents=True, exist_ok=True)
    key = hashlib.sha256(f"{identity}-{store_uri}".encode()).hexdigest()[:32]
    with held_alone(locks / f"{key}.lock", f"study {plan.study} is being run"):
        finished = _finished(plan, dataset)
        view.begin(plan.runs, finished)
        tags = {"stage": "b" if plan.stage_a else "a", "dataset_sha256": dataset.sha256, "preset": plan.common.preset}
        tags |= {"fnostab_version": fnostab.__version__, "git_commit": git_commit()}
        tags |= {"stage_a": plan.stage_a} if plan.stage_a else {}
        params = {"arms": ", ".join(plan.arms), "launcher": where.launcher}
        with (
            _cluster(plan, where, len(plan.runs) - len(finished)),
            launch.collected_signals(),  # from before there is a parent run, so that no signal leaves it RUNNING
            open_parent(plan.study, identity, plan.to_mapping(), tags, params) as parent,
        ):
            with _environment(store_uri, parent.experiment_id):
                ends = finished | _launch(plan, where, view, parent.run_id, finished)
            outcome = StudyOutcome(
                plan,
                parent.run_id,
                how_to_open(parent.run_id, parent.experiment_id),
                [(run, ends[place]) for place, run in enumerate(plan.runs)],
            )
            _log_failures(outcome, parent)
    return outcome


def _log_failures(outcome: StudyOutcome, parent: StudyFolder) -> None:
    """Let the parent run say what has no result, and why."""
    if outcome.without_result:
        parent.status = "FAILED"
    parent.set_tags({"results": outcome.results})
    for run, end in outcome.without_result:
        if end.details:
            parent.log_text(end.details, f"failures/{run.arm}-seed{run.seed}.txt")


def _cluster(plan: StudyPlan, where: LaunchConfig, missing: int) -> AbstractContextManager[None]:
    """Be connected to Ray where its launcher has runs to train."""
    if where.launcher != "ray" or not missing:
        return nullcontext()
    cpus = (where.workers or 1) * _cpus(plan.common)
    return launch.ray_cluster(where.ray_address, cpus=cpus, gpus_per_run=where.gpus_per_run)


def stage_b_of(stage_a: str, seeds: str, *, fno_blocks: int = STAGE_B_BLOCKS, study: str = "auto") -> StudyPlan:
    """Plan Stage B from the winner of the study `stage_a` in the store, on the same dataset.

    Raises `ConfigError` if there is no such study, its runs cannot be compared, or every one of them failed.
    """
    open_store(must_exist=True)
    selection, ranking = rank_study(stage_a)
    winner = ranking.decision.winner
    if winner is None:
        raise ConfigError(f"`stage_a` (={stage_a}) must have an arm that converged: every run failed")
    run_id = next(row["best_run_id"] for row in ranking.table if row["arm"] == winner)
    config = stored_config(read_config(run_id))
    first = min(run.seed for run in selection.runs if run.arm == winner)
    plan = plan_stage_b(stage_a, config.model_copy(update={"seed": first}), seeds, fno_blocks=fno_blocks, study=study)
    found = build_dataset(plan.common.data).sha256
    if found != selection.dataset_sha256:
        raise ConfigError(
            f"`stage_a` (={stage_a}) must have the dataset of Stage B, and has {selection.dataset_sha256} "
            f"against {found}"
        )
    return plan


def _check(plan: StudyPlan) -> None:
    for config in plan.arms.values():
        check_accelerator(config.train.accelerator)
        check_network(config)
        check_devices(config)


def _finished(plan: StudyPlan, dataset: Dataset) -> dict[int, Update]:
    """Return the runs, by place, that have a result in the store."""
    stored = find_results(plan.study, dataset.sha256)
    ends = {}
    for place, planned in enumerate(plan.runs):
        run = stored.get((planned.arm, planned.seed, planned.config.sha256()))
        if run is not None:
            # How many epochs it took is in its history alone: it may have been stopped.
            ends[place] = Update(
                "done",
                "finished before",
                val_loss=run.metrics.get("best_val_loss"),
                verdict=run.tags["verdict"],
                run_id=run.run_id,
            )
    return ends


def _launch(
    plan: StudyPlan, where: LaunchConfig, view: StudyDisplay, parent_run_id: str, finished: Mapping[int, Update]
) -> dict[int, Update]:
    """Train the runs that are not finished, and return how each ended, by place."""
    tags = {"mlflow.parentRunId": parent_run_id, "varied": ",".join(plan.varied)}
    runs = plan.runs
    places = [place for place in range(len(runs)) if place not in finished]
    if not places:
        return {}
    missing = [runs[place] for place in places]
    jobs = [Job(run.name, run.config.model_dump(mode="json"), tags, _cpus(run.config)) for run in missing]
    statuses = {}

    def watch(index: int, update: Update) -> None:
        run = missing[index]
        if update.state == "interrupted" or update.died:
            statuses[run.arm, run.seed] = "FAILED" if update.died else "KILLED"
        view.update(places[index], update)

    try:
        if where.launcher == "inline":
            ends = launch.run_inline(jobs, train_job, watch)
        elif where.launcher == "ray":
            ends = launch.run_ray(jobs, train_job, watch, workers=where.workers, gpus_per_run=where.gpus_per_run)
        else:
            workers = where.workers or _workers(plan.common, len(jobs))
            ends = launch.run_processes(jobs, _CHILD, watch, workers)
    finally:
        end_runs(plan.study, parent_run_id, statuses)
    return dict(zip(places, ends, strict=True))


def _cpus(config: ArmConfig) -> int:
    """CPUs that a run keeps busy."""
    return (config.train.threads or 1) * config.train.devices


def _workers(config: ArmConfig, jobs: int) -> int:
    """As many processes as cores and free memory allow; one at a time where they would share a GPU."""
    if config.train.accelerator != "cpu" and (torch.cuda.is_available() or torch.backends.mps.is_available()):
        return 1
    cores = (os.cpu_count() or 1) // _cpus(config)
    memory = int(psutil.virtual_memory().available // _MEMORY_A_RUN)
    return max(1, min(cores, memory, jobs))


@contextmanager
def _environment(store_uri: str, experiment_id: str) -> Iterator[None]:
    """Let every run, wherever it executes, write to this store and into this experiment."""
    wanted = {"MLFLOW_TRACKING_URI": store_uri, "MLFLOW_EXPERIMENT_ID": experiment_id}
    kept = {key: os.environ.pop(key, None) for key in (*wanted, "MLFLOW_EXPERIMENT_NAME")}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for key, value in kept.items():
            os.environ.pop(key, None)
            if value is not None:
                os.environ[key] = value
