"""What the arms of a study vary and what came of it, as parallel coordinates: a line an arm, a dot a run."""

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from fnostab.report.axes import FAILED_COLOUR, colours, label, new_figure
from fnostab.study.result import StudyResult

#: Of more arms, or with more axes, nobody can follow a line.
MOST_LINES: Final = 60
MOST_AXES: Final = 10
#: Where failed runs stand on the last axis, whose height is 1.
_FAILED_AT: Final = 1.09


def settings(result: StudyResult) -> Figure:
    """Each arm's way through the values that the study varies, to its runs' best val_loss."""
    arms = [arm for arm in result.arms if arm in result.settings][:MOST_LINES]
    keys = list(result.settings[arms[0]])[:MOST_AXES]
    colour_of = colours(result.arms)
    places = {key: _places([result.settings[arm][key] for arm in arms]) for key in keys}
    figure = new_figure(max(6.0, 1.2 + 1.7 * len(keys)), 4.4)
    axes = figure.subplots()
    heights = _heights(result)
    for arm in arms:
        way = [places[key][result.settings[arm][key]] for key in keys]
        runs = [run for run in result.of_arm(arm) if run.failed or np.isfinite(run.best_val_loss)]
        ends = [_FAILED_AT if run.failed else heights(run.best_val_loss) for run in runs]
        middle = float(np.median(ends)) if ends else None
        if middle is not None:
            axes.plot(range(len(keys) + 1), [*way, middle], color=colour_of[arm], lw=1.4, alpha=0.85, gid="arm")
        for run, end in zip(runs, ends, strict=True):
            mark = "x" if run.failed else "o"
            axes.plot(
                len(keys) + 0.05, end, mark, color=FAILED_COLOUR if run.failed else colour_of[arm], ms=4, gid="run"
            )
    for place, key in enumerate(keys):
        _name_axis(axes, place, places[key])
    _name_losses(axes, len(keys), heights)
    axes.set_xlim(-0.45, len(keys) + 0.6)
    axes.set_ylim(-0.06, _FAILED_AT + 0.05)
    axes.set_xticks(range(len(keys) + 1), [*(label(key) for key in keys), "best val_loss"], fontsize=9)
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return figure


class _Heights:
    """Where a loss stands on the last axis, which is logarithmic, from 0 to 1."""

    def __init__(self, values: Sequence[float]) -> None:
        self.low, self.high = min(values, default=0.01), max(values, default=1.0)
        if self.high <= self.low:
            self.low, self.high = self.low / 1.1, self.low * 1.1

    def __call__(self, value: float) -> float:
        return float(np.log(value / self.low) / np.log(self.high / self.low))

    def ticks(self) -> list[float]:
        found = LogLocator(subs=(1.0, 2.0, 5.0), numticks=9).tick_values(self.low, self.high)
        inside = [float(value) for value in found if self.low <= value <= self.high]
        return inside if len(inside) > 1 else [self.low, self.high]


def _heights(result: StudyResult) -> _Heights:
    return _Heights([run.best_val_loss for run in result.runs if 0 < run.best_val_loss < np.inf and not run.failed])


def _places(values: Sequence[str]) -> Mapping[str, float]:
    """Where each value stands on its axis, at even distances: numbers in their order, then words."""
    ordered = sorted(set(values), key=lambda value: (_as_number(value) is None, _as_number(value) or 0.0, value))
    return {value: (place / (len(ordered) - 1) if len(ordered) > 1 else 0.5) for place, value in enumerate(ordered)}


def _as_number(value: str) -> float | None:
    try:
        return float(value)
    except ValueError:
        return None


def _name_axis(axes: Axes, place: int, values: Mapping[str, float]) -> None:
    axes.plot([place, place], [0, 1], color="0.6", lw=1, zorder=1)
    for value, height in values.items():
        axes.plot(place, height, "o", color="0.35", ms=3, zorder=3)
        axes.annotate(label(value, 18), (place, height), (5, 3), textcoords="offset points", fontsize=8, color="0.25")


def _name_losses(axes: Axes, place: int, heights: _Heights) -> None:
    axes.plot([place, place], [0, 1], color="0.6", lw=1, zorder=1)
    for value in heights.ticks():
        height = heights(value)
        axes.annotate(f"{value:.3g}", (place, height), (14, -3), textcoords="offset points", fontsize=8, color="0.25")
    axes.annotate("failed", (place, _FAILED_AT), (14, -3), textcoords="offset points", fontsize=8, color="0.25")
