"""A dataset as a run sees it: three splits of patterns, the probe, and the truth where it is known."""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.signal import fftconvolve
from scipy.spatial import cKDTree

from fnostab import optics
from fnostab.config import DataConfig
from fnostab.formats import npz
from fnostab.scan import extract_patches

#: Called with the patterns done and their total.
OnPatterns = Callable[[int, int], None]

SPLITS: Final = ("train", "val", "test")


@dataclass(frozen=True, eq=False)
class Split:
    """The patterns of one split.

    `counts` float32 (n, N, N), read-only and memory-mapped, zero frequency at N // 2; `positions_px` float64 (n, 2),
    (row, column) of each patch's first pixel in object pixels; `object_index` int64 (n,), the object each was taken on.
    """

    counts: NDArray[np.float32]
    positions_px: NDArray[np.float64]
    object_index: NDArray[np.int64]

    def part(self, members: NDArray[np.int64]) -> "Split":
        """The patterns at the indices `members`."""
        return Split(self.counts[members], self.positions_px[members], self.object_index[members])

    def patches_of(self, objects: NDArray[np.complex64]) -> NDArray[np.complex64]:
        """The patches (n, N, N) of the true `objects` (k, H, W), at whole-pixel positions."""
        N = self.counts.shape[-1]
        patches = np.empty((len(self.counts), N, N), np.complex64)
        for index in np.unique(self.object_index):
            members = self.object_index == index
            patches[members] = extract_patches(objects[index], self.positions_px[members], N)
        return patches


@dataclass(frozen=True, eq=False)
class Dataset:
    """A dataset as a run sees it.

    The forward model is A = sqrt(counts) / `scale` ~ |FFT2(probe * patch)|, orthonormal, with |patch| about 1; the
    network's input is sqrt(counts) * `input_scale`, whose mean square over the training patterns is 1. `probe` is
    complex64 (N, N); `val_objects` and `test_objects` are the truth, complex64 (k, H, W), or None for a measured scan.
    `reference` is the object that came with a measured scan, complex64 (H, W) in the frame of the test positions (to
    half a pixel) and 0 where it does not reach, or None. `config_sha256` names the cache entry, `sha256` is the hash of
    the content.
    """

    config: DataConfig
    config_sha256: str
    sha256: str
    probe: NDArray[np.complex64]
    scale: float
    input_scale: float
    train: Split
    val: Split
    test: Split
    val_objects: NDArray[np.complex64] | None
    test_objects: NDArray[np.complex64] | None
    reference: NDArray[np.complex64] | None

    @property
    def measured(self) -> bool:
        """Whether the patterns were measured; there is no truth then."""
        return self.test_objects is None

    @property
    def probe_sha256(self) -> str:
        """Hash of the probe's bytes."""
        return array_sha256(self.probe)


def describe(dataset: Dataset) -> dict[str, Any]:
    """Summarise a dataset in numbers and short strings, for people.

    Counts are those of the training patterns; `step_px` is the median distance from a training position to its nearest
    neighbour on the same object, NaN if there is none; `lit_fraction` is the share of the rectangle around the windows
    on the first training object that has over 1 % of the strongest light there.
    """
    counts = dataset.train.counts
    per_pattern = counts.sum(axis=(1, 2), dtype=np.float64)
    index = dataset.train.object_index
    objects = [dataset.train.positions_px[index == k] for k in np.unique(index)]
    steps = [cKDTree(positions).query(positions, k=2)[0][:, 1] for positions in objects if len(positions) > 1]
    light = _light(objects[0], dataset.probe)
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
        "probe_energy": float(energy(dataset.probe)),
        "step_px": float(np.median(np.concatenate(steps))) if steps else math.nan,
        "lit_fraction": float((light > 0.01 * light.max()).mean()),
    }


#: Writes the arrays of an entry into a directory and returns the photon scale.
Writer = Callable[[Path, OnPatterns], float]


def random_subset(n: int, limit: int | None, seed: np.random.SeedSequence) -> NDArray[np.int64]:
    """Sorted indices of at most `limit` out of `n`."""
    if limit is None or limit >= n:
        return np.arange(n)
    return np.sort(np.random.default_rng(seed).choice(n, size=limit, replace=False))


def configured_probe(config: DataConfig) -> NDArray[np.complex64] | None:
    """The probe that `config` names, None for the scan's own."""
    if config.probe == "disk":
        return optics.disk(config.N, config.probe_radius_px)
    if config.probe == "curved_disk" or (config.probe == "auto" and not config.path):
        return optics.curved_disk(config.N, config.probe_radius_px, config.probe_curvature_rad)
    return None if config.probe == "auto" else npz.read_probe(config.probe)


def energy(fields: NDArray[np.complex64]) -> NDArray[np.float64]:
    """Sum of |field|^2 over the last two axes."""
    return np.asarray(np.square(np.abs(fields), dtype=np.float64).sum(axis=(-2, -1)))


def size_text(array: NDArray[Any]) -> str:
    """The shape of an array for a message: `64 x 64`."""
    return " x ".join(str(length) for length in array.shape)


def _light(positions_px: NDArray[np.float64], probe: NDArray[np.complex64]) -> NDArray[np.float64]:
    """Light on the rectangle that a scan covers, positions rounded to whole pixels."""
    corners = np.rint(positions_px - positions_px.min(axis=0)).astype(np.int64)
    visits = np.zeros(corners.max(axis=0) + 1)
    np.add.at(visits, (corners[:, 0], corners[:, 1]), 1)
    light: NDArray[np.float64] = fftconvolve(visits, np.square(np.abs(probe), dtype=np.float64))
    return light


def array_sha256(array: NDArray[Any]) -> str:
    """Hash of an array's bytes in C order."""
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()
