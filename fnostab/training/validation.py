"""What the validation of an epoch comes to."""

import math
from typing import Any

import torch

from fnostab.config import ArmConfig
from fnostab.dataset import Dataset
from fnostab.dataset.groups import Groups
from fnostab.evaluation import Stitched, stitch_patches
from fnostab.training.batches import Batch, share
from fnostab.training.collectives import all_gather_complex
from fnostab.training.stitching import stitched_amplitude_ssim
from fnostab.training.supervised import Truth


class Validation:
    """Sums over the validation batches of an epoch, and the objects that their patches make together.

    Its methods take the `PtychoModule` that is validated.
    """

    def __init__(self, config: ArmConfig, dataset: Dataset) -> None:
        self._split, self._objects = dataset.val, dataset.val_objects
        # Of a scan all patterns are stitched: its validation patterns are a few small blocks.
        self._stitched = dataset.test if dataset.measured else dataset.val
        self._groups = self._stitched.groups(config.data.gridsize)
        self._truth = None
        if config.train.mode == "supervised" and dataset.val_objects is not None:
            self._truth = Truth(dataset.val_objects, dataset.val, dataset.probe)
        self._every = epochs_between_stitchings(dataset)
        self._may_be_last = {config.train.epochs, config.train.give_up_epoch}
        self._sums: list[torch.Tensor] = []
        self._patches: list[torch.Tensor] = []

    def start(self) -> None:
        """Start an epoch."""
        self._sums, self._patches = [], []

    def add(self, module: Any, batch: Batch) -> None:
        """Add a batch to the R-factor's numerator and denominator, the object's deviation, the supervised loss."""
        patches = module(batch.sqrt_counts)
        if self._objects is not None:
            self._patches.append(patches)
        if batch.counted is not None:
            patches, batch = patches[batch.counted], batch.take(batch.counted)
        measured = batch.sqrt_counts / module.scale
        numerator = (module.beam.amplitude(patches) - measured).abs().sum()
        deviation, distance = object_std(patches, module.lit).sum(), measured.new_zeros(())
        if self._truth is not None:
            truth = self._truth.patches(batch.positions_px, batch.object_index)
            distance = self._truth.distance(patches, truth).sum()
        sums = torch.stack([numerator, measured.sum(), deviation, distance])
        self._sums.append(torch.zeros_like(sums) if batch.is_stand_in else sums)

    def results(self, module: Any) -> dict[str, float]:
        """What the epoch came to, the same on all ranks.

        That is `val_loss`, always the R-factor over all validation patches; their mean `object_std`; `r_stitched`, that
        of the one object that they make together, or of a measured scan all patches, beside `patch_consistency` and
        `shared_light`, which tell how far they agree, all NaN at epochs where they are not taken; where the truth is
        known, `val_amp_ssim`, the SSIM of the stitched amplitude, which no patch's global phase touches; and of a
        supervised run `supervised_loss`, its loss on these patches (`Truth.distance`).
        """
        # Batches are summed in double precision on the CPU: not every device has it.
        sums = torch.stack(self._sums).cpu().double().sum(0)
        if module.trainer.world_size > 1:
            sums = module.trainer.strategy.reduce(sums.to(module.device), reduce_op="sum")
        numerator, denominator, deviation, distance = sums.tolist()
        found = {"val_loss": numerator / denominator, "object_std": deviation / len(self._split.counts)}
        if self._truth is not None:
            found["supervised_loss"] = distance / len(self._split.counts)
        patches, stitched = None, Stitched()
        if self._objects is not None:
            patches = self._of_all_ranks(torch.cat(self._patches))
            found["val_amp_ssim"] = stitched_amplitude_ssim(patches.abs(), module.probe, self._split, self._objects)
        if self._stitches_after(module.trainer):
            patches = self._scan(module) if patches is None else patches
            stitched = stitch_patches(patches, self._stitched, module.scale, module.beam.detached(patches.device))
        agreement = {"patch_consistency": stitched.consistency, "shared_light": stitched.shared_light}
        return found | {"r_stitched": stitched.r} | agreement

    def _stitches_after(self, trainer: Any) -> bool:
        """Whether `r_stitched` is taken after this epoch: every so often, and wherever the training may end."""
        epoch = trainer.current_epoch + 1
        return epoch % self._every == 0 or epoch in self._may_be_last or trainer.should_stop

    def _scan(self, module: Any) -> torch.Tensor:
        """Patches (n, N, N) of the whole scan, on the CPU: to stitch it takes more memory than to train on it."""
        members = self._groups.members
        mine = Groups(members[share(module.trainer.global_rank, module.trainer.world_size, len(members))])
        patches = torch.from_numpy(module.reconstruct_groups(self._stitched, mine))
        return self._of_all_ranks(patches.to(module.device)).cpu()

    def _of_all_ranks(self, mine: torch.Tensor) -> torch.Tensor:
        """The patches (n, N, N) that are stitched, from this rank's of their groups, a group after the other."""
        members = self._groups.members
        return self._groups.once(all_gather_complex(mine, members.size, members.shape[1]))


def epochs_between_stitchings(dataset: Dataset) -> int:
    """Epochs from one `r_stitched` to the next, so many that it costs under 3 % of them: a rule of numbers of patches.

    Of the time that it takes to train on a patch, to stitch one of the smallest simulated preset takes 16 % (`smoke`;
    2 % with `quick`), and to predict and stitch one of a scan 29 % (`scan`, N=32; the validation patches of simulated
    data are predicted anyway). Measured as processor time of one thread, torch 2.13.0.
    """
    if dataset.measured:
        return math.ceil(10 * len(dataset.test.counts) / len(dataset.train.counts))
    return math.ceil(5 * len(dataset.val.counts) / len(dataset.train.counts))


def object_std(patches: torch.Tensor, lit: torch.Tensor) -> torch.Tensor:
    """Standard deviation (B,) of complex patches (B, N, N) over the pixels `lit` (N, N)."""
    inside = torch.view_as_real(patches)[:, lit]
    return inside.var(dim=1, correction=0).sum(-1).sqrt()
