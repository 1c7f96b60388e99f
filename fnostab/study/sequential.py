"""Studies until decided: after how many seeds they look, which runs the next look needs, and what is decided then.

At a look the arms are ranked, and the first in rank, the *leader*, is compared with every other arm. Only arms in an
open comparison with it, and the leader itself, get more seeds. `fnostab.ranking.claims` has what a look may decide.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

from fnostab.config import ConfigError
from fnostab.io.untrusted import shown
from fnostab.ranking import BOOTSTRAP_SEED, Ranking, rank_arms
from fnostab.ranking.claims import ALPHA, Design
from fnostab.ranking.exact_tests import fewest_seeds
from fnostab.ranking.pairs import Pair, p_text
from fnostab.study.plan import StudyPlan

#: Seeds an arm that are added for each further look.
MORE_SEEDS: Final = 5
#: The maximum if nobody says, and the largest that anybody may say.
MAX_SEEDS: Final = 30
MOST_SEEDS: Final = 1000


@dataclass(frozen=True)
class Until:
    """What was asked for: the error rate, and the maximum of seeds an arm.

    None stands for what the study was begun with, or else `ALPHA` and `MAX_SEEDS`. Raises `ConfigError` for an `alpha`
    outside (0, 0.5].
    """

    alpha: float | None = None
    max_seeds: int | None = None

    def __post_init__(self) -> None:
        _design(self.alpha, ())


#: Ranks the arms by their runs of these seeds.
RankSeeds = Callable[[Sequence[int]], Ranking]


class Next(NamedTuple):
    """The arms and seeds that are trained next, none if the study is over, and the ranking of the last look."""

    runs: list[tuple[str, int]]
    ranking: Ranking | None


@dataclass(frozen=True)
class Schedule:
    """When a study looks, and the `plan` of all that it may come to: as many seeds, ascending, as the last look has."""

    design: Design
    plan: StudyPlan

    def next_runs(self, trained: Collection[tuple[str, int]], rank: RankSeeds) -> Next:
        """What is to be trained next, and what the last look gave.

        `trained` are the arms and seeds that have a result, and `rank` ranks those of some seeds. The first look needs
        all arms, a further one the contenders of the look before; an arm that becomes one later catches up before the
        others go on. The looks are gone through from the first, each with its seeds alone, so a study that was killed
        in the middle goes on as if it had not been.
        """
        contenders, ranking = set(self.plan.arms), None
        for end in self.design.looks:
            if lacking := self._lacking(contenders, end, trained):
                return Next(lacking, ranking)
            ranking = rank(self.plan.seeds[:end])
            contenders = Standing.of(ranking).contenders
            if not contenders:
                break
            if behind := self._lacking(contenders, end, trained):
                return Next(behind, ranking)
        return Next([], ranking)

    def told(self, ranking: Ranking, *, over: bool) -> str:
        """What is decided and what is open, in words; `over` if there is no further look."""
        standing = Standing.of(ranking)
        if over and not standing.open:
            return f"decided after {standing.leaders_seeds} seeds an arm: {standing.decided_text}"
        text = f"decided: {standing.decided_text}; open: {standing.open_text}{self._too_early(ranking)}"
        if over:
            return f"not decided with the maximum of {self.design.looks[-1]} seeds an arm: {text}"
        return f"after {standing.leaders_seeds} seeds an arm: {text}"

    def _lacking(
        self, arms: Collection[str], seeds: int, trained: Collection[tuple[str, int]]
    ) -> list[tuple[str, int]]:
        """The runs of these arms that have no result, of the first `seeds`, a seed after the other."""
        needed = [(arm, seed) for seed in self.plan.seeds[:seeds] for arm in self.plan.arms if arm in arms]
        return [run for run in needed if run not in trained]

    def _too_early(self, ranking: Ranking) -> str:
        """That so few seeds cannot decide anything, where it is so."""
        looks, levels = self.design.looks, self.design.levels(ranking.comparisons)
        able = [end for end, level in zip(looks, levels, strict=True) if level > 0]
        if able and Standing.of(ranking).leaders_seeds >= able[0]:
            return ""
        needed = able[0] if able else fewest_seeds(ranking.comparisons, self.design.alpha)
        return f"; fewer than {needed} seeds an arm can decide nothing"


@dataclass(frozen=True)
class Standing:
    """What is decided and what is open between the `leader` of a ranking and each other arm; `seeds` by arm."""

    leader: str
    seeds: Mapping[str, int]
    decided: Sequence[Pair]
    open: Sequence[Pair]

    @classmethod
    def of(cls, ranking: Ranking) -> "Standing":
        """The standing by a ranking."""
        leader = ranking.table[0]["arm"]
        pairs = [pair for pair in ranking.pairs if pair.a == leader]
        decided, still_open = ([pair for pair in pairs if pair.is_open == kind] for kind in (False, True))
        return cls(leader, {row["arm"]: row["runs"] for row in ranking.table}, decided, still_open)

    @property
    def contenders(self) -> set[str]:
        """The arms that get more seeds: the leader and those in an open comparison with it, or nobody."""
        return {self.leader, *(pair.b for pair in self.open)} if self.open else set()

    @property
    def leaders_seeds(self) -> int:
        """How many seeds the leader has."""
        return self.seeds[self.leader]

    @property
    def decided_text(self) -> str:
        """What is decided, in words."""
        return "; ".join(map(_decided, self.decided)) or "nothing"

    @property
    def open_text(self) -> str:
        """What is open, in words."""
        return "; ".join(f"{pair.a} and {pair.b} ({p_text(pair.p_corrected)})" for pair in self.open) or "nothing"

    def tags(self) -> dict[str, str]:
        """The standing as tags of the parent run."""
        used = ", ".join(f"{arm} {seeds}" for arm, seeds in self.seeds.items())
        return {"decided": self.decided_text, "open": self.open_text, "seeds_used": used}


class Look(NamedTuple):
    """What a look found, in words, after so many seeds an arm."""

    seeds: int
    leader: str
    decided: str
    open: str


def looks_of(rows: Sequence[Mapping[str, Any]], design: Design, by: str) -> list[Look]:
    """What each look of `design` found that its runs are there for; `rows` are those of `rank_arms`, ranked `by`."""
    seeds = sorted({row["seed"] for row in rows})
    found = []
    for end in design.looks if design.is_sequential else ():
        if len(seeds) < end:
            break
        seen = [row for row in rows if row["seed"] in seeds[:end]]
        standing = Standing.of(rank_arms(seen, BOOTSTRAP_SEED, 0, by=by, design=design))
        found.append(Look(end, standing.leader, standing.decided_text, standing.open_text))
    return found


def _decided(pair: Pair) -> str:
    worse = pair.b if pair.better == pair.a else pair.a
    return f"{pair.better} over {worse} ({p_text(pair.p_corrected)} with {pair.seeds} seeds)"


def schedule_of(until: Until, plan: StudyPlan, known: Collection[int] = (), earlier: Design | None = None) -> Schedule:
    """When the study of `plan` looks that is to go on `until` decided.

    The first look is at the seeds of the plan; each further one has `MORE_SEEDS` more, the integers after the largest,
    and the last one ends at the maximum. `known` are the seeds that the study has already, `earlier` the design that it
    was begun with: its looks stay, because what they decided depends on them, and more may follow. Raises `ConfigError`
    for what does not fit together.
    """
    if len(plan.arms) < 2:
        raise ConfigError(f"`until` (=decided) needs two arms to compare: there is {', '.join(plan.arms)} alone")
    given, seeds = sorted(plan.seeds), sorted({*plan.seeds, *known})
    text = shown(", ".join(map(str, given)))
    begun = earlier.looks[-1] if earlier else MAX_SEEDS
    most = max(begun, len(seeds)) if until.max_seeds is None else until.max_seeds
    if not len(seeds) <= most <= MOST_SEEDS:
        rule = f">= {len(seeds)}, the number of seeds that there are" if most < len(seeds) else f"<= {MOST_SEEDS}"
        raise ConfigError(f"`max_seeds` (={most}) must be {rule}")
    if earlier and most < begun:
        raise ConfigError(f"`max_seeds` (={most}) must be >= {begun}, which this study was begun with")
    if earlier and until.alpha not in (None, earlier.alpha):
        raise ConfigError(f"`alpha` (={until.alpha}) must be {earlier.alpha}, which this study was begun with")
    if seeds[: len(given)] != given:
        have = shown(", ".join(map(str, sorted(known))))
        raise ConfigError(f"`seeds` (={text}) must be the first ones of the study, which has {have} already")
    seeds += range(seeds[-1] + 1, seeds[-1] + 1 + most - len(seeds))
    if seeds[-1] >= 2**32:
        raise ConfigError(f"`seeds` (={text}) must leave room for {most} seeds below 2**32")
    looks = list(earlier.looks) if earlier else [len(given)]
    while looks[-1] < most:
        looks.append(min(looks[-1] + MORE_SEEDS, most))
    design = _design(earlier.alpha if earlier else until.alpha, tuple(looks))
    return Schedule(design, replace(plan, seeds=tuple(seeds)))


def _design(alpha: float | None, looks: tuple[int, ...]) -> Design:
    try:
        return Design(ALPHA if alpha is None else alpha, looks)
    except ValueError as error:
        raise ConfigError(str(error)) from None
