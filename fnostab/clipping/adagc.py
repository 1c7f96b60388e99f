"""AdaGC: a limit for each tensor that follows its own history. Wang et al. 2025, https://arxiv.org/abs/2502.11034."""

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from fnostab.clipping.stats import ClipStats
from fnostab.gradients import gradient_of, parameters_with_gradient, tensor_norms


def adagc_(
    module: nn.Module,
    value: float,
    state: dict[str, Tensor],
    *,
    beta: Annotated[float, Field(gt=0, lt=1)] = 0.98,
    warmup: Annotated[int, Field(ge=0, le=10**6)] = 100,
    abs: Annotated[float, Field(gt=0)] = 1.0,
) -> ClipStats:
    """Scale each tensor's gradient down to `value` times gamma, the running mean of its own clipped norms.

    Algorithm 1 of the paper. After the step gamma <- beta gamma + (1 - beta) (clipped norm). In the first `warmup`
    steps, all gradients together are scaled by min(1, abs / total norm) instead, and gamma is the least norm that the
    tensor had then.

    Departure from the paper: a norm of 0 does not enter gamma. The inner weights of a block that starts as the identity
    have a gradient of exactly 0 at the first step; gamma, and so the limit, would stay 0 for ever. A tensor that had no
    gradient in the warm-up starts gamma with its first norm.

    State: `gamma`, one a parameter in the module's order (infinite before its first norm), `count` of finite steps. A
    step whose total norm is not finite is not clipped and enters nothing.
    """
    parameters = list(module.parameters())
    present = [number for number, parameter in enumerate(parameters) if parameter.grad is not None]
    if not parameters_with_gradient(module):
        zero = torch.zeros(())
        return ClipStats(zero, zero, zero)
    gradients = [gradient_of(parameters[number]) for number in present]
    device = gradients[0].device
    norms = torch.stack([norm.to(device) for norm in tensor_norms(gradients)])
    norm = torch.linalg.vector_norm(norms)
    if not state:
        state["gamma"] = norms.new_full((len(parameters),), math.inf)
        state["count"] = torch.zeros_like(norm, dtype=torch.int64)
    count = state["count"]
    gammas = list(state["gamma"].unbind())
    gamma = torch.stack([gammas[number] for number in present])
    finite, warm = norm.isfinite(), count < warmup

    limits = torch.where(warm, norms * (abs / norm), value * gamma)
    clipped = (norms > limits) & finite
    scales = (limits / norms).masked_fill(~clipped, 1.0)
    torch._foreach_mul_(gradients, [scale.to(g.device) for scale, g in zip(scales.unbind(), gradients, strict=True)])

    after = norms * scales
    follows = torch.where(warm, torch.minimum(gamma, after), beta * gamma + (1 - beta) * after)
    follows = torch.where(gamma.isinf(), after, follows)
    follows = torch.where(finite & (norms > 0), follows, gamma)
    for number, new in zip(present, follows.unbind(), strict=True):
        gammas[number] = new
    state["gamma"].copy_(torch.stack(gammas))
    count.add_(finite)
    return ClipStats(norm, torch.linalg.vector_norm(after), clipped.to(norms.dtype).mean())
