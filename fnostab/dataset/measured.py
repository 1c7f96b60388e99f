"""A dataset from a measured scan."""

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.signal import resample

from fnostab import optics
from fnostab.config import DataConfig
from fnostab.dataset.groups import check_groups
from fnostab.dataset.neighbours import VAL_EVERY, validation_blocks
from fnostab.dataset.writer import OnPatterns, Writer, configured_probe, random_subset
from fnostab.formats.npz import read_probe, read_scan
from fnostab.formats.scan import Quantity, Scan, size_text


def import_scan(
    path: str | Path, N: int, quantity: Quantity = "auto", probe: str | Path | NDArray[Any] | None = None
) -> Scan:
    """Read a measured scan and bring it to N x N patterns.

    Patterns larger than N x N are cropped to their middle, which makes pixels M / N times larger: the probe's spectrum
    is cropped alike, positions shrink by N / M, and the file's `object` is resampled. `probe`, an array or an NPZ file,
    stands in for the scan's own: one of M x M is cropped, one of N x N used as it is. Returns a `Scan` with a probe.
    Raises ValueError, in one line, as `read_scan` does, for patterns smaller than N x N or without counts in their
    middle, for a probe of another size, and if there is no probe.
    """
    scan = read_scan(path, quantity)
    M = scan.counts.shape[-1]
    if N > M:
        raise ValueError(f"`data.N` (={N}) must be <= {M}, the size of the patterns in {path}")
    if probe is None:
        if scan.probe is None:
            raise ValueError(f"`data.probe` (=auto) must name a probe: there is none in {path}")
        probe = scan.probe
    elif not isinstance(probe, np.ndarray):
        probe = read_probe(probe)
    if probe.shape not in ((N, N), (M, M)):
        either = f"{N} x {N}" if M == N else f"{N} x {N}, or {M} x {M} as the patterns"
        raise ValueError(f"`probe` (={size_text(probe)}) must be N x N = {either}")
    counts = np.ascontiguousarray(optics.crop_patterns(scan.counts, N))
    if not counts.any():
        raise ValueError(f"`data.N` (={N}) must be larger: the middle of the patterns in {path} holds no counts")
    return Scan(
        counts=counts,
        positions_px=scan.positions_px * (N / M),
        modes=(probe if len(probe) == N else optics.crop_probe(probe, N))[None],
        object=scan.object if scan.object is None or N == M else _resampled(scan.object, N, M),
        layout=scan.layout,
    )


def _resampled(obj: NDArray[np.complex64], N: int, M: int) -> NDArray[np.complex64]:
    """`obj` (H, W) band-limited to pixels M / N times larger; its edge is repeated to a size that this divides."""
    whole = M // math.gcd(N, M)
    padded = np.pad(obj, [(0, -length % whole) for length in obj.shape], mode="edge")
    for axis, length in enumerate(padded.shape):
        padded = resample(padded, length * N // M, axis=axis)
    return np.asarray(padded, dtype=np.complex64)


def measured_writer(config: DataConfig) -> Writer:
    """Read the scan of `config`; the writer splits and stores it."""
    scan = import_scan(config.path, config.N, config.quantity, configured_probe(config))
    probe = np.asarray(scan.probe)
    scale = optics.measured_scale(scan.counts, probe)
    members = _splits(config, scan.positions_px)
    check_groups(config.gridsize, {split: np.zeros(len(index), np.int64) for split, index in members.items()})
    if not scan.counts[members["train"]].any():
        raise ValueError(f"`data.path` (={config.path}) must hold counts in its training patterns")
    first = scan.positions_px.min(axis=0)
    positions = scan.positions_px - first

    def write(directory: Path, progress: OnPatterns) -> float:
        np.save(directory / "probe.npy", probe)
        if scan.object is not None:
            shape = np.ceil(positions.max(axis=0)).astype(int) + config.N
            np.save(directory / "reference.npy", _window(scan.object, np.rint(first).astype(int), shape))
        done, total = 0, sum(map(len, members.values()))
        for split, index in members.items():
            np.save(directory / f"{split}_counts.npy", scan.counts[index])
            np.save(directory / f"{split}_positions_px.npy", positions[index])
            np.save(directory / f"{split}_object_index.npy", np.zeros(len(index), dtype=np.int64))
            done += len(index)
            progress(done, total)
        return scale

    return write


def _splits(config: DataConfig, positions_px: NDArray[np.float64]) -> dict[str, NDArray[np.int64]]:
    """The indices of each split: a tenth of the positions is validation, the others train, the test is all of them."""
    whole = np.arange(len(positions_px))
    train_seed, val_seed = np.random.SeedSequence(config.seed).spawn(2)
    if config.val_choice == "block":
        held_out = validation_blocks(positions_px, None)
        val = validation_blocks(positions_px, config.max_val_patches)
    else:
        held_out = whole[::VAL_EVERY]
        val = held_out[random_subset(len(held_out), config.max_val_patches, val_seed)]
    train = np.setdiff1d(whole, held_out)
    train = train[random_subset(len(train), config.max_train_patches, train_seed)]
    return {"train": train, "val": val, "test": whole}


def _window(obj: NDArray[np.complex64], first: NDArray[np.int64], shape: NDArray[np.int64]) -> NDArray[np.complex64]:
    """The window of `obj` (H, W) of `shape` whose first pixel is `first`; zero outside of `obj`."""
    window = np.zeros(shape, np.complex64)
    start = np.maximum(0, first)
    inside = obj[start[0] : max(0, first[0] + shape[0]), start[1] : max(0, first[1] + shape[1])]
    top, left = start - first
    window[top : top + inside.shape[0], left : left + inside.shape[1]] = inside
    return window
