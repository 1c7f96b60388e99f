"""What an exported file says of itself: keys of its metadata, arrays beside the network, a checksum.

The metadata are ONNX's `metadata_props`, text by key, which every runtime hands out without running the model.
"""

import hashlib
from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

#: The version of this description.
FORMAT: Final = "1"
PREFIX: Final = "fnostab."

#: Every key, without its prefix, and what it says. A key whose value is not known is left out.
KEYS: Final[Mapping[str, str]] = {
    "format": f"version of this description: {FORMAT}",
    "layout": "`fnostab` or `holoptycho`",
    "signature": "input and output in words",
    "N": "pixels of a pattern along each axis",
    "gridsize": "1: single patterns, 2: groups of four",
    "scale": "sqrt(counts) / scale is the amplitude of the orthonormal FFT2(probe * patch)",
    "mean_counts": "counts of the mean training pattern",
    "normalization": "holoptycho: the largest count of a scan, which the input was divided by",
    "batch_size": "holoptycho: patterns at once, always",
    "model": "URI of the MLflow model, an alias replaced by its version",
    "run": "ID of the run that trained it, or that holds the ensemble",
    "members": "of an ensemble: the runs whose networks it holds, with commas between",
    "study": "its study",
    "arm": "its arm",
    "arch": "its architecture",
    "seed": "its training seed",
    "precision": "precision of its training steps; the file is float32 whatever it was",
    "dataset_sha256": "hash of the arrays that it was trained on",
    "fnostab_version": "version of this package that trained it",
    "git_commit": "and its commit",
    "verdict": "how the training went",
    "val_loss": "its lowest R-factor on the validation patterns",
    "exported_by": "versions of this package and of torch that wrote the file",
    "largest_deviation": "from the MLflow model's patches, over their largest magnitude, when the file was written",
    "checksum": "SHA-256 of the file with 64 zeros in this place",
}

#: Arrays beside a network, by the names of `probe.npz`; a complex one becomes NAME_real and NAME_imag.
COMPLEX: Final = ("probe", "modes", "start_probe")
MASK: Final = "detector_mask"

_NO_CHECKSUM: Final = 64 * b"0"
_CHECKSUM_KEY: Final = f"{PREFIX}checksum".encode()


def arrays_of(
    modes: NDArray[np.complex64] | None,
    start_probe: NDArray[np.complex64] | None = None,
    mask: NDArray[np.bool_] | None = None,
) -> dict[str, NDArray[np.float32] | NDArray[np.bool_]]:
    """The arrays beside a network, as a file has them: ONNX has complex numbers, but hardly a runtime takes them.

    `probe` (N, N) is the first of `modes` (k, N, N); these are left out where there is one only.
    """
    found = {"probe": None if modes is None else modes[0], "start_probe": start_probe}
    if modes is not None and len(modes) > 1:
        found["modes"] = modes
    arrays: dict[str, NDArray[np.float32] | NDArray[np.bool_]] = {}
    for name, array in found.items():
        if array is not None:
            arrays[f"{name}_real"] = np.ascontiguousarray(array.real, np.float32)
            arrays[f"{name}_imag"] = np.ascontiguousarray(array.imag, np.float32)
    if mask is not None:
        arrays[MASK] = mask
    return arrays


def complex_array(arrays: Mapping[str, NDArray[np.float32]], name: str) -> NDArray[np.complex64] | None:
    """The complex array `name` of a file's `arrays`; None if they lack it."""
    real, imag = arrays.get(f"{name}_real"), arrays.get(f"{name}_imag")
    return None if real is None or imag is None else (real + 1j * imag).astype(np.complex64)


def with_checksum(content: bytes) -> bytes:
    """The content of a file whose metadata end with a checksum of 64 zeros, and the checksum in their place."""
    place = _place_of_checksum(content)
    assert place is not None
    assert content[place : place + 64] == _NO_CHECKSUM
    return content[:place] + hashlib.sha256(content).hexdigest().encode() + content[place + 64 :]


def has_its_checksum(content: bytes) -> bool | None:
    """Whether a file's content is what its checksum says; None if it has none."""
    place = _place_of_checksum(content)
    if place is None:
        return None
    digest = hashlib.sha256(content[:place])
    digest.update(_NO_CHECKSUM)
    digest.update(memoryview(content)[place + 64 :])
    return digest.hexdigest().encode() == content[place : place + 64]


def _place_of_checksum(content: bytes) -> int | None:
    """Where the value begins: after its key, protobuf has a tag and a length, of a byte each."""
    found = content.rfind(_CHECKSUM_KEY)
    place = found + len(_CHECKSUM_KEY) + 2
    return place if found >= 0 and place + 64 <= len(content) else None
