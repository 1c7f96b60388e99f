"""What a ranked study says: gold, silver, control, best or undecided, in words, and only what may be claimed."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from fnostab.ranking.claims import Design
from fnostab.ranking.exact_tests import fewest_seeds, seeds_to_tell_apart, smallest_p
from fnostab.ranking.intervals import wilson_interval
from fnostab.ranking.pairs import Compared, Pair, p_text

#: *Silver* may lose this share of control's median.
SILVER_LOSS: Final = 0.1
#: `Decision.seeds_needed` never says more.
MOST_SEEDS: Final = 1000
#: What the columns that arms are ranked by are called in sentences.
COLUMN_WORDS: Final[Mapping[str, str]] = {"best_val_loss": "val_loss", "r_stitched": "stitched R-factor"}

Label = Literal["gold", "silver", "control", "best", "undecided"]
Row = Mapping[str, Any]
Pairs = Mapping[tuple[str, str], Pair]


@dataclass(frozen=True)
class Decision:
    """What the study says, and in words.

    `winner` is the first in rank, or None if every run of every arm failed; by val_loss, it goes to Stage B.
    `seeds_needed` is the estimate of `decide`, None for another label than undecided and where no number follows from
    the runs.
    `disagrees` tells that a claim by one column was dropped because the other clearly says the opposite.
    """

    label: Label
    text: str
    winner: str | None
    seeds_needed: int | None
    disagrees: bool = False


@dataclass(frozen=True)
class _Claim:
    """What would be said: the label, its reason, and the pairs that it rests on, the better arm first."""

    label: Label
    reason: str
    pairs: Sequence[tuple[str, str]]


def decide(
    table: Sequence[Row], compared: Compared, other: Pairs, *, by: str, design: Design, has_stage_b: bool = True
) -> Decision:
    """Decide by the rows of a ranking, best first, and what was compared by the column `by`; `other` is by another.

    The text says which arm Stage B takes, if the study `has_stage_b`.

    First match wins, and *better*, *beats* and *less often* mean that the comparison is clear: its p-value, corrected
    for all comparisons and looks of the study, is at most alpha.

    - *best*, in a study with other arms than those of the next rules: one arm beats every other one;
    - *gold*: an arm with arch `stable_hybrid` (where no arch is known, the arm `stable`) beats the arm `control`, and
      has no higher failure rate;
    - *silver*: the arm `agc` fails less often than control, and its median is finite and at most 10 % above control's;
    - *control*: control beats every other arm, stable and agc among them;
    - *best*: one arm beats every other one;
    - else *undecided*, with the number of seeds an arm, by `seeds_to_tell_apart`, that would decide every open
      comparison of the first arm. No number (None) with one run in an arm, where a probability is 0.5, or where none is
      open. `MOST_SEEDS` stands for more as well.

    Where the other column clearly says the opposite of a pair that a claim rests on, nothing is claimed: undecided.
    """
    winner = None if table[0]["best_val_loss"] is None else table[0]["arm"]
    claim = next((claim for claim in _claims(table, compared, by) if claim is not None), None)
    opposed = [other[b, a] for a, b in claim.pairs if (b, a) in other and other[b, a].a_is_better] if claim else []
    seeds_needed = None
    label: Label = "undecided"
    if claim is None:
        seeds_needed, reason = _undecided(table, compared, by, design)
    elif opposed:
        opposite = COLUMN_WORDS[next(column for column in COLUMN_WORDS if column != by)]
        reason = f"{claim.reason}; but by {opposite} the opposite is clear ({'; '.join(map(str, opposed))})"
    else:
        label, reason = claim.label, claim.reason
    if by == "best_val_loss" and has_stage_b:
        stage_b = f"Stage B takes {winner}, the first in rank" if winner else "No arm goes to Stage B: every run failed"
    else:  # Stage B follows val_loss
        stage_b = f"The first in rank is {winner}" if winner else "Every run failed"
    text = f"{label.capitalize()}: {reason}. {stage_b}. {_how_sure(table, compared, design)}."
    return Decision(label, text, winner, seeds_needed, disagrees=bool(opposed))


def _words(by: str) -> str:
    """What a column is called; a user's own metric as it is."""
    return COLUMN_WORDS.get(by, by)


def _claims(table: Sequence[Row], compared: Compared, by: str) -> Sequence[_Claim | None]:
    """What could be claimed, in the order of the rules."""
    rows = {row["arm"]: row for row in table}
    stable = [row for row in table if _is_stable(row)]
    best = _best(table, compared.pairs)
    foreign = any(row["arm"] not in ("control", "agc") and not _is_stable(row) for row in table)
    return (
        best if foreign else None,
        _gold(stable, rows, compared.pairs),
        _silver(rows, compared, by),
        best and _control(best, rows, stable),
        best,
    )


