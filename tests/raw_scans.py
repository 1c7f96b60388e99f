"""A scan whose axes all differ in length, to be written in the layouts of other programs; what a reader gave."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fnostab.config import ReadingConfig
from fnostab.formats.raw import RawScan
from fnostab.formats.registry import open_scan

rng = np.random.default_rng(22)
N_FRAMES, H, W = 12, 6, 8
COUNTS = rng.poisson(20, (N_FRAMES, H, W)).astype(np.uint16)
#: The same number of patterns, square.
SQUARE = rng.poisson(20, (N_FRAMES, H, H)).astype(np.uint16)
#: Window corners, row and column, in pixels of the object.
CORNERS = np.stack([np.arange(N_FRAMES) * 1.25, (np.arange(N_FRAMES) * 5 % 7) * 2.5], axis=1)
MODES = (rng.normal(size=(2, H, H)) + 1j * rng.normal(size=(2, H, H))).astype(np.complex64)
OBJECT = (rng.normal(size=(30, 34)) + 1j).astype(np.complex64)
BAD = np.zeros((H, H), bool)
BAD[1, 2:5] = True
ENERGY_EV, DISTANCE_M, DETECTOR_PIXEL_M = 8000.0, 1.5, 75e-6
WAVELENGTH_M = 6.62607015e-34 * 299792458 / (ENERGY_EV * 1.602176634e-19)
#: The object's pixel for patterns of H pixels.
PIXEL_M = WAVELENGTH_M * DISTANCE_M / (H * DETECTOR_PIXEL_M)
JOULES = ENERGY_EV * 1.602176634e-19


@dataclass(frozen=True)
class Given:
    """What a reader gave: frames and images read, positions as corners in pixels of the object."""

    format: str
    raw: RawScan
    frames: np.ndarray
    corners: np.ndarray
    probe: np.ndarray | None
    object: np.ndarray | None


def given(path: Path, pixel_m: float | None = None, **reading: Any) -> Given:
    """Read a scan file; `pixel_m` is the object's pixel where neither the file nor `reading` tells it."""
    config = ReadingConfig(**reading)
    with open_scan(path, config) as (kind, raw):
        M = min(raw.frames.height, raw.frames.width)
        pixel = pixel_m or raw.object_pixel_m or raw.setup.object_pixel_m(M)
        scale = 1 if raw.unit == "px" else 1 / pixel
        corners = raw.positions * scale - (M / 2 if raw.reference == "middle" else 0)
        obj = raw.object.read() if raw.object else None
        if obj is not None and raw.object_middle is not None:
            corners = corners - (np.array(raw.object_middle) * scale - np.array(obj.shape[-2:]) / 2)
        frames = np.concatenate([raw.frames.read(start, start + 1) for start in range(raw.frames.n)])
        return Given(kind.name, raw, frames, corners, raw.probe.read() if raw.probe else None, obj)


def assert_scan(got: Given, counts: np.ndarray = SQUARE, *, origin: bool = False) -> None:
    """Patterns are exact and positions right to 1e-3 px; where they begin counts only with `origin`."""
    np.testing.assert_array_equal(got.frames, counts)
    off = got.corners - CORNERS
    assert np.abs(off if origin else off - off.mean(axis=0)).max() < 1e-3
