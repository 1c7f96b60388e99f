"""Exact tests of two arms: on ranks, and of failure rates. Pure functions; every p-value is two-sided."""

import functools
import math
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats

from fnostab.ranking.intervals import checked_values

#: Chance with which `seeds_to_tell_apart` seeds tell two arms apart, if the probability is the true one.
POWER: Final = 0.8
#: Runs of both arms together up to which the null distribution of a rank sum is counted out; beyond, SciPy's is normal.
_MOST_COUNTED: Final = 200


def rank_test(a: ArrayLike, b: ArrayLike) -> float:
    """P-value of the Mann-Whitney test that runs of `a` (n,) and of `b` (m,) are equally likely to be the lower ones.

    It is the share of all ways to deal the n + m ranks to the arms whose rank sum is as far from the middle as the
    observed one. Ties, infinities among them, share their mean rank; the p-value is exact with ties, too, for up to
    `_MOST_COUNTED` runs, and SciPy's normal approximation with tie correction beyond. Raises `ValueError` where there
    is no value or a NaN among them. Source: Mann and Whitney 1947, Ann. Math. Stat. 18, 50; ties: Lehmann 1975,
    "Nonparametrics", section 1.4.
    """
    first, second = checked_values("a", a), checked_values("b", b)
    n, total = len(first), len(first) + len(second)
    values = np.concatenate([first, second])
    ordered = np.sort(values)
    if ordered[0] == ordered[-1]:
        return 1.0
    # Twice the mean ranks, which are whole numbers.
    doubled = np.searchsorted(ordered, values, "left") + np.searchsorted(ordered, values, "right") + 1
    if total > _MOST_COUNTED:
        return float(stats.mannwhitneyu(doubled[:n], doubled[n:], method="asymptotic").pvalue)
    away = abs(int(doubled[:n].sum()) - n * (total + 1))
    return float(_tail(tuple(np.sort(doubled).tolist()), n)[away])


@functools.lru_cache(maxsize=4096)
def _tail(doubled_ranks: tuple[int, ...], n: int) -> NDArray[np.float64]:
    """Chance, by distance, that twice the sum of n ranks drawn from all is so far from its mean, or farther.

    The sums of all subsets are counted by adding one rank after the other to those of one rank less.
    """
    ways = np.zeros((n + 1, sum(doubled_ranks) + 1))
    ways[0, 0] = 1
    largest = 0
    for taken, rank in enumerate(doubled_ranks, start=1):
        size, largest = min(taken, n), largest + rank
        ways[1 : size + 1, rank : largest + 1] += ways[:size, : largest + 1 - rank]
    middle = n * (len(doubled_ranks) + 1)
    distances = np.abs(np.arange(ways.shape[1]) - middle)
    chances = np.bincount(distances, ways[n]) / math.comb(len(doubled_ranks), n)
    return np.minimum(np.cumsum(chances[::-1])[::-1], 1.0)


@functools.lru_cache(maxsize=4096)
def failure_rate_test(failures_a: int, runs_a: int, failures_b: int, runs_b: int) -> float:
    """P-value of Boschloo's exact test that two arms fail equally often.

    Unconditional, so that it says more of few runs than Fisher's. Source: Boschloo 1970, Stat. Neerl. 24, 1; SciPy's.
    """
    if failures_a + failures_b in (0, runs_a + runs_b):
        return 1.0
    table = [[failures_a, failures_b], [runs_a - failures_a, runs_b - failures_b]]
    return float(stats.boschloo_exact(table).pvalue)


def smallest_p(seeds: int) -> float:
    """The least p-value that `rank_test` can give with so many seeds an arm: the arms lie wholly apart."""
    return 2 / math.comb(2 * seeds, seeds)


def fewest_seeds(comparisons: int, alpha: float) -> int:
    """Seeds an arm from which on the first of so many `comparisons` can be clear at all."""
    seeds = 2
    while smallest_p(seeds) * comparisons > alpha:
        seeds += 1
    return seeds


def seeds_to_tell_apart(probability: float, comparisons: int = 1, alpha: float = 0.05) -> int | None:
    """Seeds an arm at which a comparison would become clear as one of `comparisons`; None if `probability` is 0.5.

    An estimate: it takes `probability` for the true one, which after few seeds it is not, asks for a power of `POWER`
    at the level alpha / comparisons, and supposes arms of equal size without ties (with ties fewer will do): n =
    (z_{1 - alpha / (2 comparisons)} + z_power)^2 / (6 (p - 1/2)^2), and never less than `fewest_seeds`. Source: Noether
    1987, J. Am. Stat. Assoc. 82, 645, with half of the seeds in each arm.
    """
    if probability == 0.5:
        return None
    quantiles = float(special.ndtri([1 - alpha / (2 * comparisons), POWER]).sum())
    estimate = math.ceil(quantiles**2 / (6 * (probability - 0.5) ** 2))
    return max(estimate, fewest_seeds(comparisons, alpha))
