"""Optimizers as a config names them, their schedule, and their state in checkpoints of before."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from fnostab.config import OptimConfig
from fnostab.models.spectral import SpectralConv2d, modes_first
from fnostab.training.stable_adamw import StableAdamW


class RealTwins:
    """Complex parameters as the real ones that fused optimizers take: twins in the same memory, two numbers for each.

    Adam and SGD treat a complex number as two real ones, so nothing changes but the kernel. Parameters must keep their
    place in memory; their gradients are handed to the twins before each step, and are to be cleared besides.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self._twins = {
            parameter: nn.Parameter(torch.view_as_real(parameter.detach()), parameter.requires_grad)
            for parameter in parameters
            if parameter.is_complex()
        }

    def of(self, parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
        """`parameters`, complex ones by their twins."""
        return [self._twins.get(parameter, parameter) for parameter in parameters]

    def take_gradients(self) -> None:
        """Let the twins have the gradients of the parameters, in the same memory."""
        for parameter, twin in self._twins.items():
            gradient = parameter.grad
            twin.grad = None if gradient is None else torch.view_as_real(gradient.resolve_conj())

    def clear_gradients(self) -> None:
        """Forget the gradients of the parameters, which no optimizer has."""
        for parameter in self._twins:
            parameter.grad = None


def make_optimizer(config: OptimConfig, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """The optimizer that `config` names, over parameter groups as torch takes them; torch's own are fused."""
    common: dict[str, Any] = {"lr": config.lr, "weight_decay": config.weight_decay}
    moments: dict[str, Any] = {"betas": tuple(config.betas), "eps": config.eps}
    if config.name == "adam":
        return torch.optim.Adam(groups, **common, **moments, fused=True)
    if config.name == "adamw":
        return torch.optim.AdamW(groups, **common, **moments, fused=True)
    if config.name == "stable_adamw":
        return StableAdamW(groups, **common, **moments)
    optimizer = torch.optim.SGD(groups, momentum=config.momentum, **common, fused=True)
    # If the very first step is skipped, fused SGD would go on with momentum that nobody initialised.
    for parameter in (parameter for group in groups if config.momentum for parameter in group["params"]):
        optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def warmup_cosine(optimizer: torch.optim.Optimizer, warmup: int, total: int) -> torch.optim.lr_scheduler.LambdaLR:
    """A linear rise of the learning rate over `warmup` steps, then half a cosine to zero at step `total`."""
    warmup = min(warmup, total)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def coming_lrs(
    optimizer: torch.optim.Optimizer, schedule: torch.optim.lr_scheduler.LRScheduler | None, steps: int
) -> list[list[float]]:
    """The learning rates of the coming `steps`, each with one for each group of parameters.

    `schedule` is a `LambdaLR`, as `warmup_cosine` gives it, or None for rates that stay.
    """
    if schedule is None:
        return [[float(group["lr"]) for group in optimizer.param_groups]] * steps
    assert isinstance(schedule, torch.optim.lr_scheduler.LambdaLR)
    of_groups = [(float(base), factor) for base, factor in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)]
    first = schedule.last_epoch
    return [[base * factor(step) for base, factor in of_groups] for step in range(first, first + steps)]


def update_moments(checkpoint: dict[str, Any], generator: nn.Module) -> None:
    """Bring the optimizer's moments in `checkpoint` into the memory order of today's parameters, in place.

    Moments have the shapes that weights had: those of `SpectralConv2d` version 1 are permuted as its weights are when
    they are loaded. Those of convolutions were written with channels last. The fused kernels take it for granted that
    parameter, gradient and moments have the same order.
    """
    versions = getattr(checkpoint["state_dict"], "_metadata", {})
    old = {
        layer.weight
        for name, layer in generator.named_modules()
        if isinstance(layer, SpectralConv2d) and versions.get(f"generator.{name}", {}).get("version", 1) < 2
    }
    for state in checkpoint["optimizer_states"]:
        # The generator's parameters are the first group, and numbered from 0.
        for number, parameter in enumerate(generator.parameters()):
            moments = state["state"].get(number, {})
            for name, value in moments.items():
                if isinstance(value, Tensor) and value.ndim == parameter.ndim:
                    moments[name] = modes_first(value) if parameter in old else value.contiguous()
