"""What the verdict is decided by: numbers of a history that may be incomplete, foreign or damaged."""

import math
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fnostab.health.config import HealthConfig
from fnostab.health.spikes import Spike, spikes
from fnostab.metrics import progress

_Floats = NDArray[np.float64]

#: Series of `health` of which the evidence holds the largest and the last value.
_WEIGHT_SERIES: Final = tuple(
    f"{kind}_{what}" for kind in ("norm_weight", "layerscale") for what in ("absmax", "absmean")
)


def gather(history: Mapping[str, Any], config: HealthConfig) -> dict[str, Any]:
    """Gather the evidence in a history; a number that is not known is NaN, an epoch that is not known None."""
    with np.errstate(over="ignore", invalid="ignore"):
        return {
            **_of_epochs(history, config),
            **_of_steps(history, config),
            **_of_layers(mapping(history.get("health"))),
        }


def _of_epochs(history: Mapping[str, Any], config: HealthConfig) -> dict[str, Any]:
    val_loss, std_ratio = series(history, "val_loss"), series(history, "object_std_ratio")
    val_loss = np.where(np.isnan(val_loss), np.inf, val_loss)
    constant, floor = number(history.get("val_loss_constant")), number(history.get("val_loss_floor"))
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


def _of_steps(history: Mapping[str, Any], config: HealthConfig) -> dict[str, Any]:
    loss, norm, clipped = (series(history, name) for name in ("loss_step", "grad_norm_preclip", "clipped_fraction"))
    known_norm, known_clipped = norm[~np.isnan(norm)], clipped[~np.isnan(clipped)]
    evidence: dict[str, Any] = {
        "steps": len(loss),
        "grad_norm_median": np.median(known_norm) if known_norm.size else np.nan,
        "grad_norm_p99": np.percentile(known_norm, 99) if known_norm.size else np.nan,
        "grad_norm_max": _largest(norm),
        "clipped_fraction_mean": known_clipped.mean() if known_clipped.size else np.nan,
        "non_finite_steps": len({*np.flatnonzero(np.isnan(loss)), *np.flatnonzero(np.isnan(norm))}),
    }
    for name, values in (("loss_spikes", loss), ("grad_norm_spikes", norm)):
        found = spikes(values, config)
        largest = max(found, key=lambda spike: spike.ratio, default=Spike(-1, np.nan, np.nan))
        step = largest.step if found else None
        evidence[name] = {"count": len(found), "largest": largest.ratio, "step": step}
    return evidence


def _of_layers(health: Mapping[str, Any]) -> dict[str, Any]:
    evidence: dict[str, Any] = {}
    for name in _WEIGHT_SERIES:
        if name in health:
            values = series(health, name)
            evidence |= {name: _largest(values), f"{name}_last": _at(values, -1)}
    blocks = [name.removeprefix("act_mean/") for name in health if name.startswith("act_mean/")]
    if blocks:
        evidence["activation_drift"] = {
            block: {
                f"{when}_{kind}": _at(series(health, f"act_{kind}/{block}"), place)
                for kind in ("mean", "std")
                for when, place in (("first", 0), ("last", -1))
            }
            for block in blocks
        }
    return evidence


def mapping(value: Any) -> Mapping[str, Any]:
    """Return `value` if it is a mapping, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def number(value: Any) -> float:
    """Read a number or its text; NaN for everything that is not finite."""
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan
    return found if math.isfinite(found) else math.nan


def series(history: Mapping[str, Any], name: str) -> _Floats:
    """Read the list `name`, with NaN for everything that is not finite; empty if there is none."""
    values = history.get(name)
    if not isinstance(values, (list, tuple, np.ndarray)):
        values = []
    return np.array([number(value) for value in values], dtype=np.float64)


def _at(values: _Floats, place: int) -> float:
    return float(values[place]) if values.size else math.nan


def _largest(values: _Floats) -> float:
    return float(np.fmax.reduce(values, initial=-np.inf)) if np.isfinite(values).any() else math.nan
