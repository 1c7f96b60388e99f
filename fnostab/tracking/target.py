"""Where new runs go: the run or the experiment that MLflow's variables name, and the place of its artifacts."""

import os
from pathlib import Path
from typing import Final

import mlflow
from mlflow.entities import Experiment, Run
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.utils.file_utils import local_file_uri_to_path
from mlflow.utils.uri import is_local_uri

from fnostab.config import ConfigError
from fnostab.tracking.errors import HOW_TO_REPEAT, is_unknown, one_line, redacted, translated_store_errors

#: Where MLflow puts the artifacts of a store without a server that was not told another place.
_DEFAULT_ROOT: Final = "mlruns"


def check_target(*, is_local: bool, is_new: bool) -> None:
    """Refuse a run, an experiment or a place for artifacts that cannot be written to; nothing is made.

    `is_local` tells that the store has no server, which has its own default place for artifacts, `is_new` that there is
    nothing in it yet. Raises `ConfigError` that names the setting.
    """
    root: str | None = None
    if is_new:
        for setting, known in (("MLFLOW_RUN_ID", ""), ("MLFLOW_EXPERIMENT_ID", "0")):
            if (value := os.environ.get(setting, "")) not in ("", known):
                raise ConfigError(f"`{setting}` (={value}) must be in the tracking store, which is new and empty")
    else:
        with translated_store_errors(HOW_TO_REPEAT):
            run = named_run()
            experiment = None if run else _target_experiment()
        root = run.info.artifact_uri if run else experiment.artifact_location if experiment else None
    if root is not None or is_local:
        _check_root(root or _DEFAULT_ROOT)


def named_run() -> Run | None:
    """The run that `MLFLOW_RUN_ID` names, such as the one that `mlflow run` made for this process; None if it is unset.

    Raises `ConfigError` if the store has no such run.
    """
    run_id = os.environ.get("MLFLOW_RUN_ID")
    if not run_id:
        return None
    setting = f"`MLFLOW_RUN_ID` (={run_id})"
    try:
        run = mlflow.MlflowClient().get_run(run_id)
    except MlflowException as error:
        if not is_unknown(error):
            raise
        raise ConfigError(f"{setting} must be a run in the tracking store: {one_line(error)}") from None
    if run.info.lifecycle_stage != "active":
        raise ConfigError(f"{setting} must be a run that is not deleted")
    return run


def target_experiment_id() -> str:
    """The experiment that a run started here goes to, which is made if only its name is given and new.

    Raises `ConfigError` if the variables name none that can be written to.
    """
    experiment = _target_experiment()
    if experiment is not None:
        return experiment.experiment_id
    return mlflow.MlflowClient().create_experiment(os.environ["MLFLOW_EXPERIMENT_NAME"])


def _target_experiment() -> Experiment | None:
    """The experiment that a run started here goes to; None for a new name."""
    client = mlflow.MlflowClient()
    name, number = os.environ.get("MLFLOW_EXPERIMENT_NAME"), os.environ.get("MLFLOW_EXPERIMENT_ID")
    if name:
        setting = f"`MLFLOW_EXPERIMENT_NAME` (={name})"
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            return None
        if number not in (None, "", experiment.experiment_id):
            raise ConfigError(
                f"`MLFLOW_EXPERIMENT_ID` (={number}) must be {experiment.experiment_id}, that of the experiment "
                f"which MLFLOW_EXPERIMENT_NAME (={name}) names"
            )
    else:
        setting = f"`MLFLOW_EXPERIMENT_ID` (={number})" if number else "`MLFLOW_EXPERIMENT_ID` (=0, the default)"
        try:
            experiment = client.get_experiment(number or "0")
        except MlflowException as error:
            if not is_unknown(error):
                raise
            raise ConfigError(f"{setting} must be an experiment in the tracking store: {one_line(error)}") from None
    if experiment.lifecycle_stage != "active":
        restore = f"`mlflow experiments restore -x {experiment.experiment_id}`"
        raise ConfigError(f"{setting} must be an experiment that is not deleted: {restore} brings it back")
    return experiment


def _check_root(root: str) -> None:
    """Refuse a place for artifacts that nothing can be written to; what a server passes on, it alone can tell."""
    if is_local_uri(root):  # type: ignore[no-untyped-call]
        folder = Path(local_file_uri_to_path(root)).absolute()  # type: ignore[no-untyped-call]
        there = next(path for path in (folder, *folder.parents) if os.path.exists(path))
        if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
            rule = f"must be a folder that can be written to, which {there} is not"
            raise ConfigError(f"`artifact_location` (={folder}) {rule}; MLFLOW_EXPERIMENT_NAME may name another")
    elif not root.startswith(("mlflow-artifacts:", "http:", "https:")):
        try:
            get_artifact_repository(root).list_artifacts("a-folder-that-is-not-there")
        except Exception as error:  # that of the client for this kind of place, or that it is not installed
            rule = "must be a place that can be written to from here"
            raise ConfigError(f"`artifact_location` (={redacted(root)}) {rule}: {one_line(error)}") from None
