"""Networks by name. A new built-in one is a file with a generator class and a line here (and its name in `config`)."""

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from torch import nn

from fnostab.config import ARCHITECTURES, ModelConfig, foreign_network
from fnostab.io.untrusted import raised, shown
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

#: The name that constructors have for a key of `model`.
_RENAMED: Final = {"width": "hidden_channels", "fno_blocks": "n_blocks"}
#: What no key says: amplitude in, real and imaginary part out, of each pattern.
_CHANNELS: Final = {"in_channels": 1, "out_channels": 2}
_OF_THE_RUN: Final = frozenset({"N", "C", *_CHANNELS})


def resolve_generator(name: str) -> Callable[..., nn.Module]:
    """The class, or the function, that makes the networks called `name`; ValueError lists the known names."""
    if name in GENERATORS:
        return GENERATORS[name]
    found = foreign_network(name)
    assert found is not None
    if not callable(found.value) or isinstance(found.value, nn.Module):
        raise ValueError(f"`model.arch` (={name}) must be a class or a function that makes a network")
    if inspect.isclass(found.value) and not issubclass(found.value, nn.Module):
        raise ValueError(f"`model.arch` (={name}) must be a torch.nn.Module, and is another class")
    made: Callable[..., nn.Module] = found.value
    return made


def build_generator(config: ModelConfig, N: int, C: int = 1) -> nn.Module:
    """The network that `config` describes, for `C` patterns of N x N pixels at once.

    Its class, and the class of its blocks (`block_cls`) if it has one, get those settings that their constructors name:
    `modes` mean nothing to a CNN, for example. A user's own class gets `config.options` besides, and `in_channels` and
    `out_channels` of one pattern. Raises ValueError, in one line, for several patterns if the class does not name `C`,
    for options that it does not take, and where a user's own class cannot be called so.
    """
    generator = resolve_generator(config.arch)
    settings = {_RENAMED.get(name, name): value for name, value in config.model_dump().items()} | {"N": N, "C": C}
    settings |= {name: getattr(config, name) for name in _RENAMED}
    options = settings.pop("options")
    for name in ("arch", "source_sha256"):
        del settings[name]
    if config.arch not in ARCHITECTURES:
        return _build_foreign(config.arch, generator, settings | _CHANNELS, options)
    for name, value in options.items():
        raise ValueError(
            f"`model.options.{name}` (={shown(value)}) is for your own networks: `arch` {config.arch} has keys of its"
            " own, such as model.width"
        )
    accepted = {*inspect.signature(generator).parameters}
    if block_cls := getattr(generator, "block_cls", None):
        accepted |= {*inspect.signature(block_cls).parameters}
    _check_group(config.arch, accepted, C)
    return generator(**{name: value for name, value in settings.items() if name in accepted})


def _check_group(arch: str, accepted: Iterable[str], C: int) -> None:
    if C > 1 and "C" not in accepted:
        raise ValueError(f"`data.gridsize` (={math.isqrt(C)}) must be 1: `arch` {arch} takes one pattern alone")


def _build_foreign(
    arch: str, generator: Callable[..., nn.Module], settings: Mapping[str, Any], options: dict[str, Any]
) -> nn.Module:
    label = f"`model.arch` (={arch})"
    try:
        parameters = inspect.signature(generator).parameters.values()
    except (ValueError, TypeError):
        raise ValueError(f"{label} must be a class or a function whose arguments Python can tell") from None
    named = {each.name: each for each in parameters if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)}
    takes_any = any(each.kind == each.VAR_KEYWORD for each in parameters)
    _check_group(arch, named, settings["C"])
    for name, value in options.items():
        given = f"`model.options.{name}` (={shown(value)})"
        if name in settings:
            key = {to: key for key, to in _RENAMED.items()}.get(name, name)
            known = "left to the run, which knows it" if name in _OF_THE_RUN else f"given as model.{key}"
            raise ValueError(f"{given} must be {known}")
        if name not in named and not takes_any:
            own = [each for each in named if each not in settings]
            raise ValueError(f"{given} must be an option that {arch} takes: {', '.join(own) or 'it takes none'}")
    values = {name: value for name, value in settings.items() if name in named} | options
    for name, each in named.items():
        if each.default is each.empty and name not in values:
            raise ValueError(f"{label} needs a value for its argument {name}: give model.options.{name}")
    try:
        network = generator(**values)
    except MemoryError:
        raise
    except Exception as error:
        raise ValueError(f"{label} must be buildable with these settings, and raised {raised(error)}") from error
    if not isinstance(network, nn.Module):
        raise ValueError(f"{label} must make a torch.nn.Module, and made {type(network).__name__}")
    return network
