"""Masks of detectors, in files of their own."""

from contextlib import closing
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fnostab.formats.containers import open_container
from fnostab.formats.scan import key_list, size_text
from fnostab.io.files import DAMAGE, open_binary

_NPY_MAGIC: Final = b"\x93NUMPY"


def read_mask(path: str | Path) -> NDArray[np.bool_]:
    """Read a detector's mask, bool (H, W), True where a pixel counts.

    It is the array of an NPY file, or `mask` or `good_pixels` of an NPZ or HDF5 file, or its `bad_pixels`, turned
    round. Raises ValueError, in one line, for a file that is none of these, and for another array than (H, W).
    """
    path = Path(path)
    try:
        with open_binary(path) as stream:
            is_npy = stream.read(len(_NPY_MAGIC)) == _NPY_MAGIC
        array = np.load(path, allow_pickle=False) if is_npy else None
    except OSError as error:
        raise ValueError(f"`data.mask` (={path}) must be a readable file: {error.strerror or error}") from None
    except (*DAMAGE, MemoryError):
        raise ValueError(f"`data.mask` (={path}) must be a whole NPY, NPZ or HDF5 file") from None
    if array is not None:
        return _checked(array, path)
    with closing(open_container(path, "data.mask")) as file:
        names = {key.strip("/"): key for key in file.keys}
        found = next((name for name in ("mask", "good_pixels", "bad_pixels") if name in names), None)
        if found is None:
            raise file.fault(f"must hold `mask` or `bad_pixels`; it holds {key_list(file.keys)}")
        return np.asarray(_checked(file.read(names[found]), path) != (found == "bad_pixels"))


def _checked(array: NDArray[Any], path: Path) -> NDArray[np.bool_]:
    mask = np.squeeze(array)
    if mask.ndim != 2 or mask.dtype.kind not in "biuf":
        rule = f"must be a mask of two axes, (H, W), not {size_text(array)} {array.dtype}"
        raise ValueError(f"`data.mask` (={path}) {rule}")
    return np.asarray(mask != 0)
