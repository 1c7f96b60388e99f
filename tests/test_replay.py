"""Networks replayed from CUDA graphs: the same numbers, and layers that can still be watched."""

import copy

import pytest
import torch

from fnostab.config import ARCHITECTURES, ModelConfig
from fnostab.models import build_generator
from fnostab.models.layers import block_statistics
from fnostab.training.replay import Replay

_SIZE = 4


def _network(arch, device="cuda"):
    torch.manual_seed(0)
    model = ModelConfig(arch=arch, width=4, fno_blocks=3, modes=5, gamma_init=0.5)
    return build_generator(model, 32).to(device).train()


def _step(call, network, x):
    """Loss and gradients of a step."""
    network.zero_grad()
    loss = call(x).square().mean()
    loss.backward()
    return float(loss.detach()), [p.grad.clone() for p in network.parameters() if p.grad is not None]


@pytest.mark.gpu
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_replayed_network_trains_as_one_that_is_called(arch):
    network = _network(arch)
    twin = copy.deepcopy(network)
    replay = Replay(network, _SIZE)
    for seed in range(3):
        generator = torch.Generator("cuda").manual_seed(seed)
        x = torch.randn(_SIZE, 1, 32, 32, device="cuda", generator=generator)
        loss, gradients = _step(replay, network, x)
        usual_loss, usual_gradients = _step(twin, twin, x)
        assert loss == pytest.approx(usual_loss, rel=1e-5)
        assert len(gradients) == len(usual_gradients)
        for ours, usual in zip(gradients, usual_gradients, strict=True):
            assert torch.dist(ours, usual) <= 1e-4 * usual.norm() + 1e-7
        with torch.no_grad():  # as an optimizer does, in place
            for parameter, other in zip(network.parameters(), twin.parameters(), strict=True):
                parameter.mul_(0.9)
                other.mul_(0.9)


@pytest.mark.gpu
def test_other_batches_take_the_ordinary_way_and_layers_can_be_watched():
    network = _network("hybrid")
    replay = Replay(network, _SIZE)
    x = torch.randn(_SIZE, 1, 32, 32, device="cuda")
    assert torch.allclose(replay(x), network(x), rtol=1e-5, atol=1e-6)
    assert replay(x[:3]).shape[0] == 3
    assert not block_statistics(network, lambda: _with_gradients(replay, x))
    with replay.paused():
        assert block_statistics(network, lambda: replay(x))


def _with_gradients(replay, x):
    with torch.enable_grad():
        return replay(x)


def test_on_a_cpu_the_network_itself_is_called():
    network = _network("hybrid", "cpu")
    x = torch.randn(_SIZE, 1, 32, 32)
    assert torch.equal(Replay(network, _SIZE)(x), network(x))
    assert block_statistics(network, lambda: Replay(network, _SIZE)(x))
