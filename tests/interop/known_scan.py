"""A simulated scan in NumPy alone whose truth is known, and how well a program's patterns agree with it.

Its object has no symmetry: each of its eight orientations is another object. `object[row, column]`; the window at
corner (r, c) sees `object[r : r + N, c : c + N]`; the counts have zero frequency at N // 2.
"""

from dataclasses import dataclass

import numpy as np

from fnostab.formats.result import Result
from fnostab.formats.scan import Scan

N = 32
ENERGY_EV, DISTANCE_M, DETECTOR_PIXEL_M = 8000.0, 1.2, 75e-6
WAVELENGTH_M = 1.2398419843320026e-6 / ENERGY_EV
PIXEL_M = WAVELENGTH_M * DISTANCE_M / (N * DETECTOR_PIXEL_M)


@dataclass(frozen=True)
class KnownScan:
    """`counts` (n, N, N), `corners` (n, 2) in whole pixels of `object`, `modes` (2, N, N), `bad` (N, N)."""

    counts: np.ndarray
    corners: np.ndarray
    modes: np.ndarray
    object: np.ndarray
    bad: np.ndarray

    @property
    def middles_m(self) -> np.ndarray:
        """The windows' middles from the object's, (row, column) in metres."""
        return (self.corners + N / 2 - np.array(self.object.shape) / 2) * PIXEL_M


def known_scan() -> KnownScan:
    rng = np.random.default_rng(7)
    shape = (70, 84)
    frequency = np.hypot(*np.meshgrid(*map(np.fft.fftfreq, shape), indexing="ij"))
    smooth = [np.fft.ifft2(np.fft.fft2(rng.normal(size=shape)) * np.exp(-200 * frequency**2)).real for _ in range(2)]
    amplitude, phase = (field / field.std() for field in smooth)
    object = (np.clip(1 + 0.3 * amplitude, 0.2, 1.8) * np.exp(0.8j * phase)).astype(np.complex64)
    y, x = np.mgrid[:N, :N] - N / 2
    radius = np.hypot(y, 1.1 * x)
    probe = np.exp(1j * (radius / 4) ** 2 / 2) / (1 + np.exp(radius - 8))
    modes = np.stack([probe, 0.2 * probe * (x + 1j * y) / 8])
    rows, columns = np.meshgrid(np.arange(0, 38, 5), np.arange(0, 52, 5), indexing="ij")
    corners = np.stack([rows.ravel(), columns.ravel()], axis=1) + rng.integers(0, 2, (rows.size, 2))
    windows = np.stack([object[r : r + N, c : c + N] for r, c in corners])
    light = np.square(np.abs(np.fft.fft2(modes * windows[:, None], norm="ortho"))).sum(axis=1)
    scale = np.sqrt(1e7 / light.sum(axis=(1, 2)).mean())
    counts = np.fft.fftshift(rng.poisson(scale**2 * light), axes=(1, 2)).astype(np.uint32)
    bad = np.zeros((N, N), bool)
    bad[2:4], bad[20, 5] = True, True
    return KnownScan(counts, corners, (modes * scale).astype(np.complex64), object, bad)


def assert_same(scan: Scan, known: KnownScan, masked: bool) -> None:
    """The counts pixel for pixel, the positions to a thousandth of a pixel but for their origin, the pixel size."""
    counts = np.where(known.bad, 0, known.counts) if masked else known.counts
    np.testing.assert_array_equal(scan.counts, counts)
    if masked:
        np.testing.assert_array_equal(scan.mask, ~known.bad)
    else:
        assert scan.mask is None or scan.mask.all()
    moved = scan.positions_px - known.corners
    np.testing.assert_allclose(moved, np.broadcast_to(moved[0], moved.shape), atol=1e-3)
    assert abs(scan.pixel_size_m / PIXEL_M - 1) < 1e-5


def assert_same_modes(scan: Scan, known: KnownScan) -> None:
    assert scan.modes.shape == known.modes.shape
    np.testing.assert_allclose(scan.modes, known.modes, rtol=1e-6)


def r_factor(intensities: np.ndarray, known: KnownScan) -> float:
    """That of a program's patterns, but for one factor; under 0.02 for the truth, over 0.1 for a wrong orientation."""
    measured, predicted = np.sqrt(known.counts), np.sqrt(intensities)
    predicted *= (measured * predicted).sum() / np.square(predicted).sum()
    return float(np.abs(predicted - measured).sum() / measured.sum())


def result_of(known: KnownScan) -> Result:
    """The truth as a reconstruction, of which a part is kept, as after stitching."""
    first, last = known.corners.min(axis=0), known.corners.max(axis=0) + N
    object = known.object[first[0] : last[0], first[1] : last[1]]
    return Result(
        object=object,
        light=np.ones(object.shape, np.float32),
        origin_px=(0, 0),
        positions_px=(known.corners - first).astype(float),
        first_px=first - 11.5,
        modes=known.modes / np.float32(50),
        scale=50.0,
        mean_counts=1e7,
        pixel_size_m=PIXEL_M,
        energy_eV=ENERGY_EV,
        distance_m=DISTANCE_M,
        numbers={"r_factor": 0.0},
        model="models:/any/1",
        scan="known.cxi",
        program="fnostab 0",
    )
