"""The recorded series of a run, and the verdict on them."""

from fnostab.health.history import EPOCH_SERIES, STEP_SERIES, History, plain
from fnostab.health.verdict import HealthConfig, Spike, Verdict, VerdictLabel, judge, spikes

__all__ = [
    "EPOCH_SERIES",
    "STEP_SERIES",
    "HealthConfig",
    "History",
    "Spike",
    "Verdict",
    "VerdictLabel",
    "judge",
    "plain",
    "spikes",
]
