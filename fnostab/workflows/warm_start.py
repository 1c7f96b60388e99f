"""A run that starts from the weights of another: which run that is, and whether its weights fit."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from fnostab.config import ArmConfig, ConfigError
from fnostab.models import build_generator
from fnostab.tracking.weights import find_source_run, read_network


@dataclass(frozen=True)
class Start:
    """The config of a run, its source named by the run's ID, and the weights of its network; None: its seed's."""

    config: ArmConfig
    weights: Mapping[str, torch.Tensor] | None = None

    @property
    def tags(self) -> dict[str, str]:
        """What the run says of the weights: their hash."""
        return {} if self.weights is None else {"init_sha256": _sha256(self.weights)}


def warm_start(config: ArmConfig) -> Start:
    """Find the weights that `train.init_from` names and check that they fit the network; nothing is written.

    An alias may move to another run, so the run's ID takes its place in the config. Raises `ConfigError`.
    """
    source = config.train.init_from
    if not source:
        return Start(config)
    named = f"runs:/{find_source_run(source)}"
    config = config.model_copy(update={"train": config.train.model_copy(update={"init_from": named})})
    state = read_network(named.removeprefix("runs:/"))
    holder = nn.ModuleDict({"generator": build_generator(config.model, config.data.N, config.data.group_size)})
    try:
        holder.load_state_dict(state)
    except RuntimeError:
        rule = "must be the run of a network of the same shapes"
        raise ConfigError(f"`train.init_from` (={named}) {rule}: {_first_misfit(state, holder.state_dict())}") from None
    return Start(config, holder["generator"].state_dict())


def _first_misfit(theirs: Mapping[str, torch.Tensor], ours: Mapping[str, torch.Tensor]) -> str:
    """The first tensor, in the order of our network, that differs from theirs in its shape, or that only one has."""
    for key in [*ours, *theirs]:
        there, here = (tuple(of[key].shape) if key in of else None for of in (theirs, ours))
        if there != here:
            name = key.removeprefix("generator.")
            return f"`{name}` is {there or 'missing'} there, and {here or 'missing'} here"
    return "its layers are others"


def _sha256(weights: Mapping[str, torch.Tensor]) -> str:
    """Hash of names, types, shapes and values."""
    found = hashlib.sha256()
    for name, value in weights.items():
        found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        found.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
