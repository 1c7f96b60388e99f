"""Arrays on the disk in the place of memory, in files without a name."""

import math
import mmap
import os
import tempfile
import weakref
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

#: Where there is no call that reserves room on the disk, zeros are written, so many bytes at once.
_ZEROS: Final = 2**24


class Storage(Protocol):
    """Where large arrays are kept."""

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """Make an array whose values are not set."""

    def release(self) -> None:
        """Let go of the memory that arrays took since the last call; their values stay."""


class Memory:
    """Keep arrays in memory."""

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """Make an array whose values are not set."""
        return np.empty(shape, dtype)

    def release(self) -> None:
        """Do nothing: what is in memory stays there."""


class Scratch:
    """Keep arrays in temporary files in `folder`, mapped into memory.

    The files have no name, so nothing is left of them, however the process ends; their room is taken from the disk at
    once. After `release` no page of the arrays is in this process's memory until it is used again. A file ends when
    nothing refers to its array any more.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._maps: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """Make an array of zeros; raises OSError where the disk has no room for it."""
        kind = np.dtype(dtype)
        size = math.prod(shape) * kind.itemsize
        with tempfile.TemporaryFile(dir=self._folder) as file:
            _reserve(file.fileno(), size)
            pages = mmap.mmap(file.fileno(), size)  # it keeps the file
        self._maps.add(pages)
        return np.frombuffer(pages, kind).reshape(shape)

    def release(self) -> None:
        """Give the pages of all arrays back to the system, which has them on the disk or writes them there."""
        if hasattr(mmap, "MADV_DONTNEED"):
            for pages in self._maps:
                pages.madvise(mmap.MADV_DONTNEED)


class GrowingArray:
    """An array of rows (n, ...) in a storage, to whose end rows are put; its `room` is doubled where they need it."""

    def __init__(self, storage: Storage, shape: tuple[int, ...], dtype: DTypeLike, room: int) -> None:
        self._storage, self._n = storage, 0
        self._array: NDArray[Any] = storage.empty((room, *shape), dtype)

    @property
    def array(self) -> NDArray[Any]:
        """The rows that are there, a view."""
        return self._array[: self._n]

    def append(self, rows: NDArray[Any]) -> None:
        """Put `rows` (k, ...) to the end."""
        if self._n + len(rows) > len(self._array):
            larger = self._storage.empty(
                (max(2 * len(self._array), self._n + len(rows)), *self._array.shape[1:]), self._array.dtype
            )
            for start in range(0, self._n, len(rows)):
                stop = min(start + len(rows), self._n)
                larger[start:stop] = self._array[start:stop]
                self._storage.release()
            self._array = larger
        self._array[self._n : self._n + len(rows)] = rows
        self._n += len(rows)
        self._storage.release()


def _reserve(descriptor: int, size: int) -> None:
    """Have the disk hold `size` bytes for a file, as writing to a mapped page that has no room ends the process."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
        return
    for start in range(0, size, _ZEROS):
        os.write(descriptor, bytes(min(_ZEROS, size - start)))
