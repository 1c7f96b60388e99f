"""What stays in single precision where the rest of a network is computed in bfloat16 under autocast.

Autocast takes convolutions and matrix products in bfloat16, whose sums the kernels keep in single precision. Left out
of it here are the transforms of the spectral layers, the norms, and the sums along the residual path: bfloat16 has 8
bits, so that an update of less than 1/256 of what it is added to would be lost. Where autocast is off nothing here does
anything, so that exported models hold no trace of it.
"""

import contextlib

import torch
from torch import Tensor

#: Types that autocast computes in.
_LOW = (torch.bfloat16, torch.float16)


def mixed_precision(device_type: str) -> torch.autocast:
    """Compute in bfloat16 what autocast takes in it, on devices of that type, inside the context."""
    # A weight is used once a step, so there is nothing to remember; and CUDA graphs must not find casts of before.
    return torch.autocast(device_type, torch.bfloat16, cache_enabled=False)


def single_precision(x: Tensor) -> contextlib.AbstractContextManager[object]:
    """Switch autocast off for the device of `x` inside the context."""
    if torch.is_autocast_enabled(x.device.type):
        return torch.autocast(x.device.type, enabled=False)
    return contextlib.nullcontext()


def as_single(x: Tensor) -> Tensor:
    """`x` in float32 if autocast made it one of 16 bits; else `x` itself."""
    return x.float() if x.dtype in _LOW and torch.is_autocast_enabled(x.device.type) else x
