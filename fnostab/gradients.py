"""Norms of gradients: of everything together and of each parameter, always left on the device.

Nothing here waits for the device, so that norms can be taken at every optimiser step; the caller decides when to copy
them to the host. Norms are 2-norms, over real and imaginary parts alike for complex parameters.
They are `inf` or NaN where a gradient holds one, and `inf` where squares overflow.
"""

from collections.abc import Iterable, Sequence
from functools import reduce
from typing import TypeAlias

import torch
from jaxtyping import Float, Inexact
from torch import Tensor, nn

#: The owner of the gradients: a module with its parameters, or bare tensors.
ParameterSource: TypeAlias = nn.Module | Tensor | Iterable[Tensor]


@torch.no_grad()
def total_norm(parameters_or_module: ParameterSource) -> Float[Tensor, ""]:
    """The 2-norm of all gradients, as if they were one vector.

    Parameters without a gradient are skipped. Returns a 0-d real tensor on the device of the first gradient, in at
    least single precision; zero on the CPU where there is no gradient, as `torch.nn.utils.get_total_norm` does.
    """
    gradients = [gradient_of(parameter) for parameter in parameters_with_gradient(parameters_or_module)]
    return norm_of_norms(tensor_norms(gradients))


@torch.no_grad()
def layer_norms(module: nn.Module) -> dict[str, Float[Tensor, ""]]:
    """The 2-norm of each parameter's gradient, by the parameter's qualified name.

    In the order of `module.named_parameters()`; parameters without a gradient are absent. The values are 0-d real
    tensors on the gradients' devices: stack them to fetch all with one copy.
    """
    named = {name: p for name, p in module.named_parameters() if p.grad is not None}
    _refuse_sparse(named.items())
    return dict(zip(named, tensor_norms([gradient_of(p) for p in named.values()]), strict=True))


def parameters_with_gradient(parameters_or_module: ParameterSource) -> list[Tensor]:
    """The parameters that have a gradient, in their given order; raises `ValueError` where one is sparse."""
    module = parameters_or_module
    if isinstance(parameters_or_module, nn.Module):
        parameters_or_module = parameters_or_module.parameters()
    elif isinstance(parameters_or_module, Tensor):
        parameters_or_module = [parameters_or_module]
    found = [parameter for parameter in parameters_or_module if parameter.grad is not None]
    if any(parameter.grad.layout is not torch.strided for parameter in found if parameter.grad is not None):
        named = module.named_parameters() if isinstance(module, nn.Module) else enumerate(found)
        _refuse_sparse((str(name), parameter) for name, parameter in named)
    return found


def _refuse_sparse(named: Iterable[tuple[str, Tensor]]) -> None:
    for name, parameter in named:
        if parameter.grad is not None and parameter.grad.layout is not torch.strided:
            raise ValueError(
                f"`{name}` (={parameter.grad.layout}) must have a dense gradient, of which norms are taken"
            )


def gradient_of(parameter: Inexact[Tensor, "..."]) -> Float[Tensor, "..."]:
    """The real view of a parameter's gradient, which must exist."""
    assert parameter.grad is not None
    return as_real(parameter.grad)


def as_real(tensor: Inexact[Tensor, "..."]) -> Float[Tensor, "..."]:
    """A real view of `tensor`: itself, or for complex ones real and imaginary parts along a last axis of length 2.

    Autograd may leave a lazily conjugated gradient (the conjugate bit), which has no real view. The conjugate of that
    is the plain tensor in the same memory; its parts differ by a sign alone, which neither norms nor scaling see.
    """
    if not tensor.is_complex():
        return tensor
    return torch.view_as_real(tensor.conj() if tensor.is_conj() else tensor)


def tensor_norms(tensors: Sequence[Float[Tensor, "..."]]) -> list[Float[Tensor, ""]]:
    """The 2-norm of each real tensor, 0-d, in the widest of their precisions and at least single precision."""
    if not tensors:
        return []
    dtype = reduce(torch.promote_types, (tensor.dtype for tensor in tensors), torch.float32)
    return list(torch._foreach_norm(list(tensors), 2.0, dtype=dtype))


def norm_of_norms(norms: Sequence[Float[Tensor, ""]]) -> Float[Tensor, ""]:
    """The norm of a whole from the norms of its parts (0-d), on the first one's device."""
    if not norms:
        return torch.zeros(())
    total: Tensor = torch.linalg.vector_norm(torch.stack([norm.to(norms[0].device) for norm in norms]))
    return total
