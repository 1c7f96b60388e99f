"""The LightningModule of one arm: a network trained by pushing its prediction through the physics."""

from typing import Any

import lightning
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fnostab import metrics
from fnostab.clipping import Clipper
from fnostab.config import ARCHITECTURES, ArmConfig
from fnostab.dataset import Dataset, Split, training_objects
from fnostab.dataset.groups import Groups
from fnostab.gradients import layer_norms
from fnostab.models import build_generator
from fnostab.models.layers import block_statistics, fingerprints, first_bad_layer, norm_statistics
from fnostab.optics import Beam
from fnostab.training.batches import Batch
from fnostab.training.collectives import all_gather, all_gather_complex
from fnostab.training.optimizers import RealTwins, make_optimizer, update_moments, warmup_cosine
from fnostab.training.precision import step_precision
from fnostab.training.replay import Replay
from fnostab.training.stitching import stitched_amplitude
from fnostab.training.supervised import Truth
from fnostab.training.validation import Validation, object_std

#: Validation patterns on which the activations of the blocks are observed.
_WATCHED_PATTERNS = 16
#: Patches that are predicted at once for a reconstruction; the number affects the speed alone.
_PREDICTED_AT_ONCE = 64
#: Counts added to both sides of the Poisson likelihood, as a share of the mean count a pixel: the logarithm stays
#: finite.
_POISSON_FLOOR = 1e-3


