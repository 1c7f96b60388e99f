"""How steadily a run trained once it had learnt, from `history.json` alone."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

import numpy as np

from fnostab.health.config import DEFAULTS, HealthConfig
from fnostab.health.evidence import course
from fnostab.health.history import checked_mapping, each, finite_or_none
from fnostab.health.parts import dead_blocks, lost_at_end, lost_stages
from fnostab.health.reading import mapping

StabilityLabel = Literal["steady", "relapsed", "partly_dead"]

#: Names of the measures, which are series as well: one value an epoch.
MEASURES: Final = ("max_drawdown", "mean_excess", "relapses", "relapses_per_1e5_steps", "dead_blocks", "lost_stages")
#: Those that are told as a list of names, and count as how many these are.
_LISTS: Final = ("dead_blocks", "lost_stages")


@dataclass(frozen=True)
class Stability:
    """The measures of a run from the epoch at which it learnt to its end.

    Drawdown is the ratio of a val_loss to the lowest up to then, 1 at a new lowest one: `max_drawdown` is its largest,
    `mean_excess` its mean less 1. `relapses` counts the rises of val_loss over `relapse_ratio` times the lowest since
    the rise before; a rise ends when half of it is made good. `relapses_per_1e5_steps` is None where the steps are not
    known; `dead_blocks` and `lost_stages`, names, where no series can tell (see `parts`).
    """

    label: StabilityLabel
    max_drawdown: float
    mean_excess: float
    relapses: int
    relapses_per_1e5_steps: float | None
    dead_blocks: list[str] | None
    lost_stages: list[str] | None

    @property
    def numbers(self) -> dict[str, float]:
        """The measures that are known, as numbers by name; of dead blocks and lost stages how many there are."""
        known = {name: getattr(self, name) for name in MEASURES if getattr(self, name) is not None}
        return {name: float(len(value) if name in _LISTS else value) for name, value in known.items()}

    @property
    def reason(self) -> str:
        """The label in words."""
        parts = []
        if self.dead_blocks:
            parts.append(f"{_count(len(self.dead_blocks), 'block')} of the network died: {', '.join(self.dead_blocks)}")
        if self.lost_stages:
            lost = f"{_count(len(self.lost_stages), 'stage')} hardly depends on the pattern any more"
            parts.append(f"the output of {lost}: {', '.join(self.lost_stages)}")
        rises = f"val_loss rose to at most {self.max_drawdown:.3g} times its lowest"
        parts.append(f"{rises} ({_count(self.relapses, 'relapse')})")
        return "; ".join(parts)

    def to_mapping(self) -> dict[str, Any]:
        """Give all fields, ready for strict JSON."""
        return {name: each(value, finite_or_none) for name, value in asdict(self).items()}


def measure_stability(history: Mapping[str, Any], config: HealthConfig = DEFAULTS) -> Stability | None:
    """Measure how steadily the run with this `history` trained once it had learnt; None if it never did.

    The label is `partly_dead` if a block is dead or a stage lost, else `relapsed` if there was a relapse, else
    `steady`. Takes what `judge` takes. Raises ValueError only for what is no mapping.
    """
    found = stability_series(history, config)
    if not found:
        return None
    last = {name: values[-1] for name, values in found.items()}
    dead, lost = dead_blocks(mapping(history.get("health")), -1, config), lost_at_end(history, config)
    label: StabilityLabel = "partly_dead" if dead or lost else "relapsed" if last["relapses"] else "steady"
    return Stability(
        label=label,
        max_drawdown=last["max_drawdown"],
        mean_excess=last["mean_excess"],
        relapses=int(last["relapses"]),
        relapses_per_1e5_steps=None if math.isnan(rate := last["relapses_per_1e5_steps"]) else rate,
        dead_blocks=dead,
        lost_stages=lost,
    )


def stability_series(history: Mapping[str, Any], config: HealthConfig = DEFAULTS) -> dict[str, list[float]]:
    """Give the `MEASURES` as they stood after each epoch, NaN before the run had learnt; empty if it never did."""
    history = checked_mapping(history)
    val_loss, _, learnt = course(history, config)
    if learnt is None:
        return {}
    since = val_loss[learnt:]
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        drawdown = since / np.minimum.accumulate(since)
        drawdown[since == np.minimum.accumulate(since)] = 1.0  # where 0 is the lowest, too
        excess = np.cumsum(drawdown - 1) / np.arange(1, len(since) + 1)
    relapses = _count_relapses(since.tolist(), config)
    steps = history.get("loss_step")
    an_epoch = len(steps) / len(val_loss) if isinstance(steps, list) else 0.0
    since_then = [epochs * an_epoch for epochs in range(len(since))]
    health = mapping(history.get("health"))
    parts = {
        name: [_number_of(find(health, epoch + 1, config)) for epoch in range(learnt, len(val_loss))]
        for name, find in (("dead_blocks", dead_blocks), ("lost_stages", lost_stages))
    }
    found = {
        "max_drawdown": np.maximum.accumulate(drawdown).tolist(),
        "mean_excess": excess.tolist(),
        "relapses": relapses,
        "relapses_per_1e5_steps": [
            1e5 * count / done if done else math.nan for count, done in zip(relapses, since_then, strict=True)
        ],
        **parts,
    }
    return {name: [math.nan] * learnt + values for name, values in found.items()}


def _count_relapses(val_loss: list[float], config: HealthConfig) -> list[float]:
    """Relapses up to each epoch."""
    counts: list[float] = []
    count, low, peak = 0.0, math.inf, math.nan  # peak: of the rise that goes on, NaN if none does
    for value in val_loss:
        if math.isnan(peak):
            low = min(low, value)
            if value > config.relapse_ratio * low:
                count, peak = count + 1, value
        else:
            peak = max(peak, value)
            if math.isfinite(value) and value <= low + (peak - low) / 2:
                low, peak = value, math.nan
        counts.append(count)
    return counts


def _number_of(names: list[str] | None) -> float:
    return math.nan if names is None else float(len(names))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
