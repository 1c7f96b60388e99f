"""An ONNX file of this package, read back and run by onnxruntime: no torch, no MLflow."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fnostab.export.description import FORMAT, MASK, PREFIX, complex_array, has_its_checksum
from fnostab.export.packages import FOR_READING, require_packages
from fnostab.export.sessions import open_session
from fnostab.io.files import open_binary
from fnostab.io.untrusted import raised, shown


@dataclass(frozen=True, eq=False)
class OnnxModel:
    """A network in an ONNX file that `fnostab export-model` wrote, and what it was trained with.

    Names are those of `tracking.models.ShippedModel`: `modes` complex64 (k, N, N), `start_probe` complex64 (N, N) and
    `mask` bool (N, N), `mean_counts` and `scale`; None where the file does not bring it. `description` is all that its
    metadata say, by the keys of `export.description.KEYS`. `made_of` is the model that the file was made of for this
    process alone, whose name it goes by then. An ensemble `has_deviation`.
    """

    path: Path
    N: int
    gridsize: int
    description: Mapping[str, str]
    modes: NDArray[np.complex64] | None
    start_probe: NDArray[np.complex64] | None
    mask: NDArray[np.bool_] | None
    mean_counts: float | None
    scale: float | None
    _session: Any = field(repr=False)
    made_of: str | None = None
    has_deviation: bool = False

    @classmethod
    def load(cls, path: str | Path, threads: int | None = None) -> "OnnxModel":
        """Read the file at `path`; `threads` of the CPU compute (default: `OMP_NUM_THREADS`, or all cores).

        Raises ValueError, in one line, for a file that cannot be read, is damaged or was changed since it was written,
        or that this package did not write in the layout fnostab; and where the extra `onnx` is not installed.
        """
        label = f"`model` (={shown(path)})"
        require_packages(label, FOR_READING)
        try:
            with open_binary(Path(path)) as file:
                content = file.read()
        except OSError as error:
            raise ValueError(f"{label} must be a readable file: {error.strerror}") from None
        description, arrays = _parse(content, label)
        try:
            session = open_session(content, threads)
            has_deviation = session.get_outputs()[0].shape[-1] == 3
            N, gridsize = int(description["N"]), int(description["gridsize"])
            scale, mean_counts = (_number(description, key) for key in ("scale", "mean_counts"))
        except Exception as error:
            raise ValueError(f"{label} must be an ONNX file that onnxruntime takes: {raised(error)}") from None
        probe = complex_array(arrays, "probe")
        modes = complex_array(arrays, "modes")
        if modes is None and probe is not None:
            modes = probe[None]
        of_run = (modes, complex_array(arrays, "start_probe"), arrays.get(MASK), mean_counts, scale)
        return cls(Path(path), N, gridsize, description, *of_run, session, has_deviation=has_deviation)

    @property
    def uri(self) -> str:
        """The name of the file, or of the model that it was made of."""
        return self.made_of or str(self.path)

    @property
    def source(self) -> str:
        """The full name of the file, or of the model that it was made of."""
        return self.made_of or str(self.path.resolve())

    @property
    def run_id(self) -> str | None:
        """The run that trained it."""
        return self.description.get("run")

    @property
    def C(self) -> int:
        """Patterns that it takes together."""
        return self.gridsize**2

    @property
    def probe(self) -> NDArray[np.complex64] | None:
        """The first mode of the probe, complex64 (N, N), or None."""
        return None if self.modes is None else self.modes[0]

    def predict(self, counts: NDArray[np.float32]) -> NDArray[np.complex64]:
        """Predict object patches, complex64 (B, N, N), from counts (B, N, N), zero frequency at N // 2.

        Those of a group lie one after the other, as in `ShippedModel.predict`. Raises ValueError for patterns of
        another size, or a number of them that makes no whole groups.
        """
        return self.predict_with_deviation(counts)[0]

    def predict_with_deviation(
        self, counts: NDArray[np.float32]
    ) -> tuple[NDArray[np.complex64], NDArray[np.float32] | None]:
        """As `predict`, and of an ensemble the deviation of each pixel, float32 (B, N, N); None of one network."""
        N, C = self.N, self.C
        shape = " x ".join(map(str, counts.shape))
        if counts.ndim != 3 or counts.shape[1:] != (N, N):
            raise ValueError(f"`counts` (={shape}) must be patterns of {N} x {N} for the model {self.path}")
        if len(counts) % C:
            raise ValueError(f"`counts` (={shape}) must be groups of {C} patterns for the model {self.path}")
        given = np.ascontiguousarray(counts, np.float32).reshape(-1, *((N, N) if C == 1 else (C, N, N)))
        (parts,) = self._session.run(["patches"], {"counts": given})
        patches = np.ascontiguousarray(parts[..., :2], np.float32).view(np.complex64).reshape(counts.shape)
        return patches, parts[..., 2].reshape(counts.shape) if self.has_deviation else None


def _parse(content: bytes, label: str) -> tuple[dict[str, str], dict[str, Any]]:
    """The metadata of a file, and the arrays among its outputs; raises ValueError if it is not whole or not ours."""
    import onnx

    try:
        model = onnx.ModelProto.FromString(content)
    except Exception as error:
        raise ValueError(f"{label} must be a whole ONNX file: {raised(error)}") from None
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    description = {key.removeprefix(PREFIX): text for key, text in metadata.items() if key.startswith(PREFIX)}
    is_whole = has_its_checksum(content)
    if is_whole is None:
        raise ValueError(f"{label} must be an ONNX file that `fnostab export-model` wrote: it has no fnostab.checksum")
    if not is_whole:
        raise ValueError(f"{label} must be as `fnostab export-model` wrote it: its content does not fit its checksum")
    if description.get("format") != FORMAT:
        raise ValueError(f"{label} must have fnostab.format {FORMAT}, and has {shown(description.get('format'))}")
    if description.get("layout") != "fnostab":
        rule = "must be of the layout fnostab to be read by this package"
        raise ValueError(f"{label} {rule}, and is of the layout {shown(description.get('layout'))}")
    names = {output.name for output in model.graph.output}
    arrays = {each.name: onnx.numpy_helper.to_array(each) for each in model.graph.initializer if each.name in names}
    return description, arrays


def _number(description: Mapping[str, str], key: str) -> float | None:
    return float(description[key]) if key in description else None
