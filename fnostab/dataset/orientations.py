"""Whether the axes of a measured scan's positions lie as its file says."""

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fnostab import optics
from fnostab.config import Orientation
from fnostab.dataset.dataset import Dataset
from fnostab.dataset.neighbours import central
from fnostab.difference_map import difference_map
from fnostab.optics import Beam
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
ORIENTATIONS: Final[Mapping[Orientation, Callable[[_Positions], _Positions]]] = {
    "as_given": _axes(False, 1, 1),
    "flip_rows": _axes(False, -1, 1),
    "flip_columns": _axes(False, 1, -1),
    "flip_both": _axes(False, -1, -1),
    "swap": _axes(True, 1, 1),
    "swap+flip_rows": _axes(True, -1, 1),
    "swap+flip_columns": _axes(True, 1, -1),
    "swap+flip_both": _axes(True, -1, -1),
}


def combined(first: Orientation, second: Orientation) -> Orientation:
    """The orientation that does what `first` and then `second` do."""
    probe = np.array([[1.0, 2.0]])
    wanted = ORIENTATIONS[second](ORIENTATIONS[first](probe))
    return next(name for name, turned in ORIENTATIONS.items() if (turned(probe) == wanted).all())


def orientation_r_factors(
    counts: NDArray[np.float32], positions_px: _Positions, beam: Beam, scale: float
) -> dict[Orientation, float]:
    """R-factors of a conventional reconstruction of the middle of a scan, by orientation of its positions.

    The square roots of `counts` (n, N, N), which may be memory-mapped, over `scale` are amplitudes as `beam` makes
    them; `positions_px` (n, 2). Empty where the patterns share too little light to tell. It takes seconds.
    """
    N = counts.shape[-1]
    smaller = min(N, _LARGEST_N)
    members = central(np.arange(len(counts)), positions_px, _PATTERNS)
    measured = np.sqrt(optics.crop_patterns(counts[members], smaller)) / scale
    if smaller < N:
        mask = None if beam.mask is None else optics.crop_patterns(beam.mask.numpy(), smaller)
        beam = Beam.of(np.stack([optics.crop_probe(mode.numpy(), smaller) for mode in beam.modes]), mask)
    positions = positions_px[members] * (smaller / N)
    if reassemble(np.ones_like(measured), positions, beam.weight, n_sync=0).shared_light < _LEAST_SHARED:
        return {}
    return {name: difference_map(measured, turned(positions), beam).r_factor for name, turned in ORIENTATIONS.items()}


def r_by_orientation(dataset: Dataset) -> dict[str, float]:
    """R-factors of a conventional reconstruction of the middle of a measured scan, by orientation of its positions.

    The right orientation has a much lower one, and `health.better_orientation` says what that means; a symmetric object
    looks alike in several. No network takes part: trained for long enough, one can learn to make an object from wrong
    positions. Empty for simulated data, whose positions are right, and where the patterns share too little light to
    tell. It takes seconds.
    """
    if not dataset.measured:
        return {}
    test = dataset.test
    found = orientation_r_factors(test.counts, test.positions_px, dataset.beam, dataset.scale)
    return {str(name): r for name, r in found.items()}
