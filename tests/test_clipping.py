"""Clipping: the papers' formulas, exactness for what is not clipped, honesty about non-finite values, no waiting."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fnostab.clipping import adaptive_gradient_clip_, clip_gradients_
from fnostab.gradients import total_norm
from fnostab.models.spectral import SpectralConv2d

ALGORITHMS = ["none", "norm", "value", "agc"]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


class SpectralLike(nn.Module):
    """Holds a weight of a spectral layer's shape, `(rows, cols, in, out, 2)`, and names its unit axis as that does."""

    unit_axis = SpectralConv2d.unit_axis

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3, 3, 5, 2))


class ComplexWeight(nn.Module):
    """Holds a complex matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 3, dtype=torch.complex64))


class Scalar(nn.Module):
    """Holds a single number."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(()))


# Layer, and its output axis as the paper means it; None: one unit.
LAYERS: dict[str, tuple[Callable[[], nn.Module], int | None]] = {
    "linear": (lambda: nn.Linear(6, 4), 0),
    "conv": (lambda: nn.Conv2d(3, 5, 3), 0),
    "depthwise conv": (lambda: nn.Conv2d(4, 4, 3, groups=4), 0),
    "transposed conv 1-d": (lambda: nn.ConvTranspose1d(3, 5, 2), 1),
    "transposed conv 2-d": (lambda: nn.ConvTranspose2d(6, 5, 2), 1),
    "norm": (lambda: nn.InstanceNorm2d(6, affine=True), None),
    "spectral": (SpectralLike, 3),
    "complex": (ComplexWeight, 0),
    "scalar": (Scalar, None),
}


def with_gradients(module: nn.Module) -> nn.Module:
    """Give every parameter a gradient whose units lie on both sides of AGC's limit of 0.3."""
    for p in module.parameters():
        p.grad = torch.randn_like(p.detach())
        for axis in range(p.ndim):
            shape = [-1 if other == axis else 1 for other in range(p.ndim)]
            p.grad *= torch.logspace(-0.7, 0.3, p.shape[axis])[torch.randperm(p.shape[axis])].view(shape)
    return module


def gradients(module: nn.Module) -> list[Tensor]:
    return [p.grad.clone() for p in module.parameters() if p.grad is not None]


def paper_agc(weight: Tensor, gradient: Tensor, axis: int | None, clip_factor: float, eps: float) -> tuple[Tensor, int]:
    """Algorithm 2 of Brock et al. 2021, unit by unit, in double precision; also the number of units clipped."""
    wide = torch.complex128 if weight.is_complex() else torch.float64
    weight, result = weight.detach().to(wide), gradient.to(wide).clone()
    units = [...] if axis is None else [(slice(None),) * axis + (i,) for i in range(weight.shape[axis])]
    n_clipped = 0
    for unit in units:
        w_norm = max(float(weight[unit].abs().square().sum().sqrt()), eps)
        g_norm = float(result[unit].abs().square().sum().sqrt())
        if g_norm / w_norm > clip_factor:
            result[unit] *= clip_factor * w_norm / g_norm
            n_clipped += 1
    return result, n_clipped


@pytest.mark.parametrize("clip_factor", [0.01, 0.3, 3.0])
@pytest.mark.parametrize("kind", LAYERS)
def test_agc_is_the_papers_formula(kind: str, clip_factor: float) -> None:
    make, axis = LAYERS[kind]
    module = with_gradients(make())
    expected, n_clipped, n_units = [], 0, 0
    for p in module.parameters():
        unit_axis = None if p.ndim < 2 else axis
        result, clipped = paper_agc(p, p.grad, unit_axis, clip_factor, 1e-3)
        expected.append(result)
        n_clipped, n_units = n_clipped + clipped, n_units + (1 if unit_axis is None else p.shape[unit_axis])
    fraction = adaptive_gradient_clip_(module, clip_factor)
    for p, result in zip(module.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, result.to(p.dtype), rtol=1e-5, atol=0)
    assert float(fraction) == pytest.approx(n_clipped / n_units)


def test_agc_reference_case_has_units_on_both_sides() -> None:
    fractions = [float(adaptive_gradient_clip_(with_gradients(make()), 0.3)) for make, _ in LAYERS.values()]
    assert any(0 < fraction < 1 for fraction in fractions)


