"""Thresholds of the verdict, of the stability measures and of the spike detector."""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class HealthConfig:
    """When a run is dead, has learnt, was lost or relapsed, and what a spike is."""

    #: A network is dead if the last `object_std_ratio` is under this: what float32 leaves of a constant image.
    dead_ratio: float = 1e-6
    #: A block's update is constant if its deviation is under this share of the block's output: rounding alone is 1e-7.
    dead_update: float = 1e-6
    #: A stage is lost if the share of its output's deviation that is over patterns is under this part of what it was
    #: before the first step, which is about a tenth. In 32 watched runs (docs/results/survival.md) 406 stages that
    #: worked ended at shares of 0.01 to 0.85, and 10 lost ones at 0 to 0.0034.
    lost_stage: float = 0.1
    #: A watched stage is lost since the first step from which up to any later one it was so at this share of the
    #: watched steps: one that works again for a moment is lost all the same.
    lost_steps: float = 0.9
    #: But if that leaves under this share of all watched steps, it is not said to be lost: it may be a moment.
    lost_least: float = 0.1
    #: A stage is dead if its output varies over patterns by at most this share of what it varies by over all.
    dead_stage: float = 1e-6

    #: Progress from which on a run has learnt; a plateau at the best constant object has 0, photon noise alone 1.
    learnt_progress: float = 0.25
    #: A run that never learnt has diverged if its last val_loss is over this many times the first.
    diverged_ratio: float = 2.0
    #: Or over this many times that of the best constant object, wherever it began.
    diverged_constants: float = 10.0
    #: A run that learnt has diverged if its last val_loss is over this many times its best,
    lost_ratio: float = 2.0
    #: or its last progress is under this share of its best.
    lost_share: float = 0.5
    #: It has collapsed instead if the object is flat besides: `object_std_ratio` is under this,
    flat_ratio: float = 0.1
    #: or under this share of its best.
    flat_share_of_best: float = 0.1
    #: Patches make no object if they share less than this part of their light (`val/shared_light`): each stands alone,
    #: and any positions fit.
    least_shared_light: float = 0.01
    #: Or if they agree no better than this where they share light (`val/patch_consistency`: 1 if they agree, about 0 if
    #: they are unrelated), and the stitched R-factor is not under that of knowing nothing by `learnt_progress` of it.
    #: With wrong axes or a wrong order of frequencies the consistency is -0.4 to 0.2, with the right ones 0.4 to 0.8,
    #: while R alone can lie under the baselines, by up to 0.16: a network that learns the probe fits much.
    least_consistency: float = 0.1
    #: Or if the R-factor of a conventional reconstruction of the scan is under this share in another orientation of the
    #: positions. With the right axes that of the next best was 1.4 times and more of it, with wrong ones 0.3 to 0.6.
    orientation_ratio: float = 0.8
    #: A relapse is a rise of val_loss over this many times the lowest since the relapse before; the least that people
    #: call one: from epoch to epoch val_loss varies by some percent.
    relapse_ratio: float = 1.5
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


DEFAULTS: Final = HealthConfig()
