"""The loss of predicted patches: through the physics, or in a supervised run against the true ones."""

import numpy as np
import torch

from fnostab.config import ArmConfig
from fnostab.dataset import Dataset, training_objects
from fnostab.optics import Beam
from fnostab.training.batches import Batch
from fnostab.training.collectives import all_gather, all_gather_complex, sum_over_processes
from fnostab.training.stitching import stitched_amplitude
from fnostab.training.supervised import Truth

#: Counts added to both sides of the Poisson likelihood, as a share of the mean count a pixel: the logarithm stays
#: finite.
_POISSON_FLOOR = 1e-3


class TrainingLoss:
    """How far predicted patches are from a batch: of several processes, this one's part; their mean is the loss.

    It is the R-factor's numerator over one dataset constant (`mae`), or half the Poisson deviance of the counts over
    the mean counts a pattern (`poisson`); with `loss_scale=batch` over those of each batch, which gives batches of dark
    patterns more weight. With `overlap_weight`, that share of it is taken on the object that the batch's overlapping
    patches make together, without which a learnt probe is not determined: any probe fits patches that need not agree. A
    supervised run has the distance from the true patches for its loss (`supervised.Truth`).
    """

    def __init__(self, config: ArmConfig, dataset: Dataset) -> None:
        self._train = config.train
        self._scale = dataset.scale
        counts = dataset.train.counts
        #: Amplitudes and counts of a training pattern on average.
        self.mean_amplitude_sum = float(np.sqrt(counts).sum(dtype=np.float64)) / len(counts) / dataset.scale
        self.mean_counts = float(counts.sum(dtype=np.float64)) / len(counts)
        self._good_pixels = counts[0].size if dataset.mask is None else int(dataset.mask.sum())
        self._truth = None
        if config.train.mode == "supervised":
            self._truth = Truth(training_objects(dataset), dataset.train, dataset.probe)

    def __call__(self, patches: torch.Tensor, batch: Batch, beam: Beam) -> torch.Tensor:
        """The loss, 0-d, of complex `patches` (B, N, N) predicted for `batch` and lit by `beam`."""
        if self._truth is not None:
            return self._supervised(self._truth, patches, batch)
        overlap = self._train.overlap_weight
        loss = torch.zeros((), device=patches.device)
        if overlap < 1:
            loss = loss + (1 - overlap) * self._distance(beam.amplitude(patches), batch)
        if overlap > 0:
            loss = loss + overlap * self._distance(_stitched(patches, batch, beam), batch)
        return loss

    @staticmethod
    def _supervised(truth: Truth, patches: torch.Tensor, batch: Batch) -> torch.Tensor:
        if batch.is_stand_in:  # as in `_distance`
            return 0 * torch.view_as_real(patches).sum()
        distance = truth.distance(patches, truth.patches(batch.positions_px, batch.object_index))
        return batch.only_counted(distance).sum() * (batch.world_size / batch.size)

    def _distance(self, predicted: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Distance of predicted amplitudes (B, N, N) from the batch's, over what a pattern holds on average."""
        amplitude_sum, counts_sum = self._pattern_sums(batch)
        if batch.is_stand_in:  # DDP wants a gradient of every parameter from every rank
            return 0 * predicted.sum()
        # DDP averages gradients over ranks, so each rank's sum counts `world_size` times.
        share = batch.world_size / batch.size
        if self._train.loss == "mae":
            distance = (predicted - batch.sqrt_counts / self._scale).abs()
            return batch.only_counted(distance).sum() * (share / amplitude_sum)
        floor = _POISSON_FLOOR * self.mean_counts / self._good_pixels
        rate = (self._scale * predicted).square() + floor
        counts = batch.sqrt_counts.square() + floor
        deviance = rate - counts + counts * (counts / rate).log()
        return batch.only_counted(deviance).sum() * (share / counts_sum)

    def _pattern_sums(self, batch: Batch) -> tuple[float | torch.Tensor, float | torch.Tensor]:
        """Amplitudes and counts of a pattern on average, over the training patterns or over the batch of all ranks."""
        if self._train.loss_scale == "dataset":
            return self.mean_amplitude_sum, self.mean_counts
        measured = batch.only_counted(batch.sqrt_counts)
        sums = torch.stack([measured.sum() / self._scale, measured.square().sum()])
        if batch.world_size > 1:
            sums = sum_over_processes(0 * sums if batch.is_stand_in else sums)
        amplitudes, counts = sums / batch.size
        return amplitudes, counts


def _stitched(patches: torch.Tensor, batch: Batch, beam: Beam) -> torch.Tensor:
    """This rank's part of `stitched_amplitude` of the patches of all ranks."""
    if batch.world_size == 1:
        return stitched_amplitude(patches, beam, batch.positions_px, batch.extent_px, batch.only_counted)
    # Each rank's loss depends on the patches of all ranks, so `all_gather` sums a patch's gradients over them. Each
    # rank's loss counts `world_size` times, and DDP averages.
    waves = all_gather_complex(patches, batch.global_size, batch.group_size)
    positions_px = all_gather(batch.positions_px, batch.global_size, batch.group_size)
    return batch.share(stitched_amplitude(waves, beam, positions_px, batch.extent_px))
