"""What happened to a training run: its verdict and the evidence, from the series of `history.json` alone."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

from fnostab.health.config import DEFAULTS, HealthConfig
from fnostab.health.death import death_evidence
from fnostab.health.evidence import gather
from fnostab.health.history import checked_mapping, each, finite_or_none
from fnostab.health.positions import better_orientation
from fnostab.health.reading import mapping, number, series

Failure = Literal["stagnated", "collapsed", "diverged", "inconsistent", "non_finite", "out_of_memory"]
NoResult = Literal["interrupted", "pruned", "unknown"]
VerdictLabel = Literal["converged", Failure, NoResult]

#: Version of the rules; runs without the tag `verdict_version` were judged by the first. The third knows lost stages.
VERDICT_VERSION: Final = 3
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

    The first that applies:

    1. an event: out_of_memory, non_finite, interrupted, pruned; one that is false or null did not happen;
    2. dead, whether or not it had learnt: collapsed; of a watched run, the reason and the evidence say since which step
       and in which stage first (`death`);
    3. the val_loss of a constant object is not known: diverged if val_loss grew, else unknown;
    4. never learnt: diverged or stagnated, also where `metrics.progress` cannot tell, because a constant object is no
       worse than photon noise;
    5. learnt, but not there any more: diverged, or collapsed if the object is flat besides;
    6. learnt patch by patch, but the patches make no object: inconsistent. They share no light, or the stitched object
       is no better than knowing nothing, or hardly, and they agree no better than unrelated ones, or the scan itself
       fits another orientation of its positions (`better_orientation`). Left out, and named in the evidence as
       `rules_left_out`, where the R-factor of the stitched object is not known;
    7. converged.

    A supervised run has learnt by the R-factor val_loss or by its own loss on true patches, `supervised_loss`, and is
    lost only if each of the two that had learnt is lost. It never sees a pattern's misfit, so R may lag behind and
    wander while it does what it was asked for; and a network that R shows to have learnt did learn, whatever its own
    loss says. The other rules hold for it as for any run, so that its object is asked for as much.

    A val_loss that is not finite counts as infinite: one in the middle does no harm; one at the end, or nothing else,
    means diverged. A run that was given up (event `given_up`) is judged by its course, and the reason says so.

    A run that this package did not train (`history["monitor"]`) is unknown, whatever else happened to it but an event,
    where the val_loss of a constant prediction is not known: nobody said what its numbers mean. Its reasons speak of
    predictions where others speak of objects.

    Takes any mapping: keys may be missing, series empty or of unequal lengths, numbers null or the texts NaN, Infinity,
    -Infinity. Raises ValueError only for what is no mapping. In the evidence epochs count from 1, steps from 0, and a
    number that is not known is None; what comes from series that this network does not have is absent.
    """
    history = checked_mapping(history)
    evidence = gather(history, config) | death_evidence(history, config)
    events = {name: event for name, event in mapping(history.get("events")).items() if event not in (None, False)}
    happened = _judge_events(history, events)
    evidence |= {"foreign": True} if mapping(history.get("monitor")) else {}
    label, reason = happened or _judge_course(evidence, config)
    if not happened and "given_up" in events:
        reason += f"; given up{_after_epoch(events['given_up'])}"
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
    evidence = each(evidence, finite_or_none)
    if evidence.pop("foreign", False):  # nothing of ptychography
        evidence = {name: value for name, value in evidence.items() if value is not None and name != "rules_left_out"}
    return Verdict(label, reason, evidence)


def _judge_events(history: Mapping[str, Any], events: Mapping[str, Any]) -> tuple[VerdictLabel, str] | None:
    if "out_of_memory" in events:
        detail = mapping(events["out_of_memory"])
        peak = number(detail.get("peak_bytes"))
        in_use = f", with at most {peak / 2**30:.3g} GiB in use" if peak > 0 else ""
        return "out_of_memory", f"{detail.get('device') or 'the device'} ran out of memory{_at_step(detail)}{in_use}"
    if "non_finite" in events:
        detail = mapping(events["non_finite"])
        first = f", first in `{detail['layer']}`" if detail.get("layer") else ""
        applied = "applied, as was each after it" if detail.get("applied") else "not applied"
        if _was_taken(history, detail.get("step")):
            return "non_finite", f"the validation after step {detail['step']} was not finite{first}"
        where = f"{_at_step(detail)}{first}"
        return "non_finite", f"the loss or gradient was not finite{where}; that update was {applied}"
    if "interrupted" in events:
        steps, epochs = len(series(history, "loss_step")), len(series(history, "val_loss"))
        return "interrupted", f"the run was interrupted (steps done: {steps}, epochs finished: {epochs})"
    if "pruned" in events:
        return "pruned", f"the run was pruned{_after_epoch(events['pruned'])}"
    return None


def _was_taken(history: Mapping[str, Any], step: Any) -> bool:
    """Whether loss and gradient norm of `step` were finite, so that only the validation can have been at fault."""
    both = (series(history, "loss_step"), series(history, "grad_norm_preclip"))
    return isinstance(step, int) and all(0 <= step < len(values) and math.isfinite(values[step]) for values in both)


