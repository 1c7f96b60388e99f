"""Which MLflow run a training, a study or a reconstruction writes to; how it ends, and how it stands."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, Literal
from urllib.parse import quote

import mlflow
from mlflow.entities import Run
from mlflow.environment_variables import MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NOTE
from mlflow.utils.name_utils import _GENERATOR_NOUNS, _GENERATOR_PREDICATES

from fnostab.config import ArmConfig, ConfigError
from fnostab.io.endings import CommandFailed
from fnostab.tracking.batches import log_batches
from fnostab.tracking.errors import (
    StoreUnavailable,
    has_code,
    one_line,
    redacted,
    translated_store_errors,
)
from fnostab.tracking.store import check_store, open_store, search_runs
from fnostab.tracking.target import named_run, target_experiment_id
from fnostab.tracking.tracker import Tracker

logger = logging.getLogger(__name__)

#: Tag of a run that tells which run folder it was made for, before the folder knows of the run.
_CLAIM: Final = "run_folder"
#: Tags of a run that holds a training, a study, or the reconstruction of a scan.
_IN_USE: Final = ("config_sha256", "verdict", "study_role", "scan")

#: Tag that the UI shows as a run's description.
NOTE: Final = MLFLOW_RUN_NOTE

RunState = Literal["finished", "unfinished", "deleted", "gone"]


@contextmanager
def open_run(
    config: ArmConfig,
    folder: Path,
    *,
    first_run_id: str | None = None,
    claim: str | None = None,
    run_name: str | None = None,
) -> Iterator[Tracker]:
    """Open the MLflow run to write to: `first_run_id`, else that of `MLFLOW_RUN_ID`, else a new one.

    `first_run_id` is the run of this identity that was started before and not finished. A run of `MLFLOW_RUN_ID` that
    belongs to something else already gets a child, which is written to. The run is called `run_name`; without one it
    keeps the name that somebody gave it. A new run carries `claim`, by which `find_claimed` finds it. What the store
    does not take for a while waits in `folder`. The run ends as the tracker's `status` says, KILLED after an
    interrupt or exit, and FAILED after an error.
    """
    run_id: str | None = None
    tags = {_CLAIM: claim} if claim else {}
    # MLflow's own default is not to log them.
    log_system_metrics = None if MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING.name in os.environ else True
    try:
        with translated_store_errors():
            run, parent = _choose_run(first_run_id)
            run_id = run.info.run_id if run else None
            tags |= {MLFLOW_PARENT_RUN_ID: parent.info.run_id} if parent else {}
            run_id = mlflow.start_run(
                run_id,
                experiment_id=parent.info.experiment_id if parent else None,
                run_name=run_name or unless_named(run, f"{config.arm}-seed{config.seed}"),
                tags=tags or None,
                log_system_metrics=log_system_metrics,
            ).info.run_id
        tracker = Tracker(run_id, folder, resumed=first_run_id is not None)
        try:
            yield tracker
        except BaseException:
            tracker.flush()
            raise
        tracker.finish()
        with translated_store_errors():
            mlflow.end_run(tracker.status)
    except BaseException as error:
        _end(run_id, claim, "FAILED" if isinstance(error, Exception) else "KILLED")
        raise


def start_guest_run(name: str, folder: Path, *, run_id: str | None = None) -> Tracker:
    """Start the run of a training that somebody else leads; until `end_run` ends it, it is MLflow's active run.

    It is `run_id`, if that is there still; else a child of the run that is active; else that of `MLFLOW_RUN_ID`, or a
    child of it if it holds something already; else a new one in the experiment that MLflow would take. A run keeps the
    name that somebody gave it. Raises `ConfigError` for a store, an experiment or a run that cannot be written to.
    """
    check_store(for_new_run=True)
    open_store()
    with translated_store_errors():
        if run_id and run_state(run_id) in ("deleted", "gone"):
            run_id = None
        run: Run | None = None
        parent: Run | None = None
        if not run_id:
            parent = mlflow.active_run()
            if parent is None:
                run, parent = own_run()
        started = mlflow.start_run(
            run_id or (run.info.run_id if run else None),
            experiment_id=parent.info.experiment_id if parent else None,
            run_name=None if run_id else unless_named(run, name),
            nested=True,
            tags={MLFLOW_PARENT_RUN_ID: parent.info.run_id} if parent else None,
        )
    return Tracker(started.info.run_id, folder, resumed=run_id is not None)


def end_run(run_id: str, status: str) -> None:
    """End a run with MLflow's `status`, which is logged as a warning where the store does not take it."""
    _end(run_id, None, status)


def _choose_run(first_run_id: str | None) -> tuple[Run | None, Run | None]:
    """The run that is there to be written to, None if one is to be made, and the run that is to be its parent."""
    if first_run_id:
        resume_into(first_run_id)
        return mlflow.MlflowClient().get_run(first_run_id), None
    return own_run()


