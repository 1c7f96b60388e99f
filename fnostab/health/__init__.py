"""The recorded series of a run, and the verdict on them."""

from fnostab.health.config import HealthConfig
from fnostab.health.history import EPOCH_SERIES, STEP_SERIES, History
from fnostab.health.spikes import Spike, spikes
from fnostab.health.verdict import Verdict, VerdictLabel, judge

__all__ = [
    "EPOCH_SERIES",
    "STEP_SERIES",
    "HealthConfig",
    "History",
    "Spike",
    "Verdict",
    "VerdictLabel",
    "judge",
    "spikes",
]
