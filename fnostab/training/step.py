"""The parts of an optimizer step of a module."""

from typing import Any

import torch

from fnostab.clipping import Clipper
from fnostab.gradients import layer_norms
from fnostab.training.batches import Batch
from fnostab.training.collectives import mean_over_processes
from fnostab.training.optimizers import RealTwins


class TrainingStep:
    """Loss, gradients, clipping, guard, update and record of each step of `module`, a `PtychoModule`.

    Lightning calls the parts one by one; `joint.take_together` does all of it in the same order, for one module or for
    several at once. Nothing waits for the device, and what is kept from step to step keeps its place in memory, so that
    a CUDA graph can replay a step.

    `record` holds the values of `history.STEP_SERIES` of the last step as one device tensor (4,), `layer_norms` the
    gradient norm of each parameter before clipping, of the steps at which they were asked for. A step whose loss or
    gradient norm is not finite is not taken, nor is any after it: the host, which finds out later, can repeat the step
    from the same weights.
    """

    def __init__(self, module: Any, clipper: Clipper) -> None:
        self._module = module
        self.clipper = clipper
        #: Those of the network's complex parameters, which the optimizer has in place of them.
        self.twins = RealTwins([])
        self.record = torch.zeros(4)
        self.layer_norms: dict[str, torch.Tensor] = {}
        self._loss = torch.zeros(())
        self._bad = torch.zeros((), dtype=torch.bool)

    def loss(self, patches: torch.Tensor, batch: Batch) -> torch.Tensor:
        """This process's part of the loss of `patches` predicted for `batch`, noted for the record."""
        loss: torch.Tensor = self._module.loss(patches, batch, self._module.beam)
        self._loss = loss.detach()
        return loss

    def clear_gradients(self, optimizer: torch.optim.Optimizer) -> None:
        """Forget all gradients, those included that the optimizer does not know."""
        self.twins.clear_gradients()
        optimizer.zero_grad()

    def prepare(self, optimizer: torch.optim.Optimizer, *, measures_layers: bool = False) -> None:
        """Clip the network's gradients by the arm's rule and record the step; a learnt probe is not clipped.

        DDP has averaged the gradients, so all processes do the same. `optimizer` will leave out a step that is not
        finite, and all after it, and one that the rule leaves out, on the device: the host does not wait.
        """
        generator = self._module.generator
        self.layer_norms = layer_norms(generator) if measures_layers else {}
        stats = self.clipper.clip_(generator)
        norm = stats.norm_preclip
        for mode in self._module.modes:
            if mode.grad is not None:  # not clipped, but must be finite too
                norm = norm + 0 * mode.grad.sum()
        loss = mean_over_processes(self._loss)
        self.record = torch.stack([loss, norm, stats.norm_postclip, stats.clipped_fraction])
        self._bad = self._bad.to(self.record.device)
        self._bad |= ~self.record[:2].isfinite().all()
        # Fused optimizers leave weights and state alone where this is 1, as they do for gradient scalers.
        left_out = self._bad if stats.skip is None else self._bad | stats.skip
        optimizer.found_inf = left_out.float()  # type: ignore[attr-defined]
        self.twins.take_gradients()

    def update(self, optimizer: torch.optim.Optimizer, *, measures_layers: bool = False) -> None:
        """Do all that follows the backward pass: `prepare`, and the optimizer's step."""
        self.prepare(optimizer, measures_layers=measures_layers)
        optimizer.step()

    @property
    def has_stopped(self) -> bool:
        """Whether a step was not finite, after which none is taken; reading this waits for the device."""
        return bool(self._bad)
