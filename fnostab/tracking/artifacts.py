"""What runs have as files in the store; a file that must be there and cannot be read is told from one that is not."""

import json
import tempfile
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import mlflow
import yaml
from mlflow.exceptions import MlflowException

from fnostab.config import ArmConfig, ConfigError, stored_config
from fnostab.health.history import checked_mapping
from fnostab.study.stored_run import StoredRun
from fnostab.tracking.errors import HOW_TO_REPEAT, is_unknown, one_line, redacted, translated_store_errors
from fnostab.tracking.store import open_store, stored_run

#: Artifacts that are read at once: a server answers each after some milliseconds.
_READERS: Final = 8
#: Artifacts of every run that this package finished; one that it only watched, in another loop, has no config.
_ALWAYS_THERE: Final = ("config.yaml", "history.json")

T = TypeVar("T")


def read_run(run_id: str) -> tuple[StoredRun, Mapping[str, Any] | None]:
    """Read `run_id` from the store, and its `history.json` if it has one yet.

    Raises `ConfigError` if there is no such store or run, or a history that must be there cannot be read.
    """
    uri = open_store(must_exist=True)
    with translated_store_errors(HOW_TO_REPEAT):
        try:
            run = stored_run(mlflow.MlflowClient().get_run(run_id))
        except MlflowException as error:
            if not is_unknown(error):
                raise
            rule = f"must be a run in the tracking store {redacted(uri)}: {one_line(error)}"
            raise ConfigError(f"`run` (={run_id}) {rule}") from None
    (history,) = read_artifacts([run], "history.json", lambda content: checked_mapping(json.loads(content)))
    if isinstance(history, Unreadable):
        raise ConfigError(f"`run` (={run_id}) must be a run whose artifacts can be read: {history}")
    return run, history


def read_config(run_id: str) -> ArmConfig:
    """The config that a run was trained with, as it was logged; see `config.stored_config`."""
    content = read_artifact(run_id, "config.yaml")
    if content is None:
        raise ConfigError(f"`run` (={run_id}) must have the artifact config.yaml")
    return stored_config(yaml.safe_load(content))


def read_artifact(run_id: str, path: str) -> bytes | None:
    """The content of an artifact of a run; None if it is not there."""
    client = mlflow.MlflowClient()
    with translated_store_errors(HOW_TO_REPEAT):
        folder = path.rpartition("/")[0] or None
        if not any(artifact.path == path for artifact in client.list_artifacts(run_id, folder)):
            return None
        return Path(client.download_artifacts(run_id, path)).read_bytes()


@dataclass(frozen=True)
class Unreadable:
    """The artifact `path` of a run that must have it: it is damaged, or not where the store says that it is."""

    run: StoredRun
    path: str
    damage: str | None

    def __str__(self) -> str:
        place = redacted(self.run.artifact_uri)
        fault = f"is damaged: {self.damage}" if self.damage else f"is not there (looked for in {place})"
        return f"{self.path} of run {self.run.run_id} {fault}"


def read_artifacts(runs: Iterable[StoredRun], path: str, reader: Callable[[bytes], T]) -> list[T | Unreadable | None]:
    """What `reader` makes of the artifact `path` of each run, several at once; None for a run that need not have it.

    Every result of this package has its config and its history. Of a content no more is kept than `reader` gives; for
    one that it cannot read it raises ValueError. Raises `StoreUnavailable` if the store does not answer.
    """

    def read(run: StoredRun) -> T | Unreadable | None:
        content: bytes | None
        try:
            with tempfile.TemporaryDirectory(prefix="fnostab-read-") as folder:
                uri = f"{run.artifact_uri.rstrip('/')}/{path}"
                content = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=folder)).read_bytes()
        except (MlflowException, OSError):
            # Stores of artifacts tell in many ways that there is none. One that is there, or a store that is away,
            # raises here once more.
            content = read_artifact(run.run_id, path)
        if content is None:
            owed = _ALWAYS_THERE[-1:] if run.is_foreign else _ALWAYS_THERE
            is_owed = path in owed and run.is_result and "fnostab_version" in run.tags
            return Unreadable(run, path, None) if is_owed else None
        try:
            return reader(content)
        except RecursionError:
            return Unreadable(run, path, "it is nested too deeply")
        except ValueError as error:
            return Unreadable(run, path, one_line(error))

    with ThreadPoolExecutor(_READERS) as pool:
        return list(pool.map(read, runs))
