"""The LightningModule of one arm: a network trained by pushing its prediction through the physics."""

from collections.abc import Callable
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from numpy.typing import NDArray
from torch import nn

from fnostab import metrics
from fnostab.clipping import Clipper
from fnostab.config import ARCHITECTURES, ArmConfig
from fnostab.dataset import Dataset, Split
from fnostab.dataset.groups import Groups
from fnostab.io.foreign import is_foreign
from fnostab.models import build_generator
from fnostab.models.layers import block_statistics, fingerprints, first_bad_layer, norm_statistics
from fnostab.models.network_stages import pattern_shares
from fnostab.optics import Beam
from fnostab.training.batches import Batch, Draw, PatchLoader
from fnostab.training.collectives import is_first
from fnostab.training.loss import TrainingLoss
from fnostab.training.optimizers import RealTwins, make_optimizer, update_moments, warmup_cosine
from fnostab.training.precision import step_precision
from fnostab.training.replay import GraphedSteps, replays_on
from fnostab.training.step import TrainingStep
from fnostab.training.together import Member
from fnostab.training.validation import Validation, object_std

#: Validation patterns on which the activations of the blocks are observed.
_WATCHED_PATTERNS = 16
#: Patches that are predicted at once for a reconstruction; the number affects the speed alone.
_PREDICTED_AT_ONCE = 64


