"""What is observed, said and kept while a run trains."""

from fnostab.callbacks.checkpoints import Checkpoints
from fnostab.callbacks.interruption import Interrupted, Interruption
from fnostab.callbacks.progress import EpochDone, Pictures, Progress, in_words
from fnostab.callbacks.recorder import SeriesRecorder

__all__ = [
    "Checkpoints",
    "EpochDone",
    "Interrupted",
    "Interruption",
    "Pictures",
    "Progress",
    "SeriesRecorder",
    "in_words",
]
