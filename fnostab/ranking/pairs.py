"""Pairs of arms compared: which of two is better, how surely, and what may be claimed."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Final, NamedTuple

from fnostab.ranking.claims import Corrected, Design, correct
from fnostab.ranking.exact_tests import failure_rate_test, rank_test
from fnostab.ranking.intervals import probability_of_improvement

#: The arms whose failure rates *silver* compares, the only comparison of rates that a study makes.
RATES_OF: Final = ("agc", "control")

#: Values of one arm's runs by seed.
BySeed = Mapping[int, float]


@dataclass(frozen=True)
class Pair:
    """Arms `a` and `b` by one column, lower values better.

    `probability` is that of a run of `a` being better than one of `b`, with its 95 % interval, whose ends are None
    where an arm has one run only. `p` is the exact p-value of `rank_test` on all runs, `p_corrected` that of the pair
    as one of all comparisons and looks of the study. `seeds` is how many each arm had when the pair was decided, None
    as long as it is open, and `better` the arm that is then clearly better.
    """

    a: str
    b: str
    probability: float
    p: float
    p_corrected: float
    better: str | None = None
    seeds: int | None = None
    low: float | None = None
    high: float | None = None

    @property
    def reversed(self) -> "Pair":
        """The same comparison, of `b` with `a`."""
        low, high = (None if end is None else 1 - end for end in (self.high, self.low))
        return replace(self, a=self.b, b=self.a, probability=1 - self.probability, low=low, high=high)

    @property
    def a_is_better(self) -> bool:
        """Whether it may be claimed that `a` is better."""
        return self.better == self.a

    @property
    def is_open(self) -> bool:
        """Whether nothing may be claimed."""
        return self.better is None

    def __str__(self) -> str:
        return f"{self.a} over {self.b} {self.probability:.2f} ({p_text(self.p_corrected)})"


#: Every look asks again for the p-values of those before.
_rank_test = functools.lru_cache(maxsize=4096)(rank_test)


class Compared(NamedTuple):
    """All that a study compares: every ordered pair of arms, and the failure rates of `RATES_OF`, None without both."""

    pairs: dict[tuple[str, str], Pair]
    rates: Corrected | None
    comparisons: int


def p_text(p: float) -> str:
    """`p = 0.024`, or a bound where that says enough."""
    return "p < 0.0001" if p < 1e-4 else f"p = {p:.2g}"


def compare_arms(values: Mapping[str, BySeed], failed: Mapping[str, Mapping[int, bool]], design: Design) -> Compared:
    """Test every pair of arms by their `values`, infinite for runs that `failed`, and correct for all of it.

    At each look of a sequential `design` the first seeds of the study, in ascending order, are looked at; a pair is
    tested there if both arms have a run of every seed that this look added. So looks that are not complete are none,
    and arms that got no more seeds are not tested any more.
    """
    seeds = sorted({seed for of_arm in values.values() for seed in of_arm})
    ends = design.looks or (len(seeds),)
    tests: list[tuple[str, str, str]] = [("rank", a, b) for a, b in combinations(values, 2)]
    if set(RATES_OF) <= values.keys():
        tests.append(("rate", *RATES_OF))
    looks = []
    for start, end in zip((0, *ends), ends, strict=False):
        seen, new = set(seeds[:end]), set(seeds[start:end])
        whole = len(seeds) >= end
        ready = {arm for arm, of in values.items() if not design.looks or (whole and new <= of.keys())}
        looks.append({test: _p_value(test, values, failed, seen) if {*test[1:]} <= ready else 1.0 for test in tests})
    corrected = correct(looks, design.levels(len(tests)), design.alpha)
    pairs: dict[tuple[str, str], Pair] = {}
    for a, b in combinations(values, 2):
        found = corrected["rank", a, b]
        probability = probability_of_improvement(list(values[a].values()), list(values[b].values()))
        p = _p_value(("rank", a, b), values, failed, set(seeds))
        pair = Pair(a, b, probability, p, found.p)
        if found.look is not None:
            end = ends[found.look]
            then = [[of[seed] for seed in seeds[:end] if seed in of] for of in (values[a], values[b])]
            pair = replace(pair, better=a if probability_of_improvement(*then) > 0.5 else b, seeds=end)
        pairs[a, b], pairs[b, a] = pair, pair.reversed
    return Compared(pairs, corrected.get(("rate", *RATES_OF)), len(tests))


def _p_value(
    test: tuple[str, str, str],
    values: Mapping[str, BySeed],
    failed: Mapping[str, Mapping[int, bool]],
    seeds: set[int],
) -> float:
    kind, *arms = test
    if kind == "rank":
        a, b = (tuple(value for seed, value in values[arm].items() if seed in seeds) for arm in arms)
        return _rank_test(a, b)
    counts = [[fault for seed, fault in failed[arm].items() if seed in seeds] for arm in arms]
    return failure_rate_test(*(number for of_arm in counts for number in (sum(of_arm), len(of_arm))))
