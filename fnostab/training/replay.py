"""CUDA graphs of a network: captured once, and replayed at every step with one launch."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Replay:
    """Call `network` in training, forwards and backwards, by replaying its CUDA graphs for batches of `size`.

    A step of a small network is some hundreds of kernels of a few microseconds each; Python takes several times as long
    to launch them as they take to run. The graphs are captured at the first call on a GPU, and run the same kernels.
    The network itself is called for batches of other sizes, on other devices, without gradients, inside `paused`
    (hooks on layers need that), and if not `enabled`. Parameters must keep their place in memory.
    """

    def __init__(self, network: nn.Module, size: int, *, enabled: bool = True) -> None:
        self._network = network
        self._size = size
        self._replayed: nn.Module | None = None
        self._paused = not enabled

    def __call__(self, x: Tensor) -> Tensor:
        """The output of `network` for `x`, whose first axis is the batch."""
        replays = x.is_cuda and len(x) == self._size and torch.is_grad_enabled() and self._network.training
        if replays and not self._paused:
            if self._replayed is None:
                # Through a module of its own: the graphs take its `forward` over, and the network keeps its own.
                self._replayed = nn.Sequential(self._network)
                _accept_gradients_from_another_stream()
                torch.cuda.make_graphed_callables(self._replayed, (torch.zeros_like(x),))
            output: Tensor = self._replayed(x)
        else:
            output = self._network(x)
        return output

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Inside this context every layer is called, as hooks need it."""
        was, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = was


def _accept_gradients_from_another_stream() -> None:
    """Silence torch's warning that gradients are accumulated on the capture's stream: it synchronises where it must."""
    set_warning = getattr(torch.autograd.graph, "set_warn_on_accumulate_grad_stream_mismatch", None)  # torch 2.10
    if set_warning is not None:
        set_warning(False)
