"""What happened to a training run: its verdict and the evidence, from the series of `history.json` alone."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

from fnostab.health.config import DEFAULTS, HealthConfig
from fnostab.health.evidence import gather, mapping, number, series
from fnostab.health.history import checked_mapping, each, finite_or_none

Failure = Literal["stagnated", "collapsed", "diverged", "inconsistent", "non_finite", "out_of_memory"]
NoResult = Literal["interrupted", "pruned", "unknown"]
VerdictLabel = Literal["converged", Failure, NoResult]

#: Verdicts of runs that failed.
FAILED: Final = get_args(Failure)
#: Verdicts of runs without a result: they are missing in a ranking, and no failures.
NO_RESULT: Final = get_args(NoResult)


@dataclass(frozen=True)
class Verdict:
    """The label of a run, the reason in one sentence, and the evidence, which is ready for strict JSON."""

    label: VerdictLabel
    reason: str
    evidence: dict[str, Any]

    @property
    def failed(self) -> bool:
        """Whether the run counts as a failure; one without a result does not: it is missing."""
        return self.label in FAILED


def judge(history: Mapping[str, Any], config: HealthConfig = DEFAULTS) -> Verdict:
    """Decide what happened to the run with this `history`, as `History.to_mapping` or `history.json` give it.

    The first that applies: an event (out_of_memory, non_finite, interrupted; one that is false or null did not happen);
    never learnt (diverged or stagnated); collapsed; diverged; converged. Where `metrics.progress` cannot tell, because
    the R-factor of a constant object is unknown or not above that of photon noise, nothing was learnt. A val_loss that
    is not finite counts as infinite: one in the middle does no harm; one at the end, or nothing else, means diverged. A
    run that was given up (event `given_up`) is judged by its course, and the reason says so.

    Takes any mapping: keys may be missing, series empty or of unequal lengths, numbers null or the texts NaN, Infinity,
    -Infinity. Raises ValueError only for what is no mapping. In the evidence epochs count from 1, steps from 0, and a
    number that is not known is None; what comes from series that this network does not have is absent.
    """
    history = checked_mapping(history)
    evidence = gather(history, config)
    events = {name: event for name, event in mapping(history.get("events")).items() if event not in (None, False)}
    happened = _judge_events(history, events)
    label, reason = happened or _judge_course(evidence, config)
    reason += "" if happened else _given_up(events)
    ours, twin = number(history.get("object_correlation")), number(history.get("twin_correlation"))
    known = {"object_correlation": ours, "twin_correlation": twin}
    evidence |= {name: value for name, value in known.items() if math.isfinite(value)}
    if label == "converged" and math.isfinite(ours) and math.isfinite(twin):
        evidence["twin"] = twin > ours
        if twin > ours:
            reason += f"; but the twin image is closer (correlation {twin:.3g}) than the object ({ours:.3g})"
    pattern, best = number(history.get("val_loss_mean_pattern")), evidence["best_val_loss"]
    if label == "converged" and best >= pattern:
        reason += f"; but one mean pattern everywhere is no worse, with a val_loss of {pattern:.3g}"
    return Verdict(label, reason, each(evidence, finite_or_none))


def _given_up(events: Mapping[str, Any]) -> str:
    """The end of the reason of a run that was given up; empty if it was not."""
    event = events.get("given_up")
    if event is None:
        return ""
    epoch, epochs = (number(mapping(event).get(name)) for name in ("epoch", "epochs"))
    after = "" if math.isnan(epoch) else f" after epoch {epoch:.0f}"
    of = "" if math.isnan(epoch) or math.isnan(epochs) else f" of {epochs:.0f}"
    return f"; given up{after}{of}"


def _judge_events(history: Mapping[str, Any], events: Mapping[str, Any]) -> tuple[VerdictLabel, str] | None:
    if "out_of_memory" in events:
        detail = mapping(events["out_of_memory"])
        peak = number(detail.get("peak_bytes"))
        in_use = f", with at most {peak / 2**30:.3g} GiB in use" if peak > 0 else ""
        return "out_of_memory", f"{detail.get('device') or 'the device'} ran out of memory{_at_step(detail)}{in_use}"
    if "non_finite" in events:
        detail = mapping(events["non_finite"])
        first = f", first in `{detail['layer']}`" if detail.get("layer") else ""
        if _was_taken(history, detail.get("step")):
            return "non_finite", f"the validation after step {detail['step']} was not finite{first}"
        where = f"{_at_step(detail)}{first}"
        return "non_finite", f"the loss or gradient was not finite{where}; that update was not applied"
    if "interrupted" in events:
        steps, epochs = len(series(history, "loss_step")), len(series(history, "val_loss"))
        return "interrupted", f"the run was interrupted (steps done: {steps}, epochs finished: {epochs})"
    return None


def _was_taken(history: Mapping[str, Any], step: Any) -> bool:
    """Whether loss and gradient norm of `step` were finite, so that only the validation can have been at fault."""
    both = (series(history, "loss_step"), series(history, "grad_norm_preclip"))
    return isinstance(step, int) and all(0 <= step < len(values) and math.isfinite(values[step]) for values in both)


def _judge_course(evidence: Mapping[str, Any], config: HealthConfig) -> tuple[VerdictLabel, str]:
    if not evidence["epochs"]:
        return "stagnated", "no epoch was finished"
    if evidence["plateau_left_epoch"] is None:
        return _judge_unlearnt(evidence, config)
    best, last = evidence["best_progress"], evidence["last_progress"]
    full = "a perfect fit" if math.isnan(evidence["val_loss_floor"]) else "photon noise alone"
    reached = f"progress (0: constant object, 1: {full}) reached {best:.3g} at epoch {evidence['best_epoch']}"
    contrast, best_contrast = evidence["last_object_std_ratio"], evidence["best_object_std_ratio"]
    flat = f"{reached}, but then the object went flat: object_std_ratio ended at {contrast:.3g}, under"
    if contrast < config.flat_ratio:
        return "collapsed", f"{flat} {config.flat_ratio:g}"
    if contrast < config.flat_share_of_best * best_contrast:
        return "collapsed", f"{flat} {config.flat_share_of_best:g} of its best, {best_contrast:.3g}"
    if last < config.lost_share * best:
        return "diverged", f"{reached}, but ended at {last:.3g}, under {config.lost_share:g} of that"
    return "converged", f"{reached} and ended at {last:.3g}, with a val_loss of {evidence['last_val_loss']:.3g}"


def _judge_unlearnt(evidence: Mapping[str, Any], config: HealthConfig) -> tuple[VerdictLabel, str]:
    first, last, constant = (evidence[name] for name in ("first_val_loss", "last_val_loss", "val_loss_constant"))
    why = f"never learnt: progress reached {evidence['best_progress']:.3g}, under {config.learnt_progress:g}"
    if math.isnan(constant):
        why = "not known to have learnt: the val_loss of a constant object is not known"
    elif math.isnan(evidence["best_progress"]):
        why = f"not known to have learnt: a constant object's val_loss, {constant:.3g}, is not above photon noise alone"
    if math.isinf(evidence["best_val_loss"]):
        return "diverged", "val_loss was not finite at any epoch"
    if math.isinf(last):
        return "diverged", f"{why}; the last val_loss was not finite"
    moved = f"{why}; val_loss went from {first:.3g} to {last:.3g}"
    if last > config.diverged_ratio * first:
        return "diverged", f"{moved}, over {config.diverged_ratio:g} times the first"
    largest = evidence.get("norm_weight_absmax", math.nan)
    return "stagnated", moved + (
        "" if math.isnan(largest) else f"; norm weights never exceeded {largest:.3g} in magnitude"
    )


def _at_step(detail: Mapping[str, Any]) -> str:
    return "" if detail.get("step") is None else f" at step {detail['step']}"
