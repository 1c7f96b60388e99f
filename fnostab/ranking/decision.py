"""What a ranked study says of the arms stable and agc against control: gold, silver, control or undecided, in words."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from fnostab.ranking.intervals import Pair, seeds_to_tell_apart, wilson_interval

#: *Silver* may lose this share of control's median best_val_loss.
SILVER_LOSS: Final = 0.1
#: `Decision.seeds_needed` never says more.
MOST_SEEDS: Final = 1000
#: With fewer, more than 5 % of studies of two equal arms find them wholly apart, where the bootstrap sees no spread.
FEW_SEEDS: Final = 4

Label = Literal["gold", "silver", "control", "undecided"]
Row = Mapping[str, Any]
Pairs = Mapping[tuple[str, str], Pair]


@dataclass(frozen=True)
class Decision:
    """What the study says, and in words.

    `winner` is the first in rank, which goes to Stage B, or None if every run of every arm failed. `seeds_needed` is
    the estimate of `decide`, None for another label than undecided and where no number follows from the runs.
    """

    label: Label
    text: str
    winner: str | None
    seeds_needed: int | None


def decide(table: Sequence[Row], pairs: Pairs) -> Decision:
    """Decide by the rows of a ranking, best first, and its ordered pairs by (a, b).

    First match wins; a rule is met only where its arms are there, each with two runs or more:

    - *gold*: the best arm with arch `stable_hybrid` (where no arch is known, the arm `stable`) beats the arm `control`,
      that is, the interval of its probability of improvement lies above 0.5, and has no higher failure rate;
    - *silver*: the arm `agc` has a lower failure rate than control and a finite median best_val_loss at most 10 % above
      control's. The rule is about the observed rates; whether their intervals overlap is said in the text;
    - *control*: control beats both;
    - else *undecided*, with the number of seeds per arm, by `seeds_to_tell_apart`, that would decide: between stable
      and control, if stable leads and fails no more often; else in every comparison with control that is open. No
      number (None) with an arm absent, with one run in an arm, where a probability is 0.5, or where no comparison is
      open. `MOST_SEEDS` stands for more as well.
    """
    control, agc = (next((row for row in table if row["arm"] == name), None) for name in ("control", "agc"))
    stable = next((row for row in table if row is not control and _is_stable(row)), None)
    winner = None if table[0]["best_val_loss"] is None else table[0]["arm"]

    label: Label = "undecided"
    seeds_needed = None
    if reason := _gold(stable, control, pairs):
        label = "gold"
    elif reason := _silver(agc, control):
        label = "silver"
    elif reason := _control(control, stable, agc, pairs):
        label = "control"
    else:
        seeds_needed, reason = _undecided(control, stable, agc, pairs)
    stage_b = f"Stage B takes {winner}, the first in rank" if winner else "No arm goes to Stage B: every run failed"
    text = f"{label.capitalize()}: {reason}. {stage_b}. {_how_wide(min(row['runs'] for row in table))}."
    return Decision(label, text, winner, seeds_needed)


def _is_stable(row: Row) -> bool:
    return bool(row["arch"] == "stable_hybrid" if row["arch"] else row["arm"] == "stable")


def _gold(stable: Row | None, control: Row | None, pairs: Pairs) -> str | None:
    if stable is None or control is None or stable["failure_rate"] > control["failure_rate"]:
        return None
    pair = pairs[stable["arm"], control["arm"]]
    return (
        f"{_improvement(pair)}, and no higher failure rate; {_failures(stable, control)}" if pair.a_is_better else None
    )


def _silver(agc: Row | None, control: Row | None) -> str | None:
    if agc is None or control is None or min(agc["runs"], control["runs"]) < 2:
        return None
    median, reference = agc["median_best_val_loss"], control["median_best_val_loss"]
    loses_little = math.isfinite(median) and median <= (1 + SILVER_LOSS) * reference
    if not (agc["failure_rate"] < control["failure_rate"] and loses_little):
        return None
    overlap = agc["failure_rate_high"] >= control["failure_rate_low"]
    return (
        f"agc has the lower failure rate, at a median best_val_loss of {median:.3g} against {reference:.3g}; "
        f"{_failures(agc, control)}{', and these intervals overlap' if overlap else ''}"
    )


def _control(control: Row | None, stable: Row | None, agc: Row | None, pairs: Pairs) -> str | None:
    if control is None or stable is None or agc is None:
        return None
    over = [pairs[control["arm"], other["arm"]] for other in (stable, agc)]
    return (
        f"{_improvement(*over)}; {_failures(control, stable, agc)}" if all(pair.a_is_better for pair in over) else None
    )


def _undecided(control: Row | None, stable: Row | None, agc: Row | None, pairs: Pairs) -> tuple[int | None, str]:
    """The seeds needed, and the reason."""
    absent = [name for name, row in (("control", control), ("stable", stable), ("agc", agc)) if row is None]
    others = [row for row in (stable, agc) if row is not None]
    if control is None or not others:
        return None, f"there is no result of {' or '.join(absent)}, so nothing is compared with control"
    compared = [pairs[other["arm"], control["arm"]] for other in others]
    facts = f"{_improvement(*compared)}; {_failures(control, *others)}"
    if min(row["runs"] for row in (control, *others)) == 1:
        return None, f"{facts}; one seed in an arm has no spread, so nothing is sure"
    if stable and compared[0].probability > 0.5 and stable["failure_rate"] <= control["failure_rate"]:
        return _seeds(facts, compared[:1])
    if absent:
        return None, f"{facts}; there is no result of {absent[0]}"
    return _seeds(facts, [pair for pair in compared if pair.is_open])


def _seeds(facts: str, undecided: Sequence[Pair]) -> tuple[int | None, str]:
    estimates = [seeds_to_tell_apart(pair.probability) for pair in undecided]
    known = [estimate for estimate in estimates if estimate is not None]
    if not estimates:
        return None, f"{facts}; every comparison is clear, so more seeds would hardly change this"
    if len(known) < len(estimates):
        return None, f"{facts}; from a probability of 0.5 no number of seeds follows that would decide"
    needed = max(known)
    about = f"about {needed}" if needed <= MOST_SEEDS else f"more than {MOST_SEEDS}"
    between = ", and ".join(f"between {pair.a} and {pair.b}" for pair in undecided)
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


def _how_wide(seeds: int) -> str:
    """How little this many seeds an arm can say."""
    words = "1 seed" if seeds == 1 else f"{seeds} seeds"
    at_most = 100 * wilson_interval(0, seeds)[1]
    text = f"With {words} an arm without a failure may still fail in up to {at_most:.0f} % of runs"
    if seeds == 1:
        return f"{text}, and val_loss has no interval: one seed has no spread"
    if seeds < FEW_SEEDS:
        # Of the (2n over n) ways to mix two equal arms, two keep them apart.
        chance = math.comb(2 * seeds, seeds) // 2
        return f"{text}, and two equal arms lie wholly apart in 1 study of {chance}: bootstrap intervals are too narrow"
    return text
