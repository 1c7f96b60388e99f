"""Leaving out steps whose gradient is far larger than usual."""

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from fnostab.clipping.stats import ClipStats
from fnostab.gradients import parameters_with_gradient, total_norm


def skip_(
    module: nn.Module,
    value: float,
    state: dict[str, Tensor],
    *,
    window: Annotated[int, Field(ge=1, le=10**5)] = 100,
    least: Annotated[int, Field(ge=1, le=10**5)] = 20,
) -> ClipStats:
    """Have the step left out whose total norm is over `value` times the median of the last `window` finite norms.

    Nothing is left out before `least` norms are known (at most `window`). The optimizer must leave its weights and its
    moments alone where `ClipStats.skip` is true; gradients stay as they are. So a single batch cannot throw the network
    back, as in Chowdhery et al. 2022 (https://arxiv.org/abs/2204.02311, section 5.1), who skipped batches by hand.

    The norms of steps that were left out enter the history too. A median hardly notices a few of them, and if gradients
    have become larger for good, at most half a window of steps (and one) is left out until the median has followed: the
    training cannot stop for ever.

    State: `norms`, the last `window` of them in a ring (infinite where there is none yet), `count` of all so far. A
    norm that is not finite never enters it.
    """
    norm = total_norm(module)
    if not parameters_with_gradient(module):
        return ClipStats(norm, norm, torch.zeros_like(norm), torch.zeros_like(norm, dtype=torch.bool))
    if not state:
        state["norms"] = torch.full_like(norm, math.inf).repeat(window)
        state["count"] = torch.zeros_like(norm, dtype=torch.int64)
    norms, count = state["norms"], state["count"]
    known = count.clamp(max=window)
    middle = torch.stack([(known - 1).clamp(min=0) // 2, known // 2])
    # Not torch.median, whose index the host would have to know: how many norms there are, only the device knows.
    median = norms.sort().values.index_select(0, middle).mean()
    skip = (norm > value * median) & norm.isfinite() & (count >= min(least, window))

    place = (count % window).reshape(1)
    entry = torch.where(norm.isfinite(), norm, norms.index_select(0, place)[0]).reshape(1)
    norms.index_copy_(0, place, entry)
    count.add_(norm.isfinite())
    return ClipStats(norm, norm.masked_fill(skip, 0.0), skip.to(norm.dtype), skip)
