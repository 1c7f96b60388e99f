"""Simulate studies: how often equal arms are called different, and how often a better arm is found.

    python -m benchmarks.error_rates           # some ten minutes: docs/results/error_rates.json, the page, figures
    python -m benchmarks.error_rates --studies 200 --out rates.json    # a quick look; the page stays as it is
    python -m benchmarks.error_rates --page    # docs/statistics.md and its figures from the numbers that there are

Every study is ranked by the package's own functions, and a sequential one is led as by `study --until decided`. Equal
arms have one distribution of losses: ranks alone count, so which one it is does not matter. Unequal arms draw their
runs, with replacement, from those of the shipped studies.
"""

import argparse
import json
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from itertools import permutations
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from benchmarks.table import machine
from fnostab.config import ArmConfig
from fnostab.ranking import Ranking, probability_of_improvement, rank_arms
from fnostab.ranking.claims import Design
from fnostab.ranking.intervals import wilson_interval
from fnostab.ranking.pairs import compare_arms
from fnostab.study.plan import StudyPlan
from fnostab.study.sequential import Schedule
from results.runs import of_arm

RESULTS: Final = Path(__file__).resolve().parent.parent / "docs" / "results" / "error_rates.json"
#: When `study --until decided` looks, if nobody says.
LOOKS: Final = (5, 10, 15, 20, 25, 30)
#: Seeds an arm of the fixed designs whose power is simulated.
FIXED: Final = (5, 10, 20, 30)
FAILURE_RATE: Final = 0.2
#: This share of losses is one and the same, the highest, as that of networks which learnt no more than a constant.
TIED_SHARE: Final = 0.25
#: Resamples of the earlier rule's intervals, and how many studies of a row are judged by it: its errors are not small.
RESAMPLES: Final = 1000
EARLIER_STUDIES: Final = 500
#: Studies of unequal arms a row.
POWER_STUDIES: Final = 500

#: Losses by arm, a value a seed; infinite for failed runs.
Losses = Mapping[str, Sequence[float]]
Kind = Literal["plain", "failures and ties", "unequal spread"]


@dataclass(frozen=True)
class Case:
    """Equal arms, with so many `seeds` each, or as many as `looks` come to. `earlier`: by the earlier rule as well."""

    arms: tuple[str, ...]
    seeds: int
    kind: Kind = "plain"
    looks: tuple[int, ...] = ()
    earlier: bool = False


@dataclass(frozen=True)
class Effect:
    """Arms of a shipped study, the best one first by the probability of improvement over each other one."""

    study: str
    arms: tuple[str, ...]


def stage_a_arms(number: int) -> tuple[str, ...]:
    """Stage A's arms and others beside them."""
    return ("control", "stable", "agc", *(f"arm_{i}" for i in range(4, number + 1)))[:number]


#: A control and six variants of the stable network, each of which could be called gold.
VARIANTS: Final = ("control", *(f"stable_{i}" for i in range(1, 7)))


def cases() -> Iterator[Case]:
    """All studies of equal arms."""
    kinds: tuple[Kind, ...] = ("plain", "failures and ties")
    families = (*(stage_a_arms(number) for number in (2, 3, 6, 12)), VARIANTS)
    for arms in families:
        for kind in kinds:
            for seeds in (2, 3, 5, 10):
                if seeds > 2 or len(arms) == 2:
                    yield Case(arms, seeds, kind, earlier=kind == "plain" and (len(arms) < 12 or seeds == 3))
            yield Case(arms, LOOKS[-1], kind, LOOKS)
    for seeds in (5, 10, 30):
        yield Case(stage_a_arms(2), seeds, "unequal spread")
    yield Case(stage_a_arms(2), LOOKS[-1], "unequal spread", LOOKS)


EFFECTS: Final = (
    Effect("q1_curved_phase", ("pre", "control")),
    Effect("q7_probe", ("stable_1", "control")),
    Effect("q6_overlap", ("pre-scheduleconstant", "control-scheduleconstant")),
    Effect("q1_curved_phase", ("stable", "control")),
    Effect("q1_curved_phase", ("control", "agc")),
    Effect("q1_curved_phase", ("stable", "control", "agc")),
    Effect("q1_curved_phase", ("pre", "plain", "stable", "control", "agc", "original")),
)


