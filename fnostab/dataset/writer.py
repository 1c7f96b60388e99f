"""What writing a simulated and a measured dataset have in common."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fnostab import optics
from fnostab.config import DataConfig
from fnostab.formats.probe import read_modes

#: Called with the patterns done and their total.
OnPatterns = Callable[[int, int], None]


class Written(NamedTuple):
    """What a writer says of the arrays that it wrote: the photon scale, and lines for people, as a `Scan` has them."""

    scale: float
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


#: Writes the arrays of a cache entry into a directory.
Writer = Callable[[Path, OnPatterns], Written]


def configured_probe(config: DataConfig) -> NDArray[np.complex64] | None:
    """The probe that `config` names, (N, N), or the modes (k, M, M) of a file; None for the scan's own."""
    if config.probe == "disk":
        return optics.disk(config.N, config.probe_radius_px)
    if config.probe == "defocused":
        return optics.defocused(config.N, config.probe_radius_px, config.probe_curvature_rad, config.probe_aperture)
    if config.probe == "curved_disk" or (config.probe == "auto" and not config.path):
        return optics.curved_disk(config.N, config.probe_radius_px, config.probe_curvature_rad)
    return None if config.probe == "auto" else read_modes(config.probe)


def random_subset(n: int, limit: int | None, seed: np.random.SeedSequence) -> NDArray[np.int64]:
    """Sorted indices of at most `limit` out of `n`."""
    if limit is None or limit >= n:
        return np.arange(n)
    return np.sort(np.random.default_rng(seed).choice(n, size=limit, replace=False))
