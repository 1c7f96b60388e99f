"""Curves of a study's runs, a panel an arm: R-factor over epochs and gradient norm over steps."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from fnostab.report.axes import FAILED_COLOUR, colours, label, log_axis, new_figure
from fnostab.study.result import StudyResult, StudyRun

#: Points that are drawn of a series of steps: about one every two pixels of a panel.
BINS: Final = 200
#: Values above this many times the constant object's R-factor are drawn at the top of the frame.
CAP: Final = 10.0
_NORMS: Final = "grad_norm_preclip"

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Binned:
    """A series in bins of steps: each bin's middle step, its median and its maximum over finite values (NaN if none).

    `not_finite` holds the steps whose value is not a finite number.
    """

    step: Floats
    median: Floats
    maximum: Floats
    not_finite: NDArray[np.intp]


def binned(values: Floats, bins: int = BINS) -> Binned:
    """Bin a series (steps,) into `bins` bins of as equal length as can be; a shorter series has a bin a step."""
    parts = np.array_split(np.where(np.isfinite(values), values, np.nan), min(bins, max(len(values), 1)))
    known = [part[np.isfinite(part)] for part in parts]
    ends = np.cumsum([0, *map(len, parts)])
    return Binned(
        step=(ends[:-1] + ends[1:] - 1) / 2,
        median=np.array([np.median(part) if part.size else np.nan for part in known]),
        maximum=np.array([part.max() if part.size else np.nan for part in known]),
        not_finite=np.flatnonzero(~np.isfinite(values)),
    )


def series(run: StudyRun, name: str) -> Floats:
    """A list of the run's history (n,); empty where there is none."""
    return _array((run.history or {}).get(name))


def _array(values: Any) -> Floats:
    return np.array([_number(value) for value in values] if isinstance(values, (list, tuple)) else [], dtype=np.float64)


def condensed(history: Mapping[str, Any]) -> dict[str, Any]:
    """What the curves need of a `history.json`, in a few kB however many steps it has.

    Raises ValueError for what is no history.
    """
    if not isinstance(history, Mapping):
        raise ValueError("it must hold an object")
    kept = {name: history.get(name) for name in ("val_loss", _NORMS)}
    wrong = [name for name, values in kept.items() if not isinstance(values, (list, tuple, type(None)))]
    if wrong:
        raise ValueError(f"`{wrong[0]}` must be a list")
    kept[_NORMS] = binned(_array(kept[_NORMS]))
    return kept | {name: history.get(name) for name in ("val_loss_constant", "val_loss_floor")}


def learning_curves(result: StudyResult) -> Figure:
    """R-factor on validation patches over epochs: a line a run, the median of an arm, constant object and noise."""
    drawn = _drawn(result)
    curves = {(run.arm, run.seed): series(run, "val_loss") for run in drawn}
    levels = {name: _level(drawn, name) for name in ("val_loss_constant", "val_loss_floor")}
    colour_of = colours(result.arms)
    bottom, top = _frame(list(curves.values()), levels)
    longest = max([2, *map(len, curves.values())])
    figure, panels = _panels(result, "R-factor (val_loss)", "epoch", (0.5, longest + 0.5), list(curves.values()))
    for arm, axes in panels.items():
        runs = result.drawn(arm)
        log_axis(axes, bottom, top)
        for style, value in zip(("--", ":"), levels.values(), strict=True):
            if np.isfinite(value):
                axes.axhline(value, color="0.45", linestyle=style, linewidth=1, gid="level")
        for run in runs:
            _curve(axes, run, _inside(curves[arm, run.seed], top), colour_of[arm], longest < 20)
        recorded = [run for run in runs if run.verdict != "interrupted" and np.isfinite(curves[arm, run.seed]).any()]
        counted = [curves[arm, run.seed] for run in recorded]
        if len(counted) > 2:
            middle = _inside(_median_curve(counted), top)
            axes.plot(np.arange(1, len(middle) + 1), middle, color="black", linewidth=1.2, gid="median")
    entries = [
        Line2D([], [], color="0.3", linewidth=1.1, label="converged (in the arm's colour)"),
        Line2D([], [], color=FAILED_COLOUR, linestyle="--", marker="x", linewidth=0.9, label="failed"),
        *_if(
            any(run.verdict == "interrupted" for run in drawn),
            Line2D([], [], color="0.3", linestyle=":", label="interrupted"),
        ),
        *_if(
            any(len(result.drawn(arm)) > 2 for arm in panels),
            Line2D([], [], color="black", linewidth=1.2, label="median, where a run that ended counts as infinite"),
        ),
        *_if(
            np.isfinite(levels["val_loss_constant"]),
            Line2D([], [], color="0.45", linestyle="--", label="best constant object"),
        ),
        *_if(
            np.isfinite(levels["val_loss_floor"]),
            Line2D([], [], color="0.45", linestyle=":", label="photon noise alone"),
        ),
    ]
    columns = 3 if len(panels) > 2 and len(panels) != 4 else 2
    figure.legend(handles=entries, loc="outside lower center", ncols=columns, fontsize=8, frameon=False)
    return figure


