"""What a network does in a few steps on random data: what learns in it, what its result depends on, how fast it is."""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor, nn

from fnostab.models.checks import trial_amplitudes

#: Steps after which whatever learns has got a gradient: a block that starts as the identity opens in the first ones.
STEPS: Final = 3
#: Timed steps, after one that is not.
_TIMED_STEPS: Final = 3
#: Patterns, or groups, in the steps that are not timed.
_BATCH: Final = 4

#: Makes a network with the weights that the seed gives.
Build = Callable[[], nn.Module]


class Trial:
    """A network in training on random amplitudes, towards random patches; on the CPU, from one seed.

    `unmoved` are the parameters that learn by name and have had no gradient so far, or one of zeros alone.
    """

    def __init__(self, build: Build, N: int, C: int, *, lr: float = 1e-3, batch: int = _BATCH, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.network = build().train()
        self.amplitudes = trial_amplitudes(batch, C, N)
        self.output_shape: tuple[int, ...] = ()
        self._target = torch.rand((batch, N, N, C, 2), generator=torch.Generator().manual_seed(seed))
        self.unmoved = {name for name, parameter in self.network.named_parameters() if parameter.requires_grad}
        self._optimizer = torch.optim.Adam(self.network.parameters(), lr=lr)

    def step(self) -> None:
        """Take a step of Adam on the mean squared distance."""
        self._optimizer.zero_grad()
        output = self.network(self.amplitudes)
        self.output_shape = tuple(output.shape)
        (output - self._target).square().mean().backward()
        for name, parameter in self.network.named_parameters():
            if parameter.grad is not None and parameter.grad.count_nonzero():
                self.unmoved.discard(name)
        self._optimizer.step()


def repeats(build: Build, N: int, C: int) -> bool:
    """Whether `STEPS` steps give the same weights, bit for bit, when they are repeated from the same seed."""
    states = []
    for _ in range(2):
        trial = Trial(build, N, C)
        for _ in range(STEPS):
            trial.step()
        states.append(trial.network.state_dict())
    first, second = states
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def step_time_s(trial: Trial) -> float:
    """Seconds of a step of `trial`: forwards, backwards and Adam; the median of a few."""
    trial.step()
    times = []
    for _ in range(_TIMED_STEPS):
        started_at = time.perf_counter()
        trial.step()
        times.append(time.perf_counter() - started_at)
    return statistics.median(times)


@torch.no_grad()
def inert_layers(network: nn.Module, amplitudes: Tensor) -> list[str]:
    """Name the layers with parameters that run, and whose output the result does not depend on at all.

    The output of each is replaced by random numbers of its size; where the result stays the same bit for bit, whatever
    the layer learns is lost. Of layers inside each other the outermost is named.
    """
    network.eval()
    whole = network(amplitudes)
    inert: list[str] = []
    for name, layer in network.named_modules():
        if (
            not name
            or not any(True for _ in layer.parameters())
            or name.startswith(tuple(f"{each}." for each in inert))
        ):
            continue
        with _disturbed(layer) as ran:
            disturbed = network(amplitudes)
        if ran and torch.equal(whole, disturbed):
            inert.append(name)
    return inert


@contextmanager
def _disturbed(layer: nn.Module) -> Iterator[list[bool]]:
    """Replace the tensors that `layer` gives by random ones inside the block; the list fills as it runs."""
    ran: list[bool] = []

    def replace(value: Any) -> Any:
        if isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex()):
            ran.append(True)
            return torch.randn_like(value) * (1 + value.abs().max())
        if isinstance(value, tuple | list):
            return type(value)(replace(item) for item in value)
        return value

    handle = layer.register_forward_hook(lambda module, inputs, output: replace(output))
    try:
        yield ran
    finally:
        handle.remove()
