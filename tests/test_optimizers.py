"""The optimizers of a config, and what they make of checkpoints of an earlier version."""

import copy
import math

import pytest
import torch
from test_clipping import NoWaiting
from torch import nn

from fnostab.config import ModelConfig, OptimConfig
from fnostab.models import build_generator
from fnostab.models.spectral import SpectralConv2d
from fnostab.training.optimizers import RealTwins, make_optimizer, update_moments


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
@pytest.mark.parametrize("name", ["adam", "adamw", "sgd", "stable_adamw"])
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


@pytest.mark.parametrize("name", ["adam", "adamw", "stable_adamw"])
def test_betas_and_eps_are_those_of_the_config(name):
    config = OptimConfig(name=name, betas=[0.8, 0.95], eps=1e-6, weight_decay=0.1)
    group = make_optimizer(config, [{"params": [torch.nn.Parameter(torch.ones(1))]}]).param_groups[0]
    assert (group["betas"], group["eps"], group["weight_decay"], group["lr"]) == ((0.8, 0.95), 1e-6, 0.1, 1e-3)


def _two_parameters():
    torch.manual_seed(1)
    return [torch.nn.Parameter(torch.randn(3, 4)), torch.nn.Parameter(torch.randn(5, dtype=torch.complex64))]


def _drawn_gradients(parameters, step):
    """Gradients that become a hundred times as large in the middle: the second moment lags behind."""
    generator = torch.Generator().manual_seed(step)
    size = 100.0 if 8 <= step < 12 else 1.0
    return [size * torch.randn(p.shape, dtype=p.dtype, generator=generator) for p in parameters]


def _real(tensor):
    return (torch.view_as_real(tensor) if tensor.is_complex() else tensor).detach().double().flatten().tolist()


def test_stable_adamw_is_the_papers_algorithm_2():
    lr, (beta1, beta2), eps, decay = 0.03, (0.8, 0.9), 1e-6, 0.2
    parameters = _two_parameters()
    config = OptimConfig(name="stable_adamw", lr=lr, betas=[beta1, beta2], eps=eps, weight_decay=decay)
    optimizer = make_optimizer(config, [{"params": parameters}])
    weights = [_real(p) for p in parameters]
    v, u = ([[0.0] * len(w) for w in weights] for _ in range(2))
    largest_rms = 0.0
    for step in range(20):
        gradients = _drawn_gradients(parameters, step)
        for p, g in zip(parameters, gradients, strict=True):
            p.grad = g
        optimizer.step()
        t = step + 1
        for k, g in enumerate(map(_real, gradients)):
            b1, b2 = (beta * (1 - beta ** (t - 1)) / (1 - beta**t) for beta in (beta1, beta2))  # debiased, as there
            v[k] = [b1 * old + (1 - b1) * x for old, x in zip(v[k], g, strict=True)]
            u[k] = [b2 * old + (1 - b2) * x * x for old, x in zip(u[k], g, strict=True)]
            rms = math.sqrt(sum(x * x / max(y, eps**2) for x, y in zip(g, u[k], strict=True)) / len(g))
            eta = lr / max(1, rms)
            triples = zip(weights[k], v[k], u[k], strict=True)
            weights[k] = [w - eta * decay * w - eta * a / (math.sqrt(b) + eps) for w, a, b in triples]
            largest_rms = max(largest_rms, rms)
        for p, expected in zip(parameters, weights, strict=True):
            torch.testing.assert_close(torch.tensor(_real(p)), torch.tensor(expected), rtol=1e-4, atol=1e-6)
    assert largest_rms > 2


