"""The tables of a study's report, the same in Markdown and in HTML."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, Final, NamedTuple

from fnostab.ranking import Ranking
from fnostab.ranking.pairs import Pair
from fnostab.study.depth import DepthChange, DepthComparison, Estimate
from fnostab.study.result import StudyResult
from fnostab.study.sequential import Look
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
#: What the columns are called that arms are ranked by.
_RANKED_BY: Final = {"best_val_loss": "val_loss", "r_stitched": "r_stitched"}
#: What the numbers of single runs are called.
_MEASURES: Final = {
    **{"r_stitched": "r_stitched", "max_drawdown": "max drawdown", "relapses": "relapses"},
    **{"dead_blocks": "dead blocks", "lost_stages": "lost stages"},
}
#: A table of more columns is wider than a page.
_MOST_COLUMNS: Final = 12


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
    """One row an arm, best first, with what decides: failures, medians, stability and quality."""
    columns = dict.fromkeys((ranking.by, *_RANKED_BY))
    arch = ("arch",) if any(row["arch"] for row in ranking.table) else ()
    head = (
        *("rank", "arm", *arch, "runs", "failed", *(f"median {_RANKED_BY.get(column, column)}" for column in columns)),
        *("max drawdown, median", "relapses / dead blocks / lost stages, sum", "SSIM amp / phase"),
    )
    rows = [
        (
            *(Cell(str(place)), Cell(row["arm"]), *(Cell(row[name] or UNKNOWN) for name in arch)),
            Cell(str(row["runs"])),
            Cell(str(row["failures"]), percent_interval(row["failure_rate_low"], row["failure_rate_high"])),
            *(_estimate(row, f"median_{column}") for column in columns),
            Cell(number(row["max_drawdown"])),
            _joined(row, "relapses", "dead_blocks", "lost_stages"),
            _joined(row, "amp_ssim", "phase_ssim", form=".3f"),
        )
        for place, row in enumerate(ranking.table, start=1)
    ]
    return _known_columns(Table(head, rows, texts=2 + len(arch), name=1))


def details_table(ranking: Ranking) -> Table:
    """One row an arm, best first, with what else is known of it."""
    head = (
        *("arm", "IQM val_loss", "IQM r_stitched", "best val_loss", "best r_stitched", "MAE amp / phase"),
        *("grad norm median / max", "plateau left, epoch"),
    )
    rows = [
        (
            *(Cell(row["arm"]), _estimate(row, "iqm_best_val_loss"), _estimate(row, "iqm_r_stitched")),
            *(Cell(number(row["best_val_loss"])), Cell(number(row["r_stitched"]))),
            *(_joined(row, "amp_mae", "phase_mae"), _joined(row, "grad_norm_median", "grad_norm_max")),
            Cell(number(row["epochs_to_leave_plateau"])),
        )
        for row in ranking.table
    ]
    return _known_columns(Table(head, rows))


def _estimate(row: Mapping[str, Any], name: str) -> Cell:
    return Cell(number(row[name]), interval(row[f"{name}_low"], row[f"{name}_high"]))


def _joined(row: Mapping[str, Any], *names: str, form: str = ".3g") -> Cell:
    return Cell(" / ".join(number(row[name], form) for name in names))


def _known_columns(table: Table) -> Table:
    """The table without the columns of numbers that nobody has."""
    kept = [
        place
        for place in range(len(table.head))
        if place < table.texts or any(set(row[place].text.split(" / ")) != {UNKNOWN} for row in table.rows)
    ]
    rows = [tuple(row[place] for place in kept) for row in table.rows]
    return replace(table, head=tuple(table.head[place] for place in kept), rows=rows)


def pairs_table(ranking: Ranking) -> Table | None:
    """Each pair of arms once, the better ranked first: what was found and what is clear; None with a single arm.

    The last columns tell after how many seeds an arm it was decided, if the study looked several times, and what the
    other of the columns that arms are ranked by says of the same pair.
    """
    pairs, others = ({(pair.a, pair.b): pair for pair in of} for of in (ranking.pairs, ranking.other_pairs))
    if not pairs:
        return None
    head = ["a run of", "is better than one of", "which is", "with probability", "p", "p corrected"]
    head += ["after, seeds"] if ranking.design.is_sequential else []
    head += [f"by {_RANKED_BY[ranking.other]}"] if others else []
    rows = []
    for a, b in combinations([row["arm"] for row in ranking.table], 2):
        pair = pairs[a, b]
        row = [Cell(a), Cell(b), Cell("open" if pair.is_open else f"clear: {pair.better}")]
        row += [Cell(number(pair.probability, ".2f"), interval(pair.low, pair.high, ".2f"))]
        row += [Cell(number(pair.p, ".2g")), Cell(number(pair.p_corrected, ".2g"))]
        row += [Cell(number(pair.seeds))] if ranking.design.is_sequential else []
        row += [_by_the_other(pair, others[a, b])] if others else []
        rows.append(tuple(row))
    return Table(tuple(head), rows, texts=3)


def _by_the_other(pair: Pair, other: Pair) -> Cell:
    """The probability by the other column, and whether what is clear by that column agrees with the pair."""
    favoured = pair.better or (pair.a if pair.probability >= 0.5 else pair.b)
    said = "open" if other.is_open else "agrees" if other.better == favoured else "opposite"
    return Cell(f"{number(other.probability, '.2f')}, {said}", interval(other.low, other.high, ".2f"))


def p_values_table(ranking: Ranking) -> Table | None:
    """The corrected p-value of each pair, an arm a row and a column; None for fewer than three arms, or too many."""
    arms = [row["arm"] for row in ranking.table]
    if not 3 <= len(arms) <= _MOST_COLUMNS:
        return None
    pairs = {(pair.a, pair.b): pair for pair in ranking.pairs}

    def cell(a: str, b: str) -> Cell:
        if a == b:
            return Cell("")
        pair = pairs[a, b]
        return Cell(number(pair.p_corrected, ".2g"), "" if pair.is_open else "better" if pair.a_is_better else "worse")

    return Table(("", *arms), [(Cell(a), *(cell(a, b) for b in arms)) for a in arms])


def looks_table(looks: Sequence[Look]) -> Table | None:
    """What each look of a study until decided found; None for a study that looks once."""
    head = ("after, seeds an arm", "first in rank", "decided", "open")
    rows = [(Cell(str(look.seeds)), Cell(look.leader), Cell(look.decided), Cell(look.open)) for look in looks]
    return Table(head, rows, texts=4) if rows else None


def known_measures(result: StudyResult) -> dict[str, str]:
    """What the numbers of single runs are called that any run has, by their names in `StudyRun.numbers`."""
    return {
        name: text for name, text in _MEASURES.items() if any(run.numbers.get(name) is not None for run in result.runs)
    }


def runs_table(result: StudyResult) -> Table:
    """The verdict of every run, how steadily it trained if that is known of any, and its numbers."""
    measures = known_measures(result)
    stability = ("stability",) if result.knows_stability else ()
    rows = [
        (
            *(Cell(run.arm), Cell(run.verdict), *(Cell(run.stability or UNKNOWN) for _ in stability)),
            *(Cell(run.run_id), Cell(str(run.seed))),
            *(Cell(number(run.best_val_loss)), *(Cell(number(run.numbers.get(name))) for name in measures)),
        )
        for run in result.all_runs
    ]
    head = ("arm", "verdict", *stability, "run", "seed", "best val_loss", *measures.values())
    return Table(head, rows, texts=3 + len(stability))


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
