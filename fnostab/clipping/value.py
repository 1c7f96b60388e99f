"""Clipping element by element."""

import math

import torch
from torch import Tensor, nn

from fnostab.clipping.stats import ClipStats
from fnostab.gradients import norm_of_norms, tensor_norms


def clip_value_(gradients: list[Tensor], max_value: float, norm: Tensor) -> ClipStats:
    """Clamp real gradients in place to `[-max_value, max_value]`; `norm` is that of all of them together."""
    if not gradients:
        return ClipStats(norm, norm, torch.zeros_like(norm))
    limit = torch.full_like(norm, max_value).masked_fill(~norm.isfinite(), math.inf)
    n_clipped = torch.zeros_like(norm, dtype=torch.int64)
    for gradient in gradients:
        # hardshrink is zero exactly where |g| <= max_value, and faster than comparing.
        n_clipped += torch.count_nonzero(nn.functional.hardshrink(gradient, max_value)).to(norm.device)
    # Not clamp, which is several times slower for bounds that live on the device.
    torch._foreach_minimum_(gradients, [limit.to(gradient.device) for gradient in gradients])
    torch._foreach_maximum_(gradients, [-limit.to(gradient.device) for gradient in gradients])
    fraction = (n_clipped / max(1, sum(g.numel() for g in gradients))).to(norm.dtype)
    return ClipStats(norm, norm_of_norms(tensor_norms(gradients)), fraction.masked_fill(~norm.isfinite(), 0.0))
