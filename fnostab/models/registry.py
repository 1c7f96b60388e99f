"""Architectures by name. A new one is a file with a generator class and a line here (and its name in `config`)."""

import copy
from collections.abc import Mapping
from typing import Any, Final, Protocol

import torch
from torch import nn

from fnostab.config import ModelConfig
from fnostab.models.cnn import CNNGenerator
from fnostab.models.fno import CascadedFNOGenerator
from fnostab.models.hybrid import (
    HybridUNOGenerator,
    OriginalHybridUNOGenerator,
    PreNormHybridUNOGenerator,
    StableHybridUNOGenerator,
)


class GeneratorClass(Protocol):
    """What the registry holds: classes whose instances map `(B, C, N, N)` to `(B, N, N, C, 2)`."""

    def __call__(self, *args: Any, **kwargs: Any) -> nn.Module:
        """Build a network from the arguments of its class."""

    def from_config(self, config: ModelConfig, N: int) -> nn.Module:
        """Build the network that `config` describes, for patterns of N x N pixels."""


GENERATORS: Final[Mapping[str, GeneratorClass]] = {
    "hybrid": HybridUNOGenerator,
    "stable_hybrid": StableHybridUNOGenerator,
    "prenorm_hybrid": PreNormHybridUNOGenerator,
    "hybrid_original": OriginalHybridUNOGenerator,
    "fno": CascadedFNOGenerator,
    "cnn": CNNGenerator,
}


def resolve_generator(name: str) -> GeneratorClass:
    """The generator class called `name`; ValueError lists the known names."""
    try:
        return GENERATORS[name]
    except KeyError:
        raise ValueError(f"`arch` (={name}) must be one of {', '.join(GENERATORS)}") from None


def build_generator(config: ModelConfig, N: int) -> nn.Module:
    """The network that `config` describes, for patterns of N x N pixels.

    Each architecture takes the settings that it has: `modes` mean nothing to a CNN, for example. Convolutions' weights
    lie in memory with their channels last, as the images that they meet do.
    """
    network = resolve_generator(config.arch).from_config(config, N)
    for parameter in network.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return network


def contiguous_copy(network: nn.Module) -> nn.Module:
    """A copy of `network` whose parameters lie in memory in the order of their axes, as `torch.export.save` wants."""
    network = copy.deepcopy(network)
    for parameter in network.parameters():
        parameter.data = parameter.data.contiguous()
    return network
