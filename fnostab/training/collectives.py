"""What the processes of one run tell each other while they train."""

import math
import time
from typing import Any

import torch
from torch import distributed

#: Time between two questions of an `OccasionalBroadcast`, and the most steps that it lets pass meanwhile.
_ASK_EVERY_S = 0.5
_ASK_EVERY_STEPS = 100


def is_distributed() -> bool:
    """Whether this process trains together with others."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def broadcast(values: list[int], device: torch.device) -> list[int]:
    """The first process's `values`; waits for the `device` that this process trains on, unless there is one process."""
    if not is_distributed():
        return values
    shared = torch.tensor(values, dtype=torch.int64, device=device)
    distributed.broadcast(shared, src=0)
    found: list[int] = shared.tolist()
    return found


def sum_over_processes(value: torch.Tensor) -> torch.Tensor:
    """The sum of the tensors of all processes; `value` itself where there is one process."""
    if not is_distributed():
        return value
    total = value.clone()
    distributed.all_reduce(total)
    return total


def mean_over_processes(value: torch.Tensor) -> torch.Tensor:
    """The mean of the tensors of all processes; `value` itself where there is one process."""
    return sum_over_processes(value) / distributed.get_world_size() if is_distributed() else value


def is_first() -> bool:
    """Whether this process is the first of those that train together, or trains alone."""
    return not is_distributed() or distributed.get_rank() == 0


class OccasionalBroadcast:
    """Tells all processes the first one's number after the same step, and seldom enough that training need not wait.

    A broadcast waits for the device, so there is one about every half second. At each, the first process also says how
    many steps pass until the next one, so that all agree on it.
    """

    def __init__(self) -> None:
        self._steps_left = 1
        self._steps = 0
        self._asked_at = time.monotonic()

    def after_step(self, value: int, device: torch.device) -> int:
        """The first process's `value`, or 0 where it is not asked after this step; a lone process hears its own."""
        if not is_distributed():
            return value
        self._steps_left -= 1
        if self._steps_left:
            return 0
        now = time.monotonic()
        rate = self._steps / max(now - self._asked_at, 1e-6)
        pause = min(max(1, int(rate * _ASK_EVERY_S)), _ASK_EVERY_STEPS)
        value, pause = broadcast([value, pause], device)
        self._steps = self._steps_left = pause
        self._asked_at = now
        return value


def all_gather(mine: torch.Tensor, size: int, group: int = 1) -> torch.Tensor:
    """The `size` rows of which `mine` (n, ...) are every `world_size`-th from this process's rank on, in their order.

    Rows go in groups of `group`. Differentiable: a row's gradient is the sum over all processes. Rows of `mine` beyond
    `size` are left out.
    """
    mine = mine.reshape(-1, group, *mine.shape[1:])
    n_groups = math.ceil(size / (group * distributed.get_world_size()))
    padded = torch.cat([mine, mine.new_zeros(n_groups - len(mine), *mine.shape[1:])])
    gathered: torch.Tensor = _Gather.apply(padded)  # type: ignore[no-untyped-call]
    return gathered.transpose(0, 1).flatten(0, 2)[:size]


def all_gather_complex(mine: torch.Tensor, size: int, group: int = 1) -> torch.Tensor:
    """`all_gather` of complex numbers, which not every backend takes; `mine` itself where there is one process."""
    if not is_distributed():
        return mine
    return torch.view_as_complex(all_gather(torch.view_as_real(mine), size, group))


class _Gather(torch.autograd.Function):
    """Stack every process's tensor of one shape; torch 2.13 deprecates its own, which Lightning's calls."""

    @staticmethod
    def forward(ctx: Any, mine: torch.Tensor) -> torch.Tensor:
        parts = [torch.empty_like(mine) for _ in range(distributed.get_world_size())]
        distributed.all_gather(parts, mine)
        return torch.stack(parts)

    @staticmethod
    def backward(ctx: Any, gradients: torch.Tensor) -> torch.Tensor:
        total = gradients.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total)
        return total[distributed.get_rank()]
