"""The table and the figure of docs/results/precision.md: four arms in single precision and in bfloat16."""

from typing import Final

import numpy as np
from matplotlib.figure import Figure
from scipy.stats import bootstrap

from fnostab.report.axes import new_figure
from fnostab.study.text import interval, number
from results.cells import against, failed, family, loss, stitched, table
from results.panels import COLOURS, LABELS, column, drawn, scale
from results.runs import Run, median, of_arm, read_runs, row_of

STUDY: Final = "precision"
ARMS: Final = ("control", "agc", "stable", "pre")


def mixed(arm: str) -> str:
    """The name of `arm` in bfloat16."""
    return f"{arm}-bf16"


def precision() -> str:
    """An arm and a precision a row; the same arm in bfloat16 is compared with single precision."""
    head = ("arm", "precision", "failed", "median best val_loss", "bf16 better", "stitched R-factor, median")
    head += ("bf16 better by it", "drawdown, median and largest", "relapses", "dead blocks")
    rows = []
    for arm in ARMS:
        for name, of in (("32-true", arm), ("bf16-mixed", mixed(arm))):
            row, runs = row_of(STUDY, of), of_arm(STUDY, of)
            by_loss, by_object = (against(STUDY, of, arm, by) for by in LABELS)
            steady = (_drawdowns(runs), str(sum(run.relapses for run in runs)), str(dead_blocks(runs)))
            rows.append((arm, name, failed(row), loss(row), by_loss, stitched(row), by_object, *steady))
    return f"{table(head, rows)}\n\n{family(STUDY)}"


def paired() -> str:
    """The same seed, so the same weights at first and the same order of patches, in both precisions: an arm a row."""
    head = ("arm", "pairs", "val_loss, bf16 over single", "lower in bf16", "R, bf16 over single", "lower in bf16")
    rows = []
    for arm in (*ARMS, "all"):
        cells: list[str] = []
        for by in LABELS:
            ratios = [ratio for one in ARMS if arm in (one, "all") for ratio in _ratios(one, by)]
            resampled = bootstrap((ratios,), np.median, axis=0, method="percentile", rng=np.random.default_rng(0))
            low, high = resampled.confidence_interval
            cells += [f"{median(ratios):.3f} {interval(low, high, '.3f')}", f"{sum(ratio < 1 for ratio in ratios)}"]
        rows.append((arm, str(len(ratios)), *cells))
    return table(head, rows)


def _ratios(arm: str, by: str) -> list[float]:
    """What `by` is in bfloat16 over what it is in single precision, of every seed that both have."""
    single, other = ({run.stored.seed: drawn(run, by) for run in of_arm(STUDY, of)} for of in (arm, mixed(arm)))
    return [other[seed] / single[seed] for seed in sorted(single.keys() & other.keys())]


def _drawdowns(runs: list[Run]) -> str:
    known = [run.drawdown for run in runs if run.drawdown is not None]
    return f"{number(median(known), '.2f')}, {number(max(known), '.2f')}" if known else ""


def dead_blocks(runs: list[Run]) -> int:
    """Dead blocks of all `runs` together."""
    return sum(int(run.metrics.get("stability/dead_blocks", 0)) for run in runs)


def figure() -> Figure:
    """Every run, by loss and by object: each arm in single precision and, to its right, in bfloat16."""
    drawing = new_figure(10.5, 3.8)
    for axes, by in zip(drawing.subplots(1, 2), LABELS, strict=True):
        scale(axes, read_runs(STUDY), by)
        for place, arm in enumerate(ARMS):
            for side, of in ((-0.2, arm), (0.2, mixed(arm))):
                column(axes, place + side, 0.24, of_arm(STUDY, of), row_of(STUDY, of), COLOURS[arm], by)
        axes.set_xticks(range(len(ARMS)), [f"{arm}\nsingle | bf16" for arm in ARMS], fontsize=8.5)
        axes.set_ylabel(LABELS[by], fontsize=9)
    return drawing
