"""What a network and its stages make of a fixed batch, without a trace in the training."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fnostab.models.network_stages import stage_statistics
from fnostab.training.validation import object_std


@torch.no_grad()
def watch_fixed_batch(module: Any) -> dict[str, Tensor]:
    """What the network of `module`, a `PtychoModule`, makes of the patterns `module.watched`.

    The values, 0-d tensors on its device, are `object_std`, the mean deviation of the predicted objects; `loss`, the
    R-factor of the patterns, as `val_loss` is that of all; and those of `stage_statistics`. Weights, gradients, modes
    and random states are left as they were, and no other process is waited for. It takes about two thirds of a training
    step of as many patterns (preset `quick`, one CPU thread).
    """
    patches: list[Tensor] = []
    devices = [module.device] if module.device.type == "cuda" else []
    with torch.random.fork_rng(devices), _evaluating(module.generator):
        stages = stage_statistics(module.generator, lambda: patches.append(module(module.watched)))
    (predicted,) = patches
    measured = module.watched / module.scale
    r_factor = (module.beam.amplitude(predicted) - measured).abs().sum() / measured.sum()
    return {"object_std": object_std(predicted, module.lit).mean(), "loss": r_factor} | stages


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    """Let `network` evaluate inside the block; after it each layer trains or not, as before."""
    modes = {layer: layer.training for layer in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for layer, training in modes.items():
            layer.training = training
