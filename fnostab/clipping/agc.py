"""Adaptive gradient clipping (AGC), unit by unit: Brock et al. 2021, https://arxiv.org/abs/2102.06171."""

import math
from typing import Final, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fnostab.clipping.stats import ClipStats, check_choice
from fnostab.gradients import ParameterSource, as_real, gradient_of, parameters_with_gradient, tensor_norms

Granularity = Literal["unit", "tensor"]

#: Layers of torch whose weights count output channels on axis 1.
_TRANSPOSED: Final = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)

#: Norms of tensors with fewer elements are taken in one call.
_SMALL: Final = 2**17

#: The floor under `||W||`, so that weights which start at zero can leave it (Brock et al. 2021).
AGC_EPS: Final = 1e-3


@torch.no_grad()
def adaptive_gradient_clip_(
    module_or_parameters: ParameterSource,
    clip_factor: float = 0.01,
    eps: float = AGC_EPS,
    granularity: str = "unit",
) -> Float[Tensor, ""]:
    """Clip each unit's gradient G in place to the norm of its weights W: Brock et al. 2021, Algorithm 2.

    Where `||G|| > clip_factor * max(||W||, eps)`, G is scaled down to that limit; other gradients stay bit for bit what
    they were. A unit is an output unit: an index on the axis that the layer names as its `unit_axis` (spectral weights
    have one), on axis 1 of transposed convolutions' weights (with groups, taken over all of them), on axis 0 of any
    other parameter with two axes or more. Vectors and scalars are one unit, as is every parameter with
    `granularity="tensor"`. Of bare tensors the layer is unknown, so their axis is 0.

    Returns the fraction of units that were clipped, a 0-d tensor. Raises `ValueError` for an unknown `granularity` or
    a `clip_factor` or `eps` that is not positive. Source: https://arxiv.org/abs/2102.06171, section 4.1.
    """
    check_choice("granularity", granularity, get_args(Granularity))
    for name, value in (("clip_factor", clip_factor), ("eps", eps)):
        if not value > 0:
            raise ValueError(f"`{name}` (={value}) must be > 0")
    return clip_adaptively_(module_or_parameters, clip_factor, eps, granularity).clipped_fraction


def clip_adaptively_(source: ParameterSource, clip_factor: float, eps: float, granularity: str) -> ClipStats:
    """`adaptive_gradient_clip_` of checked arguments, with the norms before and after."""
    axes_by_id = _unit_axes(source) if isinstance(source, nn.Module) else {}
    parameters = parameters_with_gradient(source)
    if not parameters:
        return ClipStats(torch.zeros(()), torch.zeros(()), torch.zeros(()))
    whole = [granularity == "tensor" or parameter.ndim < 2 for parameter in parameters]
    axes = [None if one else axes_by_id.get(id(p), 0) for p, one in zip(parameters, whole, strict=True)]
    gradients = [gradient_of(parameter) for parameter in parameters]

    gradient_parts = _unit_norms(gradients, axes)
    device = gradients[0].device
    gradient_norms = torch.cat([part.to(device) for part in gradient_parts])
    weight_parts = _unit_norms([as_real(parameter) for parameter in parameters], axes)
    weight_norms = torch.cat([part.to(device) for part in weight_parts])

    limits = clip_factor * weight_norms.clamp(min=eps)
    clipped = (gradient_norms > limits) & gradient_norms.isfinite()
    # Not torch.where(..., 1.0), which would copy its scalar to the device and wait for that.
    scales = (limits / gradient_norms).masked_fill(~clipped, 1.0)
    parts = torch.split(scales, [part.numel() for part in gradient_parts])
    # x * 1.0 is x bit for bit for every real x: a mask would cost a second pass over the gradients.
    units = [_by_unit(gradient, axis) for gradient, axis in zip(gradients, axes, strict=True)]
    torch._foreach_mul_(units, [_spread(part.to(unit.device), unit) for part, unit in zip(parts, units, strict=True)])
    return ClipStats(
        torch.linalg.vector_norm(gradient_norms),
        torch.linalg.vector_norm(gradient_norms * scales),
        clipped.to(scales.dtype).sum() / max(1, clipped.numel()),
    )


def _unit_axes(module: nn.Module) -> dict[int, int]:
    """The output axis, by the parameter's id, of the parameters of all layers that name one; the others' is 0."""
    axes: dict[int, int] = {}
    for layer in module.modules():
        axis = 1 if isinstance(layer, _TRANSPOSED) else getattr(layer, "unit_axis", None)
        if axis is not None:
            axes |= {id(parameter): axis for parameter in layer.parameters() if parameter.ndim > axis}
    return axes


def _unit_norms(tensors: list[Tensor], axes: list[int | None]) -> list[Tensor]:
    """Per tensor a vector of the norms along `axis`, or of the one norm of the whole where the axis is None."""
    whole = iter(tensor_norms([tensor for tensor, axis in zip(tensors, axes, strict=True) if axis is None]))
    return [
        next(whole).reshape(1) if axis is None else _norms_along(tensor, axis)
        for tensor, axis in zip(tensors, axes, strict=True)
    ]


def _by_unit(tensor: Tensor, axis: int | None) -> Tensor:
    """A view of `tensor` with the units on axis 1; of three axes, if it is contiguous.

    (Reductions and products over axes that are neither neighbours nor in order take ten times as long.)
    """
    if axis is None:
        return tensor.unsqueeze(0).unsqueeze(0)
    if not tensor.is_contiguous():
        return tensor.movedim(axis, 0).unsqueeze(0)
    return tensor.view(math.prod(tensor.shape[:axis]), tensor.shape[axis], -1)


def _norms_along(tensor: Tensor, axis: int) -> Tensor:
    units = _by_unit(tensor, axis).to(torch.promote_types(tensor.dtype, torch.float32))
    if len(units) > 1 and units.is_cpu and units.numel() > _SMALL:
        # On CPUs (torch 2.13) the norm over a first axis is slow; adding up squares is as fast as reading.
        first, *others = units.view(math.gcd(len(units), 16), -1, *units.shape[1:])
        squares = first.square()
        for other in others:
            squares.addcmul_(other, other)
        units = squares.sum(0, keepdim=True).sqrt()
    norms: Tensor = torch.linalg.vector_norm(units, dim=[place for place in range(units.ndim) if place != 1])
    return norms


def _spread(scales: Tensor, units: Tensor) -> Tensor:
    """`scales`, one a unit, shaped to broadcast against `_by_unit`; written out where that makes rows longer."""
    scales = scales.view([-1 if axis == 1 else 1 for axis in range(units.ndim)])
    return scales.expand(1, *units.shape[1:]).contiguous() if len(units) > 1 else scales
