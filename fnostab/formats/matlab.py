"""MATLAB's files of version 7.3, which are HDF5 with the axes reversed."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fnostab.config import ReadingConfig
from fnostab.formats.frames import InMemory, Stored
from fnostab.formats.raw import Format, RawScan, ScanFile

#: How hdf5storage begins the names of its marks, on arrays whose axes it left as Python has them.
_PYTHON: Final = "Python."
#: Arrays that a message lists with their sizes.
_MOST_LISTED: Final = 12


@dataclass(frozen=True)
class _FramesTurned:
    """An array of MATLAB's (H, W, ..., n), which HDF5 has as (n, ..., W, H), as (n, ..., H, W)."""

    stored: Stored

    @property
    def shape(self) -> tuple[int, ...]:
        """Frames first, then MATLAB's rows and columns."""
        *frames, columns, rows = self.stored.shape
        return (*frames, rows, columns)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The array's."""
        return self.stored.dtype

    @property
    def in_memory(self) -> bool:
        """As the array is."""
        return self.stored.in_memory

    @property
    def may_be_longer(self) -> bool:
        """As the array is."""
        return self.stored.may_be_longer

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Frames (k, H, W), as `Stored` says."""
        return self.stored.read(start, stop).swapaxes(-1, -2)

    def whole(self) -> NDArray[Any]:
        """All of them."""
        return self.stored.whole().swapaxes(-1, -2)


@dataclass(frozen=True)
class MatlabFile:
    """An HDF5 file that MATLAB wrote, as a `ScanFile` whose arrays have MATLAB's own axes.

    Arrays that Python put into a MATLAB file keep theirs.
    """

    file: ScanFile

    @property
    def keys(self) -> tuple[str, ...]:
        """The names of its arrays, but for MATLAB's own notes on them."""
        return tuple(key for key in self.file.keys if not key.startswith("/#"))

    @property
    def name(self) -> str:
        """The file's own."""
        return self.file.name

    def read(self, key: str) -> NDArray[Any]:
        """Read an array of numbers."""
        array = self.file.read(key)
        return array.T if self._reversed(key) else array

    def stored(self, key: str) -> Stored:
        """Describe an array of numbers; one of three axes or more as frames of MATLAB's first two."""
        stored = self.file.stored(key)
        if not self._reversed(key):
            return stored
        return InMemory(stored.whole().T) if len(stored.shape) < 3 else _FramesTurned(stored)

    def frames(self, key: str, n: int) -> Stored:
        """Describe `n` frames, (H, W, n) or (n, H, W) in MATLAB; the latter are read at once."""
        shape = self.file.stored(key).shape
        last = len(shape) == 3 and shape[2] == n != shape[0]
        return InMemory(self.read(key)) if last and self._reversed(key) else self.stored(key)

    def text(self, key: str) -> str | None:
        """Nothing: MATLAB's texts are arrays of numbers."""
        return None

    def attributes(self, key: str) -> Mapping[str, Any]:
        """The attributes of an array or a group."""
        return self.file.attributes(key)

    def fault(self, rule: str) -> ValueError:
        """Make the error of a broken rule about this file."""
        return self.file.fault(rule)

    def close(self) -> None:
        """Close the file."""
        self.file.close()

    def _reversed(self, key: str) -> bool:
        return not any(name.startswith(_PYTHON) for name in self.file.attributes(key))


def is_matlab(file: ScanFile) -> bool:
    """Whether MATLAB wrote the file, or a program that writes as it does."""
    return any("MATLAB_class" in file.attributes(key) for key in file.keys if key.count("/") == 1)


def _read(file: ScanFile, reading: ReadingConfig) -> RawScan:
    listed = []
    for key in MatlabFile(file).keys[:_MOST_LISTED]:
        try:
            listed.append(f"{key} ({' x '.join(map(str, file.stored(key).shape[::-1]))})")
        except ValueError:
            continue  # a cell, or another thing without numbers
    raise file.fault(
        f"must be read with `data.paths`, as patterns=/dp,x_um=/x,y_um=/y; it holds {', '.join(listed) or 'no numbers'}"
    )


FORMAT: Final = Format(
    name="matlab",
    title="MATLAB, version 7.3",
    container="HDF5",
    holds="any arrays, which `data.paths` names; patterns (H, W, n) or (n, H, W), as MATLAB sees them",
    source="www.mathworks.com, MAT-file versions; attributes MATLAB_class of its arrays",
    matches=is_matlab,
    read=_read,
)
