"""The rules that look at the present gradients alone."""

import math
from typing import Final, get_args

import torch

from fnostab.clipping.agc import AGC_EPS, Granularity, clip_adaptively_
from fnostab.clipping.norm import clip_norm_
from fnostab.clipping.stats import ClipStats, check_choice
from fnostab.clipping.value import clip_value_
from fnostab.gradients import ParameterSource, gradient_of, parameters_with_gradient, total_norm

#: What `clip_gradients_` takes for its `algorithm`.
STATELESS: Final = ("none", "norm", "value", "agc")


@torch.no_grad()
def clip_gradients_(
    parameters_or_module: ParameterSource,
    algorithm: str,
    value: float,
    granularity: str = "unit",
) -> ClipStats:
    """Clip all gradients in place by one of the rules `none`, `norm`, `value` or `agc`; `Clipper` has the others.

    - `norm`: scale all by `min(1, value / (total norm + 1e-6))`, bit for bit what `torch.nn.utils.clip_grad_norm_`
      does; its 1e-6 is kept, so that results compare with those of other programs.
    - `value`: clamp every element, of complex gradients real and imaginary part each, to `[-value, value]`.
    - `agc`: `adaptive_gradient_clip_` with `clip_factor=value`; only this rule uses `granularity`.

    A `value` <= 0 means `none`, which only measures. Parameters without a gradient are skipped; where none has one,
    the statistics are zeros. Raises `ValueError`, before anything is changed, for an unknown `algorithm` or
    `granularity` and for a NaN `value`.
    """
    check_choice("algorithm", algorithm, STATELESS)
    check_choice("granularity", granularity, get_args(Granularity))
    if math.isnan(value):
        raise ValueError(f"`value` (={value}) must be a number")
    if algorithm == "agc" and value > 0:
        return clip_adaptively_(parameters_or_module, value, AGC_EPS, granularity)

    parameters = parameters_with_gradient(parameters_or_module)
    norm = total_norm(parameters)
    gradients = [gradient_of(parameter) for parameter in parameters]
    if algorithm == "norm" and value > 0:
        return clip_norm_(gradients, value, norm)
    if algorithm == "value" and value > 0:
        return clip_value_(gradients, value, norm)
    return ClipStats(norm, norm, torch.zeros_like(norm))
