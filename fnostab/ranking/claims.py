"""What may be claimed of a study: p-values of all its comparisons, corrected for their number and for repeated looks.

**One look.** Holm's step-down procedure over all comparisons of the study: the chance of one false claim or more is at
most alpha, whichever of the arms are equal (Holm 1979, Scand. J. Stat. 6, 65).

**Several looks**, as `study --until decided` takes them: each look that can decide anything has the same share of
alpha, and what an earlier look decided stays decided and is no comparison any more. The bound is the same: before the
first false claim only comparisons of unequal arms are decided, so at each look the least p-value of the t equal pairs
was compared with its share over t at most; that is Bonferroni's inequality, over pairs and over looks. It needs a
p-value at each look that is valid by itself, so a pair is tested only where both arms have runs of that look's own
seeds: an arm that was left behind is not compared with what others did later. The procedure is that of group-sequential
trials (Pocock 1977, Biometrika 64, 191) with Bonferroni's boundaries, stepped down over pairs as in AdaStop (Mathieu et
al. 2023, arXiv 2306.10882). AdaStop permutes means, which runs that failed do not have; ranks do.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

import numpy as np

from fnostab.ranking.exact_tests import smallest_p

#: Chance of one false claim or more in a study, if nobody says.
ALPHA: Final = 0.05

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True)
class Design:
    """How often a study looks at its runs: once, or after each of `looks` seeds an arm, ascending.

    Raises `ValueError` for an `alpha` outside (0, 0.5].
    """

    alpha: float = ALPHA
    looks: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not 0 < self.alpha <= 0.5:
            raise ValueError(f"`alpha` (={self.alpha:g}) must be above 0 and at most 0.5")
        if any(b <= a for a, b in zip((0, *self.looks), self.looks, strict=False)):
            raise ValueError(f"`looks` (={self.looks}) must be numbers of seeds, ascending")

    @property
    def is_sequential(self) -> bool:
        """Whether there is more than one look."""
        return len(self.looks) > 1

    def levels(self, comparisons: int) -> list[float]:
        """The share of alpha that each look has: 0 for the first ones, as long as they could decide nothing."""
        looks = self.looks or (0,)
        if not self.looks:
            return [self.alpha]
        able = len(looks)
        while able and smallest_p(looks[-able]) * comparisons > self.alpha / able:
            able -= 1
        return [0.0] * (len(looks) - able) + [self.alpha / able if able else 0.0] * able


#: All runs of a study are looked at once.
ONE_LOOK: Final = Design()


@dataclass(frozen=True)
class Corrected:
    """A comparison's p-value as it may be held against alpha, and the look (from 0) that decided it, None if none."""

    p: float
    look: int | None


def correct(looks: Sequence[Mapping[K, float]], levels: Sequence[float], alpha: float) -> dict[K, Corrected]:
    """Correct the p-values of all comparisons, by look and comparison, each look with its level.

    A comparison that is not tested at a look has p = 1 there. With one look of level alpha that is Holm's procedure.
    """
    decided: dict[K, Corrected] = {}
    least: dict[K, float] = dict.fromkeys(looks[0], 1.0)
    for look, (p_values, level) in enumerate(zip(looks, levels, strict=True)):
        if not level:
            continue
        still_open = {key: p for key, p in p_values.items() if key not in decided}
        for key, p in zip(still_open, holm(list(still_open.values())), strict=True):
            least[key] = min(least[key], p * alpha / level, 1.0)
            if p <= level:
                decided[key] = Corrected(least[key], look)
    return {key: decided.get(key, Corrected(p, None)) for key, p in least.items()}


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values of Holm's step-down procedure, in the order of `p_values`: at most alpha where it rejects."""
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1.0)
    return [float(value) for value in adjusted]
