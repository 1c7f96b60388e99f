"""Training in bfloat16: what is computed in it and what is not, how near it stays, and who may have it."""

import math

import numpy as np
import pytest
import torch
from small_runs import KillAfter, fit, new_module
from torch import nn

from fnostab.config import ConfigError, resolve_config
from fnostab.dataset import load_or_build
from fnostab.models import build_generator
from fnostab.models.blocks import PreNormPtychoBlock, PtychoBlock, StablePtychoBlock
from fnostab.models.spectral import SpectralConv2d
from fnostab.optics import far_field_amplitude
from fnostab.training import precision
from fnostab.training.batches import EpochOrder, PatchLoader, resident
from fnostab.training.checks import check_network
from fnostab.training.shipped_model import CountsToObject

_TINY = {
    "preset": "smoke",
    "data.object_size": 64,
    "data.max_train_patches": 24,
    "data.max_val_patches": 8,
    "data.probe_radius_px": 8,
    "model.width": 4,
    "optim.lr": 1e-3,
    "optim.schedule": "constant",
    "train.epochs": 3,
    "train.batch_size": 8,
    "train.overlap_weight": 0.0,
    "train.precision": "bf16-mixed",
}


def _config(**overrides):
    return resolve_config({key.replace("__", "."): value for key, value in overrides.items()}, base=_TINY)


def _mixed(call, *arguments):
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        return call(*arguments)


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
@pytest.mark.parametrize("arch", ["hybrid", "stable_hybrid"])
def test_a_killed_run_in_bfloat16_resumes_to_the_same_numbers_bit_for_bit(tmp_path, arch, schedule):
    config = _config(arch=arch, optim__schedule=schedule)
    whole, history, _ = fit(config, tmp_path / "whole")
    with pytest.raises(SystemError, match="killed"):
        fit(config, tmp_path / "killed", checkpoint_every_s=0.0, extra=[KillAfter(4)])
    resumed, continued, _ = fit(config, tmp_path / "killed", new_module(config), resume=True)
    assert continued.to_json() == history.to_json()
    assert all(map(torch.equal, whole.state_dict().values(), resumed.state_dict().values()))


@pytest.mark.parametrize("arch", ["hybrid", "stable_hybrid", "prenorm_hybrid", "hybrid_original", "fno"])
def test_fifty_steps_in_bfloat16_stay_within_five_percent_of_a_plain_loop_in_single_precision(tmp_path, arch):
    # At a learning rate at which the loss falls steadily: any rounding grows where it jumps.
    config = _config(arch=arch, clip_algo="norm", clip_val=1.0, optim__lr=3e-4, train__epochs=17)
    _, history, _ = fit(config, tmp_path)
    expected = _plain_losses(config, steps=50)
    ratios = np.array(history.loss_step[:50]) / expected
    assert np.abs(ratios[:5] - 1).max() < 0.005
    assert np.abs(ratios - 1).max() < 0.05
    assert abs(ratios.mean() - 1) < 0.005
    assert expected[-1] < 0.95 * expected[0]


def _plain_losses(config, steps):
    """The losses of the same batches, from the same weights, by PyTorch's own means in single precision."""
    dataset = load_or_build(config.data)
    module = new_module(config)
    network, probe, lost = module.generator, torch.from_numpy(dataset.probe), []
    optimizer = torch.optim.Adam(network.parameters(), lr=config.optim.lr)
    order = EpochOrder(dataset.train, config.train.batch_size, config.seed, neighbours=False)
    loader = PatchLoader(resident(dataset.train), order)
    while len(lost) < steps:
        for batch in loader:
            amplitudes = batch.sqrt_counts / dataset.scale
            patches = torch.view_as_complex(network((batch.sqrt_counts * dataset.input_scale)[:, None])[..., 0, :])
            loss = (far_field_amplitude(patches, probe) - amplitudes).abs().sum()
            loss = loss / (batch.global_size * module.mean_amplitude_sum)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            lost.append(float(loss.detach()))
        order.set_epoch(order.epoch + 1)
    return lost[:steps]


