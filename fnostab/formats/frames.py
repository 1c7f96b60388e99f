"""Detector frames of a file, read a few at a time."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fnostab.formats.scan import size_text

#: Bytes of frames, as they are stored, that are read at once.
_CHUNK_BYTES = 2**25
#: A last axis of up to so many, after two equal ones, is that of groups of patterns, as networks take them.
_MOST_CHANNELS = 16


class Stored(Protocol):
    """An array in a file that is not read yet.

    `read(start, stop)` gives frames `start` to `stop` of the array, its last two axes, as (k, H, W), with all other
    axes made one in their order; it is called with ascending ranges. `whole()` gives all of the array. `in_memory` says
    that all of it is in memory already, `may_be_longer` that a program may put more to its end.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...  # noqa: D102

    @property
    def dtype(self) -> np.dtype[Any]: ...  # noqa: D102

    @property
    def in_memory(self) -> bool: ...  # noqa: D102

    @property
    def may_be_longer(self) -> bool: ...  # noqa: D102

    def read(self, start: int, stop: int) -> NDArray[Any]: ...  # noqa: D102

    def whole(self) -> NDArray[Any]: ...  # noqa: D102


@dataclass(frozen=True)
class InMemory:
    """An array that was read already, as a `Stored`."""

    array: NDArray[Any]

    @property
    def shape(self) -> tuple[int, ...]:
        """The array's."""
        return self.array.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """The array's."""
        return self.array.dtype

    @property
    def in_memory(self) -> bool:
        """It is."""
        return True

    @property
    def may_be_longer(self) -> bool:
        """It stays as it is."""
        return False

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Frames (k, H, W)."""
        return self.array.reshape(-1, *self.array.shape[-2:])[start:stop]

    def whole(self) -> NDArray[Any]:
        """The array."""
        return self.array


@dataclass(frozen=True)
class Frames:
    """The n frames (H, W) of a scan, called `key` in its file; `read(start, stop)` and the rest as in `Stored`."""

    key: str
    n: int
    height: int
    width: int
    dtype: np.dtype[Any]
    read: Callable[[int, int], NDArray[Any]]
    notes: tuple[str, ...] = ()
    in_memory: bool = False
    may_be_longer: bool = False

    def chunks(self, stop: int | None = None, start: int = 0) -> Iterator[tuple[int, NDArray[Any]]]:
        """Yield the number of the first frame and (k, H, W) of some frames after another, from `start` up to `stop`."""
        stop = self.n if stop is None else min(stop, self.n)
        step = max(1, _CHUNK_BYTES // max(1, self.height * self.width * self.dtype.itemsize))
        for first in range(start, stop, step):
            yield first, self.read(first, min(first + step, stop))


def frames_of(stored: Stored, key: str, n: int) -> Frames:
    """Find the `n` frames, one a scan position, in an array of any usual shape.

    Taken are (n, H, W), (ny, nx, H, W) with ny nx = n, any of them with further axes of length one, and (H, W, n) where
    the number of positions tells it apart. Where n, H and W are all equal, the frames' axis is that along which the
    light varies less. Of an array that gets further frames, those that are there are taken, few or many. Raises
    ValueError, in one line, for all else.
    """
    shape = tuple(length for length in stored.shape if length != 1)
    text = f"`{key}` (={size_text(stored)} {stored.dtype})"
    if stored.dtype.kind not in "biuf":
        raise ValueError(f"{text} must be n real patterns, (n, M, M)")
    if len(shape) == 4 and shape[1] == shape[2] and shape[3] <= _MOST_CHANNELS:
        raise ValueError(f"{text} must be single patterns, not groups of {shape[3]}: use the file from before grouping")
    if len(shape) == 2 and n == 1:
        shape = (1, *shape)
    if len(shape) not in (3, 4) or 0 in shape:
        raise ValueError(f"{text} must be n patterns, (n, M, M)")
    frames = Frames(
        key,
        math.prod(shape[:-2]),
        shape[-2],
        shape[-1],
        stored.dtype,
        stored.read,
        in_memory=stored.in_memory,
        may_be_longer=stored.may_be_longer,
    )
    if stored.shape[-2:] != shape[-2:]:  # an axis of length one is among the last two
        frames = _of_array(frames, stored.whole().reshape(shape))
    is_last = len(shape) == 3 and shape[2] == n and not frames.may_be_longer
    if is_last and (shape[0] != n or _last_axis_counts(frames)):
        turned = np.moveaxis(stored.whole().reshape(shape), 2, 0)
        frames = _of_array(replace(frames, n=n, height=shape[0], width=shape[1]), turned)
        if shape[0] == n:
            note = f"`{key}` was read as (M, M, n): light varies least along its last axis"
            frames = replace(frames, notes=(note,))
    if frames.n != n and not frames.may_be_longer:
        raise ValueError(f"`{key}` (={frames.n} patterns) must match the {n} positions")
    return frames


def _of_array(frames: Frames, array: NDArray[Any]) -> Frames:
    whole = array.reshape(-1, *array.shape[-2:])
    return replace(frames, read=lambda start, stop: whole[start:stop], in_memory=True)


def _last_axis_counts(frames: Frames) -> bool:
    """Whether the light of a cube (n, n, n) varies less along its last axis than along its first."""
    sums: NDArray[np.float64] = np.zeros((frames.n, frames.width))
    for start, chunk in frames.chunks():
        sums[start : start + len(chunk)] = np.nan_to_num(chunk).sum(axis=1, dtype=np.float64)
    first, last = sums.sum(axis=1), sums.sum(axis=0)
    return bool(last.std() < first.std())
