"""What is observed, said and kept while a run trains."""

from lightning import Callback as Callback

from fnostab.training.callbacks.checkpoints import Checkpoints as Checkpoints
from fnostab.training.callbacks.interruption import Interruption as Interruption
from fnostab.training.callbacks.pictures import Pictures as Pictures
from fnostab.training.callbacks.progress import ConsoleProgress as ConsoleProgress, EpochSummary as EpochSummary
from fnostab.training.callbacks.pruning import Pruning as Pruning
from fnostab.training.callbacks.recorder import SeriesRecorder as SeriesRecorder
from fnostab.training.callbacks.stage_recorder import StageRecorder as StageRecorder
