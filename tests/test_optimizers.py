"""The optimizers of a config, and what they make of checkpoints of an earlier version."""

import copy

import pytest
import torch

from fnostab.config import ModelConfig, OptimConfig
from fnostab.models import build_generator
from fnostab.models.spectral import SpectralConv2d
from fnostab.training.optimizers import make_optimizer, update_moments


def _network():
    torch.manual_seed(0)
    return build_generator(ModelConfig(arch="hybrid_original", width=4, fno_blocks=2, modes=4), 16)


def _optimizer(network, name="adam"):
    return make_optimizer(OptimConfig(name=name), [{"params": list(network.parameters())}])


def _step(network, optimizer, seed):
    x = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(seed))
    optimizer.zero_grad()
    network(x).square().mean().backward()
    optimizer.step()


def _checkpoint(network, optimizer):
    state_dict = copy.deepcopy(network.state_dict(prefix="generator."))
    return {"state_dict": state_dict, "optimizer_states": [copy.deepcopy(optimizer.state_dict())]}


def _as_version_1_wrote_it(checkpoint, network):
    """Spectral weights and moments `(out, in, rows, cols, 2)`, those of convolutions with channels last."""

    def old(tensor, parameter):
        if tensor.ndim == 5:
            return tensor.permute(3, 2, 0, 1, 4)
        if tensor.ndim == 4:
            return tensor.contiguous(memory_format=torch.channels_last)
        return tensor

    weights, moments = checkpoint["state_dict"], checkpoint["optimizer_states"][0]["state"]
    for number, (name, parameter) in enumerate(network.named_parameters()):
        weights[f"generator.{name}"] = old(parameter.detach(), parameter)
        moments[number] = {key: old(value, parameter) for key, value in moments[number].items()}
    for name, layer in network.named_modules():
        if isinstance(layer, SpectralConv2d):
            weights._metadata[f"generator.{name}"]["version"] = 1


def _resumed(checkpoint, name):
    """Network and optimizer that go on from `checkpoint`, in the order in which Lightning restores them."""
    holder = torch.nn.Module()
    holder.generator = _network()
    optimizer = _optimizer(holder.generator, name)
    update_moments(checkpoint, holder.generator)
    holder.load_state_dict(checkpoint["state_dict"])
    optimizer.load_state_dict(checkpoint["optimizer_states"][0])
    return holder.generator, optimizer


@pytest.mark.parametrize("is_old", [False, True], ids=["of today", "of version 1"])
@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_training_goes_on_from_a_checkpoint_as_if_it_had_never_stopped(name, is_old):
    network = _network()  # its bottleneck is square: out, in, rows and cols could be taken for one another
    optimizer = _optimizer(network, name)
    for seed in range(2):
        _step(network, optimizer, seed)
    checkpoint = _checkpoint(network, optimizer)
    if is_old:
        _as_version_1_wrote_it(checkpoint, network)
    other, resumed = _resumed(checkpoint, name)
    for seed in range(2, 4):
        _step(network, optimizer, seed)
        _step(other, resumed, seed)
    for ours, theirs in zip(other.parameters(), network.parameters(), strict=True):
        assert torch.equal(ours, theirs)
