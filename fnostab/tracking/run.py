"""One MLflow run: written while it trains, read back afterwards."""

import logging
import os
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import mlflow
import numpy as np
import torch
from mlflow.data.code_dataset_source import CodeDatasetSource
from mlflow.data.numpy_dataset import from_numpy
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST, ErrorCode
from mlflow.types import Schema, TensorSpec
from numpy.typing import NDArray

import fnostab
from fnostab.config import ArmConfig, ConfigError
from fnostab.dataset import Dataset
from fnostab.tracking.errors import (
    HOW_TO_FINISH,
    StoreUnavailable,
    failure_text,
    one_line,
    redacted,
    translated_store_errors,
)
from fnostab.tracking.pictures import PictureQueue
from fnostab.tracking.store import check_store, open_store, search_runs

logger = logging.getLogger(__name__)

#: MLflow's limits for one `log_batch` call.
_METRICS_A_CALL: Final = 1000
_PARAMS_A_CALL: Final = 100
#: MLflow refuses longer tags and parameters.
_MAX_TAG: Final = 5000
#: After a vain attempt to write, this many times as long as it took pass before the next: the caller has other work.
_REST: Final = 5.0
_LEAST_REST_S: Final = 1.0
#: Tag of a run that tells which run folder it was made for, before the folder knows of the run.
_CLAIM: Final = "run_folder"


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
        if len(self._queue) >= _METRICS_A_CALL:
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
                batch = self._queue[:_METRICS_A_CALL]
                fresh = [metric for metric in batch if metric.step > self._last_stored(metric.key)]
                self._client.log_batch(self.run_id, metrics=fresh, synchronous=True)
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
        params = [Param(key, str(value)) for key, value in config.flat().items() if key not in there]
        for start in range(0, len(params), _PARAMS_A_CALL):
            self._client.log_batch(self.run_id, params=params[start : start + _PARAMS_A_CALL])
        self._client.log_dict(self.run_id, config.model_dump(mode="json"), "config.yaml")

    @translated_store_errors()
    def set_tags(self, tags: Mapping[str, object]) -> None:
        """Set tags; values are cut to what MLflow takes."""
        self._client.log_batch(self.run_id, tags=[RunTag(key, str(value)[:_MAX_TAG]) for key, value in tags.items()])

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

    @translated_store_errors()
    def log_model(
        self, model: torch.nn.Module, example_counts: NDArray[np.float32], extra_files: Sequence[Path] = ()
    ) -> None:
        """Log `model` as `model`: a pt2 export that takes any batch of float32 counts, without need of this package.

        `model` lies on the CPU; `example_counts` is (B, N, N); `extra_files` lie beside it in `extra_files/`. The
        signature is (-1, N, N) -> (-1, N, N, 2), float32. What an earlier process of the run logged is deleted.
        """
        if self.resumed:
            mine = f"source_run_id = '{self.run_id}'"
            for earlier in self._client.search_logged_models([self.experiment_id], mine):
                self._client.delete_logged_model(earlier.model_id)
        size = example_counts.shape[-1]
        float32 = np.dtype(np.float32)
        logged = mlflow.pytorch.log_model(
            model,
            name="model",
            serialization_format="pt2",
            signature=ModelSignature(
                inputs=Schema([TensorSpec(float32, (-1, size, size))]),
                outputs=Schema([TensorSpec(float32, (-1, size, size, 2))]),
            ),
            input_example=example_counts,
            extra_files=[str(path) for path in extra_files],
            pip_requirements=[
                f"mlflow=={mlflow.__version__}",
                f"numpy=={np.__version__}",
                f"torch=={torch.__version__.split('+')[0]}",
            ],
        )
        # Exported on the CPU, it runs there; MLflow would otherwise take a GPU that it finds, and refuse to load it.
        description = Model.load(logged.model_uri)
        description.flavors["python_function"]["config"] = {"device": "cpu"}
        with tempfile.TemporaryDirectory() as folder:
            description.save(str(Path(folder) / "MLmodel"))
            self._client.log_model_artifact(logged.model_id, str(Path(folder) / "MLmodel"))


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


def git_commit() -> str:
    """Commit of the checkout that tracks this file; `unknown` for an installed package."""
    here = Path(__file__)
    try:
        for arguments in (["ls-files", "--error-unmatch", here.name], ["rev-parse", "HEAD"]):
            command = ["git", "-C", str(here.parent), *arguments]
            answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return answer.stdout.strip()


