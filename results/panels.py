"""Panels that figures of docs/results have in common: the runs of arms side by side, by loss or by object."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fnostab.ranking import Ranking
from fnostab.report.axes import OWN_COLOURS, log_axis, new_figure
from results.runs import Run, of_arm, ranked, read_runs

#: By arm.
COLOURS: Final = {
    **OWN_COLOURS,
    "pre": "#332288",
    "plain": "#56B4E9",
    "original": "#8C6D46",
    "stable_1": "#E69F00",
    "stable_rms": "#CC79A7",
    "pre_mix": "#999933",
    "cnn": "#888888",
    "baseline": "#882255",
    "stable_norm": "#44AA99",
    "layerscale": "#DDCC77",
}
TITLES: Final = {
    "q1_curved_phase": "curved probe, phase",
    "q1_curved_nophase": "curved probe, no phase",
    "q1_flat_phase": "flat probe, phase",
    "q1_flat_nophase": "flat probe, no phase",
    "q7_probe": "measured probe",
    "q7_1e4": "1e4 photons a pattern",
    "q7_1e6": "1e6 photons a pattern",
    "q7_scan": "measured scan",
    "q7_grf": "random fields",
    "q7_image": "photographs",
}
#: What is drawn, by the column that arms are ranked by.
LABELS: Final = {"best_val_loss": "best val_loss (R-factor)", "r_stitched": "R of the stitched object"}


def drawn(run: Run, by: str) -> float:
    """The number of a run that is drawn where arms are ranked `by` a column: that which its row has the median of."""
    if by != "r_stitched":
        return run.metrics[by]
    return run.metrics["val/r_stitched" if "val/r_stitched" in run.metrics else "test/r_factor"]


def by_both(studies: Sequence[str], columns: int, size: tuple[float, float]) -> Figure:
    """Panels of `studies`, `columns` a row: a row by loss, and the same studies by object under it."""
    figure = new_figure(*size)
    panels = figure.subplots(2 * len(studies) // columns, columns)
    for index, study in enumerate(studies):
        for down, by in enumerate(LABELS):
            axes = panels[2 * (index // columns) + down][index % columns]
            dots_of_arms(axes, study, ranked(study), by)
            axes.set_title(TITLES[study], fontsize=9.5)
    return figure


def dots_of_arms(axes: Axes, study: str, ranking: Ranking, by: str) -> None:
    """An arm a column, lowest loss first: its runs, their median, and its interval where there are more than three."""
    scale(axes, read_runs(study), by)
    for place, row in enumerate(ranking.table):
        column(axes, place, 0.5, of_arm(study, row["arm"]), row, COLOURS[row["arm"]], by)
    names = [f"{row['arm']}\n{row['runs']} runs" for row in ranking.table]
    axes.set_xticks(range(len(names)), names, fontsize=7.5)
    axes.set_xlim(-0.6, len(names) - 0.4)
    axes.set_ylabel(LABELS[by], fontsize=8.5)


def scale(axes: Axes, runs: Sequence[Run], by: str) -> None:
    """A logarithmic axis that holds all runs."""
    found = [drawn(run, by) for run in runs]
    log_axis(axes, min(found), max(found))


def column(
    axes: Axes, place: float, width: float, runs: Sequence[Run], row: Mapping[str, Any], colour: str, by: str
) -> None:
    """The runs of an arm side by side over `width`, failed ones as crosses, their median, and its interval."""
    step = width / max(1, len(runs) - 1)
    for index, run in enumerate(runs):
        across, marker = place + step * (index - (len(runs) - 1) / 2), "x" if run.failed else "o"
        style: dict[str, Any] = {"ms": 6, "mew": 1.5} if run.failed else {"ms": 4, "alpha": 0.75, "mew": 0}
        axes.plot(across, drawn(run, by), marker, color=colour, **style)
    bar, median_of = 0.68 * width, f"median_{by}"
    axes.plot([place - bar, place + bar], [row[median_of]] * 2, color="black", lw=1.6)
    if row["runs"] > 3:
        axes.plot([place] * 2, [row[f"{median_of}_low"], row[f"{median_of}_high"]], color="black", lw=1.1)
