"""A scan as its file holds it: what every reader gives."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from fnostab.config import ReadingConfig
from fnostab.formats.frames import Frames, Stored
from fnostab.io.untrusted import printable

#: One electronvolt (exact in the SI of 2019).
JOULES_PER_EV: Final = 1.602176634e-19
#: Planck's constant times the speed of light, in electronvolts times metres (exact in the SI of 2019).
HC_EV_M: Final = JOULES_PER_EV**-1 * 6.62607015e-34 * 299792458


@dataclass(frozen=True)
class Setup:
    """The experiment's geometry; None is unknown. `detector_pixel_m` is that of rows and columns alike."""

    energy_eV: float | None = None
    distance_m: float | None = None
    detector_pixel_m: float | None = None

    def object_pixel_m(self, M: int) -> float | None:
        """The pixel of the object that a detector of M pixels a side sees in the far field: wavelength z / (M p)."""
        if not (self.energy_eV and self.distance_m and self.detector_pixel_m):
            return None
        return HC_EV_M / self.energy_eV * self.distance_m / (M * self.detector_pixel_m)


@dataclass(frozen=True)
class OptionalImage:
    """A probe or an object in a file, called `key` there; `read` gives the array, and may raise ValueError."""

    key: str
    read: Callable[[], NDArray[Any]]


@dataclass(frozen=True, eq=False)
class RawScan:
    """A scan as its file holds it, patterns and optional arrays not read yet.

    `positions` float64 (n, 2) are (row, column) in `unit`, which grow as the window moves down and right over the
    object as the patterns see it; `key` is what the file calls them. They are those of the window's first pixel
    (`corner`) or of its middle, pixel M / 2 (`middle`). `quantity` None is unknown. `good` bool (H, W) is True where a
    detector pixel counts. `object_pixel_m` is the object's pixel at the file's pattern size, where the file tells it;
    else `setup` may. `object` has its first pixel at position (0, 0), or, with `object_middle`, its middle,
    (H / 2, W / 2), at that place among the windows' middles, in `unit`. `scan_index` int (n,) tells several scans of
    one file apart. `photons_per_pattern` are the counts of the mean pattern, for patterns that are none. `centre` is
    the (row, column) of zero frequency, where it is not the detector's middle.
    """

    frames: Frames
    positions: NDArray[np.float64]
    key: str
    unit: Literal["px", "m", "mm", "um", "nm", "angstrom"] = "px"
    reference: Literal["corner", "middle"] = "corner"
    fft_ordered: bool = False
    quantity: Literal["counts", "amplitude"] | None = "counts"
    probe: OptionalImage | None = None
    object: OptionalImage | None = None
    object_middle: tuple[float, float] | None = None
    good: NDArray[np.bool_] | None = None
    setup: Setup = Setup()
    object_pixel_m: float | None = None
    scan_index: NDArray[np.int64] | None = None
    photons_per_pattern: float | None = None
    centre: tuple[int, int] | None = None
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    is_growing: bool = False
    positions_are_final: bool = True

    def cut_to_common(self) -> "RawScan":
        """The scan of the first frames and positions, as many as there are of both."""
        n = min(self.frames.n, len(self.positions))
        index = None if self.scan_index is None else self.scan_index[:n]
        return replace(self, frames=replace(self.frames, n=n), positions=self.positions[:n], scan_index=index)


class ScanFile(Protocol):
    """What readers need of an open file: its arrays by name, each read when asked for.

    All but `keys` raise ValueError, in one line that begins with the file.
    """

    @property
    def keys(self) -> tuple[str, ...]:
        """The names of its arrays; of HDF5 files full paths, which begin with a slash."""

    @property
    def name(self) -> str:
        """The file's own, as the user gave it."""

    def read(self, key: str) -> NDArray[Any]:
        """Read an array of numbers."""

    def stored(self, key: str) -> Stored:
        """Describe an array of numbers, to read it later in parts."""

    def text(self, key: str) -> str | None:
        """Read a short text, None if there is none."""

    def attributes(self, key: str) -> Mapping[str, Any]:
        """The attributes of an array or a group; NPZ files have none."""

    def fault(self, rule: str) -> ValueError:
        """Make the error of a broken rule about this file."""

    def close(self) -> None:
        """Close the file; frames can't be read any more."""


@dataclass(frozen=True)
class Format:
    """A kind of scan file. Other packages offer theirs under the entry point group `fnostab.formats`.

    `matches(file)` says whether an open file looks like it, from its names alone; `read(file, reading)` gives the scan
    and raises ValueError, in one line. `holds` names what the format is known by, `source` where its layout is written
    down.
    """

    name: str
    title: str
    container: Literal["NPZ", "HDF5", "NPZ or HDF5"]
    holds: str
    source: str
    matches: Callable[[ScanFile], bool]
    read: Callable[[ScanFile, ReadingConfig], RawScan]


def optional_image(file: ScanFile, key: str) -> OptionalImage | None:
    """The image `key` of `file` if it is there, read when it is used."""
    return OptionalImage(key, lambda: file.read(key)) if key in file.keys else None


def in_file(error: ValueError, name: str) -> ValueError:
    """`error` with the file's name at its end, unless it is in it already."""
    text = str(error)
    return ValueError(printable(text if name in text else f"{text}, in {name}"))
