"""From a detector's frames to square patterns: the window that is kept, pixels that count, and counts."""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fnostab.config import ReadingConfig
from fnostab.formats.frames import Frames

#: What 32-bit integers without and with a sign cannot exceed, as wider types and single precision hold it.
_LARGEST_OF_32_BITS: Final = (2**32 - 1, 2**32, 2**31 - 1, 2**31)


@dataclass(frozen=True, eq=False)
class Window:
    """The N x N patterns of a detector (H, W): `bin` x `bin` pixels each are added up.

    `rows` and `columns` (N * bin,) are the detector's, -1 beyond its edge.
    """

    N: int
    bin: int
    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    fft_ordered: bool = False

    @classmethod
    def about(cls, centre: tuple[int, int], shape: tuple[int, int], N: int, bin: int, fft_ordered: bool) -> "Window":
        """The window of a detector of `shape` whose zero frequency, pixel N // 2, is at `centre` of the ordered frame.

        Frames in FFT order are brought in order, zero frequency at (H // 2, W // 2).
        """
        axes = []
        for middle, length in zip(centre, shape, strict=True):
            index = middle - N // 2 * bin + np.arange(N * bin)
            outside = (index < 0) | (index >= length)
            axes.append(np.where(outside, -1, (index - length // 2) % length if fft_ordered else index))
        return cls(N, bin, axes[0], axes[1], fft_ordered)

    @property
    def inside(self) -> NDArray[np.bool_]:
        """The pixels (N, N) that lie on the detector as a whole."""
        on = (self.rows >= 0)[:, None] & (self.columns >= 0)
        return np.asarray(self._binned(on).all(axis=(-3, -1)))

    def cut(self, frames: NDArray[Any]) -> NDArray[Any]:
        """The window's pixels (..., N * bin, N * bin) of frames (..., H, W), 0 beyond the detector."""
        rows, columns = (axis[axis >= 0] for axis in (self.rows, self.columns))
        ranges = [slice(axis[0], axis[-1] + 1) for axis in (rows, columns) if (np.diff(axis) == 1).all()]
        part = frames[..., ranges[0], ranges[1]] if len(ranges) == 2 else frames[..., rows[:, None], columns]
        if len(rows) == len(self.rows) and len(columns) == len(self.columns):
            return part
        whole = np.zeros((*frames.shape[:-2], len(self.rows), len(self.columns)), frames.dtype)
        whole[..., (self.rows >= 0)[:, None] & (self.columns >= 0)] = part.reshape(*frames.shape[:-2], -1)
        return whole

    def added_up(self, pixels: NDArray[Any]) -> NDArray[Any]:
        """Sums (..., N, N) over the bins of what `cut` gave."""
        return pixels if self.bin == 1 else self._binned(pixels).sum(axis=(-3, -1))

    def all_of(self, good: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Whether all pixels of a bin, on the detector (H, W), are `good`: (N, N)."""
        return np.asarray(self._binned(self.cut(good)).all(axis=(-3, -1)))

    def _binned(self, pixels: NDArray[Any]) -> NDArray[Any]:
        return pixels.reshape(*pixels.shape[:-2], self.N, self.bin, self.N, self.bin)


class BadPixels:
    """Pixels of frames that hold no counts: NaN, negative numbers, an integer type's largest value, a given value.

    `found` bool (H, W) is True where any frame had one so far. The largest value of eight bits, 255, is no gap but a
    full pixel: `full_at` is that, if a frame had one.
    """

    def __init__(self, frames: Frames, reading: ReadingConfig) -> None:
        self._key, self._rule, self._value = frames.key, reading.bad_pixels, reading.mask_value
        self._largest: tuple[float, ...] = _LARGEST_OF_32_BITS
        if frames.dtype.kind in "iu" and frames.dtype.itemsize > 1:
            self._largest = (np.iinfo(frames.dtype).max, *(_LARGEST_OF_32_BITS if frames.dtype.itemsize > 4 else ()))
        elif frames.dtype.itemsize < 4:
            self._largest = ()
        self._floats = frames.dtype.kind == "f"
        self.found = np.zeros((frames.height, frames.width), np.bool_)
        self._most_of_eight_bits = np.iinfo(frames.dtype).max if frames.dtype in (np.uint8, np.int8) else None
        self.full_at: int | None = None

    def taken_out(self, numbers: NDArray[np.int64], chunk: NDArray[Any], window: Window) -> NDArray[Any]:
        """Set the bad pixels of frames (k, H, W), of these `numbers`, to 0; raises ValueError if they are refused."""
        if not chunk.size:
            return chunk
        if self._most_of_eight_bits is not None and chunk.max() == self._most_of_eight_bits:
            self.full_at = self._most_of_eight_bits
        flags = np.zeros((), np.bool_)
        if self._floats and not np.isfinite(chunk).all():
            flags = flags | self._checked(~np.isfinite(chunk), "finite", numbers, chunk, window)
        if chunk.dtype.kind in "if" and (chunk < 0).any():
            if self._rule == "clip":
                chunk = np.where(chunk < 0, 0, chunk)
            else:
                flags = flags | self._checked(chunk < 0, ">= 0", numbers, chunk, window)
        if self._largest and np.nanmax(chunk) >= min(self._largest):
            full = np.isin(chunk, self._largest)
            flags = flags | self._checked(full, "under its type's largest value, a gap's", numbers, chunk, window)
        if self._value is not None:
            flags = flags | (chunk == self._value)
        if not flags.any():
            return chunk
        self.found |= flags.any(axis=0)
        return np.where(flags, np.zeros((), chunk.dtype), chunk)

    def _checked(
        self, flags: NDArray[np.bool_], rule: str, numbers: NDArray[np.int64], chunk: NDArray[Any], window: Window
    ) -> NDArray[np.bool_]:
        if self._value is not None:
            flags = flags & (chunk != self._value)
        if self._rule != "refuse":
            return flags
        inside = np.zeros(flags.shape[-2:], np.bool_)
        inside[np.ix_(*(axis[axis >= 0] for axis in (window.rows, window.columns)))] = True
        if not (flags & inside).any():
            return flags
        first = np.unravel_index(int((flags & inside).argmax()), flags.shape)
        frame, row, column = (int(index) for index in first)
        ways = "mask leaves such pixels out" + (", clip takes negative counts as 0" if rule == ">= 0" else "")
        raise ValueError(
            f"`{self._key}` (={chunk[first]} at pattern, row, column {numbers[frame]}, {row}, {column}) must be {rule};"
            f" `data.bad_pixels` {ways}"
        )


def light_centre(light: NDArray[np.float64], good: NDArray[np.bool_]) -> tuple[int, int]:
    """The pixel (row, column) at the centre of mass of `light` (H, W), over `good` pixels, without a dim background."""
    bright = np.where(good, light, 0)
    bright = np.clip(bright - 0.01 * bright.max(), 0, None)
    total = bright.sum()
    if not total:
        return light.shape[0] // 2, light.shape[1] // 2
    rows, columns = (float((bright.sum(axis=1 - axis) * np.arange(bright.shape[axis])).sum()) for axis in (0, 1))
    return round(rows / total), round(columns / total)
