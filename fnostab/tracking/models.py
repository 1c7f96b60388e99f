"""Trained networks read back from MLflow, and what was reconstructed with them written to it."""

import contextlib
import math
import os
import re
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import mlflow
import mlflow.pytorch
import numpy as np
import torch
from mlflow.entities import Metric
from mlflow.models import Model
from mlflow.types import Schema, TensorSpec
from numpy.typing import NDArray

from fnostab.config import ConfigError
from fnostab.formats.npz import NpzFile
from fnostab.formats.probe import read_probe
from fnostab.io.files import damage
from fnostab.tracking.batches import log_batches
from fnostab.tracking.errors import one_line, translated_store_errors
from fnostab.tracking.exports import MEMBERS, signature
from fnostab.tracking.run import own_or_new_run
from fnostab.tracking.store import open_store

_SIGNATURE: Final = "float32 counts (-1, N, N) to float32 (-1, N, N, 2)"
#: The gridsize of a network, by the axes of its input: groups have one more.
_GRIDSIZES: Final = {3: 1, 4: 2}
#: What `probe.npz` beside a network may hold, besides `probe`.
_BESIDE: Final = ("modes", "start_probe", "mask", "mean_counts", "scale")
_NO_PICKLES: Final = "MLFLOW_ALLOW_PICKLE_DESERIALIZATION"


@dataclass(frozen=True, eq=False)
class ShippedModel:
    """A network as `log_model` ships it, on the CPU, and what it was trained with.

    `uri` is what was asked for, `source` the same with an alias replaced by its version and a folder by its full path,
    `run_id` the run that trained it. `modes` complex64 (k, N, N) are the probe's as that run left them, `start_probe`
    complex64 (N, N) the one that it learnt them from; `mask` bool (N, N) is True at the pixels that it counted,
    `mean_counts` are the counts of its mean training pattern, `scale` that of A = sqrt(counts) / scale ~ |FFT2(probe *
    patch)|; None where the model does not bring it. With a `gridsize` of 2 it takes groups of four neighbouring
    patterns. `example` are counts that it was exported with, float32 (2, N, N) or, of groups, (2, 4, N, N). An ensemble
    `has_deviation`, and `members` are the runs whose networks it holds.
    """

    uri: str
    source: str
    run_id: str | None
    N: int
    gridsize: int
    network: torch.nn.Module
    modes: NDArray[np.complex64] | None = None
    start_probe: NDArray[np.complex64] | None = None
    mask: NDArray[np.bool_] | None = None
    mean_counts: float | None = None
    scale: float | None = None
    example: NDArray[np.float32] | None = None
    has_deviation: bool = False
    members: tuple[str, ...] = ()

    @property
    def probe(self) -> NDArray[np.complex64] | None:
        """The first mode of the probe, complex64 (N, N), or None."""
        return None if self.modes is None else self.modes[0]

    def predict(self, counts: NDArray[np.float32]) -> NDArray[np.complex64]:
        """Predict object patches, complex64 (B, N, N), from counts (B, N, N), zero frequency at N // 2.

        Those of a group lie one after the other; see `dataset.groups`.
        """
        return self.predict_with_deviation(counts)[0]

    @torch.inference_mode()
    def predict_with_deviation(
        self, counts: NDArray[np.float32]
    ) -> tuple[NDArray[np.complex64], NDArray[np.float32] | None]:
        """As `predict`, and of an ensemble the deviation of each pixel, float32 (B, N, N); None of one network."""
        patterns = torch.from_numpy(np.array(counts, dtype=np.float32))
        C = self.gridsize**2
        parts = self.network(patterns if C == 1 else patterns.reshape(-1, C, self.N, self.N))
        patches = torch.view_as_complex(parts[..., :2].contiguous()).numpy().reshape(counts.shape)
        return np.asarray(patches), parts[..., 2].numpy().reshape(counts.shape) if self.has_deviation else None


