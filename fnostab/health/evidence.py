"""What the verdict is decided by: numbers of a history that may be incomplete, foreign or damaged."""

import math
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fnostab.health.config import HealthConfig
from fnostab.health.parts import dead_blocks, lost_at_end, names_of, stage_losses
from fnostab.health.reading import mapping, number, series
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
            **_of_supervision(history),
            **_of_stitching(history),
            **_of_steps(history, config),
            **_of_layers(mapping(history.get("health")), config),
            **_of_stages(history, config),
        }


def course(history: Mapping[str, Any], config: HealthConfig) -> tuple[_Floats, _Floats, int | None]:
    """Read val_loss and `metrics.progress` an epoch, and the first epoch (from 0) that had learnt; None if none had.

    A supervised run had learnt, too, where its own loss says so. A val_loss that is not finite is infinite here.
    """
    floor = number(history.get("val_loss_floor"))
    val_loss, gained = _losses(history, "val_loss", floor)
    _, own_gained = _losses(history, "supervised_loss")
    learnt = [np.flatnonzero(of[: len(val_loss)] >= config.learnt_progress) for of in (gained, own_gained)]
    return val_loss, gained, int(min(np.concatenate(learnt))) if any(of.size for of in learnt) else None


def _losses(history: Mapping[str, Any], name: str, floor: float = math.nan) -> tuple[_Floats, _Floats]:
    """The loss `name` an epoch, infinite where it is not finite, and `metrics.progress` by it."""
    losses = series(history, name)
    losses = np.where(np.isnan(losses), np.inf, losses)
    constant = number(history.get(f"{name}_constant"))
    return losses, np.array([progress(value, constant, floor) for value in losses.tolist()])


def _of_supervision(history: Mapping[str, Any]) -> dict[str, Any]:
    """The course of a supervised run's own loss; nothing for other runs."""
    losses, gained = _losses(history, "supervised_loss")
    if not losses.size:
        return {}
    return {
        "supervised_loss_constant": number(history.get("supervised_loss_constant")),
        "last_supervised_loss": _at(losses, -1),
        "best_supervised_loss": losses.min(),
        "last_supervised_progress": _at(gained, -1),
        "best_supervised_progress": gained.max(),
    }


def _of_epochs(history: Mapping[str, Any], config: HealthConfig) -> dict[str, Any]:
    val_loss, gained, learnt = course(history, config)
    std_ratio = series(history, "object_std_ratio")
    return {
        "epochs": len(val_loss),
        "val_loss_constant": number(history.get("val_loss_constant")),
        "val_loss_floor": number(history.get("val_loss_floor")),
        "first_val_loss": _at(val_loss, 0),
        "last_val_loss": _at(val_loss, -1),
        "best_val_loss": val_loss.min(initial=np.inf),
        "best_epoch": int(val_loss.argmin()) + 1 if np.isfinite(val_loss).any() else None,
        "last_progress": _at(gained, -1),
        "best_progress": gained.max() if gained.size else np.nan,
        "plateau_left_epoch": None if learnt is None else learnt + 1,
        "last_object_std_ratio": _at(std_ratio, -1),
        "best_object_std_ratio": _largest(std_ratio),
        "last_parameters_moved": _at(series(history, "parameters_moved"), -1),
    }


def _of_stitching(history: Mapping[str, Any]) -> dict[str, Any]:
    """What the patches made together when they were last stitched, and the rule that this cannot decide."""
    taken = np.flatnonzero(np.isfinite(series(history, "r_stitched")))
    last = {}
    for name in ("r_stitched", "patch_consistency", "shared_light"):
        values = series(history, name)
        last[f"last_{name}"] = float(values[taken[-1]]) if taken.size and taken[-1] < len(values) else math.nan
    nothing = {name: number(history.get(name)) for name in ("r_stitched_constant", "r_stitched_mean_pattern")}
    undecided = not taken.size or all(math.isnan(value) for value in nothing.values())
    orientations = mapping(history.get("r_by_orientation"))
    turned = {"r_by_orientation": {str(name): number(r) for name, r in orientations.items()}} if orientations else {}
    return {**last, **nothing, **turned, "rules_left_out": ["inconsistent"] if undecided else []}


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
        evidence[name] = {
            "count": len(found),
            "per_1000_steps": 1000 * len(found) / len(values) if len(values) else np.nan,
            "largest": largest.ratio,
            "step": largest.step if found else None,
        }
    return evidence


def _of_layers(health: Mapping[str, Any], config: HealthConfig) -> dict[str, Any]:
    evidence: dict[str, Any] = {"dead_blocks": dead_blocks(health, -1, config)}
    for name in _WEIGHT_SERIES:
        if name in health:
            values = series(health, name)
            evidence |= {name: _largest(values), f"{name}_last": _at(values, -1)}
    if blocks := names_of(health, "act_mean"):
        evidence["activation_drift"] = {
            block: {
                f"{when}_{kind}": _at(series(health, f"act_{kind}/{block}"), place)
                for kind in ("mean", "std")
                for when, place in (("first", 0), ("last", -1))
            }
            for block in blocks
        }
    return evidence


def _of_stages(history: Mapping[str, Any], config: HealthConfig) -> dict[str, Any]:
    """The stages that were lost at the end, and of a watched run since which step; nothing where nobody looked."""
    lost = lost_at_end(history, config)
    since = {"lost_since_step": stage_losses(history, config)} if mapping(history.get("watched")) else {}
    return ({} if lost is None else {"lost_stages": lost}) | since


def _at(values: _Floats, place: int) -> float:
    return float(values[place]) if values.size else math.nan


def _largest(values: _Floats) -> float:
    return float(np.fmax.reduce(values, initial=-np.inf)) if np.isfinite(values).any() else math.nan
