"""Scan positions in blocks of neighbours, so that a block of exit waves meets few others."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

#: Pixels of all windows of a block: 256 of 64 x 64, 64 of 128 x 128.
BLOCK_PIXELS = 2**20


@dataclass(frozen=True, eq=False)
class Block:
    """The windows `members` (k,), with corners from `start` to before `stop`, both (2,), windows included."""

    members: NDArray[np.int64]
    start: NDArray[np.int64]
    stop: NDArray[np.int64]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the rectangle that its windows lie in."""
        height, width = (self.stop - self.start).tolist()
        return height, width

    @property
    def place(self) -> tuple[slice, slice]:
        """Where that rectangle is on the canvas."""
        rows, columns = (slice(*ends) for ends in zip(self.start.tolist(), self.stop.tolist(), strict=True))
        return rows, columns

    def meets(self, other: "Block") -> bool:
        """Whether the rectangles of the two have a pixel in common."""
        return bool((self.start < other.stop).all() and (other.start < self.stop).all())


def neighbouring_blocks(corners: NDArray[np.int64], N: int, pixels: int = BLOCK_PIXELS) -> list[Block]:
    """Divide windows of N x N pixels at `corners` (n, 2) into blocks of at most `pixels`, or of one window.

    The windows are halved along the longer side of where they lie until they are few enough.
    """
    most = max(1, pixels // N**2)
    done, waiting = [], [np.arange(len(corners))]
    while waiting:
        members = waiting.pop()
        if len(members) <= most:
            there = corners[members]
            done.append(Block(members, there.min(axis=0), there.max(axis=0) + N))
            continue
        axis = int(np.ptp(corners[members], axis=0).argmax())
        order = np.argsort(corners[members, axis], kind="stable")
        half = len(members) // 2
        waiting += [np.sort(members[order[half:]]), np.sort(members[order[:half]])]
    return done
