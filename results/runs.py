"""The runs in docs/results/data, and what tables and figures take from them alike."""

import math
import re
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

from fnostab.health import FAILED
from fnostab.ranking import BOOTSTRAP_SEED, Ranking, rank_arms
from fnostab.ranking.pairs import Pair
from fnostab.study.stored_run import StoredRun, to_rows
from fnostab.tracking.transfer import judged_anew, read_exported

DATA: Final = Path(__file__).resolve().parent.parent / "docs" / "results" / "data"
#: Studies that have a page of their own, and came after the seven questions, whose pages count all runs of the others.
LATER: Final = ("champion_long", "clipping_rules", "gridsize", "gridsize_scan", "original_five", "precision")
#: All studies whose runs are there.
_THERE: Final = {path.name.partition(".")[0] for path in DATA.glob("*.jsonl.gz")}
#: Studies of why it came out as it did, which are called after the number of their question: w1_... to w6_...
WHY: Final = tuple(sorted(study for study in _THERE if re.match(r"w\d_", study)))
#: Every study of the seven questions whose runs are there.
STUDIES: Final = tuple(sorted(_THERE - {*LATER, *WHY}))
#: Numbers of encoder blocks in study q2_depth.
DEPTHS: Final = (4, 8, 12, 16)
#: Learning-rate schedules of studies q6_overlap and q6_longer.
SCHEDULES: Final = ("constant", "cosine")


@dataclass(frozen=True)
class Run:
    """A run of a study, with verdict and stability by today's rules."""

    stored: StoredRun
    history: Mapping[str, Any]

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
    def watched(self) -> Mapping[str, list[float]]:
        """What was watched every few steps. Raises `ValueError` for a run of which nobody looked."""
        watched: Mapping[str, list[float]] | None = self.history.get("watched")
        if not watched:
            raise ValueError(f"`run` must have been watched (train.watch_every_steps): {self.stored.run_id} was not")
        return watched

    @property
    def rate(self) -> float:
        """Its learning rate."""
        return float(self.stored.params["optim.lr"])

    @property
    def verdict(self) -> str:
        """Its verdict by today's rules."""
        return self.stored.tags["verdict"]

    @property
    def first_verdict(self) -> str:
        """Its verdict by the rules of the day on which it was trained."""
        return self.stored.tags.get("verdict_before", self.verdict)

    @property
    def failed(self) -> bool:
        """Whether its verdict is a failure."""
        return self.verdict in FAILED

    @property
    def drawdown(self) -> float | None:
        """Largest ratio of a val_loss to the lowest before it since the run had learnt; None if it never did."""
        return self.metrics.get("stability/max_drawdown")

    @property
    def relapses(self) -> int:
        """How often val_loss rose over 1.5 times the lowest before."""
        return int(self.metrics.get("stability/relapses", 0))


@cache
def read_runs(study: str) -> tuple[Run, ...]:
    """The runs of a study, by arm and seed."""
    (exported,) = read_exported(DATA / f"{study}.jsonl.gz")
    runs = map(judged_anew, exported.runs)
    return tuple(
        Run(
            StoredRun(run.run_id, "", "FINISHED", run.ended_ms, run.tags, run.params, dict(run.metrics)),
            run.history or {},
        )
        for run in runs
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

#: Settings of question 4: the study, and what control and plain, which is the same without clipping, are called in it.
CLIPPED: Final[Mapping[str, tuple[str, str, str]]] = {
    "curved probe": ("q1_curved_phase", "control", "plain"),
    "the same, five other seeds": ("q5_lr", "control-lr0.001", "plain-lr0.001"),
    **{f"{d} blocks": ("q2_depth", depth_arm("control", d), depth_arm("plain", d)) for d in (8, 16)},
    **{
        setting: (study, "control", "plain")
        for setting, study in (
            ("no phase", "q1_curved_nophase"),
            ("1e6 photons", "q7_1e6"),
            ("1e4 photons", "q7_1e4"),
            ("random fields", "q7_grf"),
            ("photographs", "q7_image"),
            ("measured probe", "q7_probe"),
            ("flat probe", "q1_flat_phase"),
            ("flat probe, no phase", "q1_flat_nophase"),
        )
    },
    **{
        f"{setting}, {schedule}": (study, *(schedule_arm(arm, schedule) for arm in ("control", "plain")))
        for study, setting in (("q6_longer", "40 epochs"), ("q6_overlap", "overlap term"))
        for schedule in SCHEDULES
    },
}
#: Settings of question 6: study and arm of pre, and of stable_1, which has its norm at the end of the branch.
NORMS: Final[Mapping[str, tuple[tuple[str, str], tuple[str, str]]]] = {
    "4 blocks": (("q1_curved_phase", "pre"), ("q3_start", "gamma_1")),
    "4 blocks, stable_rms for stable_1": (("q1_curved_phase", "pre"), ("q3_start", "gamma_1_rms")),
    **{
        setting: ((study, "pre"), (study, "stable_1"))
        for setting, study in (
            ("measured probe", "q7_probe"),
            ("1e6 photons", "q7_1e6"),
            ("1e4 photons", "q7_1e4"),
            ("random fields", "q7_grf"),
            ("photographs", "q7_image"),
            ("measured scan", "q7_scan"),
        )
    },
    **{
        f"learning rate {rate}": (("q5_lr", f"pre-lr{rate}"), ("q5_lr", f"stable_1-lr{rate}"))
        for rate in ("3e-05", "0.0001", "0.0003", "0.003", "0.01")
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


@cache
def ranked(study: str) -> Ranking:
    """The ranking of a study, as `fnostab compare` makes it."""
    rows, _ = to_rows(run.stored for run in read_runs(study))
    return rank_arms(rows, BOOTSTRAP_SEED)


def row_of(study: str, arm: str) -> Mapping[str, Any]:
    """The row of `arm` in the ranking of a study."""
    return next(row for row in ranked(study).table if row["arm"] == arm)


def pair(study: str, arm: str, other: str, by: str = "best_val_loss") -> Pair:
    """`arm` compared with the `other` of a study, by val_loss or by `r_stitched`."""
    pairs = ranked(study).pairs if by == "best_val_loss" else ranked(study).other_pairs
    return next(pair for pair in pairs if (pair.a, pair.b) == (arm, other))


def values(study: str, arm: str, by: str = "best_val_loss") -> list[float]:
    """What the runs of `arm` are ranked by: infinite for those that failed."""
    name = {"best_val_loss": "best_val_loss", "r_stitched": "test/r_factor"}[by]
    return [math.inf if run.failed else run.metrics[name] for run in of_arm(study, arm)]


def clipped_fraction(arm: str) -> float:
    """Mean clipped fraction over the steps of a run of study q4_clip, median over the arm's runs."""
    return median(statistics.fmean(run.history["clipped_fraction"]) for run in of_arm("q4_clip", arm))


def sensitivity(arm: str) -> float:
    """Mean over learning rates of min(loss, loss_0) - lowest loss, where a loss is the median of an arm's seeds.

    Learning-rate sensitivity of Wortsman et al. 2023, section 2.3, by the loss at the end of training, as there.
    loss_0, there that of the initial network, is that of the best constant object, which no run that learnt is above.
    """
    by_rate = [of_arm("q5_lr", name) for name in rate_arms("q5_lr")[arm].values()]
    worst = by_rate[0][0].history["val_loss_constant"]
    losses = [min(statistics.median(run.history["val_loss"][-1] for run in of), worst) for of in by_rate]
    return statistics.fmean(losses) - min(losses)
