"""How far activations grow while networks train, by arm and by learning rate: a table and two figures."""

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from fnostab.health import stage_losses
from fnostab.report.axes import new_figure, tidy
from fnostab.study.text import number
from results.cells import table
from results.panels import COLOURS
from results.runs import Run, median, rate_arms, read_runs

#: The stage at the coarsest grid, whose output the first stage of the decoder gets.
DEEPEST: Final = "bottleneck"
#: The study of learning rates: runs of 8 epochs, observed before the first step and after each epoch.
_RATES: Final = "q5_lr"
_WHAT: Final = f"deviation of what {DEEPEST} gives,\ntimes that before the first step"


def growth(series: Mapping[str, Sequence[float | str]]) -> NDArray[np.float64]:
    """The deviation of the deepest stage's output over its first; `series` are the watched ones, or those of epochs."""
    deviation = np.array(series[f"act_std/{DEEPEST}"], float)
    return deviation / deviation[0]


def most_grown(series: Mapping[str, Sequence[float | str]]) -> float:
    """The largest `growth` that was seen."""
    return float(np.nanmax(growth(series)))


def by_rate() -> str:
    """The study of learning rates: an arm a row, a rate a column: median of the largest growth, and what failed."""
    arms = rate_arms(_RATES)
    rates = sorted({rate for of in arms.values() for rate in of})
    rows = [
        (arm, *(_cell([run for run in read_runs(_RATES) if run.arm == of[rate]]) for rate in rates))
        for arm, of in arms.items()
    ]
    return table(("arm", *(f"{rate:g}" for rate in rates)), sorted(rows, key=lambda row: float(row[-2].split()[0])))


def _cell(runs: Sequence[Run]) -> str:
    lost = sum(run.failed for run in runs)
    told = number(median([most_grown(run.health) for run in runs]), ".2g")
    return f"{told}" + (f", {lost} of {len(runs)} failed" if lost else "")


def grown_by_rate() -> Figure:
    """The same, every run a point; crosses are failed ones."""
    figure = new_figure(9, 4.4)
    axes = figure.subplots()
    arms = rate_arms(_RATES)
    for place, (arm, of) in enumerate(arms.items()):
        for failed, marker in ((False, "o"), (True, "x")):
            runs = [run for run in read_runs(_RATES) if run.arm in of.values() and run.failed is failed]
            at = [run.rate * 1.09 ** (place - (len(arms) - 1) / 2) for run in runs]
            style = {"ms": 5, "alpha": 0.8, "color": COLOURS[arm], "ls": "none"}
            axes.plot(at, [most_grown(run.health) for run in runs], marker, label=None if failed else arm, **style)
    axes.plot([], [], "kx", ms=5, label="failed")
    axes.set_xscale("log")
    axes.set_yscale("log")
    tidy(axes)
    axes.set_xlabel("learning rate", fontsize=9)
    axes.set_ylabel(f"largest {_WHAT}", fontsize=9)
    axes.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.01, 1.0))
    return figure


def grown_by_step(study: str) -> Figure:
    """By step, how far the deepest activations of every run have grown, and where its first stage was lost."""
    figure = new_figure(8, 4.2)
    axes = figure.subplots()
    named: set[str] = set()
    for run in read_runs(study):
        steps, grown = run.watched["step"], growth(run.watched)
        colour, label = COLOURS[run.arm], None if run.arm in named else run.arm
        axes.plot(steps, grown, color=colour, lw=1.1, alpha=0.8, label=label)
        if lost := stage_losses(run.history):
            step = min(lost.values())
            axes.plot([step], [grown[steps.index(step)]], "o", color=colour, mec="black", ms=5.5, zorder=3)
        named.add(run.arm)
    axes.plot([], [], "o", color="white", mec="black", ms=5.5, label="a stage is lost from here on")
    axes.set_yscale("log")
    axes.set_xscale("symlog", linthresh=100)
    axes.set_xlim(left=0)
    axes.set_xticks([0, 50, 100, 200, 400, 800], ["0", "50", "100", "200", "400", "800"])
    tidy(axes)
    axes.set_xlabel("optimizer steps", fontsize=9)
    axes.set_ylabel(_WHAT, fontsize=9)
    axes.legend(fontsize=8, frameon=False, loc="upper left")
    return figure
