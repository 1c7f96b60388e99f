"""What must hold before an arm is trained on this machine."""

import functools
import re

import torch

from fnostab.config import ARCHITECTURES, ArmConfig, ConfigError, ModelConfig
from fnostab.io.foreign import is_foreign
from fnostab.models.checks import check_behaviour, check_mixed_precision
from fnostab.models.registry import build_generator
from fnostab.training.memory import is_out_of_memory
from fnostab.training.module import make_clipper
from fnostab.training.precision import check_precision, device_kind, torch_device
from fnostab.training.shipped_model import check_export


def check_arm(config: ArmConfig) -> None:
    """Raise `ConfigError` if the devices, precision, network or clipping rule of `config` cannot be trained here."""
    check_accelerator(config.train.accelerator)
    check_devices(config)
    check_precision(config)
    check_network(config)
    check_clipping(config)


def check_accelerator(name: str) -> None:
    """Raise `ConfigError` if this machine has no accelerator of that name."""
    there = {"gpu": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(name, True):
        raise ConfigError(f"`train.accelerator` (={name}) must be one that this machine has; auto finds it")


def check_devices(config: ArmConfig) -> None:
    """Raise `ConfigError` if this machine has fewer devices than asked for; CPUs take any number of processes."""
    asked, kind = config.train.devices, device_kind(config)
    there = {"gpu": torch.cuda.device_count(), "mps": 1}.get(kind, asked)
    if asked > there:
        raise ConfigError(f"`train.devices` (={asked}) must be <= {there}, the devices ({kind}) of this machine")


def check_network(config: ArmConfig) -> None:
    """Raise `ConfigError` if the network of `config` cannot be built, or if a user's own cannot train or be exported.

    A built-in one takes no memory; a user's own is built and tried, once in a process.
    """
    model, N, C = config.model, config.data.N, config.data.group_size
    try:
        if model.arch in ARCHITECTURES:
            with torch.device("meta"):
                build_generator(model, N, C)
        else:
            mixed_on = torch_device(config) if config.train.precision == "bf16-mixed" else ""
            _check_foreign(model.model_dump_json(), N, C, config.train.artifacts == "all", mixed_on)
    except ValueError as error:
        raise ConfigError(str(error)) from None


@functools.cache
def _check_foreign(model_json: str, N: int, C: int, ships: bool, mixed_on: str) -> None:
    """Try the network of a `ModelConfig` as JSON, for C patterns of N x N pixels.

    Its export is tried if it `ships`, and a step under autocast on the device `mixed_on`, if named.
    """
    # The network may be of another machine's names, but by now it has been found.
    model = ModelConfig.model_validate_json(model_json)
    label = f"`model.arch` (={model.arch})"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            network = build_generator(model, N, C)
            check_behaviour(network, label, N, C)
            if mixed_on:
                check_mixed_precision(network, label, N, C, mixed_on)
            if ships:
                check_export(network, label, N, C)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            # How it trains then is the run's to find out.


def check_clipping(config: ArmConfig) -> None:
    """Raise `ConfigError` if the clipping rule of `config` cannot be used with its network.

    The network is built where names are excluded, and where a rule of the user's own is tried on it.
    """
    try:
        clipper = make_clipper(config)
        if config.clip.exclude or is_foreign(config.clip.algo):
            with torch.random.fork_rng(devices=[]):
                clipper.check(build_generator(config.model, config.data.N, config.data.group_size))
    except ValueError as error:
        key = {"algorithm": "algo", "value": "val"}
        line = re.sub(r"^`(\w+)", lambda found: f"`clip.{key.get(found[1], found[1])}", str(error))
        raise ConfigError(line) from None
