import pytest
import torch
from torch import nn

from fnostab.models.convolution import Conv3x3

# in, out, (H, W) for which tiles save enough, and for which they do not.
TILED = [(24, 16, (8, 8)), (48, 24, (8, 16)), (48, 48, (20, 12))]
DIRECT = [(24, 16, (10, 8)), (24, 16, (8, 9)), (4, 4, (32, 32)), (1, 32, (8, 8))]


def _layers(case):
    in_channels, out_channels, size = case
    torch.manual_seed(0)
    layer = Conv3x3(in_channels, out_channels, size)
    direct = nn.Conv2d(in_channels, out_channels, 3, padding=1)
    direct.load_state_dict(layer.state_dict())
    layer.weight.data = layer.weight.data.contiguous(memory_format=torch.channels_last)
    return layer, direct, torch.randn(5, in_channels, *size)


def _with_gradients(layer, x, direction):
    x = x.clone().requires_grad_()
    y = layer(x)
    (y * direction).sum().backward()
    return y, x.grad, layer.weight.grad, layer.bias.grad


@pytest.mark.parametrize("case", TILED + DIRECT)
def test_training_step_is_that_of_the_direct_sum(case):
    layer, direct, x = _layers(case)
    direction = torch.randn_like(direct(x))
    for ours, theirs in zip(_with_gradients(layer, x, direction), _with_gradients(direct, x, direction), strict=True):
        assert (ours - theirs).norm() < 1e-5 * theirs.norm()


@pytest.mark.parametrize("case", TILED)
def test_tiles_are_exact_but_for_rounding(case):
    layer, direct, x = _layers(case)
    exact = direct.double()(x.double())
    assert 0 < (layer(x) - exact).norm() < 3e-6 * exact.norm()


@pytest.mark.parametrize("case", TILED)
def test_only_training_on_the_grid_it_is_made_for_uses_tiles(case):
    layer, direct, x = _layers(case)

    def error():
        return ((layer(x) - direct(x)).norm() / direct(x).norm()).item()

    assert error() > 5e-7
    larger = torch.randn(2, x.shape[1], 24, 28)
    torch.testing.assert_close(layer(larger), direct(larger), rtol=0, atol=1e-5)
    layer.eval()
    assert error() < 5e-7
    torch.testing.assert_close(layer.double()(x.double()), direct.double()(x.double()), rtol=0, atol=1e-12)


@pytest.mark.parametrize("case", DIRECT)
def test_grids_that_tiles_do_not_fit_or_pay_for_are_summed_directly(case):
    layer, direct, x = _layers(case)
    assert not layer.tiled
    torch.testing.assert_close(layer(x), direct(x), rtol=0, atol=1e-5)


def test_gradients_and_outputs_lie_in_memory_as_what_they_belong_to():
    layer, _, x = _layers(TILED[0])
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    y = layer(x)
    y.sum().backward()
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert x.grad.is_contiguous(memory_format=torch.channels_last)
    assert layer.weight.grad.is_contiguous(memory_format=torch.channels_last)


def test_weights_start_as_those_of_torch():
    torch.manual_seed(0)
    ours = Conv3x3(8, 8, 8).state_dict()
    torch.manual_seed(0)
    theirs = nn.Conv2d(8, 8, 3, padding=1).state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_function_transforms_take_tiles_too():
    layer, _, x = _layers(TILED[0])
    parameters = dict(layer.named_parameters())

    def loss(parameters, patch):
        return torch.func.functional_call(layer, parameters, (patch.unsqueeze(0),)).square().sum()

    of_patches = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
    for patch, gradient in zip(x, of_patches["weight"], strict=True):
        layer.zero_grad()
        layer(patch.unsqueeze(0)).square().sum().backward()
        assert (gradient - layer.weight.grad).norm() < 1e-5 * gradient.norm()


def test_second_derivatives_are_refused():
    layer, _, x = _layers(TILED[0])
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
