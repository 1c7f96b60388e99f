"""ZClip: a limit that follows the history of norms. Kumar et al. 2025, https://arxiv.org/abs/2504.02507."""

from typing import Annotated, Final

import torch
from pydantic import Field
from torch import Tensor, nn

from fnostab.clipping.norm import scale_
from fnostab.clipping.stats import ClipStats
from fnostab.gradients import gradient_of, parameters_with_gradient, total_norm

#: Added to the standard deviation that divides, as in the authors' code.
ZCLIP_EPS: Final = 1e-6


def zclip_(
    module: nn.Module,
    value: float,
    state: dict[str, Tensor],
    *,
    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.97,
    warmup: Annotated[int, Field(ge=1, le=10**6)] = 25,
) -> ClipStats:
    """Clip the total norm g where it lies more than `value` standard deviations over its own running mean.

    With z = (g - mean) / (std + 1e-6) over `value`, the gradients are scaled to the norm mean + (value^2 / z) std: the
    further out, the nearer to the mean (Algorithm 1 with reciprocal clipping). Then mean <- alpha mean + (1 - alpha) g
    and var <- alpha var + (1 - alpha) (g - mean)^2, with the clipped g and the new mean, as in the authors' code. The
    first `warmup` norms are not clipped: their mean and population variance are what the averages start from. The
    constant limit that the authors' code may lay over all this is not here.

    State: `mean` and `var` as norms are, `count` of the norms in them. A norm that is not finite never enters them.
    """
    gradients = [gradient_of(parameter) for parameter in parameters_with_gradient(module)]
    norm = total_norm(module)
    if not gradients:
        return ClipStats(norm, norm, torch.zeros_like(norm))
    if not state:
        state.update(mean=torch.zeros_like(norm), var=torch.zeros_like(norm))
        state["count"] = torch.zeros_like(norm, dtype=torch.int64)
    mean, var, count = state["mean"], state["var"], state["count"]
    finite, warm = norm.isfinite(), count < warmup

    std = var.sqrt()
    z = (norm - mean) / (std + ZCLIP_EPS)
    over = (z > value) & finite & ~warm
    limit = torch.where(over, mean + value**2 / z * std, norm)
    scale = (limit / norm).masked_fill(~over, 1.0)
    scale_(gradients, scale)

    # In the warm-up these are running means over `count` norms (Welford), after it the exponential ones.
    weight = torch.where(warm, 1 / (count + 1), torch.full_like(norm, 1 - alpha))
    new_mean = mean + weight * (limit - mean)
    ahead = torch.where(warm, limit - mean, limit - new_mean)
    new_var = var + weight * (ahead * (limit - new_mean) - var)
    mean.copy_(torch.where(finite, new_mean, mean))
    var.copy_(torch.where(finite, new_var, var))
    count.add_(finite)
    return ClipStats(norm, torch.where(over, limit, norm), over.to(norm.dtype))
