"""Rank the arms of a study: a table of runs in, ranked arms and a decision in words out.

**What failed** is what the verdict says, whatever number was stored; a failed run counts as infinite in every column
that arms are ranked by. Runs without a result (interrupted, pruned, unknown), and converged ones without a finite
`best_val_loss`, are missing: counted nowhere, and named in `Ranking.missing`. So is a seed that only other arms have.

**Arms are independent samples.** They share the dataset and the order of the data, but the same seed gives networks of
different shapes unrelated initial weights. So seeds are resampled within each arm, and never paired across arms.
"""

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from operator import itemgetter
from typing import Any, Final, get_args

import numpy as np

from fnostab.health import FAILED, NO_RESULT, VerdictLabel
from fnostab.health.history import each, finite_or_none
from fnostab.health.stability import MEASURES
from fnostab.ranking.claims import ONE_LOOK, Design
from fnostab.ranking.decision import Decision, decide
from fnostab.ranking.intervals import (
    Bootstrap,
    Interval,
    interquartile_mean,
    trimmed_mean,
    wilson_interval,
)
from fnostab.ranking.pairs import Compared, Pair, compare_arms

VERDICTS: Final = get_args(VerdictLabel)
#: Seed of the bootstrap of every ranking that people are shown, so that the same runs give the same intervals.
BOOTSTRAP_SEED: Final = 20260128
REQUIRED_COLUMNS: Final = ("arm", "seed", "best_val_loss", "verdict")
#: What arms are ranked by unless it is a user's own metric: the patches' R-factor, and that of the one object that a
#: user gets.
RANKED_BY: Final = ("best_val_loss", "r_stitched")
#: Medians of these are over the converged runs: of a failed run they mean nothing.
QUALITY_COLUMNS: Final = ("amp_ssim", "phase_ssim", "amp_mae", "phase_mae")
STABILITY_COLUMNS: Final = MEASURES
#: Of which an arm's is the sum over its runs, where others are medians.
_SUMS: Final = ("relapses", "dead_blocks", "lost_stages")
NUMBER_COLUMNS: Final = (
    *("r_stitched", *QUALITY_COLUMNS, *STABILITY_COLUMNS),
    *("grad_norm_median", "grad_norm_max", "plateau_left_epoch"),
)

Row = dict[str, Any]


#: Columns by name, rows, or a pandas DataFrame.
Runs = Mapping[str, Sequence[Any]] | Iterable[Any]


@dataclass(frozen=True)
class Ranking:
    """Ranked arms: see `rank_arms`."""

    table: list[Row]  #: one row an arm, best first
    pairs: list[Pair]  #: every ordered pair of arms, by the column `by`
    decision: Decision
    missing: dict[tuple[str, int], str]  #: why there is no result, by (arm, seed)
    by: str
    design: Design
    comparisons: int  #: how many comparisons the p-values are corrected for
    other_pairs: list[Pair] = field(default_factory=list)  #: by the column `other`; empty where it is not known

    @property
    def other(self) -> str:
        """The first of `RANKED_BY` that the arms are not ranked by."""
        return next(column for column in RANKED_BY if column != self.by)

    def to_json_rows(self) -> list[Row]:
        """The table as strictly valid JSON takes it: what is not finite becomes None."""
        return [each(row, finite_or_none) for row in self.table]


