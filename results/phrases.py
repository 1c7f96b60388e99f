"""Phrases with the numbers of arms and pairs, as `results.words` and `results.answers` put them into sentences."""

from collections.abc import Iterable, Iterator, Sequence

from fnostab.ranking.pairs import p_text
from results.runs import CLIPPED, Run, of_arm, pair, row_of, schedule_arm
from results.stability import all_runs, risen

#: Pieces of the sentences of a page.
Pieces = Iterator[str]


def loss(study: str, arm: str) -> str:
    """Median best val_loss of an arm."""
    return f"{row_of(study, arm)['median_best_val_loss']:.4f}"


def r_factor(study: str, arm: str) -> str:
    """Median R-factor of the stitched object of an arm."""
    return f"{row_of(study, arm)['median_r_stitched']:.3f}"


def p_value(study: str, arm: str, other: str, by: str = "best_val_loss") -> str:
    """The corrected p-value of two arms."""
    return p_text(pair(study, arm, other, by).p_corrected)


def probability(study: str, arm: str, other: str, by: str = "best_val_loss") -> str:
    """Probability that a run of `arm` is better than one of `other`."""
    return f"{pair(study, arm, other, by).probability:.2f}"


def probability_and_p(study: str, arm: str, other: str, by: str = "best_val_loss") -> str:
    """Both."""
    return f"{probability(study, arm, other, by)}, {p_value(study, arm, other, by)}"


def ends(numbers: Iterable[float], form: str = ".0f") -> str:
    """The lowest and the highest of some numbers."""
    found = sorted(numbers)
    return f"{found[0]:{form}} to {found[-1]:{form}}"


def under(study: str, arm: str, other: str) -> float:
    """By how many per cent the median val_loss of `arm` lies under that of `other`."""
    losses = [row_of(study, name)["median_best_val_loss"] for name in (arm, other)]
    return 100 * (1 - losses[0] / losses[1])


def costs(setting: str) -> float:
    """By how many per cent clipping by norm 1.0 raises the median val_loss in a setting of question 4."""
    study, control, plain = CLIPPED[setting]
    return -under(study, control, plain)


def count(found: Iterable[bool]) -> str:
    """How many are true, of how many."""
    of = list(found)
    return f"{sum(of)} of {len(of)}"


def failed(runs: Iterable[Run]) -> str:
    """How many of `runs` failed."""
    return count(run.failed for run in runs)


def rose(runs: Sequence[Run], over: float) -> str:
    """How many of `runs` rose to over `over` times their lowest val_loss before."""
    return f"{len(risen(runs, over))} of {len(runs)}"


def arm_runs(arm: str, studies: Iterable[str]) -> list[Run]:
    """The runs of an arm in these studies, whatever else they vary."""
    return [run for run in all_runs(studies) if run.base_arm == arm]


def both_pres(schedule: str) -> list[Run]:
    """The runs of pre and pre_norm10, which are the same, with the overlap term."""
    return [run for arm in ("pre", "pre_norm10") for run in of_arm("q6_overlap", schedule_arm(arm, schedule))]


def largest_gradient(run: Run) -> float:
    """The largest gradient norm of a run before clipping."""
    return run.metrics["grad/norm_max"]
