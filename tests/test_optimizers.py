"""The optimizers against PyTorch's own, on tensors that are not contiguous."""

import copy

import pytest
import torch

from fnostab.training import optimizers

ORDER, BACK = (2, 3, 1, 0, 4), (3, 2, 0, 1, 4)


def _pair(name, **options):
    """One parameter twice: modes first in memory with our optimizer, contiguous with PyTorch's plain one."""
    torch.manual_seed(0)
    contiguous = torch.nn.Parameter(torch.randn(3, 4, 5, 2, 2))
    strided = torch.nn.Parameter(contiguous.detach().permute(ORDER).contiguous().permute(BACK))
    assert not strided.is_contiguous()
    ours = getattr(optimizers, name)([strided], lr=0.1, fused=True, **options)
    theirs = getattr(torch.optim, name)([contiguous], lr=0.1, foreach=False, **options)
    return (strided, ours), (contiguous, theirs)


def _steps(pair, seed, count=3):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        gradient = torch.randn(3, 4, 5, 2, 2, generator=generator)
        for parameter, optimizer in pair:
            parameter.grad = torch.empty_like(parameter).copy_(gradient)
            optimizer.step()


@pytest.mark.parametrize("name", ["Adam", "AdamW"])
@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.1}])
def test_steps_are_those_of_torch(name, options):
    pair = _pair(name, **options)
    _steps(pair, seed=1)
    (strided, ours), (contiguous, _) = pair
    torch.testing.assert_close(strided, contiguous)
    assert ours.state[strided]["exp_avg"].shape == strided.shape
    assert len(ours.state) == 1


@pytest.mark.parametrize("name", ["Adam", "AdamW"])
def test_gradient_that_lies_otherwise_in_memory_is_taken_element_by_element(name):
    (strided, ours), (contiguous, theirs) = _pair(name)
    gradient = torch.randn(3, 4, 5, 2, 2)
    strided.grad, contiguous.grad = gradient, gradient.clone()
    ours.step()
    theirs.step()
    torch.testing.assert_close(strided, contiguous)


@pytest.mark.parametrize("name", ["Adam", "AdamW"])
def test_state_of_a_contiguous_parameter_goes_on_with_one_that_is_not(name):
    pair = _pair(name)
    _steps(pair, seed=1)
    (strided, ours), (contiguous, theirs) = pair
    ours.load_state_dict(copy.deepcopy(theirs.state_dict() | {"param_groups": ours.state_dict()["param_groups"]}))
    _steps(pair, seed=2)
    torch.testing.assert_close(strided, contiguous)


def test_the_kernel_gets_contiguous_tensors(monkeypatch):
    seen = []
    fused = torch._fused_adam_

    def watch(*lists, **options):
        seen.extend(tensor.is_contiguous() for tensors in lists for tensor in tensors)
        return fused(*lists, **options)

    monkeypatch.setattr(torch, "_fused_adam_", watch)
    _steps(_pair("Adam")[:1], seed=1, count=1)
    assert seen
    assert all(seen)
