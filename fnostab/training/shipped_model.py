"""The model that a run ships: plain PyTorch, from counts to the object."""

import copy
import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from typing import Final

import torch
from torch import nn

from fnostab.io.untrusted import raised
from fnostab.models.checks import trial_amplitudes
from fnostab.models.neuralop import batches_of_any_size

#: Patterns, or groups of them, in the example that a model is exported with: of one, it would take one alone.
EXAMPLE_PATTERNS: Final = 2


class CountsToObject(nn.Module):
    """Detector counts float32 (B, N, N) in, object patches float32 (B, N, N, 2) out.

    The last axis holds real and imaginary part; the scaling of the counts is inside, and so is the `mask` (N, N) of the
    detector, if there is one: whatever stands where it is False is taken as 0. With a `group_size` C over 1, the
    network takes groups of neighbouring patterns, (B, C, N, N), to (B, C, N, N, 2). The generator is copied.
    """

    mask: torch.Tensor | None

    def __init__(
        self, generator: nn.Module, input_scale: float, group_size: int = 1, mask: torch.Tensor | None = None
    ) -> None:
        super().__init__()
        self.generator = copy.deepcopy(generator)
        self.input_scale = input_scale
        self.alone = group_size == 1
        self.register_buffer("mask", mask)

    def forward(self, counts: torch.Tensor) -> torch.Tensor:
        """Predict object patches from counts; negative counts are taken as 0."""
        if self.mask is not None:  # not a product: NaN times 0 is NaN
            counts = torch.where(self.mask, counts, counts.new_zeros(()))
        amplitudes = counts.clamp_min(0).sqrt() * self.input_scale
        output: torch.Tensor = self.generator(amplitudes.unsqueeze(1) if self.alone else amplitudes)
        return output.squeeze(3) if self.alone else output.movedim(3, 1)


@contextmanager
def quietly() -> Iterator[None]:
    """Keep torch's pages about exports off the terminal; its error says the same in a line."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)


def check_export(network: nn.Module, label: str, N: int, C: int) -> None:
    """Raise ValueError, in one line that begins with `label`, if `network` does not export as a run ships it.

    MLflow exports so at the end of a run (`tracking/exports.py`), which is a bad time to find out. The export must take
    batches of another size than that of its example.
    """
    counts = trial_amplitudes(EXAMPLE_PATTERNS + 1, C, N).square()
    counts = counts[:, 0] if C == 1 else counts
    model = CountsToObject(network, 1.0, C).eval()
    rule = "must export to pt2 (train.artifacts=numbers keeps no model)"
    example = (counts[:EXAMPLE_PATTERNS],)
    try:
        with quietly(), batches_of_any_size():
            exported = torch.export.export(model, example, dynamic_shapes=[{0: torch.export.Dim.AUTO}])
        with torch.no_grad():
            same = torch.allclose(exported.module()(counts), model(counts), rtol=1e-3, atol=1e-4)
    except Exception as error:
        raise ValueError(f"{label} {rule}, and torch.export raised {raised(error)}") from error
    if not same:
        raise ValueError(f"{label} {rule}, and its export gives other patches than the network")