def test_training_steps_are_in_bfloat16_and_whatever_is_measured_is_in_single_precision():
    single, mixed = new_module(_config(train__precision="32-true")), new_module(_config())
    amplitudes = torch.from_numpy(np.sqrt(load_or_build(_config().data).val.counts))
    single.train()
    mixed.train()
    assert not torch.equal(single(amplitudes), mixed(amplitudes))
    with torch.no_grad():
        assert torch.equal(single(amplitudes), mixed(amplitudes))
    assert torch.equal(single.eval()(amplitudes), mixed.eval()(amplitudes))


def test_weights_moments_and_the_shipped_model_stay_in_single_precision(tmp_path):
    module, _, _ = fit(_config(train__epochs=1), tmp_path)
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    held = [*checkpoint["state_dict"].values()]
    held += [value for state in checkpoint["optimizer_states"][0]["state"].values() for value in state.values()]
    assert {tensor.dtype for tensor in held} == {torch.float32}
    model = CountsToObject(module.generator, module.input_scale).eval()
    counts = torch.from_numpy(np.array(load_or_build(_config().data).val.counts[:2]))
    exported = torch.export.export(model, (counts,))
    assert "bfloat16" not in str(exported.graph)
    assert "autocast" not in str(exported.graph)


def test_the_transforms_of_a_spectral_layer_stay_in_single_precision():
    torch.manual_seed(0)
    layer, x = SpectralConv2d(3, 3, 4, 16), torch.randn(2, 3, 16, 16)
    # Numbers that bfloat16 holds without rounding: all that could then err are the transforms.
    layer.weight.data.zero_()
    layer.weight.data[..., 0] = torch.eye(3)
    single, mixed = layer(x), _mixed(layer, x)
    assert mixed.dtype == torch.float32
    error = (mixed - single).abs().max() / single.abs().max()
    assert 0 < error < 2**-8  # of the modes alone, rounded once to 8 bits on their way into and out of the product
    constant = torch.full((1, 3, 16, 16), 3.0)
    assert torch.allclose(_mixed(layer, constant), constant, atol=1e-6)


@pytest.mark.parametrize("block", [PtychoBlock, StablePtychoBlock, PreNormPtychoBlock])
def test_a_small_update_is_not_lost_on_the_residual_path(block):
    torch.manual_seed(0)
    layer = block(4, modes=4, resolution=16)
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if name == "norm.weight":
                parameter.fill_(1e-4)
            elif block is not StablePtychoBlock and name in ("spectral.weight", "local.weight", "local.bias"):
                parameter.mul_(1e-4)
    x = torch.randn(2, 4, 16, 16).bfloat16().float()  # of a size whose last bit is 1000 times the update
    update = _mixed(layer, x.bfloat16()) - x
    expected = layer.update(x).detach()
    assert (update - expected).norm() < 0.02 * expected.norm()


def test_auto_is_bfloat16_where_the_device_has_it_for_all_arms_or_for_none(monkeypatch):
    arms = {name: _config(arch=name, train__precision="auto") for name in ("hybrid", "cnn")}
    monkeypatch.setattr(precision, "has_bf16", lambda kind: kind == "cpu")
    settled = precision.settle_precision(arms)
    assert {config.train.precision for config in settled.values()} == {"bf16-mixed"}
    arms["own"] = _config(arch="fnostab.models.cnn:CNNGenerator", train__precision="auto")
    assert {c.train.precision for c in precision.settle_precision(arms).values()} == {"32-true"}
    arms["own"] = _config(arch="fnostab.models.cnn:CNNGenerator", train__precision="32-true")
    assert [c.train.precision for c in precision.settle_precision(arms).values()] == 2 * ["bf16-mixed"] + ["32-true"]
    monkeypatch.setattr(precision, "has_bf16", lambda kind: False)
    assert {c.train.precision for c in precision.settle_precision(arms).values()} == {"32-true"}


