"""Groups of neighbouring patterns, which a network takes together: with `data.gridsize` 2 groups of four."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

#: An array or a tensor.
T = TypeVar("T", bound=Any)

#: Neighbours of a pattern that are looked up at first; the others only where all of these have a group.
_NEAR: Final = 24
#: Radians from the axis of rows; on a square grid no two patterns near each other lie equally far along it.
_FROM_UPPER_LEFT: Final = 0.7


@dataclass(frozen=True, eq=False)
class Groups:
    """Patterns in groups: `members` int64 (g, C) are their indices, and every pattern is in one group or more.

    Where the number of an object's patterns is no multiple of C, neighbours that have a group already fill its last
    one. What is predicted of a pattern there does not count.
    """

    members: NDArray[np.int64]

    @property
    def in_order(self) -> NDArray[np.int64]:
        """All indices (g * C,), a group after the other."""
        return self.members.ravel()

    @property
    def places(self) -> NDArray[np.int64]:
        """For each pattern (n,) its place in `in_order` that counts: the first, as groups are filled last."""
        return np.asarray(np.unique(self.in_order, return_index=True)[1])

    @property
    def counted(self) -> NDArray[np.bool_]:
        """Whether what stands at each place of `in_order` counts."""
        counted = np.zeros(self.members.size, bool)
        counted[self.places] = True
        return counted

    def once(self, predicted: T) -> T:
        """What counts of `predicted` (g * C, ...), which is in the order of `in_order`: each pattern's, (n, ...)."""
        of_patterns: T = predicted if self.members.shape[1] == 1 else predicted[self.places]
        return of_patterns

    @property
    def group_of(self) -> NDArray[np.int64]:
        """For each pattern (n,) the group whose prediction of it counts."""
        return np.asarray(self.places // self.members.shape[1])


def group_patterns(
    positions_px: NDArray[np.floating],
    object_index: NDArray[np.int64],
    gridsize: int,
    rng: np.random.Generator | None = None,
) -> Groups:
    """Put the patterns at `positions_px` (n, 2) into groups of `gridsize`**2 neighbours on one object.

    From one corner of an object to the other, the outermost pattern without a group makes one with those nearest to it:
    on a regular grid, squares. `rng` draws the corner; without one it is the upper left. The channels of a group are
    its patterns by rows: of four the two upper ones, then the two lower ones, each from left to right. With `gridsize`
    1 every pattern is a group of its own, and the groups are in their order.
    """
    size = gridsize**2
    if size == 1:
        return Groups(np.arange(len(positions_px))[:, None])
    found = []
    for index in np.unique(object_index):
        on_object = np.flatnonzero(object_index == index)
        positions = positions_px[on_object]
        groups = _nearest(positions, size, _direction(rng) if rng else _FROM_UPPER_LEFT)
        found.append(on_object[_by_rows(groups, positions, gridsize)])
    return Groups(np.concatenate(found))


def check_groups(gridsize: int, object_index: Mapping[str, NDArray[np.int64]]) -> None:
    """Raise ValueError if an object has fewer patterns than a group; `object_index` holds the objects of each split."""
    for split, objects in object_index.items():
        for index, patterns in zip(*np.unique(objects, return_counts=True), strict=True):
            if patterns < gridsize**2:
                raise ValueError(
                    f"`data.gridsize` (={gridsize}) must be 1: object {index} of split {split} has {patterns} patterns,"
                    f" fewer than a group of {gridsize**2}"
                )


def _direction(rng: np.random.Generator) -> float:
    """An angle from one of four corners: begun along a straight edge, more patterns are left over at the other one."""
    return float(rng.integers(4) * math.pi / 2 + rng.uniform(math.pi / 9, math.pi / 2 - math.pi / 9))


def _nearest(positions_px: NDArray[Any], size: int, angle_rad: float) -> NDArray[np.int64]:
    """Groups (g, size) of the patterns at `positions_px` (n, 2), begun with those that lie outermost at `angle_rad`."""
    n = len(positions_px)
    near = KDTree(positions_px).query(positions_px, k=min(n, _NEAR))[1]
    along = positions_px[:, 0] * math.cos(angle_rad) + positions_px[:, 1] * math.sin(angle_rad)
    free = [True] * n
    groups = []
    for first in np.argsort(along, kind="stable").tolist():
        if not free[first]:
            continue
        free[first] = False
        group = [first]
        for one in near[first].tolist():
            if free[one]:
                group.append(one)
                if len(group) == size:
                    break
        else:
            # Those without a group, then the others to fill the last one; each nearest first.
            away = np.square(positions_px - positions_px[first]).sum(axis=1)
            rest = np.lexsort((away, np.logical_not(free)))
            group = [first, *rest[rest != first][: size - 1].tolist()]
        for one in group:
            free[one] = False
        groups.append(group)
    return np.array(groups, dtype=np.int64)


def _by_rows(groups: NDArray[np.int64], positions_px: NDArray[Any], gridsize: int) -> NDArray[np.int64]:
    """Each of the `groups` (g, gridsize**2) in rows of `gridsize` patterns, from the top and from the left."""
    row, column = positions_px[groups].transpose(2, 0, 1)
    downwards = np.take_along_axis(groups, np.lexsort((column, row)), axis=1)
    rows = downwards.reshape(len(groups), gridsize, gridsize)
    rightwards = positions_px[rows, 1].argsort(axis=2, kind="stable")
    return np.take_along_axis(rows, rightwards, axis=2).reshape(groups.shape)