@contextmanager
def open_run(
    config: ArmConfig, folder: Path, *, first_run_id: str | None = None, claim: str | None = None
) -> Iterator[Tracker]:
    """Open the MLflow run to write to: that of `mlflow run` if we are inside one, a new one otherwise.

    With `first_run_id`, the run of an identity that was started before and not finished, that run is continued, and a
    run that `mlflow run` made for this process only gets the tag `resumed_into`. A new run carries `claim`, by which
    `find_claimed` finds it. What the store does not take for a while waits in `folder`. The run ends FINISHED when the
    block does, KILLED after an interrupt or exit, and FAILED after an error.
    """
    if first_run_id:
        resume_into(first_run_id)
    run_id = first_run_id or os.environ.pop("MLFLOW_RUN_ID", None)
    with translated_store_errors():
        active = mlflow.start_run(run_id=run_id, tags={_CLAIM: claim} if claim else None, log_system_metrics=True)
    tracker = Tracker(active.info.run_id, folder, resumed=first_run_id is not None)
    try:
        tracker.set_tags({"mlflow.runName": f"{config.arm}-seed{config.seed}"})
        yield tracker
        tracker.finish()
    except BaseException as error:
        tracker.flush()
        try:
            mlflow.end_run("FAILED" if isinstance(error, Exception) else "KILLED")
        except (MlflowException, OSError) as away:
            logger.warning("the run's status could not be stored: %s", one_line(away))
        raise
    with translated_store_errors():
        mlflow.end_run("FINISHED")


@translated_store_errors()
def resume_into(run_id: str) -> None:
    """Turn to `run_id`: if `mlflow run` made another one for this process, that gets the tag `resumed_into`."""
    projects_run_id = os.environ.pop("MLFLOW_RUN_ID", run_id)
    if projects_run_id != run_id:
        mlflow.MlflowClient().set_tag(projects_run_id, "resumed_into", run_id)


def find_claimed(claim: str) -> str | None:
    """The run that was made with `claim` for a process that ended before it could take note of it; None if none was."""
    return next((run.run_id for run in search_runs(**{_CLAIM: claim})), None)


def fail_projects_run(reason: str) -> None:
    """Tag the run that `mlflow run` made for this process with `reason`, if the store answers."""
    run_id = os.environ.get("MLFLOW_RUN_ID")
    # A store that does not take it, or a run that is not there, is what `reason` tells of: it has been said already.
    with suppress(ConfigError, MlflowException):
        check_store(must_exist=True)
        if run_id:
            mlflow.MlflowClient().set_tag(run_id, "verdict_reason", redacted(reason)[:_MAX_TAG])


def run_state(run_id: str) -> RunState:
    """How `run_id` stands in the store: whether it ended FINISHED, did not, was deleted, or is not there."""
    try:
        run = mlflow.MlflowClient().get_run(run_id)
    except MlflowException as error:
        if error.error_code != ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
            reason = one_line(error)
            raise StoreUnavailable(
                f"the tracking store does not tell whether run {run_id} is finished: {reason}"
            ) from None
        return "gone"
    if run.info.lifecycle_stage != "active":
        return "deleted"
    return "finished" if run.info.status == "FINISHED" else "unfinished"


@dataclass(frozen=True)
class RunRecord:
    """What the store holds of one run; `history` is the content of `history.json`, None if it has none yet."""

    run_id: str
    experiment_id: str
    status: str
    tags: dict[str, str]
    metrics: dict[str, float]
    history: dict[str, Any] | None


def read_run(run_id: str) -> RunRecord:
    """Read `run_id` from the store; raises `ConfigError` if there is no such store or run."""
    uri = open_store(must_exist=True)
    client = mlflow.MlflowClient()
    try:
        run = client.get_run(run_id)
        has_history = any(artifact.path == "history.json" for artifact in client.list_artifacts(run_id))
        history = mlflow.artifacts.load_dict(f"{run.info.artifact_uri}/history.json") if has_history else None
    except MlflowException as error:
        raise ConfigError(
            f"`run` (={run_id}) must be a run in the tracking store {redacted(uri)}: {one_line(error)}"
        ) from None
    return RunRecord(run_id, run.info.experiment_id, run.info.status, run.data.tags, run.data.metrics, history)


def how_to_open(run_id: str, experiment_id: str) -> str:
    """How to see a run in the UI: a link to the server, or the command that starts the UI and the link to open then."""
    uri = mlflow.get_tracking_uri()
    page = f"/#/experiments/{experiment_id}/runs/{run_id}"
    if uri.startswith("http"):
        return f"open {uri.rstrip('/')}{page}"
    return f"`mlflow ui --backend-store-uri {redacted(uri)}`, then open http://127.0.0.1:5000{page}"
