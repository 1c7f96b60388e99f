"""The processes of one run: starting and ending those on this machine, and what all of them must agree on."""

import json
import math
import os
import subprocess
import sys
import threading
import time
from types import TracebackType
from typing import Any, Final, NamedTuple

import torch
from torch import distributed

from fnostab.config import ArmConfig

#: Exit code of a follower whose memory does not suffice.
OUT_OF_MEMORY_EXIT: Final = 3
_READY: Final = "ready\n"
#: What followers have for their own end when the training failed or was stopped.
_DYING_S: Final = 5.0
#: What followers have for their own end when the training is over.
_LEAVING_S: Final = 60.0


class Assignment(NamedTuple):
    """What the first process of a run on one machine hands to a follower that it starts."""

    rank: int
    port: int
    config: ArmConfig


class Followers:
    """The further processes of a run on this machine, one for each device but the first; a context manager.

    Each is a `fnostab.training.follow`. It gets its assignment through a pipe and ends when that pipe closes: however
    this process ends, none stays behind. (Lightning would run the command line of this process once more for each
    device; where that is a whole study's, or not ours, that is no way to train one run.) If the training fails because
    a follower failed, the context's error says so: `torch.OutOfMemoryError` or `RuntimeError`.
    """

    def __init__(self, config: ArmConfig, port: int) -> None:
        self._assignments = [Assignment(rank, port, config) for rank in range(1, config.train.devices)]
        self._processes: list[subprocess.Popen[str]] = []

    def __enter__(self) -> "Followers":
        command = [sys.executable, "-m", "fnostab.training.follow"]
        for rank, port, config in self._assignments:
            # In a session of its own, Ctrl-C does not reach it: the first process decides when all stop.
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
            )
            self._processes.append(process)
            assert process.stdin is not None
            process.stdin.write(json.dumps([rank, port, config.model_dump(mode="json")]) + "\n")
            process.stdin.flush()
        return self

    def wait_until_ready(self) -> None:
        """Wait until all of them are about to meet this process; raises `RuntimeError` if one ends before."""
        for process in self._processes:
            assert process.stdout is not None
            if process.stdout.readline() != _READY:
                raise RuntimeError("a further process of the run did not start")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._wait_for(_DYING_S if error else _LEAVING_S)
            codes = [process.poll() for process in self._processes]
        finally:
            for process in self._processes:
                process.kill()
                process.communicate()
        # A process that lost its partner gets a RuntimeError; any other error is this one's own.
        for (rank, *_), code in zip(self._assignments, codes, strict=True):
            if isinstance(error, RuntimeError) and code == OUT_OF_MEMORY_EXIT:
                raise torch.OutOfMemoryError(f"process {rank} of the run: out of memory") from error
            if isinstance(error, RuntimeError) and code:
                raise RuntimeError(f"process {rank} of the run ended with exit code {code}") from error

    def _wait_for(self, seconds: float) -> None:
        """Wait until all have ended, or one has failed."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            codes = [process.poll() for process in self._processes]
            if any(codes) or None not in codes:
                return
            time.sleep(0.01)


def receive_assignment() -> Assignment:
    """Read what the first process wants of this one, and from now on end when that process does."""
    rank, port, config = json.loads(sys.stdin.readline())

    def end_with_the_first() -> None:
        os.read(sys.stdin.fileno(), 1)
        os._exit(1)

    threading.Thread(target=end_with_the_first, daemon=True).start()
    return Assignment(rank, port, ArmConfig.model_validate(config))


def say_ready() -> None:
    """Tell the first process that this one is about to meet it; whatever is printed later is lost."""
    sys.stdout.write(_READY)
    sys.stdout.flush()
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())


def is_distributed() -> bool:
    """Whether this process trains together with others."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def broadcast(value: int, device: torch.device) -> int:
    """The first process's `value`, which may be a bool; all processes of a run must ask at the same place.

    `device` is the one that this process trains on; costs nothing where there is one process.
    """
    if not is_distributed():
        return value
    said = torch.tensor(value, dtype=torch.int64, device=device)
    distributed.broadcast(said, src=0)
    return int(said)


def all_gather(mine: torch.Tensor, size: int) -> torch.Tensor:
    """The `size` rows of which `mine` (n, ...) are every `world_size`-th from this process's rank on, in their order.

    Differentiable: a row's gradient is the sum over all processes. Rows of `mine` beyond `size` are left out.
    """
    n_rows = math.ceil(size / distributed.get_world_size())
    padded = torch.cat([mine, mine.new_zeros(n_rows - len(mine), *mine.shape[1:])])
    gathered: torch.Tensor = _Gather.apply(padded)  # type: ignore[no-untyped-call]
    return gathered.transpose(0, 1).flatten(0, 1)[:size]


class _Gather(torch.autograd.Function):
    """Stack every process's tensor of one shape. (torch 2.13 has such a function only where it is deprecated.)"""

    @staticmethod
    def forward(ctx: Any, mine: torch.Tensor) -> torch.Tensor:
        """All tensors, by rank along a new first axis."""
        parts = [torch.empty_like(mine) for _ in range(distributed.get_world_size())]
        distributed.all_gather(parts, mine)
        return torch.stack(parts)

    @staticmethod
    def backward(ctx: Any, gradients: torch.Tensor) -> torch.Tensor:
        """What all processes' results owe to this one's tensor."""
        total = gradients.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total)
        return total[distributed.get_rank()]
