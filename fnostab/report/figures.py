"""Figures of a ranked study: how each arm's runs went, how often they failed, and what depth did."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fnostab.report.axes import (
    MOST_ARMS,
    OTHER_COLOURS,
    Picture,
    colours,
    label,
    log_axis,
    name_arms,
    new_figure,
    tidy,
    try_to_draw,
)
from fnostab.report.curves import gradient_norms, learning_curves
from fnostab.report.settings import settings
from fnostab.report.stability import stability
from fnostab.study.depth import DepthChange
from fnostab.study.result import StudyResult, StudyRun

#: Panels of the figure `depth`: the metrics of each, by what they are called in it.
_DEPTH_PANELS: Final = {
    "val_loss": {"median": "median_best_val_loss", "best": "best_val_loss"},
    "SSIM": {"amplitude": "amp_ssim", "phase": "phase_ssim"},
    "MAE": {"amplitude": "amp_mae", "phase": "phase_mae"},
    "gradient norm": {"median": "grad_norm_median", "maximum": "grad_norm_max"},
    "share of failed runs": {"failure rate": "failure_rate"},
}


def draw_figures(result: StudyResult) -> tuple[dict[str, Picture], list[str]]:
    """Draw the figures of a study; returns them by name, and a sentence for each that could not be drawn."""
    pictures, faults = {}, []
    for name, draw in FIGURES.items():
        if not _can_be_drawn(name, result):
            continue
        picture, fault = try_to_draw(partial(draw, result))
        if picture is None:
            faults.append(f"The figure {name} could not be drawn: {fault}.")
        else:
            pictures[name] = picture
    return pictures, faults


def _can_be_drawn(name: str, result: StudyResult) -> bool:
    if name == "r_stitched":
        known = any(run.numbers.get(name) is not None for run in result.runs)
        return known and result.ranking.table[0]["median_r_stitched"] is not None
    curves = [run.curves for run in result.drawn_runs]
    if name == "learning_curves":
        return any(np.isfinite(of.val_loss).any() for of in curves)
    if name == "gradient_norms":
        return any(np.isfinite(of.grad_norm.maximum).any() or of.grad_norm.not_finite.size for of in curves)
    if name == "stability":
        return any(run.numbers.get("max_drawdown") is not None for run in result.runs)
    return name not in ("depth", "settings") or bool(result.depths if name == "depth" else result.settings)


def best_val_loss(result: StudyResult) -> Figure:
    """The runs' best val_loss: see `_every_run`."""
    return _every_run(result, "best_val_loss", "best val_loss" if result.is_foreign else "best val_loss (R-factor)")


def r_stitched(result: StudyResult) -> Figure:
    """The R-factor of the runs' stitched objects: see `_every_run`."""
    return _every_run(result, "r_stitched", "r_stitched (R-factor)")


def _every_run(result: StudyResult, column: str, title: str) -> Figure:
    """Every run as a dot and each arm's median with its interval; failed runs in a band at the top."""
    rows = result.ranking.table[:MOST_ARMS]
    colour_of = colours(result.arms)
    runs = {row["arm"]: [run for run in result.of_arm(row["arm"]) if run.seed in row["seeds"]] for row in rows}
    figure = new_figure(max(4.5, 1.6 + 0.95 * len(rows)), 4.2)
    any_failed = any(row["failures"] for row in rows)
    band, axes = figure.subplots(2, 1, sharex=True, height_ratios=(1, 6) if any_failed else (0.01, 6))
    engine: Any = figure.get_layout_engine()
    engine.set(h_pad=0.01, hspace=0.0)
    shown = [run.value(column) for of_arm in runs.values() for run in of_arm if not run.failed]
    ends = [row[f"median_{column}{end}"] for row in rows for end in ("", "_low", "_high")]
    finite = [value for value in (*shown, *ends) if value is not None and np.isfinite(value) and value > 0]
    log_axis(axes, min(finite, default=0.01), max(finite, default=1))
    for place, row in enumerate(rows):
        color = colour_of[row["arm"]]
        _dots(band, axes, place, runs[row["arm"]], column, color)
        _median(band, axes, place, row, column)
    axes.set_ylabel(title, fontsize=9)
    name_arms(axes, [row["arm"] for row in rows])
    if not finite:
        axes.text(0.5, 0.5, "no run converged", transform=axes.transAxes, ha="center", color="0.35", fontsize=9)
    _make_band(band, any_failed)
    return figure


def _dots(band: Axes, axes: Axes, place: int, runs: Sequence[StudyRun], column: str, color: str) -> None:
    """The runs of an arm, side by side by seed."""
    offsets = np.linspace(-0.25, 0.25, len(runs)) if len(runs) > 1 else [0.0]
    for offset, run in zip(offsets, runs, strict=True):
        if run.failed:
            band.plot(place + offset, 0.45, "x", color=color, ms=6, mew=1.5, gid="failed", zorder=4)
        else:
            axes.plot(place + offset, run.value(column), "o", color=color, ms=5, alpha=0.8, mew=0, gid="run")


