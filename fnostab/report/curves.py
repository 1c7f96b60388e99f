"""Curves of a study's runs, a panel an arm: R-factor over epochs and gradient norm over steps."""

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fnostab.report.axes import FAILED_COLOUR, colours, label, log_axis, new_figure
from fnostab.study.curves import Floats
from fnostab.study.result import StudyResult, StudyRun
from fnostab.study.text import number

#: Values above this many times the constant object's R-factor are drawn at the top of the frame.
CAP: Final = 10.0
#: Noise that is lower than the lowest value by more than this factor is named, and not drawn: curves would share what
#: is left of the frame.
FAR: Final = 4.0


def learning_curves(result: StudyResult) -> Figure:
    """R-factor on validation patches over epochs: a line a run, the median of an arm, constant object and noise."""
    drawn, colour_of = result.drawn_runs, colours(result.arms)
    constant, floor = (typical([getattr(run.curves, name) for run in drawn]) for name in ("constant", "floor"))
    bottom, top = frame([run.curves.val_loss for run in drawn], constant, floor)
    longest = max([2, *(len(run.curves.val_loss) for run in drawn)])
    title = "val_loss" if result.is_foreign else "R-factor (val_loss)"
    levels = {"best constant object": (constant, "--"), "photon noise alone": (floor, ":")}
    if result.is_foreign:
        levels = {"best constant prediction": (constant, "--"), "lowest possible": (floor, ":")}
    figure, panels = _panels(result, title, "epoch", lambda run: run.curves.val_loss)
    figure.axes[0].set_xlim(0.5, longest + 0.5)
    for arm, axes in panels.items():
        runs = result.drawn(arm)
        log_axis(axes, bottom, top)
        for run in runs:
            _curve(axes, run, _inside(run.curves.val_loss, top), colour_of[arm], dotted=longest < 20)
        counted = [run.curves.val_loss for run in runs if not run.missing]
        counted = [curve for curve in counted if np.isfinite(curve).any()]
        if len(counted) > 2:
            middle = _inside(_median_curve(counted), top)
            told = "median, where a run that ended counts as infinite"
            axes.plot(np.arange(1, len(middle) + 1), middle, color="black", lw=1.2, gid="median", label=told)
        for told, (value, style) in levels.items():
            if np.isfinite(value):
                named = told if value >= bottom else f"{told}: {number(value)}, below"
                axes.axhline(value, color="0.45", linestyle=style, linewidth=1, gid="level", label=named)
    _legend(figure, columns=3 if len(panels) > 2 and len(panels) != 4 else 2)
    return figure


def gradient_norms(result: StudyResult) -> Figure:
    """Norm of the gradient before clipping over steps: median and maximum of each run's bins."""
    colour_of = colours(result.arms)
    parts = [run.curves.grad_norm for run in result.drawn_runs]
    known = np.concatenate([np.empty(0), *(values for part in parts for values in (part.maximum, part.median))])
    known = known[known > 0]
    bottom, top = (known.min(), known.max()) if known.size else (0.1, 10.0)
    longest = max([1.0, *(part.step[-1] for part in parts)])
    figure, panels = _panels(result, "gradient norm", "optimizer step", lambda run: run.curves.grad_norm.maximum)
    figure.axes[0].set_xlim(-0.02 * longest - 0.5, longest + 0.5)
    for arm, axes in panels.items():
        log_axis(axes, bottom, top)
        for run in result.drawn(arm):
            part = run.curves.grad_norm
            style: dict[str, Any] = {"color": FAILED_COLOUR if run.failed else colour_of[arm]}
            style |= {"marker": "o", "markersize": 4} if len(part.step) == 1 else {}
            of = ", of a failed run" if run.failed else ""
            maximum, median = _inside(part.maximum, top), _inside(part.median, top)
            axes.plot(
                part.step, maximum, alpha=0.45, lw=0.6, gid="maximum", label=f"maximum of a bin of steps{of}", **style
            )
            axes.plot(part.step, median, lw=1.0, gid="median", label=f"median of a bin of steps{of}", **style)
            if part.not_finite.size:
                height, across = np.full(part.not_finite.size, 0.96), axes.get_xaxis_transform()
                mark: dict[str, Any] = {"color": FAILED_COLOUR, "gid": "not finite", "label": "not finite"}
                axes.plot(part.not_finite, height, "x", ms=5, transform=across, **mark)
    _legend(figure, columns=3 if len(panels) > 2 and len(panels) != 4 else 2)
    return figure


