"""The table and the figure of docs/results/gridsize.md: single patterns beside groups of four."""

from typing import Final

from matplotlib.figure import Figure

from fnostab.report.axes import new_figure
from results.cells import against, failed, family, loss, metric, stitched, table
from results.panels import LABELS, column, scale
from results.runs import of_arm, ranked, read_runs, row_of

#: Shares of the loss on the stitched object, as the grid of the studies has them.
_WEIGHTS: Final = ("0", "0.5")
_COLOURS: Final = {1: "#0072B2", 2: "#D55E00"}


def _arm(gridsize: int, weight: str) -> str:
    return f"control-gridsize{gridsize}-overlap_weight{weight}"


def gridsize(study: str) -> str:
    """A gridsize and an overlap weight a row; groups are compared with single patterns at the same weight."""
    head = ("gridsize", "overlap term", "failed", "median best val_loss", "better than gridsize 1")
    head += ("stitched R-factor, median", "better by it", "amplitude SSIM")
    rows = []
    for weight in _WEIGHTS:
        for size in (1, 2):
            arm, alone = _arm(size, weight), _arm(1, weight)
            row = row_of(study, arm)
            by_loss, by_object = (against(study, arm, alone, by) for by in LABELS)
            cells = (failed(row), loss(row), by_loss, stitched(row), by_object)
            rows.append((str(size), weight, *cells, metric(study, arm, "test/amp_ssim", ".3f")))
    return f"{table(head, rows)}\n\n{family(study)}"


def groups(study: str) -> Figure:
    """Every run, by loss and by object, with medians and intervals."""
    figure = new_figure(9, 3.4)
    for axes, by in zip(figure.subplots(1, 2), LABELS, strict=True):
        scale(axes, read_runs(study), by)
        arms = [(size, weight) for weight in _WEIGHTS for size in (1, 2)]
        rows = {row["arm"]: row for row in ranked(study).table}
        for place, (size, weight) in enumerate(arms):
            arm = _arm(size, weight)
            column(axes, place, 0.5, of_arm(study, arm), rows[arm], _COLOURS[size], by)
        names = [f"gridsize {size}\noverlap term {weight}" for size, weight in arms]
        axes.set_xticks(range(len(arms)), names, fontsize=7.5)
        axes.set_ylabel(LABELS[by], fontsize=8.5)
    return figure
