"""Studies in the store: their runs found by tag, their parent runs, and what is written to those."""

import json
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import mlflow
import yaml
from mlflow.entities import Param, Run, RunTag
from mlflow.exceptions import MlflowException

from fnostab.config import ConfigError
from fnostab.study.selection import StoredRun
from fnostab.tracking.run import resume_into
from fnostab.tracking.store import StoreUnavailable, all_pages, translated_store_errors

logger = logging.getLogger(__name__)

#: The tag that tells a study's own runs, `parent` and `comparison`, from those that trained something.
ROLE: Final = "study_role"
#: The parent's artifact that says which arms and seeds were planned.
_PLAN: Final = "study.json"
#: Artifacts that are read at once: a server answers each after some milliseconds.
_READERS: Final = 8

T = TypeVar("T")


def find_runs(study: str, config_sha256: str | None = None) -> list[StoredRun]:
    """All runs of `study`, with this config if one is given, that trained something, in every experiment."""
    config = f" and tags.config_sha256 = '{config_sha256}'" if config_sha256 else ""
    runs = _search(f"tags.study = '{_quoted(study)}'{config}")
    return [run for run in runs if ROLE not in run.tags and "resumed_into" not in run.tags]


def find_results(
    study: str, dataset_sha256: str, config_sha256: str | None = None
) -> dict[tuple[str, int, str | None], StoredRun]:
    """The runs that have a result on this dataset, by arm, seed and hash of the config; of several the oldest."""
    return {
        (run.arm, run.seed, run.tags.get("config_sha256")): run
        for run in find_runs(study, config_sha256)
        if run.is_result and run.dataset_sha256 == dataset_sha256
    }


def find_parents(study: str) -> list[StoredRun]:
    """The parent runs of `study`, newest first."""
    return list(_search(f"tags.study = '{_quoted(study)}' and tags.{ROLE} = 'parent'"))


def planned_runs(parent: StoredRun) -> list[tuple[str, int]]:
    """The arms and seeds that the study of `parent` was to train; none where it does not say."""
    content = read_artifact(parent.run_id, _PLAN)
    if content is None:
        return []
    plan = json.loads(content)
    return [(str(arm), int(seed)) for arm in plan["arms"] for seed in plan["seeds"]]


def read_config(run_id: str) -> dict[str, Any]:
    """The config that a run was trained with, as it was logged."""
    content = read_artifact(run_id, "config.yaml")
    if content is None:
        raise ConfigError(f"`run` (={run_id}) must have the artifact config.yaml")
    return dict(yaml.safe_load(content))


def read_artifact(run_id: str, path: str) -> bytes | None:
    """The content of an artifact of a run; None if it is not there."""
    client = mlflow.MlflowClient()
    with translated_store_errors():
        folder = path.rpartition("/")[0] or None
        if not any(artifact.path == path for artifact in client.list_artifacts(run_id, folder)):
            return None
        return Path(client.download_artifacts(run_id, path)).read_bytes()


def read_artifacts(runs: Iterable[StoredRun], path: str, reader: Callable[[bytes], T]) -> list[T | None]:
    """What `reader` makes of the artifact `path` of each run, several at once; None for a run that has none.

    Of a content no more is kept than `reader` gives. Raises `StoreUnavailable` if the store does not answer.
    """

    def read(run: StoredRun) -> T | None:
        try:
            with tempfile.TemporaryDirectory(prefix="fnostab-read-") as folder:
                uri = f"{run.artifact_uri.rstrip('/')}/{path}"
                content = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=folder)).read_bytes()
        except (MlflowException, OSError):
            # Stores of artifacts tell in many ways that there is none. One that is there, or a store that is away,
            # raises here once more.
            found = read_artifact(run.run_id, path)
            if found is None:
                return None
            content = found
        return reader(content)

    with ThreadPoolExecutor(_READERS) as pool:
        return list(pool.map(read, runs))


def run_url(run: StoredRun) -> str | None:
    """The page of a run on a tracking server; None for a store without one."""
    uri = mlflow.get_tracking_uri()
    if not uri.startswith("http"):
        return None
    return f"{uri.rstrip('/')}/#/experiments/{run.experiment_id}/runs/{run.run_id}"


@dataclass(frozen=True)
class StudyFolder:
    """A run that holds what belongs to a study as a whole."""

    run_id: str
    experiment_id: str

    @translated_store_errors()
    def log_files(self, folder: Path) -> None:
        """Log every file of `folder` as an artifact."""
        mlflow.MlflowClient().log_artifacts(self.run_id, str(folder))

    @translated_store_errors()
    def log_text(self, text: str, name: str) -> None:
        """Log `text` as the artifact `name`."""
        mlflow.MlflowClient().log_text(self.run_id, text, name)

    @translated_store_errors()
    def set_tags(self, tags: Mapping[str, object]) -> None:
        """Set tags of the run."""
        client = mlflow.MlflowClient()
        client.log_batch(self.run_id, tags=[RunTag(key, str(value)[:5000]) for key, value in tags.items()])


