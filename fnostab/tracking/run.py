"""One MLflow run that is written while it trains: which one, how it ends, and how it stands."""

import logging
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, Literal

import mlflow
import numpy as np
from mlflow.data.code_dataset_source import CodeDatasetSource
from mlflow.data.numpy_dataset import from_numpy
from mlflow.entities import Metric, Run
from mlflow.environment_variables import MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID
from mlflow.utils.name_utils import _GENERATOR_NOUNS, _GENERATOR_PREDICATES
from numpy.typing import NDArray

import fnostab
from fnostab.config import ArmConfig, ConfigError
from fnostab.dataset import Dataset
from fnostab.io.endings import CommandFailed
from fnostab.tracking.batches import METRICS_A_CALL, log_batches
from fnostab.tracking.checkout import git_commit
from fnostab.tracking.errors import (
    HOW_TO_FINISH,
    StoreUnavailable,
    failure_text,
    has_code,
    one_line,
    redacted,
    translated_store_errors,
)
from fnostab.tracking.pictures import PictureQueue
from fnostab.tracking.store import check_store, search_runs
from fnostab.tracking.target import named_run, target_experiment_id

logger = logging.getLogger(__name__)

#: After a vain attempt to write, this many times as long as it took pass before the next: the caller has other work.
_REST: Final = 5.0
_LEAST_REST_S: Final = 1.0
#: Tag of a run that tells which run folder it was made for, before the folder knows of the run.
_CLAIM: Final = "run_folder"
#: Tags of a run that holds a training, a study, or the reconstruction of a scan.
_IN_USE: Final = ("config_sha256", "verdict", "study_role", "scan")

RunState = Literal["finished", "unfinished", "deleted", "gone"]


