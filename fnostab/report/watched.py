"""The figure of a watched run: how far the output of each stage depends on the pattern, and what becomes of it."""

from typing import Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from fnostab.health import death, stage_losses
from fnostab.health.history import History
from fnostab.report.axes import in_order, label, new_grid, tidy

#: Stages that the legend has room for.
_MOST_NAMED: Final = 26
#: Most decades that are drawn below the largest value: what is lower lies at the bottom of the frame.
_DECADES: Final = 16


def watched_figure(history: History, title: str) -> Figure:
    """Deviation of each stage's output over the patterns of the fixed batch by step, a line a stage, early ones blue.

    Below it the object's deviation over the truth's and the loss of that batch, and in both a line where the network
    died. A deviation of 0 lies on the line at the bottom that says so. The title names the stages that were lost while
    the network went on, and since which step.
    """
    figure, axes = new_grid(2, 1, (9, 6.5), margins=(0.75, 0.5, 2.2, 0.35), gaps=(0, 0.15), share_x=True)
    recorded = history.to_mapping()
    found = death(recorded)
    if found:
        title += f": dead from step {found.step} on" + (f", first in {found.stage}" if found.stage else "")
    elif lost := stage_losses(recorded):
        title += ": lost " + ", ".join(f"{stage} from step {step} on" for stage, step in lost.items())
    figure.suptitle(label(title, 100), fontsize=11)
    upper, lower = axes[:, 0]
    watched = history.watched
    steps = np.asarray(watched["step"])
    names = [name for name in watched if name.startswith("middle_std/")]
    _lines(upper, steps, {name.partition("/")[2]: watched[name] for name in names}, sequential=True)
    below = {"object's deviation / truth's": "object_std_ratio", "loss (R-factor)": "loss"}
    _lines(lower, steps, {told: watched[name] for told, name in below.items() if name in watched})
    upper.set_ylabel("deviation over patterns, in the middle")
    lower.set(xlabel="optimizer steps done", ylabel="on the fixed batch")
    if found:
        for axis in (upper, lower):
            axis.axvline(found.step, color="0.3", linestyle="--", linewidth=0.9)
    return figure


def _lines(axes: Axes, steps: NDArray[np.float64], series: dict[str, list[float]], *, sequential: bool = False) -> None:
    """Each series over the steps, logarithmic; values of 0 and far below all others lie at the bottom."""
    values = {name: np.asarray(of_one, dtype=np.float64) for name, of_one in series.items()}
    positive = np.concatenate([np.empty(0), *(one[np.isfinite(one) & (one > 0)] for one in values.values())])
    tidy(axes)
    if not positive.size:
        return
    bottom = max(float(positive.min()), float(positive.max()) * 10.0**-_DECADES) / 10
    axes.set_yscale("log")
    axes.set_ylim(bottom / 3, float(positive.max()) * 3)
    if any((one < bottom).any() for one in values.values()):
        axes.axhline(bottom, color="0.6", linestyle=":", linewidth=0.8)
        axes.annotate("0", (0.002, bottom), xycoords=("axes fraction", "data"), fontsize=8, va="bottom")
    dots = "." if len(steps) < 40 else ""
    colours = in_order(len(values)) if sequential else [f"C{place}" for place in range(len(values))]
    for colour, (name, one) in zip(colours, values.items(), strict=True):
        axes.plot(steps, np.maximum(one, bottom), dots + "-", color=colour, linewidth=1, label=label(name, 30))
    named = list(zip(*axes.get_legend_handles_labels(), strict=True))[:_MOST_NAMED]
    handles, texts = zip(*named, strict=True)
    axes.legend(handles, texts, fontsize=7, loc="upper left", bbox_to_anchor=(1.01, 1.02), frameon=False)
