"""Architectures by name. A new one is a file with a generator class and a line here (and its name in `config`)."""

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Final

from torch import nn

from fnostab.config import ModelConfig
from fnostab.models.cnn import CNNGenerator
from fnostab.models.fno import CascadedFNOGenerator
from fnostab.models.hybrid import (
    HybridUNOGenerator,
    OneSidedHybridUNOGenerator,
    OriginalHybridUNOGenerator,
    PreNormHybridUNOGenerator,
    StableHybridUNOGenerator,
    StableOriginalUNOGenerator,
)

#: Each class makes networks that map `(B, C, N, N)` to `(B, N, N, C, 2)`.
GENERATORS: Final[Mapping[str, Callable[..., nn.Module]]] = {
    "hybrid": HybridUNOGenerator,
    "stable_hybrid": StableHybridUNOGenerator,
    "prenorm_hybrid": PreNormHybridUNOGenerator,
    "hybrid_original": OriginalHybridUNOGenerator,
    "stable_original": StableOriginalUNOGenerator,
    "hybrid_onesided": OneSidedHybridUNOGenerator,
    "fno": CascadedFNOGenerator,
    "cnn": CNNGenerator,
}


def resolve_generator(name: str) -> Callable[..., nn.Module]:
    """The generator class called `name`; ValueError lists the known names."""
    try:
        return GENERATORS[name]
    except KeyError:
        raise ValueError(f"`arch` (={name}) must be one of {', '.join(GENERATORS)}") from None


def build_generator(config: ModelConfig, N: int, C: int = 1) -> nn.Module:
    """The network that `config` describes, for `C` patterns of N x N pixels at once.

    Its class, and the class of its blocks (`block_cls`) if it has one, get those settings that their constructors name:
    `modes` mean nothing to a CNN, for example. Raises ValueError for several patterns if the class does not name `C`.
    """
    generator = resolve_generator(config.arch)
    settings = {"hidden_channels": config.width, "n_blocks": config.fno_blocks, "N": N, "C": C, **config.model_dump()}
    accepted = {*inspect.signature(generator).parameters}
    if block_cls := getattr(generator, "block_cls", None):
        accepted |= {*inspect.signature(block_cls).parameters}
    if C > 1 and "C" not in accepted:
        raise ValueError(f"`data.gridsize` (={math.isqrt(C)}) must be 1: `arch` {config.arch} takes one pattern alone")
    return generator(**{name: value for name, value in settings.items() if name in accepted})
