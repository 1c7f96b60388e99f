"""What happened to a training run: its verdict and the evidence, from the series of `history.json` alone."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from fnostab.health.history import checked_mapping
from fnostab.metrics import progress

VerdictLabel = Literal["converged", "stagnated", "collapsed", "diverged", "non_finite", "out_of_memory", "interrupted"]

_Floats = NDArray[np.float64]

#: Series of `health` of which the evidence holds the largest and the last value.
_WEIGHT_SERIES: Final = tuple(
    f"{kind}_{what}" for kind in ("norm_weight", "layerscale") for what in ("absmax", "absmean")
)


@dataclass(frozen=True)
class HealthConfig:
    """Thresholds of the verdict and of the spike detector."""

    #: Progress from which on a run has learnt; a plateau at the best constant object has 0, photon noise alone 1.
    learnt_progress: float = 0.25
    #: A run that never learnt has diverged if its last val_loss is over this many times the first.
    diverged_ratio: float = 2.0
    #: The predicted object is flat where `object_std_ratio` is under this,
    flat_ratio: float = 0.1
    #: or under this share of its best.
    flat_share_of_best: float = 0.1
    #: A run that learnt has diverged if its last progress is under this share of its best.
    lost_share: float = 0.5
    #: Steps before a step that it is compared with: long against a spike, short against the descent.
    spike_window: int = 64
    #: Finite values that must be among them: with fewer, their deviation is little more than a guess.
    spike_window_least: int = 16
    #: A spike is this many standard deviations above the median. Batch noise is skewed, so Hampel's 3 are far too few:
    #: lognormal noise of 30 % gets over 8 about once in 13,000 steps.
    spike_deviations: float = 8.0
    #: And this many times the median: in a quiet series, 8 deviations may be nothing that anyone would call a spike.
    spike_factor: float = 2.0
    #: Steps this close belong to one spike: Adam's momentum (beta 0.9) remembers a gradient for about ten steps.
    spike_gap: int = 10


_DEFAULTS: Final = HealthConfig()


@dataclass(frozen=True)
class Verdict:
    """The label of a run, the reason in one sentence, and the evidence, which is ready for strict JSON."""

    label: VerdictLabel
    reason: str
    evidence: dict[str, Any]

    @property
    def failed(self) -> bool:
        """Whether the run counts as a failure; an interrupted one does not: it is missing."""
        return self.label not in ("converged", "interrupted")


@dataclass(frozen=True)
class Spike:
    """A jump of a series: the step (from 0) of its largest value, that value, and its ratio to the median before."""

    step: int
    value: float
    ratio: float


def judge(history: Mapping[str, Any], config: HealthConfig = _DEFAULTS) -> Verdict:
    """Decide what happened to the run with this `history`, as `History.to_mapping` or `history.json` give it.

    The first that applies: an event (out_of_memory, non_finite, interrupted; one that is false or null did not happen);
    never learnt (diverged or stagnated); collapsed; diverged; converged. Where `metrics.progress` cannot tell, because
    the R-factor of a constant object is unknown or not above that of photon noise, nothing was learnt. A val_loss that
    is not finite counts as infinite: one in the middle does no harm; one at the end, or nothing else, means diverged.
    A run that was given up (event `given_up`) is judged by its course, and the reason says so.

    Takes any mapping: keys may be missing, series empty or of unequal lengths, numbers null or the texts NaN, Infinity,
    -Infinity. Raises ValueError only for what is no mapping. In the evidence epochs count from 1, steps from 0, and a
    number that is not known is None; what comes from series that this network does not have is absent.
    """
    history = checked_mapping(history)
    with np.errstate(over="ignore", invalid="ignore"):
        evidence = {
            **_epoch_evidence(history, config),
            **_step_evidence(history, config),
            **_layer_evidence(_mapping(history.get("health"))),
        }
    happened = _judge_events(history)
    label, reason = happened or _judge_course(evidence, config)
    reason += "" if happened else _given_up(history)
    ours, twin = _number(history.get("object_correlation")), _number(history.get("twin_correlation"))
    known = {"object_correlation": ours, "twin_correlation": twin}
    evidence |= {name: value for name, value in known.items() if math.isfinite(value)}
    if label == "converged" and math.isfinite(ours) and math.isfinite(twin):
        evidence["twin"] = twin > ours
        if twin > ours:
            reason += f"; but the twin image is closer (correlation {twin:.3g}) than the object ({ours:.3g})"
    pattern, best = _number(history.get("val_loss_mean_pattern")), evidence["best_val_loss"]
    if label == "converged" and best >= pattern:
        reason += f"; but one mean pattern everywhere is no worse, with a val_loss of {pattern:.3g}"
    return Verdict(label, reason, _ready_for_json(evidence))


def spikes(series: Sequence[float] | NDArray[np.floating], config: HealthConfig = _DEFAULTS) -> list[Spike]:
    """Find the steps at which a series of positive numbers jumps above the steps before.

    A spike is above median + `spike_deviations` * 1.4826 * MAD, and above `spike_factor` times the median, of the
    `spike_window` steps before it; 1.4826 makes the MAD (median absolute deviation) a normal distribution's standard
    deviation. Neither a spike in that window nor a slow drift moves them much. Values that are not finite are left out,
    and are no spikes. Steps within `spike_gap` of each other are one spike: the one of the largest ratio. Source: the
    Hampel identifier of Davies and Gather 1993, "The identification of multiple outliers", JASA 88.
    """
    values = np.asarray(series, dtype=np.float64)
    values = np.where(np.isfinite(values), values, np.nan)
    padded = np.concatenate([np.full(config.spike_window, np.nan), values])
    windows = np.lib.stride_tricks.sliding_window_view(padded, config.spike_window)[:-1]  # row i: what is before step i
    with np.errstate(over="ignore", invalid="ignore"):
        median = _medians_of_rows(windows)
        enough = np.isfinite(windows).sum(axis=1) >= config.spike_window_least
        steps = np.flatnonzero(enough & (median > 0) & (values > config.spike_factor * median))
        deviation = 1.4826 * _medians_of_rows(np.abs(windows[steps] - median[steps, None]))
        steps = steps[values[steps] > median[steps] + config.spike_deviations * deviation]
        ratio = values[steps] / median[steps]
    starts = np.flatnonzero(np.diff(steps, prepend=-np.inf) > config.spike_gap)
    peaks = [start + int(part.argmax()) for start, part in zip(starts, np.split(ratio, starts)[1:], strict=True)]
    return [Spike(int(steps[peak]), float(values[steps[peak]]), float(ratio[peak])) for peak in peaks]


def _medians_of_rows(rows: _Floats) -> _Floats:
    """Median of each row's numbers, NaN left out; `np.nanmedian` takes several times as long."""
    ordered = np.sort(rows, axis=1)  # NaN last
    count = np.isfinite(rows).sum(axis=1, keepdims=True)
    middle = np.concatenate([(count - 1) // 2, np.minimum(count // 2, rows.shape[1] - 1)], axis=1)
    medians: _Floats = np.take_along_axis(ordered, middle, axis=1).mean(axis=1)
    return medians


def _events(history: Mapping[str, Any]) -> dict[str, Any]:
    """The events that happened."""
    return {name: event for name, event in _mapping(history.get("events")).items() if event not in (None, False)}


def _given_up(history: Mapping[str, Any]) -> str:
    """The end of the reason of a run that was given up; empty if it was not."""
    event = _events(history).get("given_up")
    if event is None:
        return ""
    epoch, epochs = (_number(_mapping(event).get(name)) for name in ("epoch", "epochs"))
    after = "" if math.isnan(epoch) else f" after epoch {epoch:.0f}"
    of = "" if math.isnan(epoch) or math.isnan(epochs) else f" of {epochs:.0f}"
    return f"; given up{after}{of}"


def _judge_events(history: Mapping[str, Any]) -> tuple[VerdictLabel, str] | None:
    events = _events(history)
    if "out_of_memory" in events:
        detail = _mapping(events["out_of_memory"])
        peak = _number(detail.get("peak_bytes"))
        in_use = f", with at most {peak / 2**30:.3g} GiB in use" if peak > 0 else ""
        return "out_of_memory", f"{detail.get('device') or 'the device'} ran out of memory{_at_step(detail)}{in_use}"
    if "non_finite" in events:
        detail = _mapping(events["non_finite"])
        first = f", first in `{detail['layer']}`" if detail.get("layer") else ""
        if _was_taken(history, detail.get("step")):
            return "non_finite", f"the validation after step {detail['step']} was not finite{first}"
        where = f"{_at_step(detail)}{first}"
        return "non_finite", f"the loss or gradient was not finite{where}; that update was not applied"
    if "interrupted" in events:
        steps, epochs = len(_series(history, "loss_step")), len(_series(history, "val_loss"))
        return "interrupted", f"the run was interrupted (steps done: {steps}, epochs finished: {epochs})"
    return None


def _was_taken(history: Mapping[str, Any], step: Any) -> bool:
    """Whether loss and gradient norm of `step` were finite, so that only the validation can have been at fault."""
    both = (_series(history, "loss_step"), _series(history, "grad_norm_preclip"))
    return isinstance(step, int) and all(0 <= step < len(series) and np.isfinite(series[step]) for series in both)


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


def _epoch_evidence(history: Mapping[str, Any], config: HealthConfig) -> dict[str, Any]:
    val_loss, std_ratio = _series(history, "val_loss"), _series(history, "object_std_ratio")
    val_loss = np.where(np.isnan(val_loss), np.inf, val_loss)
    constant, floor = _number(history.get("val_loss_constant")), _number(history.get("val_loss_floor"))
    gained = np.array([progress(value, constant, floor) for value in val_loss.tolist()])
    learnt = np.flatnonzero(gained >= config.learnt_progress)
    return {
        "epochs": len(val_loss),
        "val_loss_constant": constant,
        "val_loss_floor": floor,
        "first_val_loss": _at(val_loss, 0),
        "last_val_loss": _at(val_loss, -1),
        "best_val_loss": val_loss.min(initial=np.inf),
        "best_epoch": int(val_loss.argmin()) + 1 if np.isfinite(val_loss).any() else None,
        "last_progress": _at(gained, -1),
        "best_progress": gained.max() if gained.size else np.nan,
        "plateau_left_epoch": int(learnt[0]) + 1 if learnt.size else None,
        "last_object_std_ratio": _at(std_ratio, -1),
        "best_object_std_ratio": _largest(std_ratio),
    }


def _step_evidence(history: Mapping[str, Any], config: HealthConfig) -> dict[str, Any]:
    loss, norm, clipped = (_series(history, name) for name in ("loss_step", "grad_norm_preclip", "clipped_fraction"))
    known_norm, known_clipped = norm[~np.isnan(norm)], clipped[~np.isnan(clipped)]
    evidence: dict[str, Any] = {
        "steps": len(loss),
        "grad_norm_median": np.median(known_norm) if known_norm.size else np.nan,
        "grad_norm_p99": np.percentile(known_norm, 99) if known_norm.size else np.nan,
        "grad_norm_max": _largest(norm),
        "clipped_fraction_mean": known_clipped.mean() if known_clipped.size else np.nan,
        "non_finite_steps": len({*np.flatnonzero(np.isnan(loss)), *np.flatnonzero(np.isnan(norm))}),
    }
    for name, series in (("loss_spikes", loss), ("grad_norm_spikes", norm)):
        found = spikes(series, config)
        largest = max(found, key=lambda spike: spike.ratio, default=Spike(-1, np.nan, np.nan))
        step = largest.step if found else None
        evidence[name] = {"count": len(found), "largest": largest.ratio, "step": step}
    return evidence


def _layer_evidence(health: Mapping[str, Any]) -> dict[str, Any]:
    evidence: dict[str, Any] = {}
    for name in _WEIGHT_SERIES:
        if name in health:
            series = _series(health, name)
            evidence |= {name: _largest(series), f"{name}_last": _at(series, -1)}
    blocks = [name.removeprefix("act_mean/") for name in health if name.startswith("act_mean/")]
    if blocks:
        evidence["activation_drift"] = {
            block: {
                f"{when}_{kind}": _at(_series(health, f"act_{kind}/{block}"), place)
                for kind in ("mean", "std")
                for when, place in (("first", 0), ("last", -1))
            }
            for block in blocks
        }
    return evidence


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _number(value: Any) -> float:
    """`value`, a number or its text; NaN for everything that is not finite."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan
    return number if math.isfinite(number) else math.nan


def _series(mapping: Mapping[str, Any], name: str) -> _Floats:
    """The list `name` as an array, with NaN for everything that is not finite; empty if there is none."""
    values = mapping.get(name)
    if not isinstance(values, (list, tuple, np.ndarray)):
        values = []
    return np.array([_number(value) for value in values], dtype=np.float64)


def _at(series: _Floats, place: int) -> float:
    return float(series[place]) if series.size else math.nan


def _largest(series: _Floats) -> float:
    return float(np.fmax.reduce(series, initial=-np.inf)) if np.isfinite(series).any() else math.nan


def _at_step(detail: Mapping[str, Any]) -> str:
    return "" if detail.get("step") is None else f" at step {detail['step']}"


def _ready_for_json(value: Any) -> Any:
    """`value` with None for NaN and infinities, and Python's numbers for those of numpy."""
    if isinstance(value, dict):
        return {key: _ready_for_json(item) for key, item in value.items()}
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    return value