def rank_arms(
    runs: Runs,
    rng: np.random.Generator | int,
    resamples: int = 4000,
    *,
    by: str = "best_val_loss",
    design: Design = ONE_LOOK,
    has_stage_b: bool = True,
) -> Ranking:
    """Rank arms by the runs of a study.

    `runs` is a DataFrame, rows, or columns, with `arm`, `seed`, `best_val_loss`, `verdict` and, if known, `arch`,
    `run_id`, `NUMBER_COLUMNS` and `by`. Intervals come from `resamples` bootstrap resamples drawn by `rng` (a generator
    or a seed), stratified by arm, or, for few runs, from all resamples there are; the order of the runs does not
    matter. An arm with one run has no intervals (None), and none has any with 0 resamples: the decision is the same,
    and quick.

    Order: median of the column `by`, lower values better, over all seeds, failed runs infinite; then failure rate; then
    interquartile mean; then name. With one seed an arm that is the order by that column, failed arms last. An arm
    without a counted run is not in the table.

    Table: of `RANKED_BY` and `by` the lowest of a converged run, and median and interquartile mean over all runs;
    medians of `QUALITY_COLUMNS` over converged runs; of the `STABILITY_COLUMNS` medians, and of relapses and dead
    blocks sums, over the runs that have them; medians of `grad_norm_median` over all, of `plateau_left_epoch` over
    those that left the plateau; None where nothing is known.

    What may be claimed of pairs follows `design`, by `fnostab.ranking.pairs.compare_arms`; the decision's rules are
    those of `fnostab.ranking.decision.decide`, which says what a Stage B takes, unless the study can have none.

    Raises `ValueError` for a table that is empty or has no counted run, a column that is absent, an unknown verdict, a
    value of the wrong kind, two rows of one (arm, seed), two archs in one arm, a `by` that is another of our columns or
    that a converged run does not have, and `resamples` under 100, but for 0.
    """
    if resamples != 0 and resamples < 100:
        raise ValueError(f"`resamples` (={resamples}) must be 0 or >= 100")
    if by in NUMBER_COLUMNS and by not in RANKED_BY:  # larger values of some are better
        raise ValueError(f"`by` (={by}) must be {' or '.join(RANKED_BY)}, or a column of your own")
    counted, missing = _read(runs, by)
    known = [column for column in dict.fromkeys((*RANKED_BY, by)) if _is_known(counted, column)]
    if by not in known:
        raise ValueError(f"`by` (={by}) must be known of every converged run, and is not")
    generator = np.random.default_rng(rng)
    values = {column: {arm: _by_seed(of_arm, column) for arm, of_arm in counted.items()} for column in known}
    drawn = {
        column: {arm: Bootstrap.draw(list(of.values()), generator, resamples) for arm, of in by_arm.items()}
        for column, by_arm in values.items()
    }
    table = [_row(arm, of_arm, {column: drawn[column][arm] for column in known}) for arm, of_arm in counted.items()]
    table.sort(key=itemgetter(f"median_{by}", "failure_rate", f"iqm_{by}", "arm"))
    failed = {arm: {run["seed"]: run["verdict"] != "converged" for run in of_arm} for arm, of_arm in counted.items()}
    compared = {
        column: _described(compare_arms({row["arm"]: values[column][row["arm"]] for row in table}, failed, design), of)
        for column, of in drawn.items()
    }
    main, other = compared[by], next((found for column, found in compared.items() if column != by), None)
    decision = decide(table, main, other.pairs if other else {}, by=by, design=design, has_stage_b=has_stage_b)
    return Ranking(
        table,
        list(main.pairs.values()),
        decision,
        missing,
        by,
        design,
        main.comparisons,
        list(other.pairs.values()) if other else [],
    )


def _is_known(counted: Mapping[str, list[Row]], column: str) -> bool:
    return all(not math.isnan(run[column]) for of_arm in counted.values() for run in of_arm)


def _by_seed(runs: list[Row], column: str) -> dict[int, float]:
    return {run["seed"]: run[column] for run in runs}


def _described(found: Compared, drawn: Mapping[str, Bootstrap]) -> Compared:
    """`found` with the bootstrap's intervals of the probabilities of improvement."""
    pairs: dict[tuple[str, str], Pair] = {}
    for (a, b), pair in found.pairs.items():
        if (b, a) in pairs:
            pairs[a, b] = pairs[b, a].reversed
        else:
            low, high = drawn[a].improvement_interval(drawn[b])
            pairs[a, b] = replace(pair, low=low, high=high)
    return found._replace(pairs=pairs)


def _row(arm: str, runs: list[Row], drawn: Mapping[str, Bootstrap]) -> Row:
    converged = [run for run in runs if run["verdict"] == "converged"]
    best = min(converged, key=lambda run: run["best_val_loss"], default={"best_val_loss": None, "run_id": None})
    failures = len(runs) - len(converged)
    return {
        "arm": arm,
        "arch": _arch(arm, runs),
        "best_val_loss": best["best_val_loss"],
        **{name: _median(converged, name) for name in QUALITY_COLUMNS},
        "grad_norm_median": _median(runs, "grad_norm_median"),
        "grad_norm_max": max(_known(runs, "grad_norm_max"), default=None),
        "runs": len(runs),
        "failures": failures,
        "failure_rate": failures / len(runs),
        **_ends("failure_rate", wilson_interval(failures, len(runs))),
        **_estimates("best_val_loss", drawn.get("best_val_loss")),
        "r_stitched": min(_known(converged, "r_stitched"), default=None),
        **_estimates("r_stitched", drawn.get("r_stitched")),
        **_of_another(converged, drawn),
        "epochs_to_leave_plateau": _median(runs, "plateau_left_epoch"),
        **{name: _median(runs, name) for name in ("max_drawdown", "mean_excess", "relapses_per_1e5_steps")},
        **{name: sum(found) if (found := _known(runs, name)) else None for name in _SUMS},
        "seeds": [run["seed"] for run in runs],
        "best_run_id": best["run_id"],
    }


def _of_another(converged: list[Row], drawn: Mapping[str, Bootstrap]) -> Row:
    """What the table holds of a column that is none of `RANKED_BY`, if arms are ranked by one."""
    row: Row = {}
    for column in drawn.keys() - set(RANKED_BY):
        row |= {column: min(_known(converged, column), default=None), **_estimates(column, drawn[column])}
    return row