class PtychoModule(lightning.LightningModule):
    """A generator, the probe's modes, and the loss between predicted and measured far-field amplitudes.

    The loss is `loss.TrainingLoss`; the validation of every run, supervised ones too, is by the physics. What a step
    does besides, and what is recorded of it, is `step.TrainingStep`.
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
        self.probe_parameter, self.further_modes = first, nn.ParameterList(further)
        self.register_buffer("mask", dataset.beam.mask, persistent=False)
        self.scale = dataset.scale
        self.input_scale = dataset.input_scale
        self.loss = TrainingLoss(config, dataset)
        self.mean_amplitude_sum, self.mean_counts = self.loss.mean_amplitude_sum, self.loss.mean_counts
        # The blocks are observed on the same few patterns before the first step and after each epoch.
        members = dataset.val.groups(config.data.gridsize).in_order[:_WATCHED_PATTERNS]
        watched = torch.from_numpy(np.sqrt(dataset.val.counts[members]))
        self.register_buffer("watched", watched, persistent=False)
        self.register_buffer("lit", torch.from_numpy(metrics.lit_region(dataset.beam.weight.numpy())), persistent=False)
        self.truth_std = _truth_std(dataset)
        self._validation = Validation(config, dataset)
        self.step = TrainingStep(self, make_clipper(config))
        self._graphed: GraphedSteps | None = None
        #: Where the steps are taken together with those of other runs.
        self.member: Member | None = None

    @property
    def beam(self) -> Beam:
        """The current modes of the probe, and the good pixels."""
        return Beam(tuple(torch.view_as_complex(mode) for mode in self.modes), self.mask)

    @property
    def modes(self) -> list[nn.Parameter]:
        """The modes of the probe, (N, N, 2) each: real and imaginary parts."""
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
        groups = self.to_groups(sqrt_counts)
        if self.training and torch.is_grad_enabled():
            with step_precision(self.config, self.device):
                output = self.generator(groups).float()
        else:  # whatever is measured or shipped is in single precision
            output = self.generator(groups)
        return self.to_patches(output)

    def to_groups(self, sqrt_counts: torch.Tensor) -> torch.Tensor:
        """What the network takes, (B / C, C, N, N), from square roots of counts (B, N, N)."""
        return (sqrt_counts * self.input_scale).reshape(-1, self.config.data.group_size, *sqrt_counts.shape[1:])

    @staticmethod
    def to_patches(output: torch.Tensor) -> torch.Tensor:
        """Object patches, complex (B, N, N), from what the network gives, (B / C, N, N, C, 2)."""
        parts = output.movedim(3, 1).flatten(0, 1)
        return torch.complex(parts[..., 0], parts[..., 1])

    def on_train_start(self) -> None:
        """Have whole steps replayed, where that gives the same numbers sooner."""
        train, loader = self.config.train, self.trainer.train_dataloader
        assert isinstance(loader, PatchLoader)
        one_device = train.devices * train.nodes == 1
        # A graph repeats the kernels of a step, and no Python.
        known = self.config.model.arch in ARCHITECTURES and not is_foreign(self.config.clip.algo)
        if train.cuda_graph and one_device and known and replays_on(self.device):
            schedules = self.trainer.lr_scheduler_configs
            schedule = schedules[0].scheduler if schedules else None
            every = [train.layer_norms_every_steps, *([train.watch_every_steps] if train.watch_every_steps else [])]
            take_coming = self.member.records if self.member else None
            self._graphed = GraphedSteps(self, loader, self.trainer.optimizers[0], schedule, every, take_coming)
        loader.gathers = self._graphed is None

    def on_train_end(self) -> None:
        """Give back the memory of what was replayed."""
        self._graphed = None

    @property
    def is_ahead(self) -> bool:
        """Whether the weights are those of a later step than the last one that ended; see `GraphedSteps`."""
        return self._graphed is not None and self._graphed.is_ahead

    def training_step(self, batch: Batch | Draw, batch_idx: int) -> torch.Tensor:
        """This rank's part of the loss of one batch; the mean over ranks is the loss of the whole batch.

        Of a `Draw`, the whole step is taken, and the hooks that follow have nothing left to do.
        """
        if isinstance(batch, Draw):
            assert self._graphed is not None
            return self._graphed.take(batch, self.trainer.global_step)
        return self.member.loss(self, batch) if self.member else self.step.loss(self(batch.sqrt_counts), batch)

    def backward(self, loss: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        """Go backwards from the loss, unless the gradients have come together with it."""
        if self._graphed is None and self.member is None:
            super().backward(loss, *args, **kwargs)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Do what a step does between the backward pass and the update: see `TrainingStep.prepare`."""
        number = self.trainer.global_step
        logs_norms = number % self.config.train.layer_norms_every_steps == 0
        self.step.prepare(optimizer, measures_layers=logs_norms or self.is_watched(number))

    def is_watched(self, number: int) -> bool:
        """Whether this process, the first of a run, watches all stages at the step with this `number`."""
        every = self.config.train.watch_every_steps
        return every is not None and number % every == 0 and is_first()

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: torch.optim.Optimizer) -> None:
        """Clear all gradients, unless they are new: Lightning calls this between `training_step` and `backward`."""
        if self._graphed is None and self.member is None:
            self.step.clear_gradients(optimizer)

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: torch.optim.Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Take the step: by the closure alone if it is replayed."""
        if self._graphed is None:
            super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        elif optimizer_closure is not None:
            optimizer_closure()

    @property
    def step_record(self) -> torch.Tensor:
        """The record of the last step; see `TrainingStep`."""
        return self.step.record

    @property
    def layer_norms(self) -> dict[str, torch.Tensor]:
        """The norm of each parameter's gradient, every `layer_norms_every_steps` steps; see `TrainingStep`."""
        is_due = (self.trainer.global_step - 1) % self.config.train.layer_norms_every_steps == 0
        return self.step.layer_norms if is_due else {}

    @property
    def has_stopped(self) -> bool:
        """Whether a step was not finite, after which none is taken; reading this waits for the device."""
        return self.step.has_stopped

    def first_bad_layer(self, batch: Batch, *, training: bool = True) -> str | None:
        """Name the layer at which a number that is not finite first appears on `batch`; see `layers.first_bad_layer`.

        Runs a training step without taking it, or, if not `training`, the network forwards. `batch` holds the patches
        of all ranks, so no rank waits for another.
        """
        with torch.set_grad_enabled(training):
            return first_bad_layer(
                self.generator,
                lambda: (
                    self.step.loss(self(batch.sqrt_counts), batch) if training else self(batch.sqrt_counts).abs().sum()
                ),
            )

    def observe(self) -> dict[str, float]:
        """What blocks and stages make of a fixed batch, and the norm weights of stable blocks.

        See `layers` and `network_stages.pattern_shares`. The network runs once.
        """
        shares: dict[str, float] = {}
        blocks = block_statistics(
            self.generator, lambda: shares.update(pattern_shares(self.generator, lambda: self(self.watched)))
        )
        return blocks | shares | norm_statistics(self.generator)

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
        self.step.twins = RealTwins(self.generator.parameters())
        groups: list[dict[str, Any]] = [{"params": self.step.twins.of(self.generator.parameters()), "lr": optim.lr}]
        for mode in self.modes if train.learn_probe else ():
            largest = float(torch.view_as_complex(mode.detach()).abs().max())
            groups.append({"params": [mode], "lr": train.probe_lr * largest, "weight_decay": 0.0})
        optimizer = make_optimizer(optim, groups)
        if optim.schedule == "constant":
            return optimizer
        schedule = warmup_cosine(optimizer, optim.warmup_steps, int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what the clipping rule remembers."""
        checkpoint["clipping"] = self.step.clipper.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Let a checkpoint of an earlier version go on; torch brings the weights themselves into today's order."""
        update_moments(checkpoint, self.generator)
        self.step.clipper.load_state_dict(checkpoint.get("clipping", {}))

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
