"""Clipping by the norm of all gradients together: Pascanu et al. 2013, https://arxiv.org/abs/1211.5063."""

import torch
from torch import Tensor

from fnostab.clipping.stats import ClipStats


def clip_norm_(gradients: list[Tensor], max_norm: float, norm: Tensor) -> ClipStats:
    """Scale real gradients in place by `min(1, max_norm / (norm + 1e-6))`; `norm` is that of all of them together."""
    scale = (max_norm / (norm + 1e-6)).clamp(max=1.0).masked_fill(~norm.isfinite(), 1.0)
    scale_(gradients, scale)
    return ClipStats(norm, norm * scale, (scale < 1).to(norm.dtype))


def scale_(gradients: list[Tensor], scale: Tensor) -> None:
    """Multiply all gradients in place by one 0-d tensor; 1 leaves them bit for bit what they are."""
    for device in {gradient.device for gradient in gradients}:
        torch._foreach_mul_([gradient for gradient in gradients if gradient.device == device], scale.to(device))