def test_agc_whole_tensor_granularity_is_the_formula_on_tensors() -> None:
    module = with_gradients(nn.Sequential(nn.Conv2d(3, 5, 3), nn.ConvTranspose2d(5, 4, 2)))
    expected = [paper_agc(p, p.grad, None, 0.3, 1e-3)[0].to(p.dtype) for p in module.parameters()]
    adaptive_gradient_clip_(module, 0.3, granularity="tensor")
    for p, result in zip(module.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, result, rtol=1e-5, atol=0)


def test_bare_tensors_use_axis_0_and_vectors_are_whole() -> None:
    module = with_gradients(nn.ConvTranspose2d(6, 5, 2))
    expected = [paper_agc(p, p.grad, None if p.ndim < 2 else 0, 0.3, 1e-3)[0].float() for p in module.parameters()]
    adaptive_gradient_clip_(iter(list(module.parameters())), 0.3)
    for p, result in zip(module.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, result, rtol=1e-5, atol=0)


def test_a_single_tensor_is_one_parameter() -> None:
    weight = nn.Parameter(torch.ones(2, 4))
    weight.grad = torch.tensor([[1.0] * 4, [1e-4] * 4])
    assert float(adaptive_gradient_clip_(weight, 0.01)) == 0.5
    torch.testing.assert_close(weight.grad, torch.tensor([[0.01] * 4, [1e-4] * 4]))


@pytest.mark.parametrize("eps", [1e-3, 0.1])
def test_zero_weights_are_held_to_eps(eps: float) -> None:
    weight = nn.Parameter(torch.zeros(1, 3))
    weight.grad = torch.ones(1, 3)
    adaptive_gradient_clip_([weight], 0.01, eps=eps)
    assert float(weight.grad.norm()) == pytest.approx(0.01 * eps, rel=1e-6)


AWKWARD = [0.0, -0.0, 1e-45, -1e-39, math.pi * 1e-5, -3e-6, 1e-30]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.complex64], ids=str)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_small_gradients_stay_bit_for_bit(algorithm: Any, dtype: torch.dtype) -> None:
    weight = nn.Parameter(torch.ones(2, len(AWKWARD), dtype=dtype))
    parts = torch.tensor([AWKWARD, AWKWARD[::-1]])
    weight.grad = torch.complex(parts, -parts) if dtype.is_complex else parts.to(dtype)
    before = weight.grad.clone()
    stats = clip_gradients_([weight], algorithm, 0.01)
    assert before.numpy().tobytes() == weight.grad.numpy().tobytes()
    assert float(stats.clipped_fraction) == 0.0
    assert torch.equal(stats.norm_preclip, stats.norm_postclip)


def test_agc_leaves_units_beside_a_clipped_one_bit_for_bit() -> None:
    weight = nn.Parameter(torch.ones(3, len(AWKWARD)))
    weight.grad = torch.tensor([AWKWARD, [5.0] * len(AWKWARD), AWKWARD])
    before = weight.grad.clone()
    assert float(adaptive_gradient_clip_([weight])) == pytest.approx(1 / 3)
    assert before[::2].numpy().tobytes() == weight.grad[::2].numpy().tobytes()
    assert not torch.equal(before[1], weight.grad[1])


@pytest.mark.parametrize("max_norm", [1e-9, 0.5, 1e6])
def test_norm_clipping_is_pytorchs_bit_for_bit(max_norm: float) -> None:
    ours = with_gradients(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Linear(7, 5), SpectralLike()))
    theirs = copy.deepcopy(ours)
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        q.grad = p.grad.clone()
    stats = clip_gradients_(ours, "norm", max_norm)
    assert torch.equal(stats.norm_preclip, nn.utils.clip_grad_norm_(theirs.parameters(), max_norm))
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)
    assert float(stats.clipped_fraction) == float(max_norm < stats.norm_preclip)


def test_norm_clipping_of_complex_gradients_is_pytorchs_to_rounding() -> None:
    ours, theirs = (with_gradients(ComplexWeight()) for _ in range(2))
    theirs.weight.grad.copy_(ours.weight.grad)
    clip_gradients_(ours, "norm", 0.1)
    nn.utils.clip_grad_norm_(theirs.parameters(), 0.1)
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad, rtol=1e-6, atol=0)


def test_value_clipping_is_pytorchs_and_counts_elements() -> None:
    ours = with_gradients(nn.Linear(6, 4))
    before = torch.cat([g.flatten() for g in gradients(ours)])
    stats = clip_gradients_(ours, "value", 0.2)
    after = torch.cat([g.flatten() for g in gradients(ours)])
    assert torch.equal(after, before.clamp(-0.2, 0.2))
    assert float(stats.clipped_fraction) == pytest.approx(float((before.abs() > 0.2).float().mean()))
    assert 0 < float(stats.clipped_fraction) < 1


