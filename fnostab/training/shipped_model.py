"""The model that a run ships: plain PyTorch, from counts to the object."""

import copy

import torch
from torch import nn


class CountsToObject(nn.Module):
    """Detector counts float32 (B, N, N) in, object patches float32 (B, N, N, 2) out.

    The last axis holds real and imaginary part; the scaling of the counts is inside. The generator is copied.
    """

    def __init__(self, generator: nn.Module, input_scale: float) -> None:
        super().__init__()
        self.generator = copy.deepcopy(generator)
        self.input_scale = input_scale

    def forward(self, counts: torch.Tensor) -> torch.Tensor:
        """Predict object patches from counts; negative counts are taken as 0."""
        output: torch.Tensor = self.generator((counts.clamp_min(0).sqrt() * self.input_scale).unsqueeze(1))
        return output.squeeze(3)
