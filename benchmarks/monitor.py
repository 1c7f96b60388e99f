"""What the monitor costs: the training of a small FNO under it beside the same training without.

    python -m benchmarks --rows monitor

The network is neuraloperator's, on fields of 64 x 64: 16 channels, 4 layers, 12 modes, batches of 16, Adam. Blocks of
steps take turns, so that a drift of the machine meets both alike. On a machine with other work that comparison is noisy
all the same, so the time inside of the monitor is also summed up by a stopwatch: with what comes every 100 steps
(norms of single parameters, outputs of the blocks) and every 250 (the copy to the host), the end of an epoch and the
writing to a fresh sqlite store, but without the beginning and the end of the run.
"""

import contextlib
import logging
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from neuralop.models import FNO
from torch import nn

from benchmarks.observing import Stopwatch
from fnostab import monitor
from fnostab.monitor.engine import Engine


class Monitored(NamedTuple):
    """Seconds of each block of steps without and with the monitor, and the share inside of it."""

    off: list[float]
    on: list[float]
    inside: list[float]


def measure(blocks: int = 6, steps: int = 50, width: int = 16, size: int = 64, device: str = "cpu") -> Monitored:
    """Train `blocks` blocks of `steps` steps each way, by turns; an epoch is a block."""
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    x, y = (torch.randn(16, 1, size, size, device=device) for _ in range(2))
    off, on, inside = [], [], []
    watch = Stopwatch()
    with _fresh_store(), _timed(Engine, ("before_step", "end_epoch"), watch):
        bare, bare_optimizer = _network(width, device)
        model, optimizer = _network(width, device)
        settings: dict[str, Any] = {"study": "bench", "arm": "fno", "seed": 0, "blocks": ["fno_blocks.convs.*"]}
        with monitor.run(model, optimizer, **settings) as run:

            def one(step: Callable[[torch.Tensor], None], network: nn.Module, of: torch.optim.Optimizer) -> None:
                of.zero_grad()
                loss = (network(x) - y).square().mean()
                loss.backward()
                step(loss)

            def without() -> None:
                for _ in range(steps):
                    one(lambda loss: bare_optimizer.step(), bare, bare_optimizer)

            def with_monitor() -> None:
                for _ in range(steps):
                    one(run.step, model, optimizer)
                run.epoch(val_loss=1.0)

            for block in range(2 * blocks + 2):
                monitored = block % 4 in (1, 2)  # off, on, on, off: a steady drift favours neither
                before = watch.total_s
                seconds = _seconds(with_monitor if monitored else without, device)
                if block < 2:  # warm-up
                    continue
                (on if monitored else off).append(seconds)
                if monitored:
                    inside.append((watch.total_s - before) / seconds)
    return Monitored(off, on, inside)


def _network(width: int, device: str) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    network = FNO(n_modes=(12, 12), in_channels=1, out_channels=1, hidden_channels=width, n_layers=4).to(device)
    return network, torch.optim.Adam(network.parameters())


def _seconds(function: Callable[[], None], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


@contextmanager
def _fresh_store() -> Iterator[None]:
    """A working directory and a tracking store of its own."""
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name), mock.patch.dict(os.environ):
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{Path(name) / 'mlflow.db'}"
        yield


@contextmanager
def _timed(owner: type, names: tuple[str, ...], watch: Stopwatch) -> Iterator[None]:
    """Have `watch` add up the time inside of some methods."""
    with contextlib.ExitStack() as stack:
        for name in names:
            stack.enter_context(mock.patch.object(owner, name, watch.timed(getattr(owner, name))))
        yield
