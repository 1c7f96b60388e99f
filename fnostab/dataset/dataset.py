"""A dataset as a run sees it: three splits of patterns, probe and mask, and the truth where it is known."""

import hashlib
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fnostab.config import DataConfig
from fnostab.dataset.groups import Groups, check_groups, group_patterns
from fnostab.optics import Beam
from fnostab.scan import extract_patches

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

    def groups(self, gridsize: int, rng: np.random.Generator | None = None) -> Groups:
        """The patterns in groups of `gridsize`**2 neighbours, drawn by `rng` or always the same."""
        return group_patterns(self.positions_px, self.object_index, gridsize, rng)

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

    The forward model is A = sqrt(counts) / `scale` ~ `beam.amplitude(patch)`, with |patch| about 1; the network's input
    is sqrt(counts) * `input_scale`, whose mean square over the good pixels of the training patterns is 1. `modes`,
    complex64 (k, N, N), are the probe's, which add up incoherently; `mask`, bool (N, N), is True at the good pixels of
    the detector, and counts are 0 at the others, or None where all are good. `val_objects` and `test_objects` are the
    truth, complex64 (k, H, W), or None for a measured scan.
    `reference` is the object that came with a measured scan, complex64 (H, W) in the frame of the test positions (to
    half a pixel) and 0 where it does not reach, or None. `notes` and `warnings` of a measured scan are for people, as
    `Scan` has them. `config_sha256` names the cache entry, `sha256` is the hash of the content.
    """

    config: DataConfig
    config_sha256: str
    sha256: str
    modes: NDArray[np.complex64]
    scale: float
    input_scale: float
    train: Split
    val: Split
    test: Split
    val_objects: NDArray[np.complex64] | None
    test_objects: NDArray[np.complex64] | None
    reference: NDArray[np.complex64] | None
    mask: NDArray[np.bool_] | None = None
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def probe(self) -> NDArray[np.complex64]:
        """The first mode of the probe, complex64 (N, N)."""
        return np.asarray(self.modes[0])

    @property
    def beam(self) -> Beam:
        """Modes and mask, as tensors on the CPU."""
        return Beam.of(self.modes, self.mask)

    @property
    def measured(self) -> bool:
        """Whether the patterns were measured; there is no truth then."""
        return self.test_objects is None

    def check_groups(self, gridsize: int) -> None:
        """Raise ValueError if an object has fewer patterns than a group."""
        check_groups(gridsize, {split: getattr(self, split).object_index for split in SPLITS})

    @property
    def probe_sha256(self) -> str:
        """Hash of the bytes of all modes of the probe."""
        return array_sha256(self.modes)


def array_sha256(array: NDArray[Any]) -> str:
    """Hash of an array's bytes in C order. A memory-mapped one is read from its file: mapped pages would stay."""
    if isinstance(array, np.memmap) and array.flags.c_contiguous and array.filename is not None:
        digest = hashlib.sha256()
        with open(array.filename, "rb") as stream:
            stream.seek(array.offset)
            while chunk := stream.read(2**20):
                digest.update(chunk)
        return digest.hexdigest()
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()
