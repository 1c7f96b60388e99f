"""One measured scan in this package's conventions, and the rules that every reader's arrays must keep.

The functions take an array and the `key` under which its file holds it, which their messages name.
"""

from collections.abc import Mapping
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


@dataclass(frozen=True, eq=False)
class Scan:
    """A measured scan, whatever its file.

    `counts` float32 (n, M, M), zero frequency at M // 2 and 0 where `mask` is False; `positions_px` float64 (n, 2),
    (row, column) of the window's first pixel; `modes` complex64 (k, M, M), the probe's modes, which add up
    incoherently, or None; `object` complex64 (H, W), whose pixel (0, 0) is position (0, 0), or None; `mask` bool
    (M, M), True where a pixel counts, or None if all do; `pixel_size_m` is that of the object, where it is known;
    `notes` are lines for people: what was guessed or left out, and why. `layout` is the name of the file's format.
    """

    counts: NDArray[np.float32]
    positions_px: NDArray[np.float64]
    modes: NDArray[np.complex64] | None
    object: NDArray[np.complex64] | None = None
    layout: str = "fnostab"
    mask: NDArray[np.bool_] | None = None
    pixel_size_m: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def probe(self) -> NDArray[np.complex64] | None:
        """The first mode, complex64 (M, M), or None."""
        return None if self.modes is None else self.modes[0]


def checked_counts(array: NDArray[Any], key: str, n: int, squared: bool = False) -> NDArray[np.float32]:
    """Return the `n` patterns of `array`, squared if they are amplitudes, as float32 counts (n, M, M)."""
    patterns = _without_leading_ones(array, 3)
    if patterns.ndim == 3 and patterns.shape[0] != n and patterns.shape[2] == n:
        patterns = np.moveaxis(patterns, 2, 0)
    if patterns.ndim != 3 or patterns.shape[1] != patterns.shape[2] or patterns.dtype.kind not in "biuf":
        raise ValueError(f"`{key}` (={size_text(array)} {array.dtype}) must be n square real patterns, (n, M, M)")
    if len(patterns) != n:
        raise ValueError(f"`{key}` (={len(patterns)} patterns) must match the {n} positions")
    with np.errstate(over="ignore"):  # what overflows float32 becomes infinite and is refused below
        counts = np.square(patterns, dtype=np.float32) if squared else patterns.astype(np.float32)
    for broken, rule in ((~np.isfinite(counts), "finite"), (np.asarray(patterns < 0), ">= 0")):
        if broken.any():
            first = np.unravel_index(int(broken.argmax()), broken.shape)
            where = ", ".join(str(int(index)) for index in first)
            raise ValueError(f"`{key}` (={patterns[first]} at pattern, row, column {where}) must be {rule}")
    if not counts.any():
        raise ValueError(f"`{key}` (=0 everywhere) must hold some counts")
    return np.ascontiguousarray(counts)


def checked_positions(arrays: Mapping[str, NDArray[Any]]) -> NDArray[np.float64]:
    """Return positions (n, 2) from one array of that shape, or from a row and a column array (n,)."""
    name = ", ".join(arrays)
    sizes = " and ".join(size_text(array) for array in arrays.values())
    parts = [_without_leading_ones(array, 3 - len(arrays)) for array in arrays.values()]
    if any(part.dtype.kind not in "iuf" for part in parts):
        raise ValueError(f"`{name}` (={parts[0].dtype}) must be real numbers")
    if len(parts) == 2:
        rows, cols = (part.reshape(-1) for part in parts)
        if len(rows) != len(cols):
            raise ValueError(f"`{name}` (={sizes}) must be as many rows as columns")
        positions = np.stack([rows, cols], axis=1).astype(np.float64)
    else:
        positions = parts[0].astype(np.float64)
    if positions.ndim != 2 or positions.shape[1] != 2:
        raise ValueError(f"`{name}` (={sizes}) must be row and column of n positions, (n, 2)")
    if len(positions) < MIN_POSITIONS:
        raise ValueError(f"`{name}` (={len(positions)} positions) must be at least {MIN_POSITIONS} positions")
    if not np.isfinite(positions).all():
        raise ValueError(f"`{name}` (={positions[~np.isfinite(positions)][0]}) must be finite")
    with np.errstate(over="ignore"):
        extent = float(np.ptp(positions, axis=0).max())
    if not 1 <= extent <= MAX_EXTENT_PX:
        raise ValueError(f"`{name}` (=extent {extent:g}) must span 1 to {MAX_EXTENT_PX} px; are they in pixels?")
    return positions


def check_overlap(positions: NDArray[np.float64], M: int, key: str) -> None:
    """Refuse windows (M, M) that leave most of their rectangle empty."""
    height, width = (float(extent) + M for extent in np.ptp(positions, axis=0))
    most = MAX_SPARSITY * len(positions) * M**2
    if height * width > most:
        raise ValueError(
            f"`{key}` (=a rectangle of {height:.0f} x {width:.0f} px) must cover at most {most} px,"
            f" {MAX_SPARSITY} times the {len(positions)} windows of {M} x {M}: is one of them wrong?"
        )


def checked_probe(array: NDArray[Any], key: str) -> NDArray[np.complex64]:
    """Return one square probe (M, M) that has light."""
    probe = checked_image(array, key)
    if probe.shape[0] != probe.shape[1]:
        raise ValueError(f"`{key}` (={size_text(array)}) must be one square array, (M, M)")
    if not probe.any():
        raise ValueError(f"`{key}` (=0 everywhere) must hold some light")
    least, most = _PROBE_RANGE
    brightest = float(np.abs(probe).max())
    if not least <= brightest <= most:
        raise ValueError(
            f"`{key}` (=at most {brightest:g}) must have its largest amplitude within {least:g} to {most:g}"
        )
    return probe


def checked_image(array: NDArray[Any], key: str) -> NDArray[np.complex64]:
    """Return one finite complex image (H, W)."""
    image = _without_leading_ones(array, 2)
    if image.ndim != 2 or image.dtype.kind not in "iufc" or not image.size:
        raise ValueError(f"`{key}` (={size_text(array)} {array.dtype}) must be one array of numbers with two axes")
    with np.errstate(over="ignore"):
        image = np.ascontiguousarray(image, dtype=np.complex64)
    if not np.isfinite(image).all():
        raise ValueError(f"`{key}` (={image[~np.isfinite(image)][0]}) must be finite")
    return image


def size_text(array: NDArray[Any]) -> str:
    """Write the shape of an array for a message: `64 x 64`."""
    return " x ".join(str(length) for length in array.shape) or "a scalar"


def _without_leading_ones(array: NDArray[Any], ndim: int) -> NDArray[Any]:
    """Drop leading axes of length one until `ndim` axes are left."""
    while array.ndim > ndim and array.shape[0] == 1:
        array = array[0]
    return array
