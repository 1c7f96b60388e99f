"""The runs in docs/results/data, and what tables and figures take from them alike."""

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Final

from fnostab.health import Stability, Verdict, judge, measure_stability
from fnostab.ranking import BOOTSTRAP_SEED, Ranking, rank_arms
from fnostab.study.selection import StoredRun
from fnostab.tracking.transfer import read_exported

DATA: Final = Path(__file__).resolve().parent.parent / "docs" / "results" / "data"
#: Every study whose runs are there.
STUDIES: Final = tuple(sorted(path.name.partition(".")[0] for path in DATA.glob("*.jsonl.gz")))
#: Numbers of encoder blocks in study q2_depth.
DEPTHS: Final = (4, 8, 12, 16)
#: Learning-rate schedules of studies q6_overlap and q6_longer.
SCHEDULES: Final = ("constant", "cosine")


@dataclass(frozen=True)
class Run:
    """A run of a study."""

    stored: StoredRun
    history: Mapping[str, Any]

    @property
    def row(self) -> Mapping[str, Any]:
        """The run as `rank_arms` takes it, judged by today's rules."""
        measures = self.stability.numbers if self.stability else {}
        return self.stored.to_row() | measures | {"verdict": self.verdict.label}

    @cached_property
    def verdict(self) -> Verdict:
        """Its verdict by today's rules."""
        return judge(self.history)

    @cached_property
    def stability(self) -> Stability | None:
        """How steadily it trained once it had learnt; None if it never did."""
        return measure_stability(self.history)

    @property
    def arm(self) -> str:
        """Its arm."""
        return self.stored.arm

    @property
    def base_arm(self) -> str:
        """Its arm, without what the grid of the study added to the name."""
        return self.arm.partition("-")[0]

    @property
    def metrics(self) -> Mapping[str, float]:
        """Its final metrics."""
        return self.stored.metrics

    @property
    def health(self) -> Mapping[str, list[float]]:
        """Series with one value from before the first step, and one an epoch."""
        return dict(self.history["health"])

    @property
    def rate(self) -> float:
        """Its learning rate."""
        return float(self.stored.params["optim.lr"])

    @property
    def failed(self) -> bool:
        """Whether its verdict is a failure."""
        return self.verdict.failed


@cache
def read_runs(study: str) -> tuple[Run, ...]:
    """The runs of a study, by arm and seed."""
    exported = read_exported(DATA / f"{study}.jsonl.gz")
    return tuple(
        Run(
            StoredRun(run.run_id, "", "FINISHED", run.ended_ms, run.tags, run.params, dict(run.metrics)),
            run.history or {},
        )
        for run in exported.runs
    )


def of_arm(study: str, arm: str) -> list[Run]:
    """The runs of one arm."""
    return [run for run in read_runs(study) if run.arm == arm]


def depth_arm(arm: str, blocks: int) -> str:
    """The name of `arm` with so many blocks, where the grid of a study varies them."""
    return f"{arm}-fno_blocks{blocks}"


def schedule_arm(arm: str, schedule: str) -> str:
    """The name of `arm` with that learning-rate schedule, where the grid of a study varies it."""
    return f"{arm}-schedule{schedule}"


#: Settings of question 6: the study, and what control and pre are called in it.
BETTER: Final[Mapping[str, tuple[str, str, str]]] = {
    "4 blocks": ("q1_curved_phase", "control", "pre"),
    **{f"{d} blocks": ("q2_depth", depth_arm("control", d), depth_arm("pre", d)) for d in (8, 16)},
    **{
        f"4 blocks, {setting}, {schedule}": (study, *(schedule_arm(arm, schedule) for arm in ("control", "pre")))
        for study, setting in (("q6_overlap", "overlap term"), ("q6_longer", "40 epochs"))
        for schedule in SCHEDULES
    },
}


def rate_arms(study: str) -> Mapping[str, Mapping[float, str]]:
    """By arm without its learning rate, and by learning rate in ascending order, the arm's name in `study`."""
    table: dict[str, dict[float, str]] = {}
    for run in sorted(read_runs(study), key=lambda run: (run.base_arm, run.rate)):
        table.setdefault(run.base_arm, {})[run.rate] = run.arm
    return table


def median(values: Iterable[float | None]) -> float:
    """The median of those that are known; NaN if none is."""
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else float("nan")


def rises(study: str, arm: str) -> list[float]:
    """Of each run the largest ratio of a val_loss to the lowest before it: how far training was once thrown back."""
    losses = [run.history["val_loss"] for run in of_arm(study, arm)]
    return [max(of[epoch] / min(of[:epoch]) for epoch in range(1, len(of))) for of in losses]


@cache
def ranked(study: str) -> Ranking:
    """The ranking of a study, as `fnostab compare` makes it."""
    return rank_arms([run.row for run in read_runs(study)], BOOTSTRAP_SEED)


def row_of(study: str, arm: str) -> Mapping[str, Any]:
    """The row of `arm` in the ranking of a study."""
    return next(row for row in ranked(study).table if row["arm"] == arm)


def clipped_fraction(arm: str) -> float:
    """Mean clipped fraction over the steps of a run of study q4_clip, median over the arm's runs."""
    return median(statistics.fmean(run.history["clipped_fraction"]) for run in of_arm("q4_clip", arm))


def sensitivity(arm: str) -> float:
    """Mean over learning rates of min(loss, loss_0) - lowest loss, where a loss is the median of an arm's seeds.

    Learning-rate sensitivity of Wortsman et al. 2023, section 2.3. loss_0, there that of the initial network, is here
    that of the best constant object, which no run that learnt anything is above.
    """
    by_rate = [of_arm("q5_lr", name) for name in rate_arms("q5_lr")[arm].values()]
    worst = by_rate[0][0].history["val_loss_constant"]
    losses = [min(statistics.median(run.metrics["best_val_loss"] for run in of), worst) for of in by_rate]
    return statistics.fmean(losses) - min(losses)
