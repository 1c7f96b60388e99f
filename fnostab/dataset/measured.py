"""A dataset from a measured scan."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from fnostab import optics
from fnostab.config import DataConfig
from fnostab.dataset.groups import check_groups
from fnostab.dataset.importing import import_scan
from fnostab.dataset.neighbours import VAL_EVERY, validation_blocks
from fnostab.dataset.writer import OnPatterns, Writer, Written, configured_probe, random_subset
from fnostab.formats.scan import Scan

#: Patterns that are written at once.
_AT_ONCE = 512
#: Patterns so near to each other are of one place, as far as a network can tell.
_SAME_PLACE_PX = 0.25
#: More validation patterns than this share should not be where training patterns are.
_MOST_REPEATED = 0.1


def import_configured(config: DataConfig) -> Scan:
    """Import the scan that `config` names; raises as `import_scan` does."""
    return import_scan(config.path, config.N, config.quantity, configured_probe(config), config)


def measured_writer(config: DataConfig) -> Writer:
    """Read the scan of `config`; the writer splits and stores it."""
    scan = import_configured(config)
    members = _splits(config, scan.positions_px)
    check_groups(config.gridsize, {split: np.zeros(len(index), np.int64) for split, index in members.items()})
    if not np.asarray(scan.counts.any(axis=(1, 2)))[members["train"]].any():
        raise ValueError(f"`data.path` (={config.path}) must hold counts in its training patterns")
    return _writer(scan, members, config.N)


def _writer(scan: Scan, members: dict[str, NDArray[np.int64]], N: int) -> Writer:
    """A writer that lets go of the patterns when they are written: they may fill the memory."""
    held = [scan]
    del scan

    def write(directory: Path, progress: OnPatterns) -> Written:
        scan = held.pop()
        modes, mask = np.asarray(scan.modes), scan.mask
        first = scan.positions_px.min(axis=0)
        positions = scan.positions_px - first
        np.save(directory / "probe.npy", modes[0])
        if len(modes) > 1:
            np.save(directory / "further_modes.npy", modes[1:])
        if mask is not None:
            np.save(directory / "mask.npy", mask)
        if scan.object is not None:
            shape = np.ceil(positions.max(axis=0)).astype(int) + N
            np.save(directory / "reference.npy", _window(scan.object, np.rint(first).astype(int), shape))
        done, total = 0, sum(map(len, members.values()))
        for split, index in members.items():
            np.save(directory / f"{split}_positions_px.npy", positions[index])
            np.save(directory / f"{split}_object_index.npy", np.zeros(len(index), dtype=np.int64))
            for written in _save_rows(directory / f"{split}_counts.npy", scan.counts, index):
                progress(done + written, total)
            done += len(index)
        warnings = (*scan.warnings, *_repeated(positions, members))
        return Written(optics.measured_scale(scan.counts, optics.Beam.of(modes, mask)), scan.notes, warnings)

    return write


def _save_rows(path: Path, array: NDArray[Any], index: NDArray[np.int64]) -> Iterator[int]:
    """Save the rows of `array` at `index` as an NPY file, some at a time; yields how many are written."""
    header = {"descr": npy.dtype_to_descr(array.dtype), "fortran_order": False, "shape": (len(index), *array.shape[1:])}
    with path.open("wb") as stream:
        npy.write_array_header_1_0(stream, header)
        for start in range(0, len(index), _AT_ONCE):
            stream.write(array[index[start : start + _AT_ONCE]].data)
            yield min(start + _AT_ONCE, len(index))


def _repeated(positions_px: NDArray[np.float64], members: dict[str, NDArray[np.int64]]) -> Iterator[str]:
    """Warn of validation patterns that were taken where training patterns were."""
    train, val = (positions_px[members[split]] for split in ("train", "val"))
    near = int((cKDTree(train).query(val)[0] < _SAME_PLACE_PX).sum())
    if near > _MOST_REPEATED * len(val):
        yield (
            f"{near} of {len(val)} validation patterns lie within {_SAME_PLACE_PX} px of a training pattern: if these"
            " are repeated exposures, val_loss is of what was trained on; `data.skip_frames` leaves some out"
        )


def _splits(config: DataConfig, positions_px: NDArray[np.float64]) -> dict[str, NDArray[np.int64]]:
    """The indices of each split: a tenth of the places is validation, the others train, the test is all of them.

    All patterns of a place, its repeated exposures, are on one side.
    """
    whole = np.arange(len(positions_px))
    train_seed, val_seed = np.random.SeedSequence(config.seed).spawn(2)
    if config.val_choice == "block":
        held_out = validation_blocks(positions_px, None)
        val = validation_blocks(positions_px, config.max_val_patches)
    else:
        place_seed, subset_seed = val_seed.spawn(2)
        places, place_of = np.unique(positions_px, axis=0, return_inverse=True)
        chosen = random_subset(len(places), math.ceil(len(places) / VAL_EVERY), place_seed)
        held_out = np.flatnonzero(np.isin(place_of.ravel(), chosen))
        val = held_out[random_subset(len(held_out), config.max_val_patches, subset_seed)]
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
