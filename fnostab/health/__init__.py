"""The recorded series of a run, and the verdict on them."""

from fnostab.health.config import HealthConfig as HealthConfig
from fnostab.health.death import Death as Death, death as death
from fnostab.health.history import EPOCH_SERIES as EPOCH_SERIES, STEP_SERIES as STEP_SERIES, History as History
from fnostab.health.parts import stage_losses as stage_losses
from fnostab.health.positions import better_orientation as better_orientation
from fnostab.health.spikes import Spike as Spike, spikes as spikes
from fnostab.health.stability import Stability as Stability, measure_stability as measure_stability
from fnostab.health.verdict import (
    FAILED as FAILED,
    NO_RESULT as NO_RESULT,
    VERDICT_VERSION as VERDICT_VERSION,
    Verdict as Verdict,
    VerdictLabel as VerdictLabel,
    judge as judge,
)
