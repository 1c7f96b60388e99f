"""Series of a study written to the run that stands for it: each point once, by whomever and however often."""

import math
from collections.abc import Iterator, Sequence
from typing import Final

import mlflow
from mlflow.entities import Metric

from fnostab.study.arm_series import Point, Series
from fnostab.tracking.batches import log_batches
from fnostab.tracking.errors import HOW_TO_REPEAT, translated_store_errors

#: A series of which so many versions are there is not written anew once more.
_MOST_VERSIONS: Final = 100


class ArmSeriesWriter:
    """Writes series to the run `run_id`, and of each only the points that the run does not have.

    A store cannot change a number. Where the last point of a series is another than the stored one, because a run was
    trained anew, say, all of it is written as a second version: `failure_rate.2/control`.
    """

    def __init__(self, run_id: str) -> None:
        self._run_id = run_id
        #: Values by step that the run has, by the name of their metric; None for those that were not read yet.
        self._stored: dict[str, dict[int, float] | None] | None = None

    @translated_store_errors(HOW_TO_REPEAT)
    def write(self, series: Series) -> None:
        """Write what is missing; raises `StoreUnavailable`."""
        client = mlflow.MlflowClient()
        if self._stored is None:
            self._stored = dict.fromkeys(client.get_run(self._run_id).data.metrics)
        metrics = [
            metric for name, points in series.items() if points for metric in self._missing(client, name, points)
        ]
        log_batches(client, self._run_id, metrics=metrics)
        for metric in metrics:
            self._values(client, metric.key)[metric.step] = metric.value

    def _missing(self, client: mlflow.MlflowClient, name: str, points: Sequence[Point]) -> Iterator[Metric]:
        """The points that are to be written, under the name of their version."""
        last = points[-1]
        for version in range(1, _MOST_VERSIONS + 1):
            key = name if version == 1 else name.replace("/", f".{version}/", 1)
            there = self._values(client, key)
            newest = max(there, default=-1)
            if newest < last.step or (newest == last.step and math.isclose(there[newest], last.value)):
                for step, value, time_ms in points:
                    if step > newest:
                        yield Metric(key, value, time_ms, step)
                return

    def _values(self, client: mlflow.MlflowClient, key: str) -> dict[int, float]:
        """Values by step that the run has under `key`."""
        assert self._stored is not None
        known = self._stored.get(key, {})
        if known is None:
            known = {metric.step: metric.value for metric in client.get_metric_history(self._run_id, key)}
        self._stored[key] = known
        return known
