"""What is observed, said and kept while a run trains."""

from fnostab.training.callbacks.checkpoints import Checkpoints
from fnostab.training.callbacks.interruption import Interruption
from fnostab.training.callbacks.progress import ConsoleProgress, EpochSummary, Pictures, in_words
from fnostab.training.callbacks.recorder import SeriesRecorder

__all__ = [
    "Checkpoints",
    "EpochSummary",
    "Interruption",
    "Pictures",
    "ConsoleProgress",
    "SeriesRecorder",
    "in_words",
]
