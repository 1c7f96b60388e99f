"""The patches of a dataset as batches of tensors that stay on the training device."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import lightning
import numpy as np
import torch
from numpy.typing import NDArray

from fnostab.config import ArmConfig
from fnostab.dataset import Dataset, Split
from fnostab.dataset.groups import Groups
from fnostab.dataset.neighbours import compact_groups

#: Patches a validation step; the number affects the speed alone.
_VALIDATION_BATCH = 64


class Batch(NamedTuple):
    """One rank's patches of one step.

    `sqrt_counts` (B, N, N) float32, `positions_px` (B, 2) float32, `object_index` (B,) int64, as in `Split`. Those that
    the network takes together lie one after the other, in groups of `group_size`.
    """

    sqrt_counts: torch.Tensor
    positions_px: torch.Tensor
    object_index: torch.Tensor
    #: Patches of this step over all ranks; losses are divided by it.
    global_size: int
    #: Rows and columns that the rounded positions of all ranks span, known to the host without waiting for the device.
    extent_px: tuple[int, int] = (0, 0)
    #: These are every `world_size`-th group from `rank` on; or all, whatever number of ranks there are, if that is 1.
    rank: int = 0
    world_size: int = 1
    group_size: int = 1
    #: Whether each patch counts (B,), or only fills a group, or a batch up to the size of others; None: all count.
    counted: torch.Tensor | None = None

    @property
    def size(self) -> int | torch.Tensor:
        """Patches of this step over all ranks that count, as a number on the device where only that knows it."""
        return self.global_size if self.counted is None else self.counted.sum()

    def only_counted(self, values: torch.Tensor) -> torch.Tensor:
        """`values` (B, ...), zero for patches that do not count."""
        if self.counted is None:
            return values
        return values * self.counted.view(-1, *(1 for _ in values.shape[1:]))

    @property
    def is_stand_in(self) -> bool:
        """Whether no group was left for this rank, which then takes a group of another rank that does not count."""
        return self.rank * self.group_size >= self.global_size

    def take(self, index: torch.Tensor | slice) -> "Batch":
        """The patches at `index`, of the same step and rank."""
        return self.each(lambda rows: rows[index])

    def each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "Batch":
        """The patches that `change` makes of the rows of each tensor."""
        names = ("sqrt_counts", "positions_px", "object_index", *(["counted"] if self.counted is not None else []))
        changed: dict[str, Any] = {name: change(getattr(self, name)) for name in names}
        return self._replace(**changed)

    def share(self, whole: torch.Tensor) -> torch.Tensor:
        """This rank's rows of `whole` (global_size, ...), which has a row for each patch of the step."""
        groups = whole.reshape(-1, self.group_size, *whole.shape[1:])
        return groups[share(self.rank, self.world_size, len(groups))].flatten(0, 1)


class Draw(NamedTuple):
    """Which patches make one rank's batch, without the patches themselves."""

    place: int  #: of the batch in the epoch
    members: torch.Tensor  #: (B,) int64, on the device of the patches
    global_size: int  #: as in `Batch`
    extent_px: tuple[int, int]  #: as in `Batch`


@dataclass
class EpochOrder:
    """The order of the training patches: a pure function of (seed, epoch).

    They are put into groups of `gridsize`**2, anew in each epoch, and batches are made of groups. With `neighbours`, a
    batch holds groups that lie side by side on one object, so that they overlap.
    """

    split: Split
    batch_size: int
    seed: int
    neighbours: bool
    epoch: int = 0
    gridsize: int = 1

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; Lightning calls this at the start of each."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Batches an epoch, the same in every epoch."""
        n_groups = [math.ceil(patches / self.gridsize**2) for patches in np.bincount(self.split.object_index).tolist()]
        return sum(math.ceil(n / self._groups_a_batch) for n in (n_groups if self.neighbours else [sum(n_groups)]))

    def batches(self) -> list[NDArray[np.int64]]:
        """Indices of each batch of the epoch, a group after the other.

        Every patch appears once, but for the few that fill the last group of their object.
        """
        rng = np.random.default_rng([self.seed, self.epoch])
        members = self.split.groups(self.gridsize, rng).members
        size = self._groups_a_batch
        if not self.neighbours:
            order = rng.permutation(len(members))
            return [members[order[start : start + size]].ravel() for start in range(0, len(order), size)]
        middles_px = self.split.positions_px[members].mean(axis=1)
        objects = self.split.object_index[members[:, 0]]
        clusters = []
        for index in np.unique(objects):
            on_object = np.flatnonzero(objects == index)
            clusters += compact_groups(on_object, middles_px, math.ceil(len(on_object) / size), rng)
        return [members[clusters[index]].ravel() for index in rng.permutation(len(clusters))]

    @property
    def _groups_a_batch(self) -> int:
        return self.batch_size // self.gridsize**2


