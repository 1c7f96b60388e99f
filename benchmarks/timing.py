"""Timing by turns, and what the times are worth."""

import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from typing import NamedTuple, TypeVar

import torch

Key = TypeVar("Key", bound=Hashable)


class Spread(NamedTuple):
    """Median and quartiles."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{_short(self.median)} ({_short(self.low)}-{_short(self.high)})"


def spread(values: list[float]) -> Spread:
    """Median and quartiles of at least two values."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(median, low, high)


def ratio(above: list[float], below: list[float]) -> Spread:
    """The ratio of two things timed by turns: of each turn, so that a slow spell of the machine meets both alike."""
    return spread([a / b for a, b in zip(above, below, strict=True)])


def by_turns(
    functions: Mapping[str, Callable[[], object]], repeats: int, device: torch.device | str = "cpu", warm_up: int = 2
) -> dict[str, list[float]]:
    """Seconds of each call of each function, one after the other, `repeats` times; the queue is drained around it."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(warm_up + repeats):
        for name, function in functions.items():
            seconds = timed(function, torch.device(device))
            if turn >= warm_up:
                times[name].append(seconds)
    return times


def in_alternating_order(measures: Mapping[Key, Callable[[], float]], turns: int) -> dict[Key, list[float]]:
    """What each of the `measures` gives, one after the other, `turns` times; every second turn goes the other way."""
    found: dict[Key, list[float]] = {key: [] for key in measures}
    for turn in range(turns):
        for key in list(measures)[:: -1 if turn % 2 else 1]:
            found[key].append(measures[key]())
    return found


def timed(function: Callable[[], object], device: torch.device) -> float:
    """Seconds that `function` takes, the device's queue drained before and after."""
    _drain(device)
    start = time.perf_counter()
    function()
    _drain(device)
    return time.perf_counter() - start


def _drain(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _short(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"
