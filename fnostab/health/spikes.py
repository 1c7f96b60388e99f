"""Jumps of a series above the steps before."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fnostab.health.config import DEFAULTS, HealthConfig


@dataclass(frozen=True)
class Spike:
    """A jump of a series: the step (from 0) of its largest value, that value, and its ratio to the median before."""

    step: int
    value: float
    ratio: float


def spikes(series: Sequence[float] | NDArray[np.floating], config: HealthConfig = DEFAULTS) -> list[Spike]:
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
    steps = np.flatnonzero(np.isfinite(windows).sum(axis=1) >= max(1, config.spike_window_least))
    with np.errstate(over="ignore", invalid="ignore"):
        median = np.nanmedian(windows[steps], axis=1)
        above = (median > 0) & (values[steps] > config.spike_factor * median)
        steps, median = steps[above], median[above]
        deviation = 1.4826 * np.nanmedian(np.abs(windows[steps] - median[:, None]), axis=1)
        above = values[steps] > median + config.spike_deviations * deviation
        steps, median = steps[above], median[above]
        ratio = values[steps] / median
    starts = np.flatnonzero(np.diff(steps, prepend=-np.inf) > config.spike_gap)
    peaks = [start + int(part.argmax()) for start, part in zip(starts, np.split(ratio, starts)[1:], strict=True)]
    return [Spike(int(steps[peak]), float(values[steps[peak]]), float(ratio[peak])) for peak in peaks]