class PatchLoader:
    """Iterates over batches of resident tensors; its state is its place in the epoch, so that a run resumes mid-epoch.

    Each rank gets every `world_size`-th group of each batch, or a stand-in where the batch is too small for that. If
    `gathers` is set to false, the batches come as `Draw`, for a step that takes the patches itself.
    """

    def __init__(self, patches: Batch, order: EpochOrder, rank: int = 0, world_size: int = 1) -> None:
        self.sampler = order  # the name through which Lightning sets the epoch
        self.patches = patches
        self.gathers = True
        #: The batches of the epoch that is iterated over.
        self.draws: list[Draw] = []
        self._positions_px = patches.positions_px.cpu().numpy()
        self._rank = rank
        self._world_size = world_size
        self._place = 0
        self._start = 0

    def __len__(self) -> int:
        """Batches an epoch."""
        return len(self.sampler)

    def __iter__(self) -> Iterator[Batch | Draw]:
        """Yield the epoch's batches, from the restored place on in the first epoch after a resume."""
        start, self._start = self._start, 0
        self.draws = self._draws_of_epoch()
        for draw in self.draws[start:]:
            self._place = draw.place + 1
            yield self.gather(draw) if self.gathers else draw

    def _draws_of_epoch(self) -> list[Draw]:
        """All batches of the epoch: what they are made of goes to the device at once, so that no step waits for it."""
        batches = self.sampler.batches()
        mine = [self._of_rank(members, self._rank, self._world_size) for members in batches]
        device = self.patches.sqrt_counts.device
        on_device = torch.split(torch.from_numpy(np.concatenate(mine)).to(device), [len(members) for members in mine])
        return [
            Draw(place, members, len(of_all), self._extent_px(of_all))
            for place, (members, of_all) in enumerate(zip(on_device, batches, strict=True))
        ]

    def gather(self, draw: Draw) -> Batch:
        """The batch that `draw` tells of."""
        return self.patches.take(draw.members)._replace(
            global_size=draw.global_size, extent_px=draw.extent_px, rank=self._rank, world_size=self._world_size
        )

    def batch(self, place: int) -> Batch:
        """The whole batch, of all ranks, at `place` in the epoch."""
        members = self.sampler.batches()[place]
        index = torch.from_numpy(members).to(self.patches.sqrt_counts.device)
        return self.patches.take(index)._replace(global_size=len(members), extent_px=self._extent_px(members))

    def _of_rank(self, members: NDArray[np.int64], rank: int, world_size: int) -> NDArray[np.int64]:
        groups = members.reshape(-1, self.patches.group_size)
        return groups[share(rank, world_size, len(groups))].ravel()

    def _extent_px(self, members: NDArray[np.int64]) -> tuple[int, int]:
        height, width = np.ptp(np.rint(self._positions_px[members]), axis=0).astype(int).tolist()
        return height, width

    def state_dict(self) -> dict[str, int]:
        """How many batches of the epoch were used."""
        return {"place": self._place % len(self)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Let the next pass start at the saved place."""
        self._start = state["place"]


def share(rank: int, world_size: int, size: int) -> slice:
    """Which of `size` groups `rank` gets; the first one, as a stand-in, if there are too few."""
    return slice(rank, None, world_size) if rank < size else slice(1)


class ValidationLoader:
    """Iterates over this rank's share of the validation patches, in order, a group after the other."""

    def __init__(self, patches: Batch, rank: int = 0, world_size: int = 1) -> None:
        self._patches = patches
        of_rank = patches._replace(rank=rank, world_size=world_size)
        self._batches = split_batches(of_rank.each(of_rank.share), _VALIDATION_BATCH)

    def __len__(self) -> int:
        """Number of batches."""
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches in order."""
        return iter(self._batches)

    def whole_batches(self) -> list[Batch]:
        """The batches of all ranks' patches."""
        return split_batches(self._patches, _VALIDATION_BATCH)


def make_loaders(
    trainer: lightning.Trainer, dataset: Dataset, config: ArmConfig
) -> tuple[PatchLoader, ValidationLoader]:
    """Training and validation patches of this rank, which are loaded onto its device now; there are no workers."""
    device, rank, world_size = trainer.strategy.root_device, trainer.global_rank, trainer.world_size
    train = config.train
    gridsize = config.data.gridsize
    order = EpochOrder(dataset.train, train.batch_size, config.seed, train.overlap_weight > 0, gridsize=gridsize)
    training = resident(dataset.train, device)._replace(group_size=config.data.group_size)
    return (
        PatchLoader(training, order, rank, world_size),
        ValidationLoader(in_groups(dataset.val, dataset.val.groups(gridsize), device), rank, world_size),
    )


def resident(split: Split, device: torch.device | str = "cpu") -> Batch:
    """A whole split as tensors on `device`."""
    return Batch(
        torch.from_numpy(np.sqrt(split.counts)).to(device),
        torch.from_numpy(split.positions_px.astype(np.float32)).to(device),
        torch.from_numpy(np.array(split.object_index)).to(device),
        global_size=len(split.counts),
    )


def in_groups(split: Split, groups: Groups, device: torch.device | str = "cpu") -> Batch:
    """`resident` in the order of `groups`."""
    group_size = groups.members.shape[1]
    if group_size == 1:
        return resident(split, device)
    patches = resident(split.part(groups.in_order), device)
    return patches._replace(group_size=group_size, counted=torch.from_numpy(groups.counted).to(device))


def split_batches(patches: Batch, size: int) -> list[Batch]:
    """Cut `patches` into batches of `size`, in order."""
    starts = range(0, len(patches.sqrt_counts), size)
    return [patches.take(slice(start, start + size)) for start in starts]