def test_value_clipping_of_complex_gradients_takes_real_and_imaginary_parts() -> None:
    weight = nn.Parameter(torch.ones(2, dtype=torch.complex64))
    weight.grad = torch.tensor([3.0 - 0.1j, 0.2 + 0.3j])
    assert float(clip_gradients_([weight], "value", 0.5).clipped_fraction) == 0.25
    assert torch.equal(weight.grad, torch.tensor([0.5 - 0.1j, 0.2 + 0.3j]))


@pytest.mark.parametrize("granularity", ["unit", "tensor"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_reported_norms_are_those_before_and_after(algorithm: Any, granularity: Any) -> None:
    module = with_gradients(nn.Sequential(*(make() for make, _ in LAYERS.values())))
    before = float(total_norm(module))
    stats = clip_gradients_(module, algorithm, 0.1, granularity)
    assert float(stats.norm_preclip) == pytest.approx(before, rel=1e-5)
    assert float(stats.norm_postclip) == pytest.approx(float(total_norm(module)), rel=1e-5)
    assert (float(stats.norm_postclip) < before) == (algorithm != "none")
    assert all(stat.shape == () for stat in stats[:3])
    assert stats.skip is None


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_non_finite_gradients_never_become_finite(algorithm: Any, bad: float) -> None:
    module = with_gradients(nn.Linear(3, 2))
    module.weight.grad[1, 2] = bad
    before = gradients(module)
    stats = clip_gradients_(module, algorithm, 1e-3)
    assert not stats.norm_preclip.isfinite()
    assert not stats.norm_postclip.isfinite()
    assert before[0][1].numpy().tobytes() == module.weight.grad[1].numpy().tobytes()
    if algorithm == "agc":  # finite units are still held to their limits
        assert float(stats.clipped_fraction) == pytest.approx(2 / 3)
    else:
        assert float(stats.clipped_fraction) == 0.0
        assert torch.equal(before[1], module.bias.grad)


@pytest.mark.parametrize("algorithm", ["norm", "agc"])
def test_an_overflowing_norm_does_not_silently_zero_the_gradient(algorithm: Any) -> None:
    weight = nn.Parameter(torch.ones(1, 2))
    weight.grad = torch.full((1, 2), 1e30)
    assert float(clip_gradients_([weight], algorithm, 0.01).norm_postclip) == math.inf
    assert torch.equal(weight.grad, torch.full((1, 2), 1e30))


def test_non_finite_weights_do_not_poison_gradients() -> None:
    weight = nn.Parameter(torch.tensor([[math.nan, 1.0], [math.inf, 1.0]]))
    weight.grad = torch.ones(2, 2)
    adaptive_gradient_clip_([weight])
    assert torch.equal(weight.grad, torch.ones(2, 2))


def test_lazily_conjugated_gradients_are_clipped_in_place() -> None:
    weight = nn.Parameter(torch.ones(1, 2, dtype=torch.complex64))
    weight.conj().backward(torch.tensor([[3.0 + 1.0j, 4.0j]]))
    assert weight.grad.is_conj()
    expected = paper_agc(weight, weight.grad.resolve_conj(), 0, 0.01, 1e-3)[0].to(torch.complex64)
    adaptive_gradient_clip_([weight])
    torch.testing.assert_close(weight.grad.resolve_conj(), expected)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_parameters_without_gradient_are_skipped(algorithm: Any) -> None:
    module = with_gradients(nn.Linear(3, 2))
    module.bias.grad = None
    stats = clip_gradients_(module, algorithm, 0.1)
    assert module.bias.grad is None
    assert float(stats.norm_preclip) > 0


@pytest.mark.parametrize("source", [nn.Linear(2, 2), nn.GELU(), []], ids=["no gradients", "no parameters", "empty"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_nothing_to_clip_gives_zeros(algorithm: Any, source: Any) -> None:
    assert [float(stat) for stat in clip_gradients_(source, algorithm, 0.1)[:3]] == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("value", [0.0, -1.0])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_value_of_zero_or_less_means_none(algorithm: Any, value: float) -> None:
    module = with_gradients(nn.Linear(3, 2))
    before = gradients(module)
    stats = clip_gradients_(module, algorithm, value)
    assert all(torch.equal(a, b) for a, b in zip(before, gradients(module), strict=True))
    assert torch.equal(stats.norm_preclip, total_norm(module))
    assert float(stats.clipped_fraction) == 0.0


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_an_infinite_value_clips_nothing(algorithm: Any) -> None:
    module = with_gradients(nn.Linear(3, 2))
    before = gradients(module)
    assert float(clip_gradients_(module, algorithm, math.inf).clipped_fraction) == 0.0
    assert all(torch.equal(a, b) for a, b in zip(before, gradients(module), strict=True))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("agx", 0.1), r"^`algorithm` \(=agx\) must be one of none, norm, value, agc$"),
        (("agx", 0.0), r"^`algorithm` \(=agx\) must be one of none, norm, value, agc$"),
        (("agc", 0.1, "layer"), r"^`granularity` \(=layer\) must be one of unit, tensor$"),
        (("norm", math.nan), r"^`value` \(=nan\) must be a number$"),
    ],
)
def test_bad_arguments_are_refused_before_anything_changes(arguments: Any, message: str) -> None:
    module = with_gradients(nn.Linear(3, 2))
    before = gradients(module)
    with pytest.raises(ValueError, match=message):
        clip_gradients_(module, *arguments)
    assert all(torch.equal(a, b) for a, b in zip(before, gradients(module), strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clip_factor": 0.0}, r"^`clip_factor` \(=0.0\) must be > 0$"),
        ({"eps": math.nan}, r"^`eps` \(=nan\) must be > 0$"),
        ({"granularity": "row"}, r"^`granularity` \(=row\) must be one of unit, tensor$"),
    ],
)
def test_adaptive_clipping_refuses_bad_arguments(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        adaptive_gradient_clip_(nn.Linear(2, 2), **options)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_memory_format_and_identity_of_gradients_are_kept(algorithm: Any) -> None:
    module = nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last)
    module(torch.randn(2, 4, 8, 8).to(memory_format=torch.channels_last)).square().sum().backward()
    gradient = module.weight.grad
    strides, expected = gradient.stride(), paper_agc(module.weight, gradient, 0, 0.01, 1e-3)[0].float()
    assert not gradient.is_contiguous()
    clip_gradients_(module, algorithm, 0.01)
    assert module.weight.grad is gradient
    assert gradient.stride() == strides
    if algorithm == "agc":
        torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_no_autograd_history_is_left(algorithm: Any) -> None:
    module = with_gradients(nn.Linear(3, 2))
    assert not any(stat.requires_grad for stat in clip_gradients_(module, algorithm, 0.1)[:3])
    assert not any(p.grad.requires_grad for p in module.parameters())


class NoWaiting(TorchDispatchMode):
    """Refuses the operators by which the host waits for a value, or copies one of its own to the device."""

    WAITING = ("_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select", "scalar_tensor")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.__name__.split(".")[0] in self.WAITING:
            raise AssertionError(f"{func} waits for the device")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("granularity", ["unit", "tensor"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_nothing_waits_for_the_device(algorithm: Any, granularity: Any) -> None:
    module = with_gradients(nn.Sequential(*(make() for make, _ in LAYERS.values())))
    with NoWaiting():
        clip_gradients_(module, algorithm, 0.1, granularity)


def test_the_guard_against_waiting_notices() -> None:
    for wait in (lambda t: t.item(), bool, float, lambda t: torch.where(t > 0, t, 1.0)):
        with NoWaiting(), pytest.raises(AssertionError, match="waits for the device"):
            wait(torch.ones(()))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_statistics_stay_on_the_gradients_device(algorithm: Any) -> None:
    module = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ConvTranspose2d(5, 4, 2), SpectralLike()).to("meta")
    for p in module.parameters():
        p.grad = torch.empty_like(p)
    assert {stat.device.type for stat in clip_gradients_(module, algorithm, 0.1)[:3]} == {"meta"}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_cuda_does_not_synchronise_and_agrees_with_the_cpu(algorithm: Any) -> None:
    on_cpu = with_gradients(nn.Sequential(*(make() for make, _ in LAYERS.values())))
    on_gpu = copy.deepcopy(on_cpu).cuda()
    for p, q in zip(on_cpu.parameters(), on_gpu.parameters(), strict=True):
        q.grad = p.grad.cuda()
    clip_gradients_(on_cpu, algorithm, 0.1)
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        clip_gradients_(on_gpu, algorithm, 0.1)
    finally:
        torch.cuda.set_sync_debug_mode(mode)
    for p, q in zip(on_cpu.parameters(), on_gpu.parameters(), strict=True):
        torch.testing.assert_close(q.grad.cpu(), p.grad, rtol=1e-5, atol=1e-8)
