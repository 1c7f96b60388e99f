"""Parts of a network that stopped working while the rest went on: dead blocks and lost stages."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fnostab.health.config import DEFAULTS, HealthConfig
from fnostab.health.reading import mapping, series, value_at


def dead_blocks(health: Mapping[str, Any], place: int, config: HealthConfig) -> list[str] | None:
    """Name the blocks that were dead at `place` of the series in `health`; None if no series can tell.

    A block is dead if none of its parameters changed in the epoch (`moved/<block>`), or if what it adds to its input is
    the same for all patterns and pixels of the fixed batch (`update_std/<block>` against the block's output).
    """
    found = []
    known = False
    for block in dict.fromkeys([*names_of(health, "moved"), *names_of(health, "update_std")]):
        moved, update, mean, std = (
            value_at(health, f"{kind}/{block}", place) for kind in ("moved", "update_std", "act_mean", "act_std")
        )
        known |= not (math.isnan(moved) and math.isnan(update))
        output = math.hypot(mean, std)
        if moved == 0 or update <= (0 if math.isnan(output) else config.dead_update * output):
            found.append(block)
    return found if known else None


def lost_stages(health: Mapping[str, Any], place: int, config: HealthConfig = DEFAULTS) -> list[str] | None:
    """Name the stages that had lost the pattern at `place` of the series in `health`; None if no series can tell.

    A stage is lost if its share of deviation over patterns (`pattern_share/<stage>`) is under `config.lost_stage` of
    what it was before the first step: it gives nearly the same whatever the pattern, so that what comes after it
    learns nothing from it. The network may go on around it, by its skip connections.
    """
    found = []
    known = False
    for stage in names_of(health, "pattern_share"):
        first, then = (value_at(health, f"pattern_share/{stage}", at) for at in (0, place))
        known |= not (math.isnan(first) or math.isnan(then))
        if then < config.lost_stage * first:
            found.append(stage)
    return found if known else None


def stage_losses(history: Mapping[str, Any], config: HealthConfig = DEFAULTS) -> dict[str, int]:
    """The stages that a watched run had lost at its end, by the step from which on they were.

    That is the first watched step from which up to any later one the stage was lost, by the rule of `lost_stages`, at
    `config.lost_steps` of the watched steps; `config.lost_least` of all must be left. Stages are in the order of these
    steps. Empty for a run that was not watched, and for one that lost none.
    """
    watched = mapping(history.get("watched"))
    steps = series(watched, "step")
    found = {}
    for stage in names_of(watched, "middle_std"):
        of_patterns, of_all = (series(watched, f"{kind}/{stage}") for kind in ("middle_std", "act_std"))
        if not len(steps) == len(of_patterns) == len(of_all):
            continue
        shares = np.divide(of_patterns, of_all, out=np.zeros_like(of_all), where=of_all != 0)
        place = _mostly_since(shares < config.lost_stage * shares[0], config) if len(shares) else None
        if place is not None and math.isfinite(steps[place]):
            found[stage] = int(steps[place])
    return dict(sorted(found.items(), key=lambda item: item[1]))


def _mostly_since(is_lost: NDArray[np.bool_], config: HealthConfig) -> int | None:
    """The first place from which up to any later one `is_lost` mostly is; None if there is none, or too late."""
    places = np.arange(len(is_lost) + 1)
    ahead = np.concatenate([[0], np.cumsum(is_lost)]) - config.lost_steps * places  # of what it must be, by each place
    later = np.minimum.accumulate(ahead[:0:-1])[::-1]
    found = np.flatnonzero((later >= ahead[:-1] - 1e-9) & (places[:0:-1] >= config.lost_least * len(is_lost)))
    return int(found[0]) if found.size else None


def lost_at_end(history: Mapping[str, Any], config: HealthConfig = DEFAULTS) -> list[str] | None:
    """Name the stages that a run had lost at its end, by `lost_stages`, or where no epoch tells by what was watched."""
    lost = lost_stages(mapping(history.get("health")), -1, config)
    return list(stage_losses(history, config)) if lost is None and mapping(history.get("watched")) else lost


def names_of(health: Mapping[str, Any], kind: str) -> list[str]:
    """The blocks or stages of which there is a series `kind/<name>`."""
    return [name.removeprefix(f"{kind}/") for name in health if name.startswith(f"{kind}/")]
