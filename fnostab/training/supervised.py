"""The loss of a supervised run: how far predicted patches are from the true ones of simulated objects."""

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from fnostab import metrics
from fnostab.dataset import Dataset, Split
from fnostab.scan import read_windows

#: Patches that are looked at together where a number is taken of a whole split; it affects memory alone.
_CHUNK = 1024


class Truth:
    """The true patches of one `split` of simulated data, as a loss for predicted ones.

    Of a prediction p of the truth t, the distance is the sum of |p exp(i phi) - t| over the pixels that `probe` lights
    (`metrics.lit_region`), over the mean of the sum of |t| there, one constant of the split: so the mean distance is 1
    for a dark object. phi is the argument of the inner product <p, t>, weighted by the light, because no pattern tells
    a patch's global phase. It is taken as given, without a gradient: that of an argument has no limit where the inner
    product vanishes, as it nearly does for the weights that a network starts from; and where p fits, it vanishes, as
    phi then minimises the distance.

    `objects` are complex64 (k, H, W). Patches are cut out of them, on the device that asks, when they are needed: all
    of them would take twice the memory of the patterns.
    """

    def __init__(self, objects: NDArray[np.complex64], split: Split, probe: NDArray[np.complex64]) -> None:
        self._canvas = torch.from_numpy(objects.reshape(-1, objects.shape[-1]))  # one object below the other
        self._height = objects.shape[1]
        self._light = torch.from_numpy(np.where(metrics.lit_region(probe), np.abs(probe) ** 2, 0).astype(np.float32))
        total = 0.0
        for start in range(0, len(split.counts), _CHUNK):
            part = slice(start, start + _CHUNK)
            patches = self.patches(
                torch.from_numpy(split.positions_px[part]), torch.from_numpy(split.object_index[part])
            )
            total += float(patches.abs()[:, self._light > 0].sum(dtype=torch.float64))
        self._mean_sum = total / len(split.counts)

    def patches(self, positions_px: torch.Tensor, object_index: torch.Tensor) -> torch.Tensor:
        """The true patches, complex (B, N, N), at whole `positions_px` (B, 2) of the objects `object_index` (B,)."""
        self._canvas = self._canvas.to(positions_px.device)
        rows, columns = positions_px.long().unbind(1)
        corners = torch.stack([rows + self._height * object_index, columns], dim=1)
        return read_windows(self._canvas, corners, len(self._light))

    def distance(self, patches: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        """Distance (B,) of predicted `patches` (B, N, N) from `truth` (B, N, N)."""
        self._light = self._light.to(patches.device)
        with torch.no_grad():
            phase = (self._light * patches.conj() * truth).sum((1, 2)).angle()
            truth = truth * torch.polar(torch.ones_like(phase), -phase)[:, None, None]
        return ((patches - truth).abs() * (self._light > 0)).sum((1, 2)) / self._mean_sum


def constant_object_loss(dataset: Dataset) -> float:
    """Mean distance of the best constant object from the true validation patches.

    Its phase is free in each patch, so it is a positive number c. The distance is a convex function of c.
    """
    assert dataset.val_objects is not None
    split, truth = dataset.val, Truth(dataset.val_objects, dataset.val, dataset.probe)
    patches = truth.patches(torch.from_numpy(split.positions_px), torch.from_numpy(split.object_index))

    def mean_distance(c: float) -> float:
        return float(truth.distance(torch.full_like(patches, c), patches).mean(dtype=torch.float64))

    return float(minimize_scalar(mean_distance, bounds=(0.0, float(patches.abs().max())), method="bounded").fun)
