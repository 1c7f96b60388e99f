"""What is observed, said and kept while a run trains."""

from fnostab.training.callbacks.checkpoints import Checkpoints
from fnostab.training.callbacks.interruption import Interruption
from fnostab.training.callbacks.pictures import Pictures
from fnostab.training.callbacks.progress import ConsoleProgress, EpochSummary
from fnostab.training.callbacks.recorder import SeriesRecorder

__all__ = ["Checkpoints", "ConsoleProgress", "EpochSummary", "Interruption", "Pictures", "SeriesRecorder"]
