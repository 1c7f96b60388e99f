"""Runs of two arms with the same seeds, compared seed by seed: a table and a figure."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from scipy.stats import bootstrap

from fnostab.report.axes import new_figure
from fnostab.study.text import interval
from results.cells import table
from results.panels import COLOURS, LABELS, column, drawn, scale
from results.runs import median, of_arm, read_runs, row_of


def paired(study: str, arms: Mapping[str, tuple[str, str]], over: str, lower: str) -> str:
    """By label two arms of the `study`: the second one's values `over` the first one's, and how often they are `lower`.

    The same seed gives both the same weights at first and the same order of patches. Intervals are percentile bootstrap
    over pairs. A run that failed counts with what it reached.
    """
    head = ["arm", "pairs", f"val_loss, {over}", f"lower {lower}", f"R, {over}", f"lower {lower}"]
    rows = []
    for label, pairs in {**{label: [both] for label, both in arms.items()}, "all": list(arms.values())}.items():
        cells: list[str] = []
        for by in LABELS:
            ratios = [ratio for first, second in pairs for ratio in seed_ratios(study, first, second, by)]
            resampled = bootstrap((ratios,), np.median, axis=0, method="percentile", rng=np.random.default_rng(0))
            low, high = resampled.confidence_interval
            cells += [f"{median(ratios):.3f} {interval(low, high, '.3f')}", f"{sum(ratio < 1 for ratio in ratios)}"]
        rows.append((label, str(len(ratios)), *cells))
    return table(head, rows)


def seed_ratios(study: str, first: str, second: str, by: str) -> list[float]:
    """What `by` is for the `second` arm over what it is for the `first`, of every seed that both have."""
    ours, theirs = ({run.stored.seed: drawn(run, by) for run in of_arm(study, arm)} for arm in (second, first))
    return [ours[seed] / theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]


def side_by_side(study: str, arms: Mapping[str, tuple[str, str]], sides: str) -> Figure:
    """Every run of the `study`, by loss and by object: the first of each two arms and, to its right, the second."""
    drawing = new_figure(10.5, 3.8)
    for axes, by in zip(drawing.subplots(1, 2), LABELS, strict=True):
        scale(axes, read_runs(study), by)
        for place, (label, both) in enumerate(arms.items()):
            for side, arm in zip((-0.2, 0.2), both, strict=True):
                column(axes, place + side, 0.24, of_arm(study, arm), row_of(study, arm), COLOURS[label], by)
        axes.set_xticks(range(len(arms)), [f"{label}\n{sides}" for label in arms], fontsize=8.5)
        axes.set_ylabel(LABELS[by], fontsize=9)
    return drawing