def _is_stable(row: Row) -> bool:
    return row["arm"] != "control" and bool(row["arch"] == "stable_hybrid" if row["arch"] else row["arm"] == "stable")


def _best(table: Sequence[Row], pairs: Pairs) -> _Claim | None:
    others = [row["arm"] for row in table]
    for row in table if len(table) > 1 else ():
        over = [pairs[row["arm"], arm] for arm in others if arm != row["arm"]]
        if all(pair.a_is_better for pair in over):
            reason = f"{_improvement(*over)}; {_failures(*table)}"
            return _Claim("best", reason, [(pair.a, pair.b) for pair in over])
    return None


def _gold(stable: Sequence[Row], rows: Mapping[str, Row], pairs: Pairs) -> _Claim | None:
    control = rows.get("control")
    for row in stable if control else ():
        pair = pairs[row["arm"], "control"]
        if pair.a_is_better and control and row["failure_rate"] <= control["failure_rate"]:
            reason = f"{_improvement(pair)}, and no higher failure rate; {_failures(row, control)}"
            return _Claim("gold", reason, [(pair.a, pair.b)])
    return None


def _silver(rows: Mapping[str, Row], compared: Compared, by: str) -> _Claim | None:
    agc, control = rows.get("agc"), rows.get("control")
    if agc is None or control is None or compared.rates is None or compared.rates.look is None:
        return None
    median, reference = agc[f"median_{by}"], control[f"median_{by}"]
    loses_little = math.isfinite(median) and median <= (1 + SILVER_LOSS) * reference
    if not (agc["failure_rate"] < control["failure_rate"] and loses_little):
        return None
    reason = (
        f"agc fails less often ({p_text(compared.rates.p)}), at a median {_words(by)} of {median:.3g} against"
        f" {reference:.3g}; {_failures(agc, control)}"
    )
    return _Claim("silver", reason, [("agc", "control")])


def _control(best: _Claim, rows: Mapping[str, Row], stable: Sequence[Row]) -> _Claim | None:
    if best.pairs[0][0] != "control" or "agc" not in rows or not stable:
        return None
    return _Claim("control", best.reason, best.pairs)


def _undecided(table: Sequence[Row], compared: Compared, by: str, design: Design) -> tuple[int | None, str]:
    """The seeds needed, and the reason."""
    first = table[0]["arm"]
    if len(table) == 1:
        return None, f"there is no other arm than {first} to compare with"
    leading = [compared.pairs[first, row["arm"]] for row in table[1:]]
    facts = f"by {_words(by)} {_improvement(*leading)}; {_failures(*table)}"
    if min(row["runs"] for row in table) == 1:
        return None, f"{facts}; one seed in an arm has no spread, so nothing is sure"
    still_open = [pair for pair in leading if pair.is_open]
    if not still_open:
        return None, f"{facts}; every comparison with {first} is clear, so more seeds would hardly change this"
    estimates = [seeds_to_tell_apart(pair.probability, compared.comparisons, design.alpha) for pair in still_open]
    known = [estimate for estimate in estimates if estimate is not None]
    if len(known) < len(estimates):
        return None, f"{facts}; from a probability of 0.5 no number of seeds follows that would decide"
    needed = max(known)
    about = f"about {needed}" if needed <= MOST_SEEDS else f"more than {MOST_SEEDS}"
    between = f"between {first} and {', '.join(pair.b for pair in still_open)}"
    return min(needed, MOST_SEEDS), (
        f"{facts}; to decide {between} would take {about} seeds an arm, if these probabilities are the true ones"
    )


def _improvement(*pairs: Pair) -> str:
    return f"probability of improvement of {' and of '.join(map(str, pairs))}"


def _failures(*rows: Row) -> str:
    return "failed runs: " + ", ".join(
        f"{row['arm']} {row['failures']} of {row['runs']} "
        f"(95 % interval {100 * row['failure_rate_low']:.0f} to {100 * row['failure_rate_high']:.0f} %)"
        for row in rows
    )


def _how_sure(table: Sequence[Row], compared: Compared, design: Design) -> str:
    """What the p-values are corrected for, and how little this many seeds an arm can say."""
    seeds = min(row["runs"] for row in table)
    words = "1 seed" if seeds == 1 else f"{seeds} seeds"
    at_most = 100 * wilson_interval(0, seeds)[1]
    text = f"With {words} an arm without a failure may still fail in up to {at_most:.0f} % of runs"
    if not compared.comparisons:
        return text
    many = f"{compared.comparisons} comparison{'s' if compared.comparisons > 1 else ''}"
    looks = f" and {len(design.looks)} looks" if design.is_sequential else ""
    text += f". P-values are corrected for {many}{looks}: at most {design.alpha:g} is clear"
    needed = fewest_seeds(compared.comparisons, design.alpha)
    if not design.looks and smallest_p(seeds) * compared.comparisons > design.alpha:
        text += f", which {words} an arm can never be; {needed} can"
    return text