def gradient_norms(result: StudyResult) -> Figure:
    """Norm of the gradient before clipping over steps: median and maximum of each run's bins."""
    parts = {(run.arm, run.seed): _norms(run) for run in _drawn(result)}
    colour_of = colours(result.arms)
    known = [part.maximum[part.maximum > 0] for part in parts.values()]
    known += [part.median[part.median > 0] for part in parts.values()]
    drawn = np.concatenate(known) if known else np.empty(0)
    bottom, top = (drawn.min(), drawn.max()) if drawn.size else (0.1, 10.0)
    longest = max((part.step[-1] for part in parts.values()), default=1.0)
    longest = max(longest, 1.0)
    maxima = [part.maximum for part in parts.values()]
    figure, panels = _panels(result, "gradient norm", "optimizer step", (-0.02 * longest - 0.5, longest + 0.5), maxima)
    for arm, axes in panels.items():
        log_axis(axes, bottom, top)
        for run in result.drawn(arm):
            part = parts[arm, run.seed]
            color = FAILED_COLOUR if run.failed else colour_of[arm]
            point: dict[str, Any] = {"marker": "o", "markersize": 4} if len(part.step) == 1 else {}
            axes.plot(part.step, _inside(part.maximum, top), color=color, alpha=0.45, lw=0.6, gid="maximum", **point)
            axes.plot(part.step, _inside(part.median, top), color=color, lw=1.0, gid="median", **point)
            if part.not_finite.size:
                height = np.full(part.not_finite.size, 0.96)
                across = axes.get_xaxis_transform()
                axes.plot(part.not_finite, height, "x", color=FAILED_COLOUR, ms=5, transform=across, gid="not finite")
    entries = [
        Line2D([], [], color="0.3", linewidth=1.2, label="median of a bin of steps"),
        Line2D([], [], color="0.3", linewidth=0.6, alpha=0.6, label="its maximum"),
        Line2D([], [], color=FAILED_COLOUR, linewidth=1.2, label="failed run"),
        *_if(
            any(part.not_finite.size for part in parts.values()),
            Line2D([], [], color=FAILED_COLOUR, marker="x", linestyle="", label="not finite"),
        ),
    ]
    figure.legend(handles=entries, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    return figure


def _panels(
    result: StudyResult, ylabel: str, xlabel: str, span: tuple[float, float], curves: Sequence[Floats]
) -> tuple[Figure, dict[str, Axes]]:
    """A panel an arm that is drawn, on shared axes, each titled with its failures; `curves` are those of `_drawn`."""
    count = max(len(result.drawn_arms), 1)
    columns = count if count < 4 else 2 if count == 4 else 3
    rows = -(-count // columns)
    size = (6.4, 4.0) if count == 1 else (0.5 + 3.3 * columns, 0.7 + 2.6 * rows)
    figure = new_figure(*size)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    figure.supylabel(ylabel, fontsize=9)
    for axes in grid.flat[count:]:
        axes.remove()
    for axes in grid.flat[max(count - columns, 0) : count]:
        axes.tick_params(labelbottom=True)
        axes.set_xlabel(xlabel, fontsize=9)
    grid[0, 0].set_xlim(*span)
    grid[0, 0].xaxis.set_major_locator(MaxNLocator(6, integer=True))
    drawn = _drawn(result)
    absent = Counter(run.arm for run, curve in zip(drawn, curves, strict=True) if not np.isfinite(curve).any())
    panels = dict(zip(result.drawn_arms, grid.flat, strict=False))
    for arm, axes in panels.items():
        runs = result.of_arm(arm)
        failures = sum(run.failed for run in runs)
        axes.set_title(label(arm, 34), fontsize=9.5, loc="left", color="black", pad=14)
        told = f"{len(runs)} run{'' if len(runs) == 1 else 's'}, {failures} failed"
        told += f", {len(result.drawn(arm))} drawn" if len(result.drawn(arm)) < len(runs) else ""
        told += f", {absent[arm]} without a record" if absent[arm] else ""
        axes.text(0, 1.02, told, transform=axes.transAxes, fontsize=8, color="0.35")
    return figure, panels


def _drawn(result: StudyResult) -> list[StudyRun]:
    """The runs that have lines."""
    return [run for arm in result.drawn_arms for run in result.drawn(arm)]


def _norms(run: StudyRun) -> Binned:
    found = (run.history or {}).get(_NORMS)
    return found if isinstance(found, Binned) else binned(_array(found))


def _curve(axes: Axes, run: StudyRun, values: Floats, color: str, dotted: bool) -> None:
    """A line with a dot at each epoch or, unless `dotted`, where a line to a neighbour would not show the value."""
    finite = np.isfinite(values)
    shown = np.flatnonzero(finite)
    beside = np.concatenate([[False], finite, [False]])
    dots = shown if dotted else np.flatnonzero(finite & ~beside[:-2] & ~beside[2:])
    style: dict[str, Any] = {
        "color": color,
        "linewidth": 1.1,
        "alpha": 0.85,
        "marker": "o",
        "ms": 3,
        "markevery": dots.tolist(),
    }
    if run.failed:
        style |= {"color": FAILED_COLOUR, "linestyle": "--", "linewidth": 0.9}
    elif run.verdict == "interrupted":
        style["linestyle"] = ":"
    epochs = np.arange(1, len(values) + 1)
    axes.plot(epochs, values, gid="run", **style)
    if run.failed and shown.size:
        axes.plot(epochs[shown[-1]], values[shown[-1]], "x", color=FAILED_COLOUR, ms=6, mew=1.5, gid="failed")


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


def _frame(curves: Sequence[Floats], levels: Mapping[str, float]) -> tuple[float, float]:
    """The range of the R-factor's axis."""
    values = np.concatenate([*curves, list(levels.values())])
    values = values[np.isfinite(values) & (values > 0)]
    if not values.size:
        return 0.01, 1.0
    usual = levels["val_loss_constant"]
    cap = CAP * (usual if np.isfinite(usual) else np.median(values))
    return float(values.min()), float(min(values.max(), max(cap, values.min() * 2)))


def _level(runs: Sequence[StudyRun], name: str) -> float:
    """A constant of the dataset, which all runs share."""
    known = [value for run in runs if np.isfinite(value := _number((run.history or {}).get(name))) and value > 0]
    return float(np.median(known)) if known else np.nan


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return np.nan


def _if(condition: Any, line: Line2D) -> list[Line2D]:
    return [line] if condition else []
