"""The optimizer step of one run, or of several runs of one arm, whose networks are then computed as one."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from fnostab.models.fused import fused_forward
from fnostab.training.batches import Batch
from fnostab.training.precision import step_precision


class Step(NamedTuple):
    """A run's next training step."""

    module: Any  #: a `PtychoModule`
    optimizer: torch.optim.Optimizer
    batch: Batch


class PartlyTaken(RuntimeError):
    """A run could not be updated when others may have been, so that the step of all cannot be repeated."""


def losses_with_gradients(steps: Sequence[Step]) -> list[torch.Tensor]:
    """The loss of each step, detached, its gradients in the parameters of its module in place of those before."""
    for module, optimizer, _ in steps:
        module.step.clear_gradients(optimizer)
    first = steps[0].module
    inputs = [module.to_groups(batch.sqrt_counts) for module, _, batch in steps]
    with step_precision(first.config, first.device):
        outputs = fused_forward([module.generator for module, *_ in steps], inputs)
    losses = [
        module.step.loss(module.to_patches(output.float()), batch)
        for (module, _, batch), output in zip(steps, outputs, strict=True)
    ]
    torch.autograd.backward(losses)
    return [loss.detach() for loss in losses]


def take_together(steps: Sequence[Step], measures_layers: Sequence[bool] | None = None) -> list[torch.Tensor]:
    """Take the whole steps, and return the record (4,) of each; of one run it is the ordinary step.

    `measures_layers` says of each run whether the gradient norms of its parameters are taken. What goes wrong before
    the first update leaves all runs as they were; after that, with several runs, it is raised as `PartlyTaken`.
    """
    losses_with_gradients(steps)
    measures_layers = measures_layers or [False] * len(steps)
    for (module, optimizer, _), measures in zip(steps, measures_layers, strict=True):
        try:
            module.step.update(optimizer, measures_layers=measures)
        except (RuntimeError, MemoryError) as error:
            if len(steps) == 1:
                raise
            raise PartlyTaken(f"some of {len(steps)} runs could not take a step: {type(error).__name__}") from error
    return [module.step.record for module, *_ in steps]