def load_model(uri: str) -> ShippedModel:
    """Load the network at `models:/NAME@ALIAS`, `models:/NAME/VERSION`, `runs:/RUN[/model]` or in a folder.

    Nothing is unpickled and no code that comes with a model is run: other models than this package's exports are
    refused by what their `MLmodel` file says, before anything else of them is fetched, and an export with a pickle
    inside by MLflow. Raises `ConfigError`, in one line, for those, and if there is no such model or store.
    """
    stored = uri.startswith(("models:", "runs:"))
    if re.fullmatch("runs:/[^/]+", uri):
        uri += "/model"
    if stored:
        open_store(must_exist=True)
        source = _without_alias(uri)
    elif Path(uri).is_dir():
        source = str(Path(uri).resolve())
    else:
        raise _fault(uri, "models:/NAME@ALIAS, models:/NAME/VERSION, runs:/RUN/model or a folder that exists")
    with _refused(uri, "an MLflow model that can be read"):
        description = Model.load(source)  # its `MLmodel` file alone
    N, gridsize, has_deviation = _check_description(description, uri)
    with tempfile.TemporaryDirectory() as fetched:
        folder = Path(source)
        if stored:
            with _refused(uri, "a model whose files can be read"):
                folder = Path(mlflow.artifacts.download_artifacts(artifact_uri=source, dst_path=fetched))
        network = _load_network(folder, uri)
        beside = _read_beside(folder / "extra_files" / "probe.npz", uri, N)
        example = _read_example(description, folder, (N, N) if gridsize == 1 else (gridsize**2, N, N))
    made_of = {"example": example, "has_deviation": has_deviation, "members": _members(description)}
    return ShippedModel(uri, source, description.run_id, N, gridsize, network, **beside | made_of)


def log_to_projects_run(files: Sequence[Path], metrics: Mapping[str, float], tags: Mapping[str, str]) -> str | None:
    """Log to the run that `mlflow run` made for this process, and return its ID; without one, log nothing.

    A run that holds something already gets a child, which is written to. Raises `StoreUnavailable` if the store does
    not take it.
    """
    projects_run_id = os.environ.get("MLFLOW_RUN_ID")
    if not projects_run_id:
        return None
    with translated_store_errors():
        client = mlflow.MlflowClient()
        run_id: str = own_or_new_run().info.run_id
        for path in files:
            client.log_artifact(run_id, str(path))
        now_ms = time.time_ns() // 1_000_000
        numbers = [Metric(key, value, now_ms, 0) for key, value in metrics.items()]
        log_batches(client, run_id, metrics=numbers, tags=tags)
        if run_id != projects_run_id:  # MLflow ends its own
            client.set_terminated(run_id)
    return run_id


def _without_alias(uri: str) -> str:
    """`uri` with an alias replaced by the version that it stands for now: it may move at any time."""
    name, at, alias = uri.removeprefix("models:/").partition("@")
    if not at or not uri.startswith("models:/"):
        return uri
    with _refused(uri, "a model in the tracking store"):
        version = mlflow.MlflowClient().get_model_version_by_alias(name, alias)
    return f"models:/{name}/{version.version}"


@contextlib.contextmanager
def _refused(uri: str, rule: str) -> Iterator[None]:
    """Say in one line what goes wrong: MLflow's, the store's, or whatever a damaged file leads to."""
    try:
        yield
    except Exception as error:
        raise _fault(uri, f"{rule}: {one_line(error)}") from None


def _check_description(description: Model, uri: str) -> tuple[int, int, bool]:
    """Refuse what this package did not export; returns N, the gridsize, and whether it predicts a deviation."""
    flavor = description.flavors.get("pytorch")
    if flavor is None:
        raise _foreign(uri, f"its flavors are {', '.join(sorted(description.flavors)) or 'none'}")
    if flavor.get("code") is not None or flavor.get("model_data") != "data":
        raise _foreign(uri, "it brings code of its own")
    found = description.signature
    if found is None or not _is_one_tensor(found.inputs) or not _is_one_tensor(found.outputs):
        raise _foreign(uri, "its signature is not one tensor to one tensor")
    (inputs,), (outputs,) = found.inputs.inputs, found.outputs.inputs
    N, gridsize = int(inputs.shape[-1]), _GRIDSIZES.get(len(inputs.shape), 1)
    has_deviation = len(outputs.shape) > 0 and outputs.shape[-1] == 3
    ours = signature(N, gridsize, has_deviation=has_deviation)
    if N <= 0 or (found.inputs, found.outputs) != (ours.inputs, ours.outputs):
        raise _foreign(uri, f"it takes {inputs.type} {inputs.shape} to {outputs.type} {outputs.shape}")
    return N, gridsize, has_deviation


