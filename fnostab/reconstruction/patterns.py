"""A scan's counts as they are stored, looked at some patterns at a time."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fnostab.io.scratch import Storage
from fnostab.optics import Beam
from fnostab.reconstruction.blocks import BLOCK_PIXELS
from fnostab.scan import Reassembly, stitched_r_factor


@dataclass(frozen=True, eq=False)
class StoredPatterns:
    """Counts (n, N, N) that lie in `storage`, 0 at masked pixels; R-factors are taken without a copy of all of them."""

    counts: NDArray[np.float32]
    storage: Storage

    def __len__(self) -> int:
        return len(self.counts)

    @property
    def parts(self) -> Iterator[slice]:
        """Slices of the patterns, some at a time; what they took of the memory is released after each."""
        step = max(1, BLOCK_PIXELS // self.counts.shape[-1] ** 2)
        for start in range(0, len(self), step):
            yield slice(start, min(start + step, len(self)))
            self.storage.release()

    def keep_only(self, mask: NDArray[np.bool_]) -> None:
        """Set the counts to 0 where `mask` (N, N) is False, for good."""
        for part in self.parts:
            self.counts[part] *= mask

    def amplitudes(self, members: NDArray[np.int64] | slice, scale: float) -> NDArray[np.float32]:
        """Measured amplitudes sqrt(counts) / scale of some patterns, float32 (k, N, N)."""
        return np.asarray(np.sqrt(self.counts[members]) / np.float32(scale))

    def mean_counts(self) -> NDArray[np.float64]:
        """The mean pattern, float64 (N, N)."""
        total = np.zeros(self.counts.shape[1:])
        for part in self.parts:
            total += self.counts[part].sum(axis=0, dtype=np.float64)
        return total / len(self)

    def r_factor(self, stitched: Reassembly, positions_px: NDArray[np.floating], beam: Beam, scale: float) -> float:
        """R of the one object at `positions_px` (n, 2), as `scan.stitched_r_factor`."""
        difference = total = 0.0
        for part in self.parts:
            measured = self.amplitudes(part, scale)
            light = float(measured.sum(dtype=np.float64))
            if light > 0:
                difference += light * stitched_r_factor(stitched, positions_px[part], beam, measured)
                total += light
        return difference / total

    def mean_pattern_r_factor(self) -> float:
        """R of the mean amplitude everywhere, as `metrics.mean_pattern_r_factor` of these patterns on themselves."""
        mean = np.zeros(self.counts.shape[1:])
        for part in self.parts:
            mean += self.amplitudes(part, 1.0).sum(axis=0, dtype=np.float64)
        mean /= len(self)
        difference = sum(float(np.abs(self.amplitudes(part, 1.0) - mean).sum(dtype=np.float64)) for part in self.parts)
        return difference / float(mean.sum() * len(self))
