"""PyTorch's fused optimizers, for parameters whose axes do not lie in memory in their order."""

from typing import Any

import torch
from torch import Tensor

from fnostab.gradients import memory_order


class _InMemoryOrder(torch.optim.Optimizer):
    """Mixed in before an optimizer: its kernel sees each parameter, its gradient and its state with axes as in memory.

    The numbers are the same. But of tensors that are not contiguous the fused kernels for CPUs copy the gradient first
    (torch 2.13), which takes longer than the step, and they take it for granted that gradient and state lie in memory
    as the parameter does: so `load_state_dict` lays out those of a checkpoint anew.
    """

    def _init_group(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor], *states: Any) -> Any:
        # Where the lists for the kernel are made. A torch that made them elsewhere would go the slower way.
        found = super()._init_group(group, params, grads, *states)  # type: ignore[misc]
        orders = [memory_order(parameter) for parameter in params]
        grads[:] = [tensor.permute(order).contiguous() for tensor, order in zip(grads, orders, strict=True)]
        for tensors in (params, *states):
            tensors[:] = [
                tensor.permute(order) if tensor.ndim == len(order) else tensor  # the number of steps is a scalar
                for tensor, order in zip(tensors, orders, strict=bool(tensors))
            ]
        return found

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` gave; see `torch.optim.Optimizer.load_state_dict`."""
        super().load_state_dict(state_dict)
        for parameter, state in self.state.items():
            for name, value in state.items():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    state[name] = torch.empty_like(parameter).copy_(value)


class Adam(_InMemoryOrder, torch.optim.Adam):
    """`torch.optim.Adam`."""


class AdamW(_InMemoryOrder, torch.optim.AdamW):
    """`torch.optim.AdamW`."""