def test_a_device_without_bfloat16_is_said_to_be_slow_and_not_refused(monkeypatch):
    monkeypatch.setattr(precision, "has_bf16", lambda kind: False)
    line = "train.precision=bf16-mixed will be slower than 32-true: this cpu has no instructions for bfloat16"
    config = _config(train__accelerator="cpu")
    precision.check_precision(config)
    assert precision.slower_than_single(config) == line
    assert precision.slower_than_single(_config(train__precision="32-true")) is None
    monkeypatch.setattr(precision, "has_bf16", lambda kind: True)
    assert precision.slower_than_single(config) is None


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ({"avx512_bf16": True, "amx_bf16": False}, True),
        ({"avx512_bf16": False, "amx_bf16": True}, True),
        ({"avx2": True, "avx512_f": True, "avx512_bf16": False}, False),
        ({"neon": True, "bf16": True}, True),
        ({"neon": True}, False),
    ],
)
def test_a_cpu_has_bfloat16_if_it_says_so(found, expected, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found, raising=False)
    assert precision.has_bf16("cpu") is expected


def test_tf32_is_refused_without_a_gpu_that_has_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    rule = r"^`train.precision` \(=tf32\) must be 32-true or bf16-mixed here: NVIDIA GPUs"
    for accelerator in ("auto", "cpu", "gpu"):
        with pytest.raises(ConfigError, match=rule):
            precision.check_precision(_config(train__precision="tf32", train__accelerator=accelerator))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    with pytest.raises(ConfigError, match=rule):
        precision.check_precision(_config(train__precision="tf32"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    precision.check_precision(_config(train__precision="tf32"))


def test_matrix_products_are_in_tf32_for_the_runs_that_ask_for_it_alone():
    before = torch.get_float32_matmul_precision()
    try:
        precision.set_matrix_precision(_config(train__precision="tf32"))
        assert torch.get_float32_matmul_precision() == "high"
        precision.set_matrix_precision(_config())
        assert torch.get_float32_matmul_precision() == "highest"
    finally:
        torch.set_float32_matmul_precision(before)


_SINGLE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, hidden_channels):
        super().__init__()
        self.conv = nn.Conv2d(1, hidden_channels, 3, padding=1)
        self.out = nn.Linear(hidden_channels, 2)

    def forward(self, x):
        x = self.conv(x)
        if x.dtype != torch.float32:
            raise TypeError("this network is for single precision")
        return self.out(x.movedim(1, -1))[..., None, :]
"""


def test_an_own_network_that_cannot_train_in_bfloat16_is_refused_in_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(_SINGLE)
    own = {"arch": "./net.py:Net", "clip_algo": "none", "train__artifacts": "numbers"}
    check_network(_config(**own, train__precision="32-true"))
    rule = r"^`train.precision` \(=bf16-mixed\) must be 32-true for `model.arch` \(=./net.py:Net\), which raised under"
    with pytest.raises(ConfigError, match=rule) as caught:
        check_network(_config(**own))
    assert "\n" not in str(caught.value)


def test_runs_of_another_precision_have_another_identity():
    configs = [_config(train__precision=name) for name in ("32-true", "bf16-mixed", "tf32")]
    assert len({config.sha256() for config in configs}) == 3


@pytest.mark.gpu
@pytest.mark.parametrize("arch", ["hybrid", "stable_hybrid", "prenorm_hybrid"])
def test_steps_in_bfloat16_on_a_gpu_stay_near_those_in_single_precision(tmp_path, arch):
    usual = {"arch": arch, "accelerator": "gpu", "train__epochs": 17}
    _, mixed, _ = fit(_config(**usual), tmp_path / "mixed")
    _, single, _ = fit(_config(**usual, train__precision="32-true"), tmp_path / "single")
    assert mixed.loss_step == pytest.approx(single.loss_step, rel=0.03)
    assert all(map(math.isfinite, mixed.grad_norm_preclip))


def test_gradients_under_autocast_are_those_of_single_precision_to_a_few_bits():
    torch.manual_seed(0)
    network = build_generator(_config(arch="prenorm_hybrid").model, 32)
    x = torch.rand(4, 1, 32, 32)

    def gradient(call):
        network.zero_grad()
        call(network, x).float().square().mean().backward()
        return torch.cat([p.grad.flatten() for p in network.parameters()])

    single, mixed = gradient(lambda network, x: network(x)), gradient(lambda network, x: _mixed(network, x))
    assert mixed.dtype == torch.float32
    assert (mixed - single).norm() < 0.05 * single.norm()