def _judge_course(evidence: Mapping[str, Any], config: HealthConfig) -> tuple[VerdictLabel, str]:
    rules = (_judge_foreign, _judge_dead, _judge_without_constant, _judge_unlearnt, _judge_lost, _judge_inconsistent)
    for rule in rules:
        if found := rule(evidence, config):
            return found
    ended = f"ended at {evidence['last_progress']:.3g}, with a val_loss of {evidence['last_val_loss']:.3g}"
    return "converged", f"{_reached(evidence)} and {ended}"


def _judge_foreign(evidence: Mapping[str, Any], config: HealthConfig) -> tuple[VerdictLabel, str] | None:
    """A run that this package did not train, and of which nobody said what its loss means."""
    if "foreign" not in evidence or (evidence["epochs"] and not math.isnan(evidence["val_loss_constant"])):
        return None
    if not evidence["epochs"]:
        return "unknown", "no epoch was finished"
    why = "not known to have learnt: the val_loss of a constant prediction is not known"
    if evidence["last_parameters_moved"] == 0:
        why += "; no parameter of the network changed in the last epoch"
    if grown := _grown(evidence, config):
        why += f"; {grown}"
    return "unknown", why


def _judge_dead(evidence: Mapping[str, Any], config: HealthConfig) -> tuple[VerdictLabel, str] | None:
    contrast, norm = evidence["last_object_std_ratio"], evidence["grad_norm_max"]
    if contrast < config.dead_ratio:
        dead = f"the network died: its object is constant (object_std_ratio ended at {contrast:.3g})"
    elif evidence["last_parameters_moved"] == 0:
        of = "" if "foreign" in evidence else " of its blocks"
        dead = f"the network died: no parameter{of} changed in the last epoch"
    else:
        return None
    if evidence["plateau_left_epoch"] is not None:
        before = f"; before, {_reached(evidence)}"
    else:
        before = "" if math.isnan(evidence["val_loss_constant"]) else "; it had never learnt"
    if (step := evidence.get("died_at_step")) is not None:
        stage = evidence["died_in"]
        dead += f"; dead from step {step} on" + (f", first in `{stage}`" if stage else "")
    return "collapsed", f"{dead}{before}{'' if math.isnan(norm) else f'; its largest gradient norm was {norm:.3g}'}"


def _judge_without_constant(evidence: Mapping[str, Any], config: HealthConfig) -> tuple[VerdictLabel, str] | None:
    if not math.isnan(evidence["val_loss_constant"]):
        return None
    if not evidence["epochs"]:
        return "unknown", "no epoch was finished"
    if math.isinf(evidence["best_val_loss"]):
        return "diverged", "val_loss was not finite at any epoch"
    if grown := _grown(evidence, config):
        return "diverged", grown
    return "unknown", "not known to have learnt: the val_loss of a constant object is not known"


def _judge_unlearnt(evidence: Mapping[str, Any], config: HealthConfig) -> tuple[VerdictLabel, str] | None:
    if evidence["plateau_left_epoch"] is not None:
        return None
    if not evidence["epochs"]:
        return "stagnated", "no epoch was finished"
    first, last, constant = (evidence[name] for name in ("first_val_loss", "last_val_loss", "val_loss_constant"))
    why = f"never learnt: progress reached {evidence['best_progress']:.3g}, under {config.learnt_progress:g}"
    if _is_supervised(evidence):
        why += f" (by its own loss {evidence['best_supervised_progress']:.3g})"
    if math.isnan(evidence["best_progress"]):
        why = f"not known to have learnt: a constant object's val_loss, {constant:.3g}, is not above photon noise alone"
    if math.isinf(evidence["best_val_loss"]):
        return "diverged", "val_loss was not finite at any epoch"
    if math.isinf(last):
        return "diverged", f"{why}; the last val_loss was not finite"
    moved = f"{why}; val_loss went from {first:.3g} to {last:.3g}"
    if last / config.diverged_ratio > first:
        return "diverged", f"{moved}, over {config.diverged_ratio:g} times the first"
    if last / config.diverged_constants > constant:
        floor = f"a constant {_what(evidence)}'s, {constant:.3g}"
        return "diverged", f"{moved}, over {config.diverged_constants:g} times {floor}"
    largest = evidence.get("norm_weight_absmax", math.nan)
    moved += "" if math.isnan(largest) else f"; norm weights never exceeded {largest:.3g} in magnitude"
    if better := better_orientation(evidence.get("r_by_orientation", {}), config):
        moved += f"; the axes of the positions may be wrong: {better}"
    return "stagnated", moved