def equal_arms(case: Case, rng: np.random.Generator) -> Losses:
    """Losses of arms that are equal; of unequal spread: only as likely to be the better one."""
    losses = rng.random((len(case.arms), case.seeds))
    if case.kind == "failures and ties":
        losses = np.minimum(losses, 1 - TIED_SHARE)
        losses[rng.random(losses.shape) < FAILURE_RATE] = math.inf
    if case.kind == "unequal spread":
        losses[0] = 0.5 + (losses[0] - 0.5) / 10
    return dict(zip(case.arms, losses.tolist(), strict=True))


def drawn_arms(effect: Effect, seeds: int, rng: np.random.Generator) -> Losses:
    """Losses drawn with replacement from the runs of each arm."""
    return {arm: rng.choice(_shipped(effect.study, arm), seeds).tolist() for arm in effect.arms}


@cache
def _shipped(study: str, arm: str) -> tuple[float, ...]:
    return tuple(math.inf if run.failed else run.metrics["best_val_loss"] for run in of_arm(study, arm))


def ranked(losses: Losses, design: Design) -> Ranking:
    """The ranking of a study."""
    runs = [
        {
            "arm": arm,
            "seed": seed,
            "best_val_loss": loss,
            "verdict": "diverged" if math.isinf(loss) else "converged",
            "arch": "stable_hybrid" if arm.startswith("stable") else "hybrid",
        }
        for arm, values in losses.items()
        for seed, loss in enumerate(values)
    ]
    return rank_arms(runs, 0, resamples=0, design=design)


def until_decided(losses: Losses, design: Design) -> Ranking:
    """The ranking in which `study --until decided` ends, whose runs have these `losses`, as far as they are trained."""
    arms = dict.fromkeys(losses, ArmConfig())
    schedule = Schedule(design, StudyPlan("simulated", arms, range(design.looks[-1])))
    trained: set[tuple[str, int]] = set()

    def rank(seeds: Sequence[int]) -> Ranking:
        known = {arm: [values[seed] for seed in seeds if (arm, seed) in trained] for arm, values in losses.items()}
        return ranked(known, design)

    while True:
        step = schedule.next_runs(trained, rank)
        if step.ranking is not None and not step.runs:
            return step.ranking
        trained.update(step.runs)


def concluded(losses: Losses, design: Design) -> Ranking | None:
    """What a study ends in, by all `losses` or until decided; None where no comparison is decided.

    As long as nothing is decided every arm gets more seeds. So a sequential study whose tests decide nothing with all
    seeds decides nothing, and need not be led from look to look.
    """
    failed = {arm: dict(enumerate(map(math.isinf, values))) for arm, values in losses.items()}
    compared = compare_arms({arm: dict(enumerate(values)) for arm, values in losses.items()}, failed, design)
    rates_are_clear = compared.rates is not None and compared.rates.look is not None
    if not rates_are_clear and all(pair.is_open for pair in compared.pairs.values()):
        return None
    return until_decided(losses, design) if design.is_sequential else ranked(losses, design)


def earlier_claims(losses: Losses, rng: np.random.Generator) -> tuple[bool, bool]:
    """Whether the earlier rule called a pair clear, and whether it had a headline: gold, or an arm that beats all.

    An arm was better where the percentile bootstrap's interval of the probability of improvement lay above 0.5.
    """
    drawn = {}
    for arm, values in losses.items():
        n = len(values)
        drawn[arm] = np.asarray(values), rng.multinomial(n, np.full(n, 1 / n), size=RESAMPLES)
    better = {}
    for (a, (of_a, counts_a)), (b, (of_b, counts_b)) in permutations(drawn.items(), 2):
        won = ((counts_a @ (of_a[:, None] < of_b)) * counts_b).sum(axis=1) / (len(of_a) * len(of_b))
        better[a, b] = bool(np.quantile(won, 0.025, method="inverted_cdf") > 0.5)
    gold = any(better.get((arm, "control"), False) for arm in losses if arm.startswith("stable"))
    return any(better.values()), gold or any(all(better[a, b] for b in losses if b != a) for a in losses)