def _median(band: Axes, axes: Axes, place: int, row: dict[str, Any], column: str) -> None:
    """The median as a bar, and its interval; what is infinite reaches into the band."""
    middle, low, high = (row[f"median_{column}{end}"] for end in ("", "_low", "_high"))
    if row["runs"] > 1:
        on, height = (axes, middle) if np.isfinite(middle) else (band, 0.45)
        on.plot([place - 0.34, place + 0.34], [height, height], color="black", lw=1.6, gid="median", zorder=3)
    if low is None:
        return
    top = axes.get_ylim()[1]
    if np.isfinite(low):
        axes.plot([place] * 2, [low, high if np.isfinite(high) else top], color="black", lw=1.1, gid="interval")
    if np.isinf(high):
        band.plot([place] * 2, [0 if np.isfinite(low) else 0.25, 0.65], color="black", lw=1.1, gid="interval")


def _make_band(band: Axes, shown: bool) -> None:
    band.set_ylim(0, 1)
    band.set_yticks([0.45], ["failed"] if shown else [""], fontsize=9)
    band.tick_params(length=0, labelbottom=False)
    band.spines[:].set_visible(False)
    band.set_facecolor("0.95" if shown else "none")


def failure_rates(result: StudyResult) -> Figure:
    """Share of failed runs by arm, best arm at the top, with Wilson intervals."""
    rows = result.ranking.table[:MOST_ARMS]
    colour_of = colours(result.arms)
    figure = new_figure(7, 1.1 + 0.36 * len(rows))
    axes = figure.subplots()
    tidy(axes, grid="x")
    for place, row in enumerate(rows):
        color = colour_of[row["arm"]]
        ends = [100 * row["failure_rate_low"], 100 * row["failure_rate_high"]]
        axes.plot(ends, [place] * 2, color=color, linewidth=2.2, solid_capstyle="butt", gid="interval")
        axes.plot(100 * row["failure_rate"], place, "o", color=color, ms=7, clip_on=False, gid="rate")
        told = f"{row['failures']} of {row['runs']}"
        axes.text(1.02, place, told, transform=axes.get_yaxis_transform(), va="center", fontsize=9)
    axes.set_yticks(range(len(rows)), [label(row["arm"], 32) for row in rows], fontsize=9)
    axes.set(xlim=(-1, 101), ylim=(len(rows) - 0.4, -0.6))
    axes.set_xlabel("failed runs / %, with 95 % interval", fontsize=9)
    return figure


def depth(result: StudyResult) -> Figure:
    """Each metric of Stage A beside Stage B, an arm a row; what is unknown or infinite only the table tells."""
    figure = new_figure(12, 0.4 + 2.6 * len(result.depths))
    grid = figure.subplots(len(result.depths), len(_DEPTH_PANELS), squeeze=False)
    for row, comparison in zip(grid, result.depths, strict=True):
        row[0].set_ylabel(label(comparison.arm, 34), fontsize=9)
        for axes, (title, metrics) in zip(row, _DEPTH_PANELS.items(), strict=True):
            tidy(axes)
            axes.set_title(title, fontsize=9.5, loc="left")
            for place, (name, metric) in enumerate(metrics.items()):
                _change(axes, 0.06 * place, comparison[metric], name, OTHER_COLOURS[-3 + place])
            axes.set_xticks([0, 1], [f"{blocks} blocks" for blocks in comparison.depths], fontsize=8)
            axes.set_xlim(-0.4, 1.4)
            axes.margins(y=0.15)
            if title == "gradient norm" and np.isfinite(axes.dataLim.minposy):
                axes.set_yscale("log")
            if len(metrics) > 1:
                axes.legend(fontsize=8, frameon=False)
    return figure


def _change(axes: Axes, shift: float, change: DepthChange, name: str, color: str) -> None:
    """A line from Stage A to Stage B, with the intervals that are finite."""
    ends = [(of.value, of.low, of.high) for of in (change.a, change.b)]
    values, low, high = np.array([[np.nan if x is None or np.isinf(x) else x for x in of] for of in ends]).T
    axes.plot([shift, 1 + shift], values, "o-", color=color, ms=6, lw=1.4, label=name, gid="metric")
    axes.vlines([shift, 1 + shift], low, high, color=color, lw=1, alpha=0.7)


#: The figures by name, in the order in which they are shown.
FIGURES: Final[Mapping[str, Callable[[StudyResult], Figure]]] = {
    "depth": depth,
    "best_val_loss": best_val_loss,
    "r_stitched": r_stitched,
    "failure_rates": failure_rates,
    "stability": stability,
    "settings": settings,
    "learning_curves": learning_curves,
    "gradient_norms": gradient_norms,
}
