"""Training steps of several runs of one arm, whose networks are computed as one."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch

from fnostab.models.fused import fused_forward
from fnostab.training.batches import Batch
from fnostab.training.memory import is_out_of_memory
from fnostab.training.module import PtychoModule
from fnostab.training.precision import step_precision
from fnostab.training.turns import Turns


class Step(NamedTuple):
    """A run's next training step."""

    module: PtychoModule
    optimizer: torch.optim.Optimizer
    batch: Batch


class Together(Turns[Step, torch.Tensor]):
    """Trainings, each in a thread of its own, whose steps are taken together; each updates its own weights.

    A run that ends, or is not finite, leaves the others as they are. If the memory does not suffice for all networks at
    once, `report` takes a line, and from then on as many go together as do fit; it is an error only if one does not.
    """

    def __init__(self, report: Callable[[str], None]) -> None:
        super().__init__(self._losses)
        self._report = report
        self._at_once: int | None = None

    def loss(self, place: int, module: PtychoModule, batch: Batch) -> torch.Tensor:
        """The loss of the run at `place`, once all runs have come to their next step; the gradients are there then."""
        return self.ask(place, Step(module, module.trainer.optimizers[0], batch))

    def _losses(self, steps: Mapping[int, Step]) -> Mapping[int, torch.Tensor]:
        """The loss of each step; the gradients are left in the parameters."""
        while True:
            at_once = min(self._at_once or len(steps), len(steps))
            try:
                return self._losses_of_parts(steps, at_once)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or at_once == 1:
                    raise
            # Outside of the handler, which keeps the tensors of the attempt alive.
            self._at_once = at_once // 2
            torch.cuda.empty_cache()
            self._report(f"out of memory with {at_once} runs at once: {self._at_once} at once from here")

    def _losses_of_parts(self, steps: Mapping[int, Step], at_once: int) -> Mapping[int, torch.Tensor]:
        places = list(steps)
        losses: list[torch.Tensor] = []
        for start in range(0, len(places), at_once):
            losses += losses_with_gradients([steps[place] for place in places[start : start + at_once]])
        return dict(zip(places, losses, strict=True))


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