def _members(description: Model) -> tuple[str, ...]:
    """The runs whose networks an ensemble holds; none where the description does not say so."""
    metadata = description.metadata
    members = metadata.get(MEMBERS) if isinstance(metadata, dict) else None
    return tuple(map(str, members)) if isinstance(members, list) else ()


def _is_one_tensor(schema: Schema | None) -> bool:
    return schema is not None and [type(entry) for entry in schema.inputs] == [TensorSpec]


def _load_network(folder: Path, uri: str) -> torch.nn.Module:
    """The exported network in `folder`."""
    data = folder / "data"
    if not (data / "model.pt2").is_file() or (data / "model.pth").exists():
        raise _foreign(uri, "it has no data/model.pt2, or a pickle besides")
    if fault := damage(data / "model.pt2"):
        raise _fault(uri, f"a whole model: {fault}")
    with _refused(uri, "a whole model without pickles"), _pickles_refused():
        network: torch.nn.Module = mlflow.pytorch.load_model(str(folder))
    return network


@contextlib.contextmanager
def _pickles_refused() -> Iterator[None]:
    """Have MLflow look through a pt2 archive before torch loads it: torch by itself unpickles what is inside."""
    before = os.environ.get(_NO_PICKLES)
    os.environ[_NO_PICKLES] = "false"
    try:
        yield
    finally:
        del os.environ[_NO_PICKLES]
        if before is not None:
            os.environ[_NO_PICKLES] = before


def _read_beside(path: Path, uri: str, N: int) -> dict[str, Any]:
    """What the NPZ file beside the network holds, under the names of `ShippedModel`; nothing if it is not there."""
    if not path.exists():
        return {}
    try:
        found: dict[str, Any] = {"modes": read_probe(path, "model")[None]}
        with contextlib.closing(NpzFile(path, "model")) as file:
            found |= {key: file.read(key) for key in file.keys if key in _BESIDE}
    except ValueError as error:
        raise ConfigError(str(error)) from None
    for key in found.keys() & {"mean_counts", "scale"}:
        array = found[key]
        found[key] = float(array.real.ravel()[0]) if array.size == 1 else math.nan
        if not 0 < found[key] < math.inf:
            raise _fault(uri, f"a model whose {key} is one positive number, not {array}")
    for key in found.keys() & {"modes", "start_probe", "mask"}:
        shape = found[key].shape
        if shape[-2:] != (N, N) or len(shape) != 2 + (key == "modes") or not np.isfinite(found[key]).all():
            name = "probe" if key == "modes" else key
            raise _fault(uri, f"a model whose {name} is finite and {N} x {N} as its patterns, not {shape}")
        found[key] = found[key].astype(bool if key == "mask" else np.complex64)
    return found


def _read_example(description: Model, folder: Path, shape: tuple[int, ...]) -> NDArray[np.float32] | None:
    """The counts that the model was exported with, (B, *shape); None if they are not there, which costs nothing."""
    try:
        example = np.asarray(description.load_input_example(str(folder)), np.float32)
    except Exception:
        return None
    return example if example.shape[1:] == shape and len(example) and np.isfinite(example).all() else None


def _fault(uri: str, rule: str) -> ConfigError:
    return ConfigError(f"`model` (={uri}) must be {rule}")


def _foreign(uri: str, reason: str) -> ConfigError:
    return _fault(uri, f"a network that this package exported (pt2, {_SIGNATURE}): {reason}")
