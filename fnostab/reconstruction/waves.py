"""The exit waves of a scan's patches, kept on the disk, and the one object that they make together.

It is the object of `scan.reassemble`, of which no step needs all patches at once: sums over patches are taken block by
block, and the phases follow from the overlaps of pairs, whose number is small beside that of pixels.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse

from fnostab.io.scratch import GrowingArray, Storage
from fnostab.reconstruction.blocks import BLOCK_PIXELS, Block, neighbouring_blocks
from fnostab.scan import (
    Reassembly,
    agreement_sums,
    consistency_of,
    least_squares_object,
    lit_pixels,
    not_dark,
    read_windows,
    shifted,
    solve_phases,
    split_positions,
    stitch,
    tied_pairs,
)


@dataclass(frozen=True, eq=False)
class _Part:
    """The exit waves of a block and the probes, both (k, N, N) and shifted to whole pixels; `corners` are its own."""

    block: Block
    waves: torch.Tensor
    probes: torch.Tensor
    corners: torch.Tensor


class StoredWaves:
    """The exit waves of a scan's patches (n, N, N), which come some at a time and are kept in `storage`.

    `probe` complex (N, N) is what patches are stitched with (`Beam.weight`), `room` the number of them that is
    expected. What is in memory at once is a pair of blocks of `pixels`, the object's canvas, and some numbers for each
    pair of patches that overlap.
    """

    def __init__(self, probe: NDArray[np.complex64], storage: Storage, room: int, pixels: int = BLOCK_PIXELS) -> None:
        N = probe.shape[-1]
        self.corners: NDArray[np.int64] = np.empty((0, 2), np.int64)
        self.remainders: NDArray[np.float32] = np.empty((0, 2), np.float32)
        self._probe = torch.from_numpy(np.array(probe, np.complex64))
        self._storage, self._pixels = storage, pixels
        self._waves = GrowingArray(storage, (N, N), np.complex64, room)

    def __len__(self) -> int:
        return len(self.corners)

    def append(self, positions_px: NDArray[np.floating], patches: NDArray[np.complex64]) -> None:
        """Keep the exit waves of `patches` (k, N, N) at `positions_px` (k, 2), after those that are there."""
        corners, remainders = split_positions(positions_px)
        waves = shifted(self._probe * torch.from_numpy(patches), remainders)
        self._waves.append(waves.numpy())
        self.corners = np.concatenate([self.corners, corners])
        self.remainders = np.concatenate([self.remainders, remainders])

    @torch.no_grad()
    def reassemble(self, chosen: NDArray[np.int64] | None = None, n_sync: int = 100) -> Reassembly:
        """Find the least-squares object of all patches, or of the `chosen` ones (m,); as `scan.reassemble` does.

        Raises ValueError if there are none.
        """
        members = np.arange(len(self.corners)) if chosen is None else chosen
        origin = self.corners[members].min(axis=0)
        corners = self.corners[members] - origin
        N = self._probe.shape[-1]
        blocks = neighbouring_blocks(corners, N, self._pixels)
        shape: tuple[int, int] = tuple((corners.max(axis=0) + N).tolist())
        light, brightest = torch.zeros(shape), torch.zeros(N, N)
        for part in self._parts(blocks, members, corners):
            light[part.block.place] += stitch(part.waves, part.probes, part.corners, part.block.shape)[1]
            brightest = torch.maximum(brightest, part.probes.abs().amax(dim=0))
        phases: NDArray[np.float64] = np.zeros(len(members))
        if n_sync > 0:
            phases = solve_phases(self._pairs(blocks, members, corners, light, lit_pixels(brightest)), n_sync)
        numerator = torch.zeros(shape, dtype=torch.complex64)
        for part in self._parts(blocks, members, corners, phases):
            numerator[part.block.place] += stitch(part.waves, part.probes, part.corners, part.block.shape)[0]
        canvas, all_light = least_squares_object(numerator, light), not_dark(light)
        sums = np.zeros(4)
        for part in self._parts(blocks, members, corners, phases):
            fields = canvas[part.block.place].contiguous(), all_light[part.block.place].contiguous()
            sums += agreement_sums(part.waves, part.probes, part.corners, *fields)
        consistency, shared_light = consistency_of(sums, float(light.sum(dtype=torch.float64)))
        return Reassembly(
            object=canvas.numpy(),
            light=light.numpy(),
            origin_px=(int(origin[0]), int(origin[1])),
            phases_rad=phases,
            consistency=consistency,
            shared_light=shared_light,
        )

    def _parts(
        self,
        blocks: list[Block],
        members: NDArray[np.int64],
        corners: NDArray[np.int64],
        phases: NDArray[np.float64] | None = None,
    ) -> Iterator[_Part]:
        """Read one block after another, the `phases` (m,) of patches taken out if they are given."""
        for block in blocks:
            index = members[block.members]
            waves = torch.from_numpy(self._waves.array[index])
            self._storage.release()
            probes = shifted(self._probe, self.remainders[index]).expand_as(waves)
            if phases is not None:
                turned = torch.from_numpy(np.exp(-1j * phases[block.members]).astype(np.complex64))
                waves = waves * turned[:, None, None]
            yield _Part(block, waves, probes, torch.from_numpy(corners[block.members] - block.start))

    def _pairs(
        self,
        blocks: list[Block],
        members: NDArray[np.int64],
        corners: NDArray[np.int64],
        light: torch.Tensor,
        lit: torch.Tensor,
    ) -> sparse.csr_array:
        """The overlaps of all pairs of patches: the matrix that phases are solved from, `scan.synchronise_phases`."""
        light = not_dark(light)
        sizes: NDArray[np.float32] = np.zeros(len(members), np.float32)
        rows, columns, overlaps = [], [], []
        for number, part in enumerate(self._parts(blocks, members, corners)):
            own = _rows(part, part.block, light, lit)
            sizes[part.block.members] = np.sqrt(abs(own).power(2).sum(axis=1))
            later = [other for other in blocks[number + 1 :] if other.meets(part.block)]
            for other in (part, *self._parts(later, members, corners)):
                found = (own @ _rows(other, part.block, light, lit).conj().T).tocoo()
                one, two = part.block.members[found.row], other.block.members[found.col]
                rows += [one, two] if other is not part else [one]
                columns += [two, one] if other is not part else [two]
                overlaps += [found.data, found.data.conj()] if other is not part else [found.data]
        return tied_pairs(np.concatenate(rows), np.concatenate(columns), np.concatenate(overlaps), sizes)


def _rows(part: _Part, where: Block, light: torch.Tensor, lit: torch.Tensor) -> sparse.csr_array:
    """conj(P) psi / sqrt(light) of a part's patches, a row each, at the pixels of the block `where`; (k, pixels)."""
    block = part.block
    N = part.waves.shape[-1]
    there = read_windows(light[block.place].contiguous(), part.corners, N)
    values = (part.probes.conj() * part.waves / there.sqrt())[:, lit].numpy()
    offsets = np.argwhere(lit.numpy())
    pixels = (part.corners.numpy() + block.start - where.start)[:, None] + offsets
    inside = ((pixels >= 0) & (pixels < where.shape)).all(axis=2)
    ends = np.concatenate([[0], np.cumsum(inside.sum(axis=1))])
    index = (pixels[..., 0] * where.shape[1] + pixels[..., 1])[inside]
    return sparse.csr_array((values[inside], index, ends), shape=(len(values), where.shape[0] * where.shape[1]))
