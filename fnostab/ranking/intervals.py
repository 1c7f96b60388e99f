"""Estimates with their intervals, for few runs of which some failed: pure functions of arrays.

Lower values are better, and a failed run's value is infinite: medians, trimmed means, comparisons and quantiles all
stay defined. Every interval is two-sided at 95 %; intervals describe, and decide nothing. The definitions are those of
rliable for one task: Agarwal et al. 2021, "Deep reinforcement learning at the edge of the statistical precipice",
https://arxiv.org/abs/2108.13264.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations_with_replacement
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

CONFIDENCE: Final = 0.95
#: Values of an arm up to which all resamples are counted out instead of drawn: 126 of five values, 462 of six.
_MOST_COUNTED_OUT: Final = 5

Values = NDArray[np.float64]
#: Both ends, or neither: one value has no spread.
Interval = tuple[float, float] | tuple[None, None]
#: Reduces values along the keyword argument `axis`.
Statistic = Callable[..., Any]


@functools.lru_cache(maxsize=4096)
def wilson_interval(failures: int, runs: int) -> tuple[float, float]:
    """Score interval, between 0 and 1, of the failure rate behind `failures` in `runs` independent runs.

    Raises `ValueError` unless 0 <= failures <= runs and runs > 0. Source: Wilson 1927, J. Am. Stat. Assoc. 22, 209,
    without continuity correction.
    """
    if runs <= 0:
        raise ValueError(f"`runs` (={runs}) must be > 0")
    if not 0 <= failures <= runs:
        raise ValueError(f"`failures` (={failures}) must lie between 0 and `runs` (={runs})")
    low, high = stats.binomtest(failures, runs).proportion_ci(CONFIDENCE, method="wilson")
    return float(low), float(high)


def interquartile_mean(values: ArrayLike) -> float:
    """Mean of `values` (n,) without the floor(n/4) lowest and highest; infinite if what remains holds an infinity.

    Raises `ValueError` where there is no value or a NaN among them. Source: rliable, section 4.3.
    """
    return float(trimmed_mean(checked_values("values", values)))


#: Interquartile means over an `axis`.
trimmed_mean: Final[Statistic] = functools.partial(stats.trim_mean, proportiontocut=0.25)


def probability_of_improvement(a: ArrayLike, b: ArrayLike) -> float:
    """Probability that a run of `a` (n,) is better, that is lower, than a run of `b` (m,); a tie counts one half.

    It is the Mann-Whitney statistic over n m; two infinities tie. Raises `ValueError` where there is no value or a NaN
    among them. Source: rliable, section 4.3, where higher is better.
    """
    return float(_wins(checked_values("a", a), checked_values("b", b)).mean())


@dataclass(frozen=True)
class Bootstrap:
    """One arm's values (n,), ascending, and how often each was drawn in each resample: counts (resamples, n).

    A resample draws n seeds of the arm with replacement. Intervals are percentile intervals (Efron 1979) by the
    quantiles of method `inverted_cdf`, which are drawn values, so that infinities work. Of up to `_MOST_COUNTED_OUT`
    values all resamples are counted out, each with its chance: the distribution of so few has steps, at which a drawn
    end would depend on the generator. After few seeds intervals are too narrow: of three seeds the median's is the
    range, which holds the true median with a chance of 75 %, not 95 %.
    """

    values: Values
    counts: NDArray[np.int64]

    @classmethod
    def draw(cls, values: ArrayLike, rng: np.random.Generator, resamples: int) -> "Bootstrap":
        """Resample `values` (n,); `ValueError` where there is no value or a NaN among them."""
        ordered = np.sort(checked_values("values", values))
        n = len(ordered)
        return cls(ordered, rng.multinomial(n, np.full(n, 1 / n), size=resamples))

    def interval(self, statistic: Statistic) -> Interval:
        """Interval of a `statistic`, taken of each resample; none without resamples."""
        if len(self.values) == 1 or not len(self.counts):
            return None, None
        counts, chances = self._resamples(len(self.values) <= _MOST_COUNTED_OUT)
        drawn = np.repeat(np.tile(self.values, len(counts)), counts.ravel()).reshape(counts.shape)
        return _percentile_interval(statistic(drawn, axis=-1), chances)

    def improvement_interval(self, other: "Bootstrap") -> Interval:
        """Interval of the probability of improvement over `other`, both arms resampled independently."""
        if min(len(self.values), len(other.values)) == 1 or not len(self.counts):
            return None, None
        counted_out = max(len(self.values), len(other.values)) <= _MOST_COUNTED_OUT
        (counts, chances), (others, other_chances) = (arm._resamples(counted_out) for arm in (self, other))
        wins = counts @ _wins(self.values, other.values)
        if counted_out:
            won, chances = (wins @ others.T).ravel(), np.outer(chances, other_chances).ravel()
        else:
            won = (wins * others).sum(axis=1)
        return _percentile_interval(won / (len(self.values) * len(other.values)), chances)

    def _resamples(self, counted_out: bool) -> tuple[NDArray[np.int64], Values]:
        """Counts of every resample that is looked at, and the chances of these."""
        if counted_out:
            return _all_resamples(len(self.values))
        return self.counts, np.full(len(self.counts), 1 / len(self.counts))


@functools.cache
def _all_resamples(n: int) -> tuple[NDArray[np.int64], Values]:
    """Every way to draw n of n values with replacement, as counts (ways, n), and their multinomial chances (ways,)."""
    ways = [np.bincount(drawn, minlength=n) for drawn in combinations_with_replacement(range(n), n)]
    counts = np.array(ways, dtype=np.int64)
    return counts, np.asarray(stats.multinomial.pmf(counts, n, np.full(n, 1 / n)), np.float64)


def _percentile_interval(drawn: Values, chances: Values) -> tuple[float, float]:
    """Quantiles of `drawn` values with their `chances`, by the method `inverted_cdf`."""
    order = np.argsort(drawn, kind="stable")
    levels = np.array([(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    at = np.searchsorted(np.cumsum(chances[order]), levels - 1e-9)  # the chances add up to a level but for rounding
    low, high = drawn[order[at]]
    return float(low), float(high)


def _wins(a: Values, b: Values) -> Values:
    """Which of `a` (n,) are lower than which of `b` (m,), as (n, m): 1, or 0.5 for a tie, or 0."""
    return np.asarray((a[:, None] < b) + 0.5 * (a[:, None] == b))


def checked_values(name: str, values: ArrayLike) -> Values:
    """Return `values`, called `name`, as (n,); raises `ValueError` where there is none or a NaN among them."""
    array = np.asarray(values, dtype=np.float64).ravel()
    if not array.size:
        raise ValueError(f"`{name}` must hold at least one value")
    if np.isnan(array).any():
        raise ValueError(f"`{name}` must not hold NaN")
    return array
