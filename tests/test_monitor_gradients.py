"""Gradients of every kind: norms as by hand, or refused by the parameter's name."""

import math

import pytest
import torch
from monitored import PLACE
from torch import distributed, nn

from fnostab import monitor
from fnostab.monitor.network import Network


def _one_step(model, loss, **settings):
    """One monitored step; returns the run, and the norm and gradients by hand, from before it."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with monitor.run(model, optimizer, **PLACE | settings) as run:
        value = loss(model)
        value.backward()
        gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        run.step(value)
    squares = [g.to(torch.complex128 if g.is_complex() else torch.float64).abs().square().sum() for g in gradients]
    return run, math.sqrt(sum(float(square) for square in squares)), gradients


class Complex(nn.Module):
    """A complex weight, as spectral layers have, and a real one."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.spectral = nn.Parameter(torch.randn(3, 4, dtype=torch.complex64))
        self.real = nn.Parameter(torch.randn(4))

    def forward(self):
        return (torch.fft.irfft(self.spectral @ torch.ones(4, dtype=torch.complex64)).sum() + self.real.sum()).square()


def test_complex_gradients_count_by_their_magnitude():
    run, by_hand, _ = _one_step(Complex(), lambda model: model())
    assert run.history.grad_norm_preclip == [pytest.approx(by_hand)]


@pytest.mark.parametrize("clip", [("norm", 0.5), ("agc", 0.01)])
def test_complex_gradients_are_clipped(clip):
    run, by_hand, _ = _one_step(Complex(), lambda model: model(), clip=clip)
    assert run.history.grad_norm_preclip == [pytest.approx(by_hand)]
    assert 0 < run.history.grad_norm_postclip[0] < 0.6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_gradients_of_other_precisions_have_norms_in_single_precision_at_least(dtype):
    torch.manual_seed(0)
    model = nn.Linear(300, 300, dtype=dtype)
    x = torch.randn(8, 300, dtype=dtype)
    run, by_hand, gradients = _one_step(model, lambda model: model(x).square().mean() * 8)
    assert gradients[0].dtype == dtype
    assert run.history.grad_norm_preclip == [pytest.approx(by_hand, rel=1e-5)]


@pytest.mark.parametrize("clip", [("norm", 0.01), ("value", 1e-4), ("agc", 0.001)])
def test_gradients_in_bf16_are_clipped(clip):
    torch.manual_seed(0)
    model = nn.Linear(30, 30, dtype=torch.bfloat16)
    run, by_hand, _ = _one_step(model, lambda m: m(torch.ones(8, 30, dtype=torch.bfloat16)).square().mean(), clip=clip)
    assert run.history.grad_norm_postclip[0] < 0.5 * by_hand
    after = math.sqrt(sum(float(p.grad.double().square().sum()) for p in model.parameters()))
    assert run.history.grad_norm_postclip == [pytest.approx(after, rel=0.01)]


def test_the_factors_of_a_tucker_layer_are_what_is_normed():
    from neuralop.models import FNO

    torch.manual_seed(0)
    model = FNO(n_modes=(4, 4), in_channels=1, out_channels=1, hidden_channels=4, n_layers=1, factorization="tucker")
    x = torch.randn(2, 1, 8, 8)
    run, by_hand, _ = _one_step(
        model, lambda model: model(x).square().mean(), clip=("norm", 1e-3), blocks=["fno_blocks"]
    )
    names = [name for name, _ in model.named_parameters() if "factors" in name]
    assert names
    assert run.history.grad_norm_preclip == [pytest.approx(by_hand)]
    assert run.history.grad_norm_postclip == [pytest.approx(1e-3, rel=1e-3)]


def test_a_sparse_gradient_is_refused_by_the_parameters_name():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(4, 2, sparse=True))
    with pytest.raises(ValueError, match=r"^`0.weight` \(=torch.sparse_coo\) must have a dense gradient[^\n]*$"):
        _one_step(model, lambda model: model(torch.tensor([1])).sum())


def test_fsdp_is_refused_by_the_parameters_name():
    from torch.distributed.fsdp import fully_shard

    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        model = nn.Sequential(nn.Linear(4, 4))
        fully_shard(model, mesh=distributed.init_device_mesh("cpu", (1,)))
        with pytest.raises(ValueError, match=r"parameter 0.weight, must be a whole tensor in each process: DTensor"):
            Network(model)
    finally:
        distributed.destroy_process_group()


def test_a_parameter_without_a_gradient_is_passed_over():
    model = nn.ModuleDict({"used": nn.Linear(2, 1), "frozen": nn.Linear(2, 1), "idle": nn.Linear(2, 1)})
    model["frozen"].requires_grad_(False)
    run, by_hand, _ = _one_step(model, lambda model: model["used"](torch.ones(1, 2)).sum())
    assert run.history.grad_norm_preclip == [pytest.approx(by_hand)]


def test_the_modules_inside_of_wrappers_are_named_as_they_are():
    class Wrapper(nn.Module):
        """What torch.compile returns has its module under this name."""

        def __init__(self, module):
            super().__init__()
            self._orig_mod = module

    network = Network(Wrapper(nn.Sequential(nn.Linear(2, 1))), ["0"])
    assert network.arch == "Sequential"
    assert list(network.blocks) == ["0"]


def test_a_rule_that_leaves_steps_out_has_them_left_out():
    torch.manual_seed(0)
    model = nn.Linear(2, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    rule = {"algorithm": "skip", "value": 3.0, "options": {"window": 4, "least": 2}}
    with monitor.run(model, optimizer, **PLACE, clip=rule) as run:
        for step in range(6):
            optimizer.zero_grad()
            before = model.weight.detach().clone()
            loss = model(torch.ones(1, 2)).sum() * (100.0 if step == 4 else 1.0)
            loss.backward()
            run.step(loss)
            assert torch.equal(before, model.weight) == (step == 4)
    assert run.history.clipped_fraction == [0.0, 0.0, 0.0, 0.0, 1.0, 0.0]
    assert run.history.events == {}
