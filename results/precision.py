"""The table and the figure of docs/results/precision.md: four arms in single precision and in bfloat16."""

from typing import Final

from matplotlib.figure import Figure

from fnostab.study.text import number
from results.cells import against, failed, family, loss, stitched, table
from results.paired import paired, side_by_side
from results.panels import LABELS
from results.runs import Run, median, of_arm, row_of

STUDY: Final = "precision"
#: By arm its name in single precision and in bfloat16.
ARMS: Final = {arm: (arm, f"{arm}-bf16") for arm in ("control", "agc", "stable", "pre")}


def precision() -> str:
    """An arm and a precision a row; the same arm in bfloat16 is compared with single precision."""
    head = ("arm", "precision", "failed", "median best val_loss", "bf16 better", "stitched R-factor, median")
    head += ("bf16 better by it", "drawdown, median and largest", "relapses", "dead blocks")
    rows = []
    for arm, names in ARMS.items():
        for name, of in zip(("32-true", "bf16-mixed"), names, strict=True):
            row, runs = row_of(STUDY, of), of_arm(STUDY, of)
            by_loss, by_object = (against(STUDY, of, arm, by) for by in LABELS)
            steady = (_drawdowns(runs), str(sum(run.relapses for run in runs)), str(dead_blocks(runs)))
            rows.append((arm, name, failed(row), loss(row), by_loss, stitched(row), by_object, *steady))
    return f"{table(head, rows)}\n\n{family(STUDY)}"


def pairs() -> str:
    """The same seed in both precisions: an arm a row."""
    return paired(STUDY, ARMS, "bf16 over single", "in bf16")


def _drawdowns(runs: list[Run]) -> str:
    known = [run.drawdown for run in runs if run.drawdown is not None]
    return f"{number(median(known), '.2f')}, {number(max(known), '.2f')}" if known else ""


def dead_blocks(runs: list[Run]) -> int:
    """Dead blocks of all `runs` together."""
    return sum(int(run.metrics.get("stability/dead_blocks", 0)) for run in runs)


def figure() -> Figure:
    """Every run, by loss and by object: each arm in single precision and, to its right, in bfloat16."""
    return side_by_side(STUDY, ARMS, "single | bf16")