def false_claims(case: Case, studies: int, seed: int) -> dict[str, Any]:
    """How many of so many studies of equal arms claim anything: a pair that is clear, or a decision."""
    rng = np.random.default_rng([seed, zlib.crc32(repr(case).encode())])
    earlier = min(studies, EARLIER_STUDIES) if case.earlier else 0
    counts = {"claims": 0, "headlines": 0, "earlier_studies": earlier, "earlier_claims": 0, "earlier_headlines": 0}
    for study in range(studies):
        losses = equal_arms(case, rng)
        ranking = concluded(losses, Design(looks=case.looks))
        if ranking:
            headline = ranking.decision.label != "undecided"
            counts["headlines"] += headline
            counts["claims"] += headline or not all(pair.is_open for pair in ranking.pairs)
        if study < earlier:
            claims, headline = earlier_claims(losses, rng)
            counts["earlier_claims"] += claims
            counts["earlier_headlines"] += headline
    return {**asdict(case), "studies": studies, **counts}


def power(effect: Effect, studies: int, seed: int) -> dict[str, Any]:
    """How many of so many studies find the best arm better than every other one, and how many call any pair wrongly.

    For fixed designs by seeds an arm; for the sequential one also the runs that were trained, and, by look, how many
    studies had found it by then.
    """
    rng = np.random.default_rng([seed, zlib.crc32(repr(effect).encode())])
    better = {
        (a, b): probability_of_improvement(_shipped(effect.study, a), _shipped(effect.study, b))
        for a in effect.arms
        for b in effect.arms
        if a != b
    }
    found, wrong = dict.fromkeys(FIXED, 0), dict.fromkeys(FIXED, 0)
    sequential = {"found": 0, "wrong": 0, "runs": 0, "ended_by": dict.fromkeys(LOOKS, 0)}
    for _ in range(studies):
        losses = drawn_arms(effect, LOOKS[-1], rng)
        for seeds in FIXED:
            ranking = ranked({arm: values[:seeds] for arm, values in losses.items()}, Design())
            found[seeds] += _finds_the_best(ranking, effect)
            wrong[seeds] += _is_wrong(ranking, better)
        ranking = until_decided(losses, Design(looks=LOOKS))
        sequential["found"] += _finds_the_best(ranking, effect)
        sequential["wrong"] += _is_wrong(ranking, better)
        sequential["runs"] += sum(row["runs"] for row in ranking.table)
        for look in LOOKS:
            sequential["ended_by"][look] += _finds_the_best(ranking, effect) and look >= max(
                pair.seeds or 0 for pair in ranking.pairs if pair.a == effect.arms[0]
            )
    probabilities = [better[effect.arms[0], other] for other in effect.arms[1:]]
    return {
        **asdict(effect),
        "probabilities": [round(p, 3) for p in probabilities],
        "studies": studies,
        "fixed": {"seeds": FIXED, "found": list(found.values()), "wrong": list(wrong.values())},
        "sequential": {**sequential, "ended_by": list(sequential["ended_by"].values())},
    }


def _finds_the_best(ranking: Ranking, effect: Effect) -> bool:
    return all(pair.a_is_better for pair in ranking.pairs if pair.a == effect.arms[0])


def _is_wrong(ranking: Ranking, better: Mapping[tuple[str, str], float]) -> bool:
    return any(pair.a_is_better and better[pair.a, pair.b] < 0.5 for pair in ranking.pairs)


def main() -> None:
    """Simulate, and write the numbers and the page."""
    from benchmarks import error_rates_page

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=2000, help="studies of equal arms a row")
    parser.add_argument("--seed", type=int, default=20260128, help="seed of the simulations")
    parser.add_argument("--out", type=Path, help="write the numbers here, and no page")
    parser.add_argument("--page", action="store_true", help="write the page from the numbers that there are")
    options = parser.parse_args()
    if not options.page:
        command = f"python -m benchmarks.error_rates --studies {options.studies} --seed {options.seed}"
        results: dict[str, Any] = {"command": command, "machine": machine(), "equal": [], "power": []}
        for case in cases():
            results["equal"].append(row := false_claims(case, options.studies, options.seed))
            low, high = (100 * end for end in wilson_interval(row["claims"], row["studies"]))
            print(case, f"{100 * row['claims'] / row['studies']:.2f} % [{low:.2f}, {high:.2f}]", flush=True)
        for effect in EFFECTS:
            results["power"].append(row := power(effect, min(options.studies, POWER_STUDIES), options.seed))
            print(row, flush=True)
        (options.out or RESULTS).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    if not options.out:
        error_rates_page.write()


if __name__ == "__main__":
    main()