def test_stable_adamw_is_adamw_while_the_second_moment_keeps_up():
    pairs = []
    for name in ("stable_adamw", "adamw"):
        parameters = [torch.nn.Parameter(torch.ones(6))]
        optimizer = make_optimizer(OptimConfig(name=name, weight_decay=0.1), [{"params": parameters}])
        for _ in range(10):
            parameters[0].grad = torch.linspace(-1, 1, 6)  # the same gradient: RMS is 1
            optimizer.step()
        pairs.append(parameters[0].detach())
    torch.testing.assert_close(*pairs, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("bad", [1.0, math.nan, math.inf])
@pytest.mark.parametrize("at", [0, 3])
def test_stable_adamw_changes_nothing_in_a_step_that_is_left_out(at, bad):
    ours, theirs = _two_parameters(), _two_parameters()
    first, second = (make_optimizer(OptimConfig(name="stable_adamw"), [{"params": of}]) for of in (ours, theirs))
    for step in range(6):
        for p, q, g in zip(ours, theirs, _drawn_gradients(ours, step), strict=True):
            p.grad, q.grad = g.clone(), g.clone()
        first.found_inf = torch.zeros(())
        first.step()
        second.step()
        if step == at:
            before = copy.deepcopy(first.state_dict())
            for p in ours:
                p.grad.fill_(bad)
            first.found_inf = torch.ones(())
            first.step()
            torch.testing.assert_close(first.state_dict(), before, rtol=0, atol=0)
        assert all(torch.equal(p, q) for p, q in zip(ours, theirs, strict=True))


def test_stable_adamw_counts_the_steps_of_a_parameter_that_comes_later_from_its_first():
    ours, alone = _two_parameters(), _two_parameters()
    first, second = (make_optimizer(OptimConfig(name="stable_adamw"), [{"params": of}]) for of in (ours, alone))
    for step in range(4):
        gradients = _drawn_gradients(ours, step)
        ours[0].grad = gradients[0]
        ours[1].grad = alone[1].grad = gradients[1] if step >= 2 else None
        first.step()
        second.step()
    assert torch.equal(ours[1], alone[1])
    assert not torch.equal(ours[0], alone[0])


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_the_real_twin_of_a_complex_parameter_goes_where_torch_takes_the_parameter_itself(name):
    torch.manual_seed(0)
    ours = nn.Parameter(torch.randn(3, 4, dtype=torch.complex64))
    theirs = nn.Parameter(ours.detach().clone())
    twins = RealTwins([ours])
    optim = OptimConfig(name=name, lr=0.1, weight_decay=0.1)
    fused = make_optimizer(optim, [{"params": twins.of([ours])}])
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
    momentum = {"momentum": 0.9} if name == "sgd" else {}
    plain = kinds[name]([theirs], lr=0.1, weight_decay=0.1, foreach=False, **momentum)
    for _ in range(3):
        twins.clear_gradients()
        for parameter in (ours, theirs):
            parameter.grad = None
            (parameter.conj() * parameter.square()).sum().abs().backward()
        twins.take_gradients()
        fused.step()
        plain.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_a_twin_without_a_gradient_and_a_real_parameter_stay_as_they_are():
    alone, real = nn.Parameter(torch.ones(2, dtype=torch.complex64)), nn.Parameter(torch.ones(2))
    twins = RealTwins([alone, real])
    twin, same = twins.of([alone, real])
    twins.take_gradients()
    assert twin.grad is None
    assert same is real
    with torch.no_grad():
        alone.add_(1)
    assert twin.tolist() == [[2.0, 0.0], [2.0, 0.0]]


def _prepared(device="cpu"):
    parameters = [torch.nn.Parameter(p.detach().to(device)) for p in _two_parameters()]
    optimizer = make_optimizer(OptimConfig(name="stable_adamw", weight_decay=0.1), [{"params": parameters}])
    for p, g in zip(parameters, _drawn_gradients(parameters, 0), strict=True):
        p.grad = g.to(device)
    optimizer.found_inf = torch.zeros((), device=device)
    optimizer.step()
    return parameters, optimizer


def test_stable_adamw_does_not_wait_for_the_device():
    _, optimizer = _prepared()
    with NoWaiting():
        optimizer.step()


@pytest.mark.gpu
def test_stable_adamw_on_cuda_does_not_synchronise_and_agrees_with_the_cpu():
    on_cpu, first = _prepared()
    on_gpu, second = _prepared("cuda")
    first.step()
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        second.step()
    finally:
        torch.cuda.set_sync_debug_mode(mode)
    for p, q in zip(on_cpu, on_gpu, strict=True):
        torch.testing.assert_close(q.cpu(), p, rtol=1e-5, atol=1e-7)
