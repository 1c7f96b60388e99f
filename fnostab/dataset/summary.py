"""A dataset in numbers and short strings, for people."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from fnostab.dataset.dataset import SPLITS, Dataset
from fnostab.optics import energy


def describe(dataset: Dataset) -> dict[str, Any]:
    """Summarise a dataset.

    Counts are those of the training patterns; `step_px` is the median distance from a training position to the nearest
    other one on the same object, NaN if there is none; `lit_fraction` is the share of the rectangle around the windows
    on the first training object that has over 1 % of the strongest light there.
    """
    counts = dataset.train.counts
    per_pattern = counts.sum(axis=(1, 2), dtype=np.float64)
    index = dataset.train.object_index
    objects = [dataset.train.positions_px[index == k] for k in np.unique(index)]
    places = [np.unique(positions, axis=0) for positions in objects]
    steps = [cKDTree(each).query(each, k=2)[0][:, 1] for each in places if len(each) > 1]
    light = _light(objects[0], dataset.beam.weight.numpy())
    return {
        "source": dataset.config.path or f"simulated {dataset.config.objects}, phase {dataset.config.phase}",
        "sha256": dataset.sha256,
        "config_sha256": dataset.config_sha256,
        "N": counts.shape[-1],
        **{f"{name}_patterns": len(getattr(dataset, name).counts) for name in SPLITS},
        "counts_per_pattern_mean": float(per_pattern.mean()),
        "counts_per_pattern_min": float(per_pattern.min()),
        "counts_per_pattern_max": float(per_pattern.max()),
        "counts_max": float(counts.max()),
        "scale": dataset.scale,
        "input_scale": dataset.input_scale,
        "probe_sha256": dataset.probe_sha256,
        "probe_energy": float(energy(dataset.modes).sum()),
        "probe_modes": len(dataset.modes),
        "masked_pixels": 0 if dataset.mask is None else int((~dataset.mask).sum()),
        "step_px": float(np.median(np.concatenate(steps))) if steps else math.nan,
        "lit_fraction": float((light > 0.01 * light.max()).mean()),
    }


def _light(positions_px: NDArray[np.float64], probe: NDArray[np.complex64]) -> NDArray[np.float64]:
    """Light on the rectangle that a scan covers, positions rounded to whole pixels."""
    corners = np.rint(positions_px - positions_px.min(axis=0)).astype(np.int64)
    visits = np.zeros(corners.max(axis=0) + 1)
    np.add.at(visits, (corners[:, 0], corners[:, 1]), 1)
    from scipy.signal import fftconvolve  # half a second, which training has no use for

    light: NDArray[np.float64] = fftconvolve(visits, np.square(np.abs(probe), dtype=np.float64))
    return light