class PtychoModule(lightning.LightningModule):
    """A generator, the probe's modes, and the loss between predicted and measured far-field amplitudes.

    The loss is the R-factor's numerator over one dataset constant (`mae`), or half the Poisson deviance of the counts
    over the mean counts a pattern (`poisson`); with `loss_scale=batch` over those of each batch, which gives batches of
    dark patterns more weight. With `overlap_weight`, that share of it is taken on the object that the
    batch's overlapping patches make together, without which a learnt probe is not determined: any probe fits patches
    that need not agree. A supervised run has the distance from the true patches for its loss (`supervised.Truth`), and
    the physics in its validation alone. `step_record` holds the values of `history.STEP_SERIES` of the last step as one
    device tensor, `layer_norms` the gradient norm of each parameter before clipping, every `layer_norms_every_steps`
    steps. A step whose loss or gradient norm is not finite is not taken, nor is any after it: the host, which finds out
    later, can repeat the step from the same weights.
    """

    lit: torch.Tensor
    watched: torch.Tensor
    mask: torch.Tensor | None

    def __init__(self, config: ArmConfig, dataset: Dataset) -> None:
        super().__init__()
        self.config = config
        self.generator = build_generator(config.model, config.data.N, config.data.group_size)
        learnt = config.train.learn_probe
        # The first mode has a name of its own: checkpoints of runs with one hold no more.
        first, *further = (nn.Parameter(torch.view_as_real(mode).clone(), learnt) for mode in dataset.beam.modes)
        alone = config.train.devices * config.train.nodes == 1
        known = config.model.arch in ARCHITECTURES  # a graph repeats the kernels of a step, and no Python
        groups = config.train.batch_size // config.data.group_size
        self._replay = Replay(self.generator, groups, enabled=config.train.cuda_graph and alone and known)
        self.probe_parameter, self.further_modes = first, nn.ParameterList(further)
        self.register_buffer("mask", dataset.beam.mask, persistent=False)
        self.scale = dataset.scale
        self.input_scale = dataset.input_scale
        counts = dataset.train.counts
        self.mean_amplitude_sum = float(np.sqrt(counts).sum(dtype=np.float64)) / len(counts) / dataset.scale
        self._good_pixels = counts[0].size if dataset.mask is None else int(dataset.mask.sum())
        self.mean_counts = float(counts.sum(dtype=np.float64)) / len(counts)
        # The blocks are observed on the same few patterns before the first step and after each epoch.
        members = dataset.val.groups(config.data.gridsize).in_order[:_WATCHED_PATTERNS]
        watched = torch.from_numpy(np.sqrt(dataset.val.counts[members]))
        self.register_buffer("watched", watched, persistent=False)
        self.register_buffer("lit", torch.from_numpy(metrics.lit_region(dataset.beam.weight.numpy())), persistent=False)
        self.truth_std = _truth_std(dataset)
        self._validation = Validation(config, dataset)
        self._truth = None
        if config.train.mode == "supervised":
            self._truth = Truth(training_objects(dataset), dataset.train, dataset.probe)
        self.step_record: torch.Tensor = torch.zeros(4)
        self.layer_norms: dict[str, torch.Tensor] = {}
        self._clipper = make_clipper(config)
        self._twins = RealTwins([])
        self._loss = torch.zeros(())
        self._bad = torch.zeros((), dtype=torch.bool)

    @property
    def beam(self) -> Beam:
        """The current modes of the probe, and the good pixels."""
        return Beam(tuple(torch.view_as_complex(mode) for mode in self._modes), self.mask)

    @property
    def _modes(self) -> list[nn.Parameter]:
        return [self.probe_parameter, *self.further_modes]

    @property
    def probe(self) -> torch.Tensor:
        """The first mode of the current probe, complex (N, N)."""
        return self.beam.probe

    @property
    def probe_array(self) -> NDArray[np.complex64]:
        """The first mode of the current probe, on the host."""
        return np.asarray(self.probe.detach().cpu().numpy())

    def forward(self, sqrt_counts: torch.Tensor) -> torch.Tensor:
        """Predict object patches, complex (B, N, N), from square roots of counts (B, N, N).

        Those of a group, which the network takes as its channels, lie one after the other.
        """
        groups = (sqrt_counts * self.input_scale).reshape(-1, self.config.data.group_size, *sqrt_counts.shape[1:])
        if self.training and torch.is_grad_enabled():
            with step_precision(self.config, self.device):
                output = self._replay(groups).float()
        else:  # whatever is measured or shipped is in single precision
            output = self._replay(groups)
        parts = output.movedim(3, 1).flatten(0, 1)
        return torch.complex(parts[..., 0], parts[..., 1])

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        """This rank's part of the loss of one batch; the mean over ranks is the loss of the whole batch."""
        patches = self(batch.sqrt_counts)
        loss = self._physics_loss(patches, batch) if self._truth is None else self._supervised_loss(patches, batch)
        self._loss = loss.detach()
        return loss

    def _physics_loss(self, patches: torch.Tensor, batch: Batch) -> torch.Tensor:
        overlap = self.config.train.overlap_weight
        loss = torch.zeros((), device=self.device)
        if overlap < 1:
            loss = loss + (1 - overlap) * self._data_loss(self.beam.amplitude(patches), batch)
        if overlap > 0:
            loss = loss + overlap * self._data_loss(self._stitched_amplitude(patches, batch), batch)
        return loss

    def _supervised_loss(self, patches: torch.Tensor, batch: Batch) -> torch.Tensor:
        assert self._truth is not None
        if batch.is_stand_in:  # as in `_data_loss`
            return 0 * torch.view_as_real(patches).sum()
        truth = self._truth.patches(batch.positions_px, batch.object_index)
        return self._truth.distance(patches, truth).sum() * (batch.world_size / batch.global_size)

    def _stitched_amplitude(self, patches: torch.Tensor, batch: Batch) -> torch.Tensor:
        """This rank's part of `stitched_amplitude` of the patches of all ranks."""
        if batch.world_size == 1:
            return stitched_amplitude(patches, self.beam, batch.positions_px, batch.extent_px)
        # Each rank's loss depends on the patches of all ranks, so `all_gather` sums a patch's gradients over them. Each
        # rank's loss counts `world_size` times, and DDP averages.
        waves = all_gather_complex(patches, batch.global_size, batch.group_size)
        positions_px = all_gather(batch.positions_px, batch.global_size, batch.group_size)
        return batch.share(stitched_amplitude(waves, self.beam, positions_px, batch.extent_px))

    def _data_loss(self, predicted: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Distance of predicted amplitudes (B, N, N) from the batch's, over what a pattern holds on average."""
        amplitude_sum, counts_sum = self._pattern_sums(batch)
        if batch.is_stand_in:  # DDP wants a gradient of every parameter from every rank
            return 0 * predicted.sum()
        # DDP averages gradients over ranks, so each rank's sum counts `world_size` times.
        share = batch.world_size / batch.global_size
        if self.config.train.loss == "mae":
            return (predicted - batch.sqrt_counts / self.scale).abs().sum() * (share / amplitude_sum)
        floor = _POISSON_FLOOR * self.mean_counts / self._good_pixels
        rate = (self.scale * predicted).square() + floor
        counts = batch.sqrt_counts.square() + floor
        return (rate - counts + counts * (counts / rate).log()).sum() * (share / counts_sum)

    def _pattern_sums(self, batch: Batch) -> tuple[float | torch.Tensor, float | torch.Tensor]:
        """Amplitudes and counts of a pattern on average, over the training patterns or over the batch of all ranks."""
        if self.config.train.loss_scale == "dataset":
            return self.mean_amplitude_sum, self.mean_counts
        sums = torch.stack([batch.sqrt_counts.sum() / self.scale, batch.sqrt_counts.square().sum()])
        if batch.world_size > 1:
            sums = self.trainer.strategy.reduce(0 * sums if batch.is_stand_in else sums, reduce_op="sum")
        amplitudes, counts = sums / batch.global_size
        return amplitudes, counts

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the network's gradients by the arm's rule and record the step; a learnt probe is not clipped.

        DDP has averaged the gradients, so all ranks do the same. The optimizer skips a step that is not finite, and all
        after it, and one that the rule leaves out, on the device: the host does not wait.
        """
        every = self.config.train.layer_norms_every_steps
        self.layer_norms = layer_norms(self.generator) if self.trainer.global_step % every == 0 else {}
        stats = self._clipper.clip_(self.generator)
        norm = stats.norm_preclip
        for mode in self._modes:
            if mode.grad is not None:  # not clipped, but must be finite too
                norm = norm + 0 * mode.grad.sum()
        loss = self._loss
        if self.trainer.world_size > 1:
            loss = self.trainer.strategy.reduce(loss.clone(), reduce_op="mean")
        self.step_record = torch.stack([loss, norm, stats.norm_postclip, stats.clipped_fraction])
        # Fused optimizers leave weights and state alone where this is 1, as they do for gradient scalers.
        self._bad = self._bad.to(self.device) | ~self.step_record[:2].isfinite().all()
        left_out = self._bad if stats.skip is None else self._bad | stats.skip
        optimizer.found_inf = left_out.float()  # type: ignore[attr-defined]
        self._twins.take_gradients()

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: torch.optim.Optimizer) -> None:
        """Clear all gradients, those included that the optimizer does not know."""
        self._twins.clear_gradients()
        super().optimizer_zero_grad(epoch, batch_idx, optimizer)

    @property
    def has_stopped(self) -> bool:
        """Whether a step was not finite, after which none is taken; reading this waits for the device."""
        return bool(self._bad)

    def first_bad_layer(self, batch: Batch, *, training: bool = True) -> str | None:
        """Name the layer at which a number that is not finite first appears on `batch`; see `layers.first_bad_layer`.

        Runs a training step without taking it, or, if not `training`, the network forwards. `batch` holds the patches
        of all ranks, so no rank waits for another.
        """
        with torch.set_grad_enabled(training), self._replay.paused():
            return first_bad_layer(
                self.generator,
                lambda: self.training_step(batch, 0) if training else self(batch.sqrt_counts).abs().sum(),
            )

    def observe(self) -> dict[str, float]:
        """Statistics of the blocks on a fixed batch, and the norm weights of stable ones; see `layers`."""
        return block_statistics(self.generator, lambda: self(self.watched)) | norm_statistics(self.generator)

    def fingerprints(self) -> dict[str, list[int]]:
        """A number for each tensor that the blocks learn, which changes when the tensor does; see `layers`."""
        return fingerprints(self.generator)

    def on_validation_epoch_start(self) -> None:
        """Start the epoch's sums."""
        self._validation.start()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Add the batch to the epoch's sums."""
        self._validation.add(self, batch)

    def on_validation_epoch_end(self) -> None:
        """Log `val_loss` and what else the epoch's validation came to; see `Validation.results`."""
        for name, value in self._validation.results(self).items():
            self.log(name, value, sync_dist=self.trainer.world_size > 1)  # they are the same on all ranks

    def configure_optimizers(self) -> Any:
        """The optimizer over network and, if learnt, probe; with the schedule stepped at every optimizer step."""
        optim, train = self.config.optim, self.config.train
        self._twins = RealTwins(self.generator.parameters())
        groups: list[dict[str, Any]] = [{"params": self._twins.of(self.generator.parameters()), "lr": optim.lr}]
        for mode in self._modes if train.learn_probe else ():
            largest = float(torch.view_as_complex(mode.detach()).abs().max())
            groups.append({"params": [mode], "lr": train.probe_lr * largest, "weight_decay": 0.0})
        optimizer = make_optimizer(optim, groups)
        if optim.schedule == "constant":
            return optimizer
        schedule = warmup_cosine(optimizer, optim.warmup_steps, int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what the clipping rule remembers."""
        checkpoint["clipping"] = self._clipper.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Let a checkpoint of an earlier version go on; torch brings the weights themselves into today's order."""
        update_moments(checkpoint, self.generator)
        self._clipper.load_state_dict(checkpoint.get("clipping", {}))

    def reconstruct(self, split: Split) -> NDArray[np.complex64]:
        """Predict every patch of `split`, complex64 (n, N, N), on the module's device."""
        groups = split.groups(self.config.data.gridsize)
        return groups.once(self.reconstruct_groups(split, groups))

    @torch.no_grad()
    def reconstruct_groups(self, split: Split, groups: Groups) -> NDArray[np.complex64]:
        """Predict the patches of some `groups` of `split`, complex64 (g * C, N, N), a group after the other."""
        was_training = self.training
        self.eval()
        order = groups.in_order
        starts = range(0, len(order), _PREDICTED_AT_ONCE)
        batches = (np.sqrt(split.counts[order[start : start + _PREDICTED_AT_ONCE]]) for start in starts)
        patches = [self(torch.from_numpy(batch).to(self.device)).cpu() for batch in batches]
        self.train(was_training)
        return np.asarray(torch.cat(patches).numpy())


def make_clipper(config: ArmConfig) -> Clipper:
    """The clipping rule of `config`; raises `ValueError` if it names none."""
    clip = config.clip
    return Clipper(clip.algo, clip.val, granularity=clip.granularity, exclude=clip.exclude, options=clip.options)


def _truth_std(dataset: Dataset) -> float | None:
    """Mean of `object_std` over the true validation patches; None where there is no truth."""
    if dataset.val_objects is None:
        return None
    split, lit = dataset.val, torch.from_numpy(metrics.lit_region(dataset.probe))
    return float(object_std(torch.from_numpy(split.patches_of(dataset.val_objects)), lit).mean())
