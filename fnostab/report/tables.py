"""The tables of a study's report, the same in Markdown and in HTML."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Final, NamedTuple

from fnostab.ranking import Ranking
from fnostab.study.depth import DepthChange, DepthComparison, Estimate
from fnostab.study.result import StudyResult
from fnostab.study.text import UNKNOWN, interval, number, percent_interval

#: What the metrics of a depth comparison are called.
_METRIC_NAMES: Final = {
    "median_best_val_loss": "median val_loss",
    "best_val_loss": "best val_loss",
    "amp_ssim": "amplitude SSIM",
    "phase_ssim": "phase SSIM",
    "amp_mae": "amplitude MAE",
    "phase_mae": "phase MAE",
    "grad_norm_median": "gradient norm, median",
    "grad_norm_max": "gradient norm, maximum",
    "failure_rate": "failure rate",
}


class Cell(NamedTuple):
    """A text, and the interval that stands behind it."""

    text: str
    interval: str = ""


@dataclass(frozen=True)
class Table:
    """A head and rows of cells: the first `texts` columns hold text, the others numbers; column `name` names a row."""

    head: tuple[str, ...]
    rows: Sequence[tuple[Cell, ...]]
    texts: int = 1
    name: int = 0


def ranking_table(ranking: Ranking) -> Table:
    """One row an arm, best first."""
    head = (
        *("rank", "arm", "arch", "runs", "failed", "median val_loss", "IQM", "best", "SSIM amp / phase"),
        *("MAE amp / phase", "grad norm median / max", "plateau left, epoch"),
    )
    return Table(head, [_ranked(place, row) for place, row in enumerate(ranking.table, start=1)], texts=3, name=1)


def _ranked(place: int, row: dict[str, Any]) -> tuple[Cell, ...]:
    losses = [
        Cell(number(row[name]), interval(row[f"{name}_low"], row[f"{name}_high"]))
        for name in ("median_best_val_loss", "iqm_best_val_loss")
    ]
    return (
        *(Cell(str(place)), Cell(row["arm"]), Cell(row["arch"] or UNKNOWN), Cell(str(row["runs"]))),
        Cell(str(row["failures"]), percent_interval(row["failure_rate_low"], row["failure_rate_high"])),
        *losses,
        Cell(number(row["best_val_loss"])),
        Cell(f"{number(row['amp_ssim'], '.3f')} / {number(row['phase_ssim'], '.3f')}"),
        Cell(f"{number(row['amp_mae'])} / {number(row['phase_mae'])}"),
        Cell(f"{number(row['grad_norm_median'])} / {number(row['grad_norm_max'])}"),
        Cell(number(row["epochs_to_leave_plateau"])),
    )


def pairs_table(ranking: Ranking) -> Table | None:
    """Each pair of arms once, the better ranked first; None with a single arm."""
    by_arms = {(pair.a, pair.b): pair for pair in ranking.pairs}
    pairs = [by_arms[a, b] for a, b in combinations([row["arm"] for row in ranking.table], 2)]
    rows = [
        (
            *(Cell(pair.a), Cell(pair.b)),
            Cell(number(pair.probability, ".2f"), interval(pair.low, pair.high, ".2f")),
            Cell("open" if pair.is_open else "clear"),
        )
        for pair in pairs
    ]
    return Table(("a run of", "is better than one of", "with probability", "which is"), rows, texts=2) if rows else None


def runs_table(result: StudyResult) -> Table:
    """The verdict of every run."""
    rows = [
        (Cell(run.arm), Cell(run.verdict), Cell(run.run_id), Cell(str(run.seed)), Cell(number(run.best_val_loss)))
        for run in result.all_runs
    ]
    return Table(("arm", "verdict", "run", "seed", "best val_loss"), rows, texts=3)


def depth_table(depth: DepthComparison) -> Table:
    """Every metric in both stages."""
    head = ("metric", *(f"{blocks} blocks (Stage {stage})" for blocks, stage in zip(depth.depths, "AB", strict=True)))
    rows = [
        (Cell(_METRIC_NAMES[metric]), *(_estimated(of, change.kind) for of in (change.a, change.b)), _changed(change))
        for metric, change in depth.changes.items()
    ]
    return Table((*head, "change"), rows)


def _estimated(of: Estimate, kind: str) -> Cell:
    if kind == "rate":
        return Cell(UNKNOWN if of.value is None else f"{100 * of.value:.0f} %", percent_interval(of.low, of.high))
    return Cell(number(of.value), interval(of.low, of.high))


def _changed(change: DepthChange) -> Cell:
    """`+12 %`, from a factor of 3 on `× 3.4`, or the difference, for rates in percentage points."""
    value = change.change
    if value is None:
        return Cell(UNKNOWN)
    if change.kind == "rate":
        return Cell(f"{100 * value:+.0f} points")
    if change.kind == "difference":
        return Cell(number(value, "+.3f"))
    return Cell(number(100 * (value - 1), "+.0f") + " %" if value < 3 else f"× {number(value)}")
