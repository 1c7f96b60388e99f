"""One measured scan in this package's conventions, and the rules that every reader's arrays must keep.

The functions take an array and the `key` under which its file holds it, which their messages name.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

#: What the patterns of a file are; `auto` is refused where a file leaves it open.
Quantity = Literal["auto", "counts", "amplitude"]

#: Fewer positions than this are no scan: neither training nor validation would mean anything.
MIN_POSITIONS: Final = 10

#: A wider scan is in other units.
MAX_EXTENT_PX: Final = 2**15

#: A rectangle of this many times the pixels of all windows is mostly empty: a position is wrong, and the canvas that
#: the object is put together on would exhaust the memory. (Windows that overlap need less than once.)
MAX_SPARSITY: Final = 16

#: Largest and smallest |probe|: beyond, its intensities leave the range of float32.
_PROBE_RANGE: Final = (1e-12, 1e12)

#: Names of the two fields of a complex number where a file format has none: h5py's and MATLAB's.
_COMPLEX_PAIRS: Final = {("r", "i"), ("real", "imag")}


@dataclass(frozen=True, eq=False)
class Scan:
    """A measured scan, whatever its file.

    `counts` float32 (n, M, M), zero frequency at M // 2 and 0 where `mask` is False; `positions_px` float64 (n, 2),
    (row, column) of the window's first pixel; `modes` complex64 (k, M, M), the probe's modes, which add up
    incoherently, or None; `object` complex64 (H, W), whose pixel (0, 0) is position (0, 0), or None; `mask` bool
    (M, M), True where a pixel counts, or None if all do; `pixel_size_m` is the object's pixel, `energy_eV` that of a
    photon, `distance_m` from object to detector, each None if it is unknown. `notes` are lines for people: what was
    guessed or left out, and why; `warnings` are those of what is probably wrong. `layout` is the name of the file's
    format.
    """

    counts: NDArray[np.float32]
    positions_px: NDArray[np.float64]
    modes: NDArray[np.complex64] | None
    object: NDArray[np.complex64] | None = None
    layout: str = "fnostab"
    mask: NDArray[np.bool_] | None = None
    pixel_size_m: float | None = None
    energy_eV: float | None = None
    distance_m: float | None = None
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def probe(self) -> NDArray[np.complex64] | None:
        """The first mode, complex64 (M, M), or None."""
        return None if self.modes is None else self.modes[0]


def checked_positions(arrays: Mapping[str, NDArray[Any]]) -> NDArray[np.float64]:
    """Return positions (n, 2) from one array of that shape, or from a row and a column array.

    Those of a raster may keep its axes: (ny, nx, 2), or two of (ny, nx). They may be NaN or infinite: frames can be
    left out, and `check_finite` looks at those that are kept.
    """
    name = ", ".join(arrays)
    sizes = " and ".join(size_text(array) for array in arrays.values())
    parts = list(arrays.values())
    if any(part.dtype.kind not in "iuf" for part in parts):
        raise ValueError(f"`{name}` (={parts[0].dtype}) must be real numbers")
    with np.errstate(all="ignore"):
        parts = [part.astype(np.float64) for part in parts]
    if len(parts) == 2:
        rows, cols = (part.reshape(-1) for part in parts)
        if len(rows) != len(cols):
            raise ValueError(f"`{name}` (={sizes}) must be as many rows as columns")
        positions = np.stack([rows, cols], axis=1)
    elif parts[0].ndim < 2 or parts[0].shape[-1] != 2:
        raise ValueError(f"`{name}` (={sizes}) must be row and column of n positions, (n, 2)")
    else:
        positions = parts[0].reshape(-1, 2)
    if len(positions) < MIN_POSITIONS:
        raise ValueError(
            f"`{name}` (={len(positions)} positions) must be at least {MIN_POSITIONS} positions; for single patterns,"
            " load the model itself (docs/using-a-model.md)"
        )
    return positions


def check_finite(positions: NDArray[np.float64], key: str, numbers: NDArray[np.int64]) -> None:
    """Refuse positions (n, 2), of the frames `numbers`, that are NaN or infinite."""
    finite = np.isfinite(positions)
    if not finite.all():
        frame = int(numbers[~finite.all(axis=1)][0])
        raise ValueError(
            f"`{key}` (={positions[~finite][0]} at position {frame}) must be finite; `data.skip_frames` leaves some out"
        )


def check_extent(positions_px: NDArray[np.float64], key: str) -> None:
    """Refuse positions that all lie in one pixel, or further apart than any scan reaches."""
    with np.errstate(over="ignore", invalid="ignore"):  # of NaN and infinity, which are refused
        extent = float(np.ptp(positions_px, axis=0).max())
    if not 1 <= extent <= MAX_EXTENT_PX:
        raise ValueError(
            f"`{key}` (=extent {extent:g}) must span 1 to {MAX_EXTENT_PX} px; are they in pixels? `data.unit` says what"
            " they are in"
        )


def check_overlap(positions: NDArray[np.float64], M: int, key: str) -> None:
    """Refuse windows (M, M) that leave most of their rectangle empty."""
    height, width = (float(extent) + M for extent in np.ptp(positions, axis=0))
    most = MAX_SPARSITY * len(positions) * M**2
    if height * width > most:
        raise ValueError(
            f"`{key}` (=a rectangle of {height:.0f} x {width:.0f} px) must cover at most {most} px,"
            f" {MAX_SPARSITY} times the {len(positions)} windows of {M} x {M}: is one of them wrong?"
        )


def checked_modes(array: NDArray[Any], key: str) -> NDArray[np.complex64]:
    """Return the modes (k, M, M) of a square probe that has light; a single one may have no axis of modes."""
    axes = tuple(axis for axis in range(array.ndim - 2) if array.shape[axis] == 1)
    modes = np.squeeze(array, axes)
    if modes.ndim == 3 and modes.shape[2] == 1 and modes.shape[0] == modes.shape[1]:
        modes = modes[..., 0]
    if modes.ndim not in (2, 3) or modes.shape[-1] != modes.shape[-2] or not modes.size:
        raise ValueError(f"`{key}` (={size_text(array)}) must be one square array, (M, M), or its modes, (k, M, M)")
    images = np.stack([checked_image(mode, key) for mode in modes.reshape(-1, *modes.shape[-2:])])
    if not images[0].any():
        raise ValueError(f"`{key}` (=0 everywhere) must hold some light")
    least, most = _PROBE_RANGE
    brightest = float(np.abs(images).max())
    if not least <= brightest <= most:
        raise ValueError(
            f"`{key}` (=at most {brightest:g}) must have its largest amplitude within {least:g} to {most:g}"
        )
    return images


def checked_image(array: NDArray[Any], key: str) -> NDArray[np.complex64]:
    """Return one finite complex image (H, W)."""
    image = np.squeeze(array) if array.ndim > 2 else array
    if image.ndim != 2 or image.dtype.kind not in "iufc" or not image.size:
        raise ValueError(f"`{key}` (={size_text(array)} {array.dtype}) must be one array of numbers with two axes")
    with np.errstate(over="ignore", invalid="ignore"):
        image = np.ascontiguousarray(image, dtype=np.complex64)
        if not np.isfinite(image).all():
            raise ValueError(f"`{key}` (={image[~np.isfinite(image)][0]}) must be finite")
    return image


def as_numbers(array: NDArray[Any]) -> NDArray[Any] | None:
    """Return `array` if it holds numbers, pairs of real and imaginary part as complex ones; else None."""
    if array.dtype.names is not None and tuple(map(str.lower, array.dtype.names)) in _COMPLEX_PAIRS:
        real, imag = (array[name] for name in array.dtype.names)
        if real.dtype.kind == imag.dtype.kind == "f":
            return np.asarray(real + 1j * imag)
    return array if array.dtype.kind in "biufc" else None


def key_list(keys: Iterable[str]) -> str:
    """Write the first keys of a file, for a message of one line."""
    names = sorted(key if len(key) <= 72 else f"{key[:72]}..." for key in keys)
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "") or "nothing"


def size_text(array: Any) -> str:
    """Write the shape of an array for a message: `64 x 64`."""
    return " x ".join(str(length) for length in array.shape) or "a scalar"
