"""Numbers next to zero, which make a processor many times slower, count as zero while a network trains.

The derivative of GELU far below zero is such a number: x exp(-x^2 / 2) is under the smallest normal number of float32,
1.2e-38, from x = -13.4 on. A network that has trained for some hundred steps gives convolutions many of them.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def denormals_are_zero() -> Iterator[None]:
    """Inside the block, take numbers smaller than normal ones as zero: on this thread of the CPU, and those it starts.

    torch's own threads begin with its first large operation, and keep what held then.
    """
    before = _are_zero()
    torch.set_flush_denormal(True)  # False where the processor cannot, which is then as slow as it was
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


def _are_zero() -> bool:
    smallest = torch.finfo(torch.float32).smallest_normal
    return bool(torch.tensor(smallest) * 0.5 == 0)
