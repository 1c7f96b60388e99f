"""Which positions of a scan are neighbours: compact groups of them, and the ones around the middle."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Of so many groups of a measured scan one is validation.
VAL_EVERY = 10
#: Positions of such a group at least, where the scan has enough.
_GROUP = 25


def compact_groups(
    members: NDArray[np.int64],
    positions_px: NDArray[np.float64],
    parts: int,
    rng: np.random.Generator | None = None,
) -> list[NDArray[np.int64]]:
    """Split the indices `members` into `parts` compact groups of equal size (within one).

    The longest extent of their `positions_px` (n, 2) is cut again and again, along rows and columns, or, with `rng`,
    along random directions.
    """
    if parts == 1:
        return [members]
    angle = rng.uniform(0, 2 * math.pi) if rng else 0.0
    along = positions_px[members] @ np.array([math.cos(angle), math.sin(angle)])
    # The longest extent is cut, so that groups stay compact: this direction or the one across it.
    across = positions_px[members] @ np.array([-math.sin(angle), math.cos(angle)])
    order = np.argsort(along if np.ptp(along) >= np.ptp(across) else across, kind="stable")
    first_parts = parts // 2
    cut = round(len(members) * first_parts / parts)
    halves = (members[order[:cut]], first_parts), (members[order[cut:]], parts - first_parts)
    return [group for half, share in halves for group in compact_groups(half, positions_px, share, rng)]


def central(members: NDArray[np.int64], positions_px: NDArray[Any], limit: int | None) -> NDArray[np.int64]:
    """Sorted indices of the `limit` of `members` that are nearest to the middle of all; of all, if that is None."""
    positions = positions_px[members]
    middle = (positions.min(axis=0) + positions.max(axis=0)) / 2
    nearest = np.argsort(np.square(positions - middle).sum(axis=1), kind="stable")
    return np.sort(members[nearest[:limit]])


def validation_blocks(positions_px: NDArray[np.float64], limit: int | None) -> NDArray[np.int64]:
    """Sorted indices of a tenth of the positions (n, 2), in blocks of neighbours: the validation part of a scan.

    The places of the scan are split into compact groups, a multiple of `VAL_EVERY` of them and of about `_GROUP` places
    or more, and every `VAL_EVERY`-th is taken, with all patterns there are of a place. Of these, `limit` keeps whole
    groups and the middle of the last one.
    """
    places, place_of = np.unique(positions_px, axis=0, return_inverse=True)
    n = len(places)
    parts = min(n, VAL_EVERY * max(1, n // (VAL_EVERY * _GROUP)))
    groups = compact_groups(np.arange(n), places, parts)
    kept: list[NDArray[np.int64]] = []
    room = len(positions_px) if limit is None else limit
    for group in groups[min(VAL_EVERY // 2, parts - 1) :: VAL_EVERY]:
        members = np.flatnonzero(np.isin(place_of.ravel(), group))
        kept.append(central(members, positions_px, room))
        room -= len(kept[-1])
    return np.sort(np.concatenate(kept))