def _estimates(column: str, drawn: Bootstrap | None) -> Row:
    """Median and interquartile mean with their intervals; None where the column is not known."""
    names = (f"median_{column}", f"iqm_{column}")
    if drawn is None:
        return {f"{name}{end}": None for name in names for end in ("", "_low", "_high")}
    values = (float(np.median(drawn.values)), interquartile_mean(drawn.values))
    ends = (_ends(names[0], drawn.interval(np.median)), _ends(names[1], drawn.interval(trimmed_mean)))
    return {**dict(zip(names, values, strict=True)), **ends[0], **ends[1]}


def _ends(name: str, interval: Interval) -> Row:
    return {f"{name}_low": interval[0], f"{name}_high": interval[1]}


def _arch(arm: str, runs: list[Row]) -> str | None:
    archs = sorted({run["arch"] for run in runs if run["arch"] is not None})
    if len(archs) > 1:
        raise ValueError(f"`arch` of arm {arm} must be one, not {' and '.join(archs)}")
    return archs[0] if archs else None


def _known(runs: list[Row], name: str) -> list[float]:
    return [run[name] for run in runs if not math.isnan(run[name])]


def _median(runs: list[Row], name: str) -> float | None:
    values = _known(runs, name)
    return float(np.median(values)) if values else None


def _read(runs: Runs, by: str) -> tuple[dict[str, list[Row]], dict[tuple[str, int], str]]:
    """Counted runs by arm, arms by name and their runs by seed; and why others are missing."""
    rows: dict[tuple[str, int], Row] = {}
    for row in (_checked(record, by) for record in _records(runs)):
        arm, seed = row["arm"], row["seed"]
        if (arm, seed) in rows:
            raise ValueError(f"`runs` must hold each arm and seed once, not arm {arm}, seed {seed} again")
        rows[arm, seed] = row
    counted: dict[str, list[Row]] = {}
    missing = {}
    for arm, seed in product(sorted({arm for arm, _ in rows}), sorted({seed for _, seed in rows})):
        reason = _why_missing(rows.get((arm, seed)))
        if reason:
            missing[arm, seed] = reason
        else:
            counted.setdefault(arm, []).append(rows[arm, seed])
    if not counted:
        raise ValueError(f"`runs` (of length {len(rows)}) must hold at least one run with a result")
    return counted, missing


def _why_missing(row: Row | None) -> str | None:
    if row is None:
        return "no run"
    if row["verdict"] in NO_RESULT:
        return str(row["verdict"])
    if row["verdict"] == "converged" and not math.isfinite(row["best_val_loss"]):
        return "converged, but without a finite best_val_loss"
    return None


def _records(runs: Runs) -> list[Mapping[str, Any]]:
    if isinstance(runs, Mapping):
        lengths = {name: len(column) for name, column in runs.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"the columns of `runs` must be equally long, not {lengths}")
        return [dict(zip(runs, values, strict=True)) for values in zip(*runs.values(), strict=True)]
    return list(runs.to_dict("records") if hasattr(runs, "to_dict") else runs)


def _checked(record: Mapping[str, Any], by: str) -> Row:
    """One run with every column, of the right types, and infinite in what arms are ranked by if it failed."""
    absent = [name for name in REQUIRED_COLUMNS if name not in record]
    if absent:
        raise ValueError(f"`runs` must have the columns {', '.join(REQUIRED_COLUMNS)}, and lacks {', '.join(absent)}")
    arm, verdict = record["arm"], record["verdict"]
    if not isinstance(arm, str) or not arm:
        raise ValueError(f"`arm` (={arm}) must be a name")
    if verdict not in VERDICTS:
        raise ValueError(
            f"`verdict` (={verdict}) of arm {arm}, seed {record['seed']} must be one of {', '.join(VERDICTS)}"
        )
    row = {name: _number(name, record.get(name)) for name in ("best_val_loss", *NUMBER_COLUMNS, by)}
    if verdict in FAILED:
        row |= dict.fromkeys((column for column in (*RANKED_BY, by) if column in record), math.inf)
    texts = {name: value if isinstance(value := record.get(name), str) else None for name in ("arch", "run_id")}
    return {"arm": arm, "seed": _seed(arm, record["seed"]), "verdict": verdict, **texts, **row}


def _seed(arm: str, value: Any) -> int:
    """A whole number, also from the text of a tag."""
    try:
        seed = int(value)
    except (TypeError, ValueError, OverflowError):
        seed = None
    if seed is None or not (isinstance(value, str) or seed == value):
        raise ValueError(f"`seed` (={value}) of arm {arm} must be a whole number")
    return seed


def _number(name: str, value: Any) -> float:
    """A float, NaN for None; the largest double, as which MLflow stores infinity, is infinite again."""
    try:
        number = math.nan if value is None else float(value)
    except (TypeError, ValueError):
        raise ValueError(f"`{name}` (={value}) must be a number") from None
    return math.copysign(math.inf, number) if abs(number) >= sys.float_info.max else number