def _panels(
    result: StudyResult, ylabel: str, xlabel: str, curve_of: Callable[[StudyRun], Floats]
) -> tuple[Figure, dict[str, Axes]]:
    """A panel for each arm that is drawn, on shared axes, titled with its failures."""
    count = max(len(result.drawn_arms), 1)
    columns = count if count < 4 else 2 if count == 4 else 3
    rows = -(-count // columns)
    figure = new_figure(*((6.4, 4.0) if count == 1 else (0.5 + 3.3 * columns, 0.7 + 2.6 * rows)))
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    figure.supylabel(ylabel, fontsize=9)
    for axes in grid.flat[count:]:
        axes.remove()
    for axes in grid.flat[max(count - columns, 0) : count]:
        axes.tick_params(labelbottom=True)
        axes.set_xlabel(xlabel, fontsize=9)
    grid[0, 0].xaxis.set_major_locator(MaxNLocator(6, integer=True))
    panels = dict(zip(result.drawn_arms, grid.flat, strict=False))
    for arm, axes in panels.items():
        runs, drawn = result.of_arm(arm), result.drawn(arm)
        absent = sum(not np.isfinite(curve_of(run)).any() for run in drawn)
        told = f"{len(runs)} run{'' if len(runs) == 1 else 's'}, {sum(run.failed for run in runs)} failed"
        told += f", {len(drawn)} drawn" if len(drawn) < len(runs) else ""
        told += f", {absent} without a record" if absent else ""
        axes.set_title(label(arm, 34), fontsize=9.5, loc="left", pad=14)
        axes.text(0, 1.02, told, transform=axes.transAxes, fontsize=8, color="0.35")
    return figure, panels


def _legend(figure: Figure, columns: int) -> None:
    """Explain below the panels each kind of line once."""
    found = [axes.get_legend_handles_labels() for axes in figure.axes]
    lines = {told: line for handles, names in found for line, told in zip(handles, names, strict=True)}
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=columns, fontsize=8, frameon=False)


def _curve(axes: Axes, run: StudyRun, values: Floats, color: str, *, dotted: bool) -> None:
    """A line with a dot at each epoch or, unless `dotted`, where a line to a neighbour would not show the value."""
    finite = np.isfinite(values)
    beside = np.concatenate([[False], finite, [False]])
    dots = np.flatnonzero(finite if dotted else finite & ~beside[:-2] & ~beside[2:])
    style: dict[str, Any] = {"color": color, "lw": 1.1, "label": "a run, in its arm's colour"}
    if run.failed:
        style = {"color": FAILED_COLOUR, "ls": "--", "lw": 0.9, "label": "a failed run"}
    elif run.missing:
        style |= {"ls": ":", "label": "a run without a result"}
    epochs = np.arange(1, len(values) + 1)
    axes.plot(epochs, values, gid="run", alpha=0.85, marker="o", ms=3, markevery=dots.tolist(), **style)
    if run.failed and finite.any():
        last = np.flatnonzero(finite)[-1]
        axes.plot(epochs[last], values[last], "x", color=FAILED_COLOUR, ms=6, mew=1.5, gid="failed")


def _inside(values: Floats, top: float) -> Floats:
    """`values` on a logarithmic axis: at most `top`, and NaN where there is none to draw."""
    return np.where(values > 0, np.minimum(values, top), np.nan)


def _median_curve(curves: Sequence[Floats]) -> Floats:
    """Median at each epoch; a run that has ended, and a value that is not a number, counts as infinite there."""
    table = np.full((len(curves), max(map(len, curves))), np.inf)
    for row, curve in zip(table, curves, strict=True):
        row[: len(curve)] = np.where(np.isnan(curve), np.inf, curve)
    middle = np.median(table, axis=0)
    return np.where(np.isfinite(middle), middle, np.nan)


def frame(curves: Sequence[Floats], constant: float, floor: float) -> tuple[float, float]:
    """The range of the R-factor's axis; `floor` is in it unless it is far below everything else."""
    values = np.concatenate([*curves, [constant]])
    values = values[np.isfinite(values) & (values > 0)]
    if floor > 0 and not values.size:
        values = np.array([floor])
    elif floor > 0 and floor * FAR >= values.min():
        values = np.append(values, floor)
    if not values.size:
        return 0.01, 1.0
    cap = CAP * (constant if np.isfinite(constant) else np.median(values))
    return float(values.min()), float(min(values.max(), max(cap, values.min() * 2)))


def typical(values: Sequence[float]) -> float:
    """A constant of the dataset, which all runs share: the median of what is known of it, else NaN."""
    known = [value for value in values if np.isfinite(value) and value > 0]
    return float(np.median(known)) if known else np.nan
