"""A network whose kernels a GPU is given all at once: CUDA graphs, captured once and replayed at every step."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Replay:
    """Call `network` in training, forwards and backwards, by replaying its CUDA graphs for batches of `size`.

    A step of a small network is some hundreds of kernels of a few microseconds each, and takes as long as Python needs
    to launch them, several times as long as they run. The graphs are captured at the first call on a GPU. Batches of
    other sizes, other devices and calls without gradients take the ordinary way, as everything does inside `paused`,
    which hooks on layers need, and if not `enabled`. The kernels are the same. Parameters must stay where they lie in
    memory.
    """

    def __init__(self, network: nn.Module, size: int, *, enabled: bool = True) -> None:
        self._network = network
        self._size = size
        self._replayed: nn.Module | None = None
        self._paused = not enabled

    def __call__(self, x: Tensor) -> Tensor:
        """What `network` makes of `x`, whose first axis is the batch."""
        replays = x.is_cuda and len(x) == self._size and torch.is_grad_enabled() and self._network.training
        if replays and not self._paused:
            if self._replayed is None:
                # Through a module of its own: the graphs take its `forward` over, and the network keeps its own.
                self._replayed = _Holder(self._network)
                _accept_gradients_from_another_stream()
                torch.cuda.make_graphed_callables(self._replayed, (torch.zeros_like(x),))
            output: Tensor = self._replayed(x)
        else:
            output = self._network(x)
        return output

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Let every layer really be called meanwhile."""
        was, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = was


def _accept_gradients_from_another_stream() -> None:
    """Keep torch from warning that gradients are added up on the stream of the capture: it waits where it must."""
    set_warning = getattr(torch.autograd.graph, "set_warn_on_accumulate_grad_stream_mismatch", None)  # torch 2.10
    if set_warning is not None:
        set_warning(False)


class _Holder(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.network(x)
        return output
