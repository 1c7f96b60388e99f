"""The model that a run ships: plain PyTorch, from counts to the object."""

import copy

import torch
from torch import nn


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