def _judge_lost(evidence: Mapping[str, Any], config: HealthConfig) -> tuple[VerdictLabel, str] | None:
    kinds = ("", "supervised_")
    learnt = [of for of in kinds if evidence.get(f"best_{of}progress", math.nan) >= config.learnt_progress]
    found = [_lost(evidence, config, of) for of in learnt]
    if not all(found):
        return None
    lost = ", and ".join(found)
    contrast, best = evidence["last_object_std_ratio"], evidence["best_object_std_ratio"]
    if contrast < config.flat_ratio:
        flat = f"{config.flat_ratio:g}"
    elif contrast < config.flat_share_of_best * best:
        flat = f"{config.flat_share_of_best:g} of its best, {best:.3g}"
    else:
        return "diverged", f"{_reached(evidence)}, but {lost}"
    went = f"the object went flat: object_std_ratio ended at {contrast:.3g}, under {flat}"
    return "collapsed", f"{_reached(evidence)}, but {lost}, and {went}"


def _judge_inconsistent(evidence: Mapping[str, Any], config: HealthConfig) -> tuple[VerdictLabel, str] | None:
    told = _no_object(evidence, config)
    if not told:
        return None
    cause = "; positions, their axes or unit, or the order of the patterns' frequencies may be wrong"
    if _is_supervised(evidence):  # of simulated data, whose positions are right
        cause = ""
    return "inconsistent", f"{_reached(evidence)}, but the patches make no object: {told}{cause}"


def _no_object(evidence: Mapping[str, Any], config: HealthConfig) -> str:
    """Why the patches make no object; empty if they do, or if that is not known."""
    last, shared, consistency = (evidence[f"last_{of}"] for of in ("r_stitched", "shared_light", "patch_consistency"))
    if shared < config.least_shared_light:
        return f"they share {100 * shared:.2g} % of their light, under {100 * config.least_shared_light:g} %"
    if better := better_orientation(evidence.get("r_by_orientation", {}), config):
        return better
    baselines = {"one mean pattern everywhere": "mean_pattern", "the best constant object": "constant"}
    known = {nothing: evidence[f"r_stitched_{name}"] for nothing, name in baselines.items()}
    for nothing, r in known.items():
        if last >= r:
            return f"the R-factor of the stitched object, {last:.3g}, is not under that of {nothing}, {r:.3g}"
    # An object that explains its patterns is one, though each patch of it may be poor.
    explains = all(math.isnan(r) or last < (1 - config.learnt_progress) * r for r in known.values())
    if consistency < config.least_consistency and not explains:
        unrelated = f"under {config.least_consistency:g} (1: they agree, 0: they are unrelated)"
        object_r = f"the R-factor of the stitched object, {last:.3g}, is hardly under that of knowing nothing"
        return f"where they share light their consistency is {consistency:.2g}, {unrelated}, and {object_r}"
    return ""


def _lost(evidence: Mapping[str, Any], config: HealthConfig, of: str) -> str:
    """How what was learnt was lost, by val_loss or, with `of` = "supervised_", by a run's own loss; empty if not."""
    if grown := _grown(evidence, config, f"{of}loss" if of else "val_loss"):
        return grown
    last, best = evidence[f"last_{of}progress"], evidence[f"best_{of}progress"]
    if not last < config.lost_share * best:
        return ""
    return f"progress{' by its own loss' if of else ''} ended at {last:.3g}, under {config.lost_share:g} of that"


def _grown(evidence: Mapping[str, Any], config: HealthConfig, loss: str = "val_loss") -> str:
    """How `loss` ended far above its best; empty if it did not. A loss that is not positive has no ratios."""
    last, best = evidence[f"last_{loss}"], evidence[f"best_{loss}"]
    if not 0 < best < last / config.lost_ratio:  # divided, as the largest numbers times 2 overflow
        return ""
    ended = "was not finite at the end" if math.isinf(last) else f"ended at {last:.3g}"
    return f"{loss} {ended}, over {config.lost_ratio:g} times its best, {best:.3g}"


def _is_supervised(evidence: Mapping[str, Any]) -> bool:
    return "best_supervised_loss" in evidence


def _reached(evidence: Mapping[str, Any]) -> str:
    full = "a perfect fit" if math.isnan(evidence["val_loss_floor"]) else "photon noise alone"
    best = f"reached {evidence['best_progress']:.3g} at epoch {evidence['best_epoch']}"
    if _is_supervised(evidence):
        best += f" (by its own loss {evidence['best_supervised_progress']:.3g})"
    return f"progress (0: constant {_what(evidence)}, 1: {full}) {best}"


def _what(evidence: Mapping[str, Any]) -> str:
    """What the network gives."""
    return "prediction" if "foreign" in evidence else "object"


def _after_epoch(event: Any) -> str:
    """` after epoch 4 of 8`, as far as the event says it."""
    epoch, epochs = (number(mapping(event).get(name)) for name in ("epoch", "epochs"))
    after = "" if math.isnan(epoch) else f" after epoch {epoch:.0f}"
    return after + ("" if math.isnan(epoch) or math.isnan(epochs) else f" of {epochs:.0f}")


def _at_step(detail: Mapping[str, Any]) -> str:
    return "" if detail.get("step") is None else f" at step {detail['step']}"
