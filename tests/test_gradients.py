"""Gradient norms: right, honest about non-finite values, and without waiting for the device."""

import math

import pytest
import torch
from torch import Tensor, nn

from fnostab.gradients import as_real, layer_norms, parameters_with_gradient, total_norm


def parameter(gradient: Tensor | None, dtype: torch.dtype | None = None) -> nn.Parameter:
    shape = (2,) if gradient is None else gradient.shape
    result = nn.Parameter(torch.ones(shape, dtype=dtype or (torch.float32 if gradient is None else gradient.dtype)))
    result.grad = gradient
    return result


def test_total_norm_is_that_of_the_concatenation() -> None:
    gradients = [torch.randn(3, 4), torch.randn(5), torch.randn(()), torch.randn(2, 2, dtype=torch.complex64)]
    expected = math.sqrt(sum(float(g.abs().double().square().sum()) for g in gradients))
    assert float(total_norm([parameter(g) for g in gradients])) == pytest.approx(expected, rel=1e-6)


def test_total_norm_equals_pytorchs_bit_for_bit() -> None:
    gradients = [torch.randn(30, 40), torch.randn(50), torch.randn(8, 7, 3, 3)]
    assert torch.equal(total_norm([parameter(g) for g in gradients]), nn.utils.get_total_norm(gradients))


@pytest.mark.parametrize("wrap", [lambda p: p, lambda p: [p], lambda p: iter([p]), lambda p: nn.ParameterList([p])])
def test_total_norm_takes_modules_iterables_and_single_tensors(wrap) -> None:  # type: ignore[no-untyped-def]
    assert float(total_norm(wrap(parameter(torch.tensor([[3.0], [4.0]]))))) == 5.0


def test_parameters_without_gradient_are_skipped() -> None:
    with_gradient = parameter(torch.tensor([2.0]))
    assert parameters_with_gradient([parameter(None), with_gradient]) == [with_gradient]
    assert float(total_norm([parameter(None), with_gradient])) == 2.0


def test_no_gradient_at_all_has_norm_zero() -> None:
    assert float(total_norm([parameter(None)])) == 0.0
    assert layer_norms(nn.Linear(2, 2)) == {}


def test_layer_norms_are_by_parameter_name_and_make_up_the_total() -> None:
    module = nn.Sequential(nn.Linear(4, 3), nn.GELU(), nn.Linear(3, 2))
    module[2].bias.requires_grad_(False)
    module(torch.randn(5, 4)).square().sum().backward()
    norms = layer_norms(module)
    assert list(norms) == ["0.weight", "0.bias", "2.weight"]
    assert all(norm.shape == () and not norm.requires_grad for norm in norms.values())
    assert float(norms["0.weight"]) == pytest.approx(float(module[0].weight.grad.norm()), rel=1e-6)
    assert float(torch.stack(list(norms.values())).norm()) == pytest.approx(float(total_norm(module)), rel=1e-6)


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_non_finite_gradients_are_reported_and_located(bad: float) -> None:
    module = nn.Linear(2, 2)
    module.weight.grad = torch.ones(2, 2)
    module.bias.grad = torch.tensor([1.0, bad])
    assert not total_norm(module).isfinite()
    assert [name for name, norm in layer_norms(module).items() if not norm.isfinite()] == ["bias"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_accumulated_in_single(dtype: torch.dtype) -> None:
    norm = total_norm([parameter(torch.full((300, 300), 300.0, dtype=dtype))])  # beyond float16's 65504
    assert norm.dtype == torch.float32
    assert float(norm) == pytest.approx(90_000.0, rel=1e-3)


def test_precisions_may_be_mixed() -> None:
    norm = total_norm([parameter(torch.full((4,), 2.0)), parameter(torch.full((3,), 4.0, dtype=torch.float64))])
    assert norm.dtype == torch.float64
    assert float(norm) == pytest.approx(8.0, rel=1e-15)


def test_lazily_conjugated_gradients_have_a_norm() -> None:
    weight = nn.Parameter(torch.ones(2, dtype=torch.complex64))
    weight.conj().backward(torch.tensor([3.0 + 0.0j, 0.0 + 4.0j]))
    assert weight.grad is not None
    assert weight.grad.is_conj()
    assert float(total_norm(weight)) == 5.0
    assert as_real(weight.grad).data_ptr() == weight.grad.data_ptr()
