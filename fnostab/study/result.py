"""A ranked study as data: its runs, its ranking, and what else is to be told of it."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

from fnostab.ranking import FAILED, Ranking
from fnostab.study.depth import DepthComparison

#: More panels of curves, or pictures of more arms, are not looked at, and more lines in one panel hide each other.
MOST_PANELS: Final = 12
MOST_LINES: Final = 25


@dataclass(frozen=True)
class StudyRun:
    """One run of a study.

    `best_val_loss` is infinite where there is none. `history` is the content of `history.json`, or what
    `curves.condensed` leaves of it; only `StudyResult.drawn` runs need it. `pictures` holds PNG bytes by name, and is
    empty but for the runs that `best_and_worst` names. `url` leads to the run's page.
    """

    arm: str
    seed: int
    run_id: str
    verdict: str
    verdict_reason: str
    best_val_loss: float = math.inf
    history: Mapping[str, Any] | None = None
    pictures: Mapping[str, bytes] = field(default_factory=dict)
    url: str | None = None

    @property
    def failed(self) -> bool:
        """Whether the run counts as a failure; an interrupted one is missing instead."""
        return self.verdict in FAILED


@dataclass(frozen=True)
class StudyResult:
    """All that the report of a study is made from; `runs` holds an arm and seed once, as `rank_arms` takes them.

    `facts` is shown as a small table (preset, device, commit, versions), `notes` as sentences: warnings, and what is
    missing beside the runs in `ranking.missing`. `depth` is there for a study that repeats one arm in deeper networks.
    """

    study: str
    ranking: Ranking
    runs: Sequence[StudyRun]
    dataset_sha256: str
    facts: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()
    depth: DepthComparison | None = None

    @cached_property
    def arms(self) -> list[str]:
        """Arms, best first; at the end those that have runs, but none that counts."""
        ranked = [row["arm"] for row in self.ranking.table]
        return ranked + sorted({run.arm for run in self.runs} - set(ranked))

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
        order = in_order(runs)
        places = [round(place * (len(order) - 1) / (MOST_LINES - 1)) for place in range(MOST_LINES)]
        return sorted((order[place] for place in places), key=lambda run: run.seed)

    @property
    def all_runs(self) -> list[StudyRun]:
        """The runs in the order of the ranking, and within an arm by seed."""
        return [run for arm in self.arms for run in self.of_arm(arm)]


def best_and_worst(runs: Sequence[StudyRun]) -> list[StudyRun]:
    """The best and the worst of an arm's runs: converged before failed, then by best_val_loss, then by seed.

    One run where there is only one; interrupted runs only where there are no others.
    """
    order = in_order([run for run in runs if run.verdict != "interrupted"] or runs)
    return order if len(order) < 2 else [order[0], order[-1]]


def in_order(runs: Sequence[StudyRun]) -> list[StudyRun]:
    """The runs of an arm, the best first: converged before failed, then by best_val_loss, then by seed."""
    return sorted(runs, key=lambda run: (run.failed, _comparable(run.best_val_loss), run.seed))


def _comparable(loss: float) -> float:
    return math.inf if math.isnan(loss) else loss