@contextmanager
def open_parent(
    study: str, identity: str, plan: Mapping[str, Any], tags: Mapping[str, str], params: Mapping[str, str]
) -> Iterator[StudyFolder]:
    """Open the parent run of a study: the one that has its `identity`, else that of `mlflow run`, else a new one.

    `plan` has `arms` and `seeds`; the plans of one parent add up. A run that `mlflow run` made for a study that has its
    parent already gets the tag `resumed_into`, and no study tags. The parent ends FINISHED when the block does, KILLED
    after an interrupt or exit, and FAILED after an error.
    """
    with translated_store_errors():
        earlier = list(_search(f"tags.{ROLE} = 'parent' and tags.study_sha256 = '{identity}'"))
        client = mlflow.MlflowClient()
        run_id = earlier[0].run_id if earlier else os.environ.pop("MLFLOW_RUN_ID", None)
        if earlier:
            resume_into(earlier[0].run_id)
        run = client.get_run(run_id) if run_id else client.create_run(target_experiment_id(), run_name=study)
        run_id = run.info.run_id
        client.update_run(run_id, status="RUNNING", name=study)
        folder = StudyFolder(run_id, run.info.experiment_id)
        folder.set_tags({"study": study, ROLE: "parent", "study_sha256": identity, **tags})
        new = [Param(key, value) for key, value in params.items() if key not in run.data.params]
        client.log_batch(run_id, params=new)
        if earlier:
            known = planned_runs(_stored(run))
            arms = list(dict.fromkeys([*(arm for arm, _ in known), *plan["arms"]]))
            seeds = list(dict.fromkeys([*(seed for _, seed in known), *plan["seeds"]]))
            plan = {**plan, "arms": arms, "seeds": seeds}
        client.log_text(run_id, json.dumps(plan, indent=2), _PLAN)
    try:
        yield folder
    except BaseException as error:
        _end(run_id, "FAILED" if isinstance(error, Exception) else "KILLED")
        raise
    _end(run_id, "FINISHED")


@contextmanager
def open_comparison(study: str) -> Iterator[StudyFolder]:
    """Open a run for what is said of a study that has no parent: that of `mlflow run`, or a new one."""
    projects_run_id = os.environ.pop("MLFLOW_RUN_ID", None)
    with translated_store_errors():
        client = mlflow.MlflowClient()
        run = client.get_run(projects_run_id) if projects_run_id else client.create_run(target_experiment_id())
        client.update_run(run.info.run_id, status="RUNNING", name=f"{study}-comparison")
        folder = StudyFolder(run.info.run_id, run.info.experiment_id)
        folder.set_tags({"study": study, ROLE: "comparison"})
    try:
        yield folder
    except BaseException:
        _end(folder.run_id, "FAILED")
        raise
    _end(folder.run_id, "FINISHED")


@contextmanager
def open_existing_parent(parent: StoredRun) -> Iterator[StudyFolder]:
    """The parent run as it stands; a run that `mlflow run` made for this process gets the tag `compared_into`."""
    projects_run_id = os.environ.pop("MLFLOW_RUN_ID", None)
    if projects_run_id and projects_run_id != parent.run_id:
        with translated_store_errors():
            mlflow.MlflowClient().set_tag(projects_run_id, "compared_into", parent.run_id)
    yield StudyFolder(parent.run_id, parent.experiment_id)


def _end(run_id: str, status: str) -> None:
    try:
        with translated_store_errors():
            mlflow.MlflowClient().set_terminated(run_id, status)
    except StoreUnavailable as away:
        logger.warning("the status of run %s could not be stored: %s", run_id, away)


def target_experiment_id() -> str:
    """The experiment that a run started here would go to."""
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME")
    if name:
        experiment = mlflow.get_experiment_by_name(name)
        return experiment.experiment_id if experiment else mlflow.MlflowClient().create_experiment(name)
    return os.environ.get("MLFLOW_EXPERIMENT_ID") or "0"


def _search(query: str) -> Iterator[StoredRun]:
    """All active runs that `query` finds, newest first; a page at a time, so that only what is kept fills memory."""
    client = mlflow.MlflowClient()
    with translated_store_errors():
        experiments = [experiment.experiment_id for experiment in all_pages(client.search_experiments, "")]
        for run in all_pages(partial(client.search_runs, experiments), query):
            yield _stored(run)


def _stored(run: Run) -> StoredRun:
    info, data = run.info, run.data
    ended_ms = info.end_time or info.start_time or 0
    tags, params = ({_once(key): _once(value) for key, value in of.items()} for of in (data.tags, data.params))
    metrics = {_once(key): value for key, value in data.metrics.items()}
    return StoredRun(info.run_id, info.experiment_id, info.status, ended_ms, tags, params, metrics, info.artifact_uri)


def _once(text: str) -> str:
    """`text`, in memory once: the runs of a study have nearly all names and values in common."""
    return sys.intern(str(text))


def _quoted(text: str) -> str:
    """`text` inside the quotes of a search filter."""
    if "'" in text or '"' in text or "\\" in text:
        raise ConfigError(f"`study` (={text}) must be a name without quotes and backslashes")
    return text
