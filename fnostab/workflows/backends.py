"""What runs a trained network on a scan: torch, or onnxruntime."""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from fnostab.config import ConfigError, is_left_open
from fnostab.export.onnx_model import OnnxModel
from fnostab.export.packages import FOR_READING, FOR_WRITING, require_packages
from fnostab.io.untrusted import shown
from fnostab.models.bfloat16 import with_bfloat16_convolutions
from fnostab.tracking.models import load_model
from fnostab.training.precision import has_bf16
from fnostab.workflows import PrintLine
from fnostab.workflows.export_model import export_model

BACKENDS: Final = ("torch", "onnx")
PRECISIONS: Final = ("32-true", "bf16-mixed")


class Network(Protocol):
    """A trained network and what it was trained with: a `ShippedModel` or an `OnnxModel`, which say what each is."""

    @property
    def source(self) -> str: ...  # noqa: D102
    @property
    def run_id(self) -> str | None: ...  # noqa: D102
    @property
    def N(self) -> int: ...  # noqa: D102
    @property
    def gridsize(self) -> int: ...  # noqa: D102
    @property
    def modes(self) -> NDArray[np.complex64] | None: ...  # noqa: D102
    @property
    def probe(self) -> NDArray[np.complex64] | None: ...  # noqa: D102
    @property
    def start_probe(self) -> NDArray[np.complex64] | None: ...  # noqa: D102
    @property
    def mask(self) -> NDArray[np.bool_] | None: ...  # noqa: D102
    @property
    def mean_counts(self) -> float | None: ...  # noqa: D102
    @property
    def scale(self) -> float | None: ...  # noqa: D102
    @property
    def has_deviation(self) -> bool: ...  # noqa: D102
    def predict(self, counts: NDArray[np.float32]) -> NDArray[np.complex64]: ...  # noqa: D102
    def predict_with_deviation(  # noqa: D102
        self, counts: NDArray[np.float32]
    ) -> tuple[NDArray[np.complex64], NDArray[np.float32] | None]: ...


def resolve_backend(model_uri: str, backend: str, precision: str) -> tuple[str, str]:
    """The backend and the precision that are meant, before anything is fetched.

    `auto` is onnx for a file that ends in .onnx, else torch; and 32-true. Raises `ConfigError` for what is neither, and
    for pairs that do not go together.
    """
    is_file = _is_onnx_file(model_uri)
    if is_left_open(backend):
        backend = "onnx" if is_file else "torch"
    if is_left_open(precision):
        precision = "32-true"
    if backend not in BACKENDS:
        raise ConfigError(f"`backend` (={shown(backend)}) must be one of auto, {', '.join(BACKENDS)}")
    if precision not in PRECISIONS:
        raise ConfigError(f"`precision` (={shown(precision)}) must be one of auto, {', '.join(PRECISIONS)}")
    if is_file and backend == "torch":
        raise ConfigError(f"`backend` (=torch) must be onnx or auto for {shown(model_uri)}, an ONNX file")
    if backend == "onnx":
        if precision != "32-true":
            rule = "must be 32-true with the backend onnx: onnxruntime computes these networks in single precision"
            raise ConfigError(f"`precision` (={precision}) {rule}")
        try:
            require_packages("`backend` (=onnx)", FOR_READING if is_file else FOR_WRITING)
        except ValueError as error:
            raise ConfigError(str(error)) from None
    return backend, precision


def load_network(model_uri: str, backend: str, precision: str, print_line: PrintLine) -> Network:
    """Load the network at `model_uri`, a model in MLflow, a folder or an ONNX file, as `resolve_backend` has it.

    A model of MLflow becomes an ONNX file for this process alone, compared with the model as `fnostab export-model`
    does. Raises `ConfigError`, in one line, for what cannot be read or run so. `print_line` takes lines for people.
    """
    if backend == "onnx":
        return _load_onnx(model_uri, print_line)
    model = load_model(model_uri)
    if precision == "bf16-mixed":
        if not has_bf16("cpu"):
            print_line("warning: precision=bf16-mixed will be slower than 32-true: this cpu has no instructions for it")
        try:
            return replace(model, network=with_bfloat16_convolutions(model.network))
        except ValueError as error:
            raise ConfigError(f"`precision` (=bf16-mixed) must be 32-true for {shown(model_uri)}: {error}") from None
    return model


def _load_onnx(model_uri: str, print_line: PrintLine) -> OnnxModel:
    try:
        if _is_onnx_file(model_uri):
            return OnnxModel.load(model_uri)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "model.onnx"
            made = export_model(model_uri, file, print_line=print_line)
            return replace(OnnxModel.load(file), made_of=made.source)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _is_onnx_file(model_uri: str) -> bool:
    return model_uri.lower().endswith(".onnx") and not model_uri.startswith(("models:", "runs:"))
