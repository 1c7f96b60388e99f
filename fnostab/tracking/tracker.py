"""What is written to one MLflow run while it trains."""

import logging
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

import mlflow
import numpy as np
from mlflow.data.code_dataset_source import CodeDatasetSource
from mlflow.data.numpy_dataset import from_numpy
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE
from numpy.typing import NDArray

import fnostab
from fnostab.config import ArmConfig
from fnostab.dataset import Dataset, common_sha256
from fnostab.io.foreign import portable
from fnostab.tracking.batches import METRICS_A_CALL, log_batches
from fnostab.tracking.checkout import git_commit
from fnostab.tracking.errors import (
    HOW_TO_FINISH,
    StoreUnavailable,
    failure_text,
    translated_store_errors,
)
from fnostab.tracking.pictures import PictureQueue
from fnostab.tracking.verdict import with_description

logger = logging.getLogger(__name__)

#: After a vain attempt to write, this many times as long as it took pass before the next: the caller has other work.
_REST: Final = 5.0
_LEAST_REST_S: Final = 1.0


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
        #: How the run ends, in MLflow's words, where nothing goes wrong.
        self.status = "FINISHED"
        self._queue: list[Metric] = []
        self._stored: dict[str, int] = {}
        self._pictures = PictureQueue(self._client, run_id, folder / "pictures", resumed=resumed)
        #: What is wrong with the store, as far as it was tried.
        self._failure: str | None = None
        self._rests_until = 0.0

    def log_series(self, rows: Iterable[tuple[str, float, int, int]]) -> None:
        """Queue (key, value, optimizer step, time in ms) rows, the steps of a key in ascending order."""
        self._queue += [Metric(key, value, time_ms, step) for key, value, step, time_ms in rows]
        if len(self._queue) >= METRICS_A_CALL:
            self.flush()

    def log_metrics(self, metrics: Mapping[str, float], step: int, *, model_id: str | None = None) -> None:
        """Queue one value a key at `step`; they are of the run's model `model_id` as well, if there is one."""
        now_ms = time.time_ns() // 1_000_000
        self._queue += [Metric(key, float(value), now_ms, step, model_id=model_id) for key, value in metrics.items()]

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
            if self._failure is None:
                logger.warning("%s: %d values wait", failure_text(error), self.unwritten)
            self._failure = failure_text(error)
            return False
        if self._failure is not None:
            logger.warning("the tracking store answers again, nothing waits any more")
        self._failure = None
        return True

    def finish(self) -> None:
        """Write all that is queued; raises `StoreUnavailable` if something is left."""
        if not self.flush(at_once=True):
            raise StoreUnavailable(f"{self._failure}: {self.unwritten} values wait; {HOW_TO_FINISH}")

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
        self.log_params(config.flat())
        self._client.log_dict(self.run_id, config.model_dump(mode="json"), "config.yaml")

    @translated_store_errors()
    def log_params(self, params: Mapping[str, object]) -> None:
        """Log parameters, skipping keys that are there."""
        there = self._client.get_run(self.run_id).data.params
        new = {key: value for key, value in params.items() if key not in there}
        log_batches(self._client, self.run_id, params=new)

    @translated_store_errors()
    def set_tags(self, tags: Mapping[str, object]) -> None:
        """Set tags; values are cut to what MLflow takes."""
        log_batches(self._client, self.run_id, tags=tags)

    @translated_store_errors()
    def set_description(self, text: str) -> None:
        """Set the description (Markdown) that the UI shows of the run; what somebody else said of it stays above."""
        before = self._client.get_run(self.run_id).data.tags.get(MLFLOW_RUN_NOTE, "")
        self.set_tags({MLFLOW_RUN_NOTE: with_description(before, text)})

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
    several = {"datasets_sha256": common_sha256(config.data, dataset.sha256)} if config.data.seeds > 1 else {}
    return several | {
        "study": config.study,
        "arm": config.arm,
        "arch": portable(config.model.arch),
        "clip_algo": portable(config.clip.algo),
        "seed": str(config.seed),
        "dataset_sha256": dataset.sha256,
        "probe_sha256": dataset.probe_sha256,
        "config_sha256": config.sha256(),
        "fnostab_version": fnostab.__version__,
        "git_commit": git_commit(),
        "device": device,
        "precision": config.train.precision,
    }
