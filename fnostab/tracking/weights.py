"""The weights of a stored run, which another run starts from."""

import io
from collections import OrderedDict

import mlflow
import torch
from mlflow.exceptions import MlflowException

from fnostab.config import ConfigError
from fnostab.tracking.artifacts import read_artifact
from fnostab.tracking.errors import HOW_TO_REPEAT, is_unknown, one_line, translated_store_errors
from fnostab.tracking.store import open_store

_CHECKPOINT = "checkpoints/best.ckpt"
_NETWORK = "generator."


def find_source_run(source: str) -> str:
    """The ID of the run whose weights `source` means: `RUN`, `runs:/RUN/...`, `models:/NAME@ALIAS` or `.../VERSION`.

    Raises `ConfigError` if the store has no such run, or the registry no such version of a run.
    """
    open_store(must_exist=True)
    client = mlflow.MlflowClient()
    with translated_store_errors(HOW_TO_REPEAT):
        try:
            run_id = _run_of_model(client, source) if source.startswith("models:/") else _run_in(source)
            if not run_id:
                raise ConfigError(f"`train.init_from` (={source}) must be a version that a run of this store made")
            run = client.get_run(run_id)
        except MlflowException as error:
            if not is_unknown(error):
                raise
            rule = "must be a run in the tracking store, or a registered model"
            raise ConfigError(f"`train.init_from` (={source}) {rule}: {one_line(error)}") from None
    if run.info.lifecycle_stage != "active":
        raise ConfigError(f"`train.init_from` (={source}) must be a run that is not deleted")
    return str(run.info.run_id)


def _run_in(source: str) -> str:
    return source.removeprefix("runs:/").partition("/")[0]


def _run_of_model(client: mlflow.MlflowClient, source: str) -> str | None:
    name, alias, label = source.removeprefix("models:/").partition("@")
    if alias:
        version = client.get_model_version_by_alias(name, label)
    else:
        name, _, label = name.partition("/")
        version = client.get_model_version(name, label)
    return version.run_id or None


def read_network(run_id: str) -> OrderedDict[str, torch.Tensor]:
    """The network's state in a run's best checkpoint, on the CPU: its keys begin with `generator.`.

    Nothing but tensors and plain values is unpacked. Raises `ConfigError` if the run has no such file or it is damaged.
    """
    setting = f"`train.init_from` (=runs:/{run_id})"
    content = read_artifact(run_id, _CHECKPOINT)
    if content is None:
        params = mlflow.MlflowClient().get_run(run_id).data.params
        why = "; it was trained with train.artifacts=numbers" if params.get("train.artifacts") == "numbers" else ""
        raise ConfigError(f"{setting} must be a run with the artifact {_CHECKPOINT}{why}")
    try:
        state = torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")["state_dict"]
    except Exception as error:  # torch raises many kinds for a damaged archive
        raise ConfigError(f"{setting} must have a {_CHECKPOINT} that can be read: {one_line(error)}") from None
    network = OrderedDict((key, value) for key, value in state.items() if key.startswith(_NETWORK))
    if hasattr(state, "_metadata"):  # the versions of layers, by which they take states of earlier ones
        network._metadata = state._metadata  # type: ignore[attr-defined]
    return network
