"""The series of a run that is watched every few steps, for the history and for the store."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fnostab.health import History
from fnostab.training.series import MetricSink, now_ms


class WatchedSeries:
    """Fills `History.watched`, and offers a sink the same numbers as `watch/<name>` with their steps.

    `state_dict` holds the times and the reference of `object_std_ratio`; the values are in the history, which
    `RunSeries` keeps.
    """

    def __init__(self, history: History, sink: MetricSink) -> None:
        self.history = history
        self.sink = sink
        self._times_ms: list[int] = []
        self._best_std = 0.0
        self._offered = 0

    @property
    def _steps(self) -> list[float]:
        return self.history.watched.get("step", [])

    def add(self, step: int, found: Mapping[str, Tensor], truth_std: float | None) -> None:
        """Keep what was `found` (0-d tensors on one device) when `step` steps were done; waits for the device once.

        `object_std` becomes `object_std_ratio`: over `truth_std`, or over the largest so far if that is None.
        """
        values: dict[str, float] = dict(zip(found, torch.stack(list(found.values())).tolist(), strict=True))
        deviation = values.pop("object_std")
        self._best_std = max(self._best_std, deviation)
        reference = self._best_std if truth_std is None else truth_std
        ratio = deviation / reference if reference else math.nan
        self.history.add_watched({"step": step, "object_std_ratio": ratio, **values})
        self._times_ms.append(now_ms())

    def cut(self) -> None:
        """Forget what was watched from the end of the series of steps on; all of those must be in the history."""
        kept = sum(step < self.history.steps for step in self._steps)
        del self._times_ms[kept:]
        for series in self.history.watched.values():
            del series[kept:]

    def offer(self) -> None:
        """Offer the sink what it was not offered, if all steps before are in the history, and so known to be finite."""
        known = sum(step <= self.history.steps for step in self._steps)
        names = [name for name in self.history.watched if name != "step"]
        self.sink.log_series(
            (f"watch/{name}", value, int(self._steps[place]), self._times_ms[place])
            for place in range(self._offered, known)
            for name in names
            if not math.isnan(value := self.history.watched[name][place])
        )
        self._offered = max(self._offered, known)

    def flush(self) -> None:
        """Have the sink write what it kept."""
        self.sink.flush()

    def state_dict(self) -> dict[str, Any]:
        """The times and the reference; nothing of a run that is not watched."""
        return {"times_ms": list(self._times_ms), "best_std": self._best_std} if self._times_ms else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from the saved state; the history is restored by others."""
        self._times_ms = list(state["times_ms"])
        self._best_std = state["best_std"]
