"""How the arms of a study stand, as series that one run can hold: by epoch, and by the number of finished runs."""

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

from fnostab.study.curves import NO_CURVES, Curves, Floats

#: Quartiles of fewer runs say nothing that the runs themselves do not.
_LEAST_FOR_QUARTILES: Final = 3
#: Characters of an arm's name in the name of a metric; stores take 250 for the whole.
_LONGEST_NAME: Final = 80


class Point(NamedTuple):
    """A value of a series at a step, and the time in ms that it is of, the same whenever it is worked out."""

    step: int
    value: float
    time_ms: int


#: Points by the name of their metric, the steps in ascending order.
Series = Mapping[str, Sequence[Point]]


@dataclass(frozen=True)
class FinishedRun:
    """A run of a study that has a result. `best_val_loss` is infinite if it failed; `curves` are empty if unknown."""

    run_id: str
    arm: str
    failed: bool
    ended_ms: int
    best_val_loss: float
    curves: Curves = NO_CURVES


def series_by_run(runs: Iterable[FinishedRun]) -> Series:
    """What is known of each arm after so many finished runs of the study, in the order in which they ended.

    An arm has a point at each step at which a run of its own ended: how many of its runs are done, the share of them
    that failed, and the median of their best val_loss, failed runs counted as infinite. Infinite medians have no point.
    """
    found: dict[str, list[Point]] = defaultdict(list)
    losses: dict[str, list[float]] = defaultdict(list)
    failures: dict[str, int] = defaultdict(int)
    for step, run in enumerate(sorted(runs, key=lambda run: (run.ended_ms, run.run_id)), start=1):
        losses[run.arm].append(run.best_val_loss)
        failures[run.arm] += run.failed
        done = len(losses[run.arm])
        # The UI compares studies by what they had first.
        values = {"best_val_loss_median": float(np.median(losses[run.arm]))}
        values |= {"failure_rate": failures[run.arm] / done, "runs_done": done}
        for name, value in values.items():
            if np.isfinite(value):
                found[f"{name}/{metric_part(run.arm)}"].append(Point(step, value, run.ended_ms))
    return found


def series_by_epoch(runs: Sequence[FinishedRun]) -> Series:
    """Median and quartiles over the runs of one arm after each epoch, of val_loss and of the stitched R-factor.

    A run that has ended, and a value that is no number, counts as infinite, and what is infinite then has no point. The
    names say of how many runs they are: a store cannot change a number that it has, and a study may get more seeds.
    """
    runs = [run for run in runs if len(run.curves.val_loss)]
    if not runs:
        return {}
    arm, time_ms = metric_part(runs[0].arm), max(run.ended_ms for run in runs)
    found = {}
    for quantity in ("val_loss", "r_stitched"):
        for name, values in quartiles([getattr(run.curves, quantity) for run in runs]).items():
            points = [Point(epoch, float(value), time_ms) for epoch, value in enumerate(values, start=1)]
            key = f"{quantity}_{name}_of_{len(runs)}/{arm}"
            found[key] = [point for point in points if np.isfinite(point.value)]
    return {key: points for key, points in found.items() if points}


def quartiles(curves: Sequence[Floats]) -> dict[str, Floats]:
    """Median and quartiles (epochs,) of curves that may have ended; NaN at an epoch of which no run has a value.

    What a run does not have at any other epoch counts as infinite. Of fewer than three runs there is the median alone.
    """
    table = np.full((len(curves), max(map(len, curves))), np.nan)
    for row, curve in zip(table, curves, strict=True):
        row[: len(curve)] = curve
    taken = ~np.isnan(table).all(axis=0)
    table = np.where(np.isnan(table), np.inf, table)
    found = {"median": np.median(table, axis=0)}
    if len(curves) >= _LEAST_FOR_QUARTILES:
        low, high = np.quantile(table, [0.25, 0.75], axis=0, method="inverted_cdf")  # of infinities, too
        found |= {"low_quartile": low, "high_quartile": high}
    return {name: np.where(taken, values, np.nan) for name, values in found.items()}


def metric_part(arm: str) -> str:
    """The name of an arm as the last part of a metric's name; one that stores would not take is told by its hash."""
    plain = re.sub(r"[^A-Za-z0-9_.: -]", "_", arm)[:_LONGEST_NAME].strip(". ") or "arm"
    return plain if plain == arm else f"{plain}-{hashlib.sha256(arm.encode()).hexdigest()[:6]}"
