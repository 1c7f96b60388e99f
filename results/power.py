"""What studies of so many seeds can show: the power of the tests of `fnostab.ranking`, said before the runs are made.

    python -m results.power         # the table of docs/results/how.md

A claim is made where the p-value, corrected by Holm's procedure, is at most 0.05. The first of m comparisons is so
where its own p-value is at most 0.05 / m, which is the level that is taken here: what is said holds however the other
comparisons come out, and with some of them clear a little more can be shown.
"""

from functools import cache
from itertools import product
from typing import Final

import numpy as np
from scipy import optimize, special, stats

from fnostab.ranking.claims import ALPHA
from fnostab.ranking.exact_tests import POWER, failure_rate_test, rank_test
from results.cells import table

#: Seeds an arm, and numbers of comparisons, of the table: of two arms, of two by two arms, of five, of six.
SEEDS: Final = (5, 10, 20)
COMPARISONS: Final = (1, 6, 10, 15)
#: Simulated studies for each probability of improvement, and the random generator's seed.
_STUDIES: Final = 2000
_SEED: Final = 20260128
#: Failure rates of the better arm that the table has.
_RATES: Final = (0.0, 0.1)


def rank_power(probability: float, seeds: int, comparisons: int = 1, studies: int = _STUDIES) -> float:
    """Chance that `rank_test` makes two arms of so many `seeds` clear as the first of so many `comparisons`.

    `probability` is the true one that a run of the one arm is better than one of the other. The values of the arms are
    normal with equal spread, shifted by what that probability takes: sqrt(2) times its normal quantile. Ranks alone
    count, so any distribution that a monotone function makes of these gives the same. By simulation of `studies`, the
    same random numbers for every probability.
    """
    rng = np.random.default_rng(_SEED)
    a, b = rng.standard_normal((2, studies, seeds))
    b = b + np.sqrt(2) * special.ndtri(probability)
    below = (b[:, :, None] > a[:, None, :]).sum(axis=(1, 2))
    clear = _clear_sums(seeds, comparisons)
    return float(np.mean(clear[below]))


@cache
def _clear_sums(seeds: int, comparisons: int) -> np.ndarray:
    """By the number of pairs of runs in which the first arm is better, of seeds^2, whether `rank_test` is clear."""
    return np.array([_p_of(pairs, seeds) <= ALPHA / comparisons for pairs in range(seeds**2 + 1)])


def _p_of(pairs: int, seeds: int) -> float:
    """The p-value of two arms without ties that have the first one better in so many `pairs` of runs."""
    values = np.arange(seeds, dtype=float)
    whole, rest = divmod(pairs, seeds)
    other = np.full(seeds, -0.5)  # below all: never worse
    other[:whole] = seeds - 0.5
    if rest:
        other[whole] = rest - 0.5
    # Runs of the other arm at one place lie beside each other, and need to differ.
    return rank_test(values, other + 1e-3 * np.arange(seeds))


def shown_probability(seeds: int, comparisons: int = 1) -> float | None:
    """The least probability of improvement that is shown with a chance of `POWER`; None where no study can show any."""
    if rank_power(1 - 1e-12, seeds, comparisons) < POWER:
        return None

    def lacks(probability: float) -> float:
        return rank_power(probability, seeds, comparisons) - POWER

    return float(optimize.brentq(lacks, 0.5, 1 - 1e-12, xtol=1e-4))


def rate_power(rate: float, other: float, seeds: int, comparisons: int = 1) -> float:
    """Chance that `failure_rate_test` makes two arms clear that fail at the true rates `rate` and `other`: exactly.

    All numbers of failures that two arms of so many `seeds` can have are counted out, each with its binomial chance.
    """
    numbers = np.arange(seeds + 1)
    first, second = (stats.binom.pmf(numbers, seeds, of) for of in (rate, other))
    return float(first @ _clear_rates(seeds, comparisons) @ second)


@cache
def _clear_rates(seeds: int, comparisons: int) -> np.ndarray:
    clear = np.zeros((seeds + 1, seeds + 1))
    for a, b in product(range(seeds + 1), repeat=2):
        low, high = min(a, b), max(a, b)
        if low + high > seeds:  # successes are failures of the opposite
            low, high = seeds - high, seeds - low
        clear[a, b] = failure_rate_test(low, seeds, high, seeds) <= ALPHA / comparisons
    return clear


def shown_rate(rate: float, seeds: int, comparisons: int = 1) -> float | None:
    """The least failure rate that is told from `rate` with a chance of `POWER`; None where none is."""
    if rate_power(rate, 1.0, seeds, comparisons) < POWER:
        return None

    def lacks(other: float) -> float:
        return rate_power(rate, other, seeds, comparisons) - POWER

    return float(optimize.brentq(lacks, rate, 1.0, xtol=1e-4))


def power() -> str:
    """Table: what is shown with a chance of 80 % by number of comparisons and seeds."""
    head = ("comparisons", "seeds an arm", "probability of improvement")
    head += tuple(f"failure rate, against {100 * rate:.0f} %" for rate in _RATES)
    rows = []
    for comparisons, seeds in product(COMPARISONS, SEEDS):
        probability = shown_probability(seeds, comparisons)
        rates = [shown_rate(rate, seeds, comparisons) for rate in _RATES]
        cells = ["none" if value is None else f"{100 * value:.0f} %" for value in rates]
        rows.append((str(comparisons), str(seeds), "none" if probability is None else f"{probability:.2f}", *cells))
    return table(head, rows)


if __name__ == "__main__":
    print(power())