class Tracker:
    """One MLflow run that is being written, for as long as the object is used as a context manager.

    Metrics and pictures are queued and written in batches; a store that stops answering never stops the caller, nor
    takes more than a sixth of its time: what could not be written stays queued, pictures as files in `folder`, for the
    next `flush`, and `unwritten` tells how much that is. The other methods raise `StoreUnavailable` then.
    """

    def __init__(self, run_id: str, folder: Path, *, resumed: bool) -> None:
        self._client = mlflow.MlflowClient()
        self.run_id = run_id
        with translated_store_errors():
            self.experiment_id = self._client.get_run(run_id).info.experiment_id
        self.resumed = resumed
        self._queue: list[Metric] = []
        self._stored: dict[str, int] = {}
        self._pictures = PictureQueue(self._client, run_id, folder / "pictures", resumed=resumed)
        #: What is wrong with the store, as far as it was tried.
        self._ailing: str | None = None
        self._rests_until = 0.0

    def log_series(self, rows: Iterable[tuple[str, float, int, int]]) -> None:
        """Queue (key, value, optimizer step, time in ms) rows, the steps of a key in ascending order."""
        self._queue += [Metric(key, value, time_ms, step) for key, value, step, time_ms in rows]
        if len(self._queue) >= METRICS_A_CALL:
            self.flush()

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Queue one value a key at `step`."""
        now_ms = time.time_ns() // 1_000_000
        self.log_series((key, float(value), step, now_ms) for key, value in metrics.items())

    def log_image(self, image: NDArray[np.uint8], key: str, step: int) -> None:
        """Queue an (H, W, 3) picture under `key`, which the UI shows by step."""
        self._pictures.add(image, key, step)
        self.flush()

    @property
    def unwritten(self) -> int:
        """Metric values and pictures that are queued and not in the store."""
        return len(self._queue) + len(self._pictures)

    def flush(self, *, at_once: bool = False) -> bool:
        """Write what is queued, less what the store holds from before a resume.

        Returns False, and keeps what is left, if the store does not answer; and, unless it shall be tried `at_once`,
        for a while after that.
        """
        if not at_once and time.monotonic() < self._rests_until:
            return not self.unwritten
        started_at = time.monotonic()
        try:
            while self._queue:
                batch = self._queue[:METRICS_A_CALL]
                fresh = [metric for metric in batch if metric.step > self._last_stored(metric.key)]
                log_batches(self._client, self.run_id, metrics=fresh)
                del self._queue[: len(batch)]
            self._pictures.write()
        except Exception as error:
            now = time.monotonic()
            self._rests_until = now + max(_LEAST_REST_S, _REST * (now - started_at))
            if self._ailing is None:
                logger.warning("%s: %d values wait", failure_text(error), self.unwritten)
            self._ailing = failure_text(error)
            return False
        if self._ailing is not None:
            logger.warning("the tracking store answers again, nothing waits any more")
        self._ailing = None
        return True

    def finish(self) -> None:
        """Write all that is queued; raises `StoreUnavailable` if something is left."""
        if not self.flush(at_once=True):
            raise StoreUnavailable(f"{self._ailing}: {self.unwritten} values wait; {HOW_TO_FINISH}")

    def _last_stored(self, key: str) -> int:
        """Highest step of `key` in the store when the run was resumed; -1 for a new run or key."""
        if not self.resumed:
            return -1
        if key not in self._stored:
            history = self._client.get_metric_history(self.run_id, key)
            self._stored[key] = max((metric.step for metric in history), default=-1)
        return self._stored[key]

    @translated_store_errors()
    def log_config(self, config: ArmConfig) -> None:
        """Log the resolved config under its dotted keys (skipping keys that are there) and as `config.yaml`."""
        there = self._client.get_run(self.run_id).data.params
        new = {key: value for key, value in config.flat().items() if key not in there}
        log_batches(self._client, self.run_id, params=new)
        self._client.log_dict(self.run_id, config.model_dump(mode="json"), "config.yaml")

    @translated_store_errors()
    def set_tags(self, tags: Mapping[str, object]) -> None:
        """Set tags; values are cut to what MLflow takes."""
        log_batches(self._client, self.run_id, tags=tags)

    @translated_store_errors()
    def delete_tags(self, *keys: str) -> None:
        """Delete those of the tags that are there."""
        there = self._client.get_run(self.run_id).data.tags
        for key in there.keys() & set(keys):
            self._client.delete_tag(self.run_id, key)

    @translated_store_errors()
    def log_dataset(self, dataset: Dataset) -> None:
        """Log the dataset as the run's input; its digest is the first 32 hex digits of the content hash."""
        config = dataset.config
        name = Path(config.path).name or f"{config.objects}-{config.phase}"
        source = CodeDatasetSource({"path": config.path or "simulated", "config_sha256": dataset.config_sha256})
        example = np.asarray(dataset.train.counts[:1])
        described = from_numpy(example, source=source, name=name, digest=dataset.sha256[:32])
        try:
            mlflow.log_input(described, context="training")
        except MlflowException:
            # Of processes that log a new dataset at once, MLflow's database refuses all but one, but once only.
            mlflow.log_input(described, context="training")

    @translated_store_errors()
    def log_text(self, text: str, name: str) -> None:
        """Log `text` as the artifact `name`."""
        self._client.log_text(self.run_id, text, name)

    @translated_store_errors()
    def log_picture(self, image: NDArray[np.uint8], name: str) -> None:
        """Log an (H, W, 3) picture as the artifact `name`."""
        self._client.log_image(self.run_id, image, artifact_file=name)

    @translated_store_errors()
    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Log a file into `folder` of the run's artifacts."""
        self._client.log_artifact(self.run_id, str(path), folder)


def run_tags(config: ArmConfig, dataset: Dataset, device: str) -> dict[str, str]:
    """The tags by which runs are found and compared."""
    return {
        "study": config.study,
        "arm": config.arm,
        "arch": config.model.arch,
        "clip_algo": config.clip.algo,
        "seed": str(config.seed),
        "dataset_sha256": dataset.sha256,
        "probe_sha256": dataset.probe_sha256,
        "config_sha256": config.sha256(),
        "fnostab_version": fnostab.__version__,
        "git_commit": git_commit(),
        "device": device,
    }


@contextmanager
def open_run(
    config: ArmConfig, folder: Path, *, first_run_id: str | None = None, claim: str | None = None
) -> Iterator[Tracker]:
    """Open the MLflow run to write to: `first_run_id`, else that of `MLFLOW_RUN_ID`, else a new one.

    `first_run_id` is the run of this identity that was started before and not finished. A run of `MLFLOW_RUN_ID` that
    belongs to something else already gets a child, which is written to. A run keeps the name that somebody gave it. A
    new run carries `claim`, by which `find_claimed` finds it. What the store does not take for a while waits in
    `folder`. The run ends FINISHED when the block does, KILLED after an interrupt or exit, and FAILED after an error.
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
                run_name=unless_named(run, f"{config.arm}-seed{config.seed}"),
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
            mlflow.end_run("FINISHED")
    except BaseException as error:
        _end(run_id, claim, "FAILED" if isinstance(error, Exception) else "KILLED")
        raise


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


def _page(run_id: str, experiment_id: str) -> str:
    return f"/#/experiments/{experiment_id}/runs/{run_id}"
