"""The object's pixels that a scan's patterns see, and where on them its windows lie."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fnostab.config import METRES, ReadingConfig
from fnostab.dataset.orientations import ORIENTATIONS
from fnostab.formats.raw import RawScan, Setup
from fnostab.formats.scan import check_extent, check_finite, check_overlap


@dataclass(frozen=True)
class Grid:
    """The patterns' N pixels, of `bin` detector pixels each, on a detector of M pixels along its shorter side.

    `file_pixel_m` is the object's pixel for all M of them, None if it is not known.
    """

    M: int
    N: int
    bin: int
    file_pixel_m: float | None

    @property
    def scale(self) -> float:
        """Pixels of the object on this grid in one of the file's."""
        return self.N * self.bin / self.M

    @property
    def pixel_size_m(self) -> float | None:
        """The object's pixel on this grid."""
        return None if self.file_pixel_m is None else self.file_pixel_m / self.scale

    def pixels_a(self, unit: str) -> float:
        """The file's pixels in one `unit`."""
        return METRES[unit] / self.file_pixel_m if self.file_pixel_m and unit != "px" else 1.0


def grid_of(raw: RawScan, N: int | None, reading: ReadingConfig) -> Grid:
    """The grid of N x N patterns, or of as many as the detector has; raises ValueError if there are not so many."""
    frames, bin = raw.frames, reading.bin
    M, longer = sorted((frames.height, frames.width))
    if N is None:
        N = M // bin // 2 * 2 if bin > 1 else M
    if not 1 <= N <= longer // bin:
        binned = f" binned by {bin}" if bin > 1 else ""
        raise ValueError(f"`data.N` (={N}) must be <= {longer // bin}, the size of the patterns{binned}")
    pixel_m = reading.object_pixel_m or raw.object_pixel_m or setup_of(raw, reading).object_pixel_m(M)
    return Grid(M, N, bin, pixel_m)


def setup_of(raw: RawScan, reading: ReadingConfig) -> Setup:
    """The experiment's geometry, what is given before what the file says."""
    energy_eV = None if reading.energy_keV is None else 1e3 * reading.energy_keV
    return Setup(
        energy_eV or raw.setup.energy_eV,
        reading.distance_m or raw.setup.distance_m,
        reading.detector_pixel_m or raw.setup.detector_pixel_m,
    )


def corners_px(raw: RawScan, grid: Grid, reading: ReadingConfig, kept: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The corners (n, 2) of the windows of the frames that are `kept`, in pixels of the grid, turned as asked for."""
    given = raw.positions[kept]
    check_finite(given, raw.key, np.flatnonzero(kept))
    unit = unit_of(raw, reading)
    if unit != "px" and grid.file_pixel_m is None:
        raise ValueError(
            f"`data.unit` (={unit}) must be px where the object's pixel is not known: give `data.object_pixel_m`, or"
            " `data.energy_keV`, `data.distance_m` and `data.detector_pixel_m`"
        )
    with np.errstate(over="ignore", invalid="ignore"):  # what is infinite has no extent, and is refused
        positions = given if unit == "px" else given * grid.pixels_a(unit)
        if raw.reference == "middle":
            positions = positions - grid.M / 2
        positions = positions * grid.scale
    if grid.bin > 1:  # the window is narrower by that factor, about the same middle
        positions = positions + grid.N * (grid.bin - 1) / 2
    turned = ORIENTATIONS[reading.orient](positions)
    check_extent(turned, raw.key)
    check_overlap(turned, grid.N, raw.key)
    return turned


def unit_of(raw: RawScan, reading: ReadingConfig) -> str:
    """What the positions are in."""
    return raw.unit if reading.unit == "auto" else reading.unit
