"""Whether the axes of a measured scan's positions lie as its file says."""

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fnostab import optics
from fnostab.dataset.dataset import Dataset
from fnostab.dataset.neighbours import central
from fnostab.difference_map import difference_map
from fnostab.health.positions import AS_GIVEN
from fnostab.scan import reassemble

_Positions = NDArray[np.float64]

#: Patterns and pixels that are looked at: the middle of a scan, at half the resolution, tells as much as all of it.
_PATTERNS: Final = 80
_LARGEST_N: Final = 64
#: With less of their light in common, patterns fit any positions about as well.
_LEAST_SHARED: Final = 0.3


def _axes(swapped: bool, rows: int, columns: int) -> Callable[[_Positions], _Positions]:
    return lambda positions: (positions[:, ::-1] if swapped else positions) * [rows, columns]


#: The eight orientations in which positions (n, 2) can lie to the patterns. Axes are swapped first.
ORIENTATIONS: Final = {
    AS_GIVEN: _axes(False, 1, 1),
    "rows flipped": _axes(False, -1, 1),
    "columns flipped": _axes(False, 1, -1),
    "rows and columns flipped": _axes(False, -1, -1),
    "axes swapped": _axes(True, 1, 1),
    "axes swapped, rows flipped": _axes(True, -1, 1),
    "axes swapped, columns flipped": _axes(True, 1, -1),
    "axes swapped, rows and columns flipped": _axes(True, -1, -1),
}


def r_by_orientation(dataset: Dataset) -> dict[str, float]:
    """R-factors of a conventional reconstruction of the middle of a measured scan, by orientation of its positions.

    The right orientation has a much lower one, and `health.better_orientation` says what that means; a symmetric object
    looks alike in several. No network takes part: trained for long enough, one can learn to make an object from wrong
    positions. Empty for simulated data, whose positions are right, and where the patterns share too little light to
    tell. It takes seconds.
    """
    if not dataset.measured:
        return {}
    test, N = dataset.test, dataset.config.N
    smaller = min(N, _LARGEST_N)
    members = central(np.arange(len(test.counts)), test.positions_px, _PATTERNS)
    amplitudes = np.sqrt(optics.crop_patterns(test.counts[members], smaller)) / dataset.scale
    probe = dataset.probe if smaller == N else optics.crop_probe(dataset.probe, smaller)
    positions = test.positions_px[members] * (smaller / N)
    if reassemble(np.ones_like(amplitudes), positions, probe, n_sync=0).shared_light < _LEAST_SHARED:
        return {}
    return {
        name: difference_map(amplitudes, turned(positions), probe).r_factor for name, turned in ORIENTATIONS.items()
    }
