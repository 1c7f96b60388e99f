"""How steadily the runs of each arm trained once they had learnt: a dot a run, by its largest drawdown and relapses."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fnostab.report.axes import FAILED_COLOUR, MOST_ARMS, colours, log_axis, name_arms, new_figure, tidy
from fnostab.study.result import StudyResult, StudyRun


def stability(result: StudyResult) -> Figure:
    """Largest drawdown of each run, and how often its val_loss relapsed; crosses are failed runs."""
    arms = [row["arm"] for row in result.ranking.table[:MOST_ARMS]]
    colour_of = colours(result.arms)
    figure = new_figure(max(4.5, 1.6 + 0.95 * len(arms)), 4.8)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    drawdowns = [value for arm in arms for run in result.of_arm(arm) if (value := _number(run, "max_drawdown")) > 0]
    log_axis(upper, 1.0, max([1.1, *drawdowns]))
    for place, arm in enumerate(arms):
        runs = [run for run in result.of_arm(arm) if np.isfinite(_number(run, "max_drawdown"))]
        _dots(upper, place, runs, "max_drawdown", colour_of[arm])
        _dots(lower, place, runs, "relapses", colour_of[arm])
    tidy(lower)
    lower.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    lower.set_ylim(-0.3, max(1.0, lower.get_ylim()[1]))
    upper.set_ylabel("max drawdown", fontsize=9)
    lower.set_ylabel("relapses", fontsize=9)
    name_arms(lower, arms)
    return figure


def _dots(axes: Axes, place: int, runs: Sequence[StudyRun], name: str, color: str) -> None:
    """The runs of an arm, side by side by seed."""
    offsets = np.linspace(-0.25, 0.25, len(runs)) if len(runs) > 1 else np.zeros(len(runs))
    for offset, run in zip(offsets, runs, strict=True):
        style: dict[str, Any] = (
            {"marker": "x", "mew": 1.5, "color": FAILED_COLOUR} if run.failed else {"marker": "o", "mew": 0}
        )
        style = {"color": color, "gid": "failed" if run.failed else "run"} | style
        axes.plot(place + offset, _number(run, name), ms=5, alpha=0.8, **style)


def _number(run: StudyRun, name: str) -> float:
    """A measure of the run; NaN where it is not known."""
    value = run.numbers.get(name)
    return np.nan if value is None else float(value)
