"""A ranked study as data: its runs, its ranking, and what else is to be told of it."""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

from fnostab.health import FAILED, NO_RESULT
from fnostab.ranking import Ranking
from fnostab.study.curves import NO_CURVES, Curves
from fnostab.study.depth import DepthComparison
from fnostab.study.sequential import Look

#: More panels of curves, or pictures of more arms, are not looked at, and more lines in one panel hide each other.
MOST_PANELS: Final = 12
MOST_LINES: Final = 25


@dataclass(frozen=True)
class StudyRun:
    """One run of a study.

    `best_val_loss` is infinite where there is none. `numbers` holds `r_stitched` and the measures of stability by their
    names, those that are known. Only the `StudyResult.drawn` runs need `curves`, and only those that `best_and_worst`
    names have `pictures`, PNG bytes by name. `url` leads to the run's page.
    """

    arm: str
    seed: int
    run_id: str
    verdict: str
    verdict_reason: str
    best_val_loss: float = math.inf
    curves: Curves = NO_CURVES
    pictures: Mapping[str, bytes] = field(default_factory=dict)
    url: str | None = None
    stability: str = ""
    numbers: Mapping[str, float | None] = field(default_factory=dict)

    @property
    def failed(self) -> bool:
        """Whether the run counts as a failure; one without a result is missing instead."""
        return self.verdict in FAILED

    def value(self, column: str) -> float:
        """Its `best_val_loss` or one of its `numbers`, infinite where it is not known."""
        value = self.best_val_loss if column == "best_val_loss" else self.numbers.get(column)
        return math.inf if value is None or math.isnan(value) else value

    @property
    def missing(self) -> bool:
        """Whether the run has no result: it was interrupted or pruned, or its verdict is unknown."""
        return self.verdict in NO_RESULT


@dataclass(frozen=True)
class StudyResult:
    """All that the report of a study is made from; `runs` holds an arm and seed once, as `rank_arms` takes them.

    `facts` is shown as a small table (preset, device, commit, versions), `notes` as sentences: warnings, and what is
    missing beside the runs in `ranking.missing`. `depths` compares each arm of a Stage B with the same arm of Stage A.
    `supervised` names the arms that were trained on the true patches. `is_foreign` tells that something else than
    `fnostab train` made some of the runs: their val_loss need not be an R-factor. `settings` has, by arm, the values of
    the keys in which the arms differ, where the study varies any besides an arm's own; `looks` what each look of a
    study until decided found.
    """

    study: str
    ranking: Ranking
    runs: Sequence[StudyRun]
    dataset_sha256: str
    facts: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()
    depths: Sequence[DepthComparison] = ()
    supervised: Sequence[str] = ()
    is_foreign: bool = False
    settings: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    looks: Sequence[Look] = ()

    @cached_property
    def arms(self) -> list[str]:
        """Arms, best first; at the end those that have runs, but none that counts."""
        ranked = [row["arm"] for row in self.ranking.table]
        return ranked + sorted({run.arm for run in self.runs} - set(ranked))

    @property
    def knows_stability(self) -> bool:
        """Whether any run says how steadily it trained."""
        return any(run.stability for run in self.runs)

    @property
    def beats_all(self) -> str | None:
        """The arm that is clearly better than each other one, which the decision *best* is about; None if none is."""
        others = len(self.ranking.table) - 1
        wins = Counter(pair.a for pair in self.ranking.pairs if pair.a_is_better)
        return next((arm for arm, number in wins.items() if number == others), None)

    @property
    def rivals(self) -> list[str]:
        """The arms that the first in rank is not clearly better or worse than."""
        first = self.ranking.table[0]["arm"]
        return [pair.b for pair in self.ranking.pairs if pair.a == first and pair.is_open]

    @property
    def missing(self) -> list[tuple[str, str, list[int]]]:
        """The seeds without a result, by arm and by the reason."""
        seeds = defaultdict(list)
        for (arm, seed), reason in sorted(self.ranking.missing.items()):
            seeds[arm, reason].append(seed)
        return [(*key, of_key) for key, of_key in sorted(seeds.items())]

    def of_arm(self, arm: str) -> list[StudyRun]:
        """The arm's runs by seed."""
        return list(self._by_arm.get(arm, []))

    @cached_property
    def _by_arm(self) -> dict[str, list[StudyRun]]:
        by_arm = defaultdict(list)
        for run in sorted(self.runs, key=lambda run: run.seed):
            by_arm[run.arm].append(run)
        return by_arm

    @property
    def drawn_arms(self) -> list[str]:
        """The arms whose curves and pictures are shown: the first `MOST_PANELS`."""
        return self.arms[:MOST_PANELS]

    def drawn(self, arm: str) -> list[StudyRun]:
        """The runs of `arm` whose curves are shown, by seed: all, or `MOST_LINES` from the best to the worst."""
        runs = self.of_arm(arm)
        if len(runs) <= MOST_LINES:
            return runs
        order = in_order(runs, self.ranking.by)
        places = [round(place * (len(order) - 1) / (MOST_LINES - 1)) for place in range(MOST_LINES)]
        return sorted((order[place] for place in places), key=lambda run: run.seed)

    @property
    def drawn_runs(self) -> list[StudyRun]:
        """The runs whose curves are shown."""
        return [run for arm in self.drawn_arms for run in self.drawn(arm)]

    @property
    def thinned(self) -> bool:
        """Whether not all runs of the drawn arms are drawn."""
        return any(len(self.of_arm(arm)) > MOST_LINES for arm in self.drawn_arms)

    @property
    def all_runs(self) -> list[StudyRun]:
        """The runs in the order of the ranking, and within an arm by seed."""
        return [run for arm in self.arms for run in self.of_arm(arm)]


def best_and_worst(runs: Sequence[StudyRun], by: str = "best_val_loss") -> list[StudyRun]:
    """The best and the worst of an arm's runs, as `in_order` has them.

    One run where there is only one; runs without a result only where there are no others.
    """
    order = in_order([run for run in runs if not run.missing] or runs, by)
    return order if len(order) < 2 else [order[0], order[-1]]


def in_order(runs: Sequence[StudyRun], by: str = "best_val_loss") -> list[StudyRun]:
    """The runs of an arm, the best first: converged before failed, then by the column `by`, then by seed."""

    return sorted(runs, key=lambda run: (run.failed, run.value(by), run.seed))
