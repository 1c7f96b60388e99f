"""The tables of a study's report, the same in Markdown and in HTML."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, groupby
from typing import Any, Final, NamedTuple

from fnostab.ranking import Ranking
from fnostab.study.depth import DepthChange, DepthComparison, Estimate
from fnostab.study.result import StudyResult, StudyRun
from fnostab.study.text import UNKNOWN, interval, markdown, number, percent_interval

HOW_TO_READ: Final = (
    "val_loss is the R-factor on validation patches, and best val_loss the lowest of a run: lower is better.",
    "A failed run (every verdict but converged and interrupted) counts as ∞, so a median of ∞ means that half of the "
    "runs or more failed. Interrupted runs are missing, not failed.",
    "Brackets hold 95 % intervals: Wilson's for failure rates, else percentile bootstrap over the seeds of an arm. "
    "With few seeds they are too narrow; with one there is none.",
    "The probability of improvement is the chance that a run of the first arm has the lower val_loss. An interval that "
    "holds 0.5 leaves it open which is better.",
    "IQM is the mean of the middle half of the runs. SSIM and MAE are those of the stitched test object, medians over "
    "converged runs; a dash is a value that is not known or means nothing.",
)


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

    def markdown(self) -> str:
        """The table in GitHub's Markdown."""
        rule = ["---" if place < self.texts else "---:" for place in range(len(self.head))]
        rows = [[f"{markdown(cell.text)} {cell.interval}".rstrip() for cell in row] for row in self.rows]
        return "\n".join(f"| {' | '.join(line)} |" for line in (list(self.head), rule, *rows))


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
    head = ("metric", f"{depth.depth_a} blocks (Stage A)", f"{depth.depth_b} blocks (Stage B)", "change")
    rows = [
        (
            Cell(change.name),
            *(_estimated(of, change.kind) for of in (change.a, change.b)),
            Cell(change_in_words(change)),
        )
        for change in depth.changes
    ]
    return Table(head, rows)


def _estimated(of: Estimate, kind: str) -> Cell:
    if kind == "rate":
        return Cell(UNKNOWN if of.value is None else f"{100 * of.value:.0f} %", percent_interval(of.low, of.high))
    return Cell(number(of.value), interval(of.low, of.high))


def depth_headline(depth: DepthComparison) -> str:
    """Whether instability emerged, in one line."""
    emerged = "emerged" if depth.emerged else "did not emerge"
    return f"Instability {emerged} from {depth.depth_a} to {depth.depth_b} blocks"


def change_in_words(change: DepthChange) -> str:
    """`+12 %`, from a factor of 3 on `× 3.4`, or the difference, for rates in percentage points."""
    if change.change is None:
        return UNKNOWN
    if change.kind == "rate":
        return f"{100 * change.change:+.0f} points"
    if change.kind == "difference":
        return number(change.change, "+.3f")
    return number(100 * (change.change - 1), "+.0f") + " %" if change.change < 3 else f"× {number(change.change)}"


def what_is_missing(result: StudyResult) -> list[str]:
    """A sentence for each arm and reason for which there is no result, then the notes."""
    missing = sorted((arm, reason, seed) for (arm, seed), reason in result.ranking.missing.items())
    sentences = []
    for (arm, reason), found in groupby(missing, key=lambda entry: entry[:2]):
        seeds = [str(seed) for *_, seed in found]
        sentences.append(f"{arm}, seed{'s' if len(seeds) > 1 else ''} {', '.join(seeds)}: {reason}.")
    return [*sentences, *result.notes]


def reasons_of_failures(runs: Sequence[StudyRun]) -> list[str]:
    """Why each failed run failed."""
    return [f"{run.arm}, seed {run.seed}: {run.verdict}: {run.verdict_reason}" for run in runs if run.failed]