def own_run() -> tuple[Run | None, Run | None]:
    """The run of `MLFLOW_RUN_ID`, and None; if that holds something already, None and it: it is to be a parent."""
    run = named_run()
    os.environ.pop("MLFLOW_RUN_ID", None)
    if run is None:
        return None, None
    if not _is_in_use(run):
        return run, None
    line = "run %s, which MLFLOW_RUN_ID names, is in use already: this is a new run, a child of it"
    logger.warning(line, run.info.run_id)
    return None, run


def _is_in_use(run: Run) -> bool:
    return run.info.status == "FINISHED" or not run.data.tags.keys().isdisjoint(_IN_USE)


def own_or_new_run() -> Run:
    """The run of `MLFLOW_RUN_ID`; a new one if it is not set, or a child of it if it holds something already."""
    run, parent = own_run()
    if run is not None:
        return run
    tags = {MLFLOW_PARENT_RUN_ID: parent.info.run_id} if parent else None
    return mlflow.MlflowClient().create_run(parent.info.experiment_id if parent else target_experiment_id(), tags=tags)


def unless_named(run: Run | None, name: str) -> str | None:
    """`name` for a run that is to be made, or whose name MLflow made up; None for one that somebody has named."""
    adjective, _, rest = (run.info.run_name if run else "").partition("-")
    noun, _, number = rest.partition("-")
    made_up = adjective in _GENERATOR_PREDICATES and noun in _GENERATOR_NOUNS and number.isdecimal()
    return name if made_up or run is None else None


def _end(run_id: str | None, claim: str | None, status: str) -> None:
    """End a run early, also one that was being made, or ended, when a signal came."""
    try:
        run_id = run_id or (find_claimed(claim) if claim else None)
        if run_id is None:
            return
        if (active := mlflow.active_run()) and active.info.run_id == run_id:
            mlflow.end_run(status)
        mlflow.MlflowClient().set_terminated(run_id, status)
    except (MlflowException, OSError, StoreUnavailable) as away:
        logger.warning("the run's status could not be stored: %s", one_line(away))


@translated_store_errors()
def resume_into(run_id: str) -> None:
    """Turn to `run_id`: if `mlflow run` made another one for this process, that gets the tag `resumed_into`."""
    run = named_run()
    os.environ.pop("MLFLOW_RUN_ID", None)
    # A run with the tag is left out of comparisons: one that holds something else must not get it.
    if run is not None and run.info.run_id != run_id and not _is_in_use(run):
        mlflow.MlflowClient().set_tag(run.info.run_id, "resumed_into", run_id)


def find_claimed(claim: str) -> str | None:
    """The run that was made with `claim` for a process that ended before it could take note of it; None if none was."""
    return next((run.run_id for run in search_runs(**{_CLAIM: claim})), None)


def fail_projects_run(reason: str) -> None:
    """Tag the run that `mlflow run` made for this process with `reason`, if it holds nothing and the store answers."""
    # A store that does not take it, or a run that is not there, is what `reason` tells of: it has been said already.
    with suppress(ConfigError, CommandFailed, MlflowException, OSError):
        check_store(must_exist=True)
        if (run := named_run()) and not _is_in_use(run):
            log_batches(mlflow.MlflowClient(), run.info.run_id, tags={"verdict_reason": redacted(reason)})


@translated_store_errors()
def run_state(run_id: str) -> RunState:
    """How `run_id` stands in the store: whether it ended FINISHED, did not, was deleted, or is not there."""
    try:
        run = mlflow.MlflowClient().get_run(run_id)
    except MlflowException as error:
        if not has_code(error, RESOURCE_DOES_NOT_EXIST):
            raise
        return "gone"
    if run.info.lifecycle_stage != "active":
        return "deleted"
    return "finished" if run.info.status == "FINISHED" else "unfinished"


def run_url(run_id: str, experiment_id: str) -> str | None:
    """The page of a run on a tracking server; None for a store without one."""
    uri = mlflow.get_tracking_uri()
    return f"{uri.rstrip('/')}{_page(run_id, experiment_id)}" if uri.startswith("http") else None


def how_to_open(run_id: str, experiment_id: str) -> str:
    """How to see a run in the UI: a link to the server, or the command that starts the UI and the link to open then."""
    if url := run_url(run_id, experiment_id):
        return f"open {url}"
    command = f"`mlflow ui --backend-store-uri {redacted(mlflow.get_tracking_uri())}`"
    return f"{command}, then open http://127.0.0.1:5000{_page(run_id, experiment_id)}"


def artifact_page(run_id: str, experiment_id: str, path: str) -> str:
    """Where the UI shows an artifact of a run, as a link from any other of its pages."""
    return f"{_page(run_id, experiment_id).removeprefix('/')}/artifacts/{quote(path)}"


def _page(run_id: str, experiment_id: str) -> str:
    return f"/#/experiments/{experiment_id}/runs/{run_id}"
