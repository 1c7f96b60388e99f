"""The early-warning rule: which runs fail can be told before they end, as far as runs in docs/results/data tell.

A run is stopped if, after a share of its epochs, its progress (0: the best constant object, 1: photon noise alone) was
never over a threshold. `train.give_up_after` of the package is this rule with threshold 0.
"""

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Final

from fnostab.metrics import progress
from fnostab.ranking import wilson_interval
from fnostab.study.text import interval
from results.cells import table
from results.runs import STUDIES, Run, read_runs

#: Shares of the epochs, and thresholds, that rules are chosen from.
SHARES: Final = (1 / 8, 2 / 8, 3 / 8, 4 / 8, 5 / 8)
THRESHOLDS: Final = (-0.25, -0.1, 0.0, 0.02, 0.05, 0.1, 0.15, 0.2)
#: What a rule must reach on the runs that it is chosen by.
LEAST_PRECISION, LEAST_RECALL = 0.95, 0.5


@dataclass(frozen=True)
class Rule:
    """Stop after `share` of the epochs what never had a progress of `under` or more."""

    share: float
    under: float

    def stops(self, run: Run) -> bool | None:
        """Whether it stops `run`; None if that had ended by then, after a step that was not finite."""
        epochs = max(1, math.ceil(self.share * int(run.stored.params["train.epochs"])))
        losses = run.history["val_loss"][:epochs]
        if len(losses) < epochs or not all(isinstance(loss, float) for loss in losses):
            return None
        constant, floor = run.history["val_loss_constant"], run.history["val_loss_floor"]
        return max(progress(loss, constant, floor) for loss in losses) < self.under


@dataclass(frozen=True)
class Found:
    """How many runs a rule stopped, how many of them `failed` without it, and how many failed that it could stop."""

    stopped: int
    right: int
    failed: int

    @property
    def precision(self) -> float:
        """Share of the stopped that failed; NaN if none was stopped."""
        return self.right / self.stopped if self.stopped else math.nan

    @property
    def recall(self) -> float:
        """Share of the failed that were stopped; NaN if none failed."""
        return self.right / self.failed if self.failed else math.nan


def tried(rule: Rule, studies: Iterable[str]) -> Found:
    """The rule on all runs of these studies."""
    return total(_tried(rule, study) for study in studies)


def total(parts: Iterable[Found]) -> Found:
    """All of them together."""
    parts = list(parts)
    return Found(*(sum(getattr(part, name) for part in parts) for name in ("stopped", "right", "failed")))


@cache
def _tried(rule: Rule, study: str) -> Found:
    outcomes = [(rule.stops(run), run.failed) for run in read_runs(study)]
    alive = [(stops, failed) for stops, failed in outcomes if stops is not None]
    return Found(
        stopped=sum(stops for stops, _ in alive),
        right=sum(stops and failed for stops, failed in alive),
        failed=sum(failed for _, failed in alive),
    )


def chosen(studies: Iterable[str]) -> Rule:
    """The earliest rule that is good enough on these studies, and of those the one that stops the most failures."""
    studies = tuple(studies)
    rules = [Rule(share, under) for share, under in itertools.product(SHARES, THRESHOLDS)]
    found = {rule: tried(rule, studies) for rule in rules}
    good = [r for r, f in found.items() if f.precision >= LEAST_PRECISION and f.recall >= LEAST_RECALL]
    return max(good, key=lambda rule: (-rule.share, found[rule].right, rule.under))


def cross_validated() -> Iterator[tuple[str, Rule, Found]]:
    """Each study with the rule that the others choose, and what that finds in it."""
    for study in STUDIES:
        rule = chosen(other for other in STUDIES if other != study)
        yield study, rule, tried(rule, [study])


def warning() -> str:
    """The early-warning rule: runs that were never better than the best constant object after a share of the epochs."""
    head = ("after this share of the epochs", "would be stopped", "of them failed in the end: precision")
    head += ("of all that failed later: recall",)
    rows = []
    for share in SHARES:
        found = tried(Rule(share, 0.0), STUDIES)
        precision = f"{found.precision:.2f} {interval(*wilson_interval(found.right, found.stopped), '.2f')}"
        recall = f"{found.recall:.2f}, {found.right} of {found.failed}"
        rows.append((f"{share:g}", str(found.stopped), precision, recall))
    return table(head, rows)


def cross_validation() -> str:
    """The rule that the other studies choose, on the study that is left out; studies without a failure say nothing."""
    head = ("left out", "rule of the others: share, progress under", "stopped", "of them failed", "failed in all")
    left_out = list(cross_validated())
    rows = [
        (study, f"{rule.share:g}, {rule.under:g}", str(found.stopped), str(found.right), str(found.failed))
        for study, rule, found in left_out
        if found.stopped or found.failed
    ]
    whole = total(found for *_, found in left_out)
    low, high = wilson_interval(whole.right, whole.stopped)
    said = f"precision {whole.precision:.2f} {interval(low, high, '.2f')}, recall {whole.recall:.2f}"
    rows.append(("all", said, str(whole.stopped), str(whole.right), str(whole.failed)))
    return table(head, rows)
