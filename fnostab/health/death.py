"""When a watched network died, in which stage first, and what came before."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fnostab.health.config import DEFAULTS, HealthConfig
from fnostab.health.parts import names_of
from fnostab.health.reading import mapping, series


@dataclass(frozen=True)
class Death:
    """A death that lasted to the end of a run, as far as the run was watched; NaN or None is what is not known.

    The steps between `last_alive_step` and `step` killed the network. `grad_norm_max` is the largest gradient norm of
    these, before clipping, and `grad_norm_ratio` its ratio to the median of all steps before them; `loss_before` and
    `loss_at_death` are those of the fixed batch at both ends.
    """

    step: int  #: the first watched one from which on the object was constant
    stage: str | None  #: that died first; None if all stages told the patterns apart then
    last_alive_step: int | None
    loss_before: float
    loss_at_death: float
    grad_norm_max: float
    grad_norm_ratio: float


def death(history: Mapping[str, Any], config: HealthConfig = DEFAULTS) -> Death | None:
    """Find when the run with this `history` died, from `watched`; None if it lived to the end, or was not watched.

    It died at the first watched step from which on the `object_std_ratio` of the fixed batch was under
    `config.dead_ratio` to the end. The stage that died first is, of those whose output did not depend on the pattern
    when the network died, the one of which this was so from the earliest step on; of several, that which ran first.
    Those of which it stayed so to the end come first: others changed on once nobody saw it. That an output does not
    depend on the pattern means that in the middle of its images, where the light is, its deviation over patterns is
    nothing but rounding (`middle_std` under `config.dead_stage` of `act_std`). Keys may be missing, and values be no
    numbers, as for `judge`.
    """
    watched = mapping(history.get("watched"))
    steps = series(watched, "step")
    place = _stays(series(watched, "object_std_ratio")[: len(steps)] < config.dead_ratio)
    if place is None or place >= len(steps) or not math.isfinite(steps[place]):
        return None
    loss, norms = series(watched, "loss"), series(history, "grad_norm_preclip")
    step = int(steps[place])
    alive = int(steps[place - 1]) if place and math.isfinite(steps[place - 1]) else None
    largest, median = math.nan, math.nan
    if alive is not None:
        largest = float(np.fmax.reduce(norms[alive:step], initial=np.nan))
        before = norms[:alive]
        median = float(np.median(before[np.isfinite(before)])) if np.isfinite(before).any() else math.nan
    return Death(
        step=step,
        stage=_first_dead(watched, place, config),
        last_alive_step=alive,
        loss_before=_at(loss, place - 1) if place else math.nan,
        loss_at_death=_at(loss, place),
        grad_norm_max=largest,
        grad_norm_ratio=largest / median if median > 0 else math.nan,
    )


def death_evidence(history: Mapping[str, Any], config: HealthConfig) -> dict[str, Any]:
    """When and where the network died, and what came before; nothing of a run that was not watched."""
    if not mapping(history.get("watched")):
        return {}
    found = death(history, config)
    if found is None:
        return {"died_at_step": None, "died_in": None}
    before = {name: value for name, value in asdict(found).items() if name not in ("step", "stage")}
    return {"died_at_step": found.step, "died_in": found.stage, "before_death": before}


def _first_dead(watched: Mapping[str, Any], at: int, config: HealthConfig) -> str | None:
    """The stage that died first, given the place `at` which the network died."""
    found: dict[str, tuple[bool, int]] = {}
    for stage in names_of(watched, "middle_std"):
        of_patterns, of_all = (series(watched, f"{kind}/{stage}") for kind in ("middle_std", "act_std"))
        if len(of_patterns) != len(of_all) or len(of_all) <= at:
            continue
        is_dead = of_patterns <= config.dead_stage * of_all
        if (place := _stays(is_dead[: at + 1])) is not None:
            found[stage] = (not is_dead[at:].all(), place)
    return min(found, key=lambda stage: found[stage], default=None)


def _stays(is_so: NDArray[np.bool_]) -> int | None:
    """The first place from which on `is_so` holds to the end; None if it does not hold there."""
    if not is_so.size or not is_so[-1]:
        return None
    return 0 if is_so.all() else int(len(is_so) - np.argmin(is_so[::-1]))


def _at(values: NDArray[np.float64], place: int) -> float:
    return float(values[place]) if place < len(values) else math.nan
