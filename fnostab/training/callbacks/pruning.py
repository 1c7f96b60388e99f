"""A run that somebody stops because its result is not needed any more."""

from collections.abc import Callable
from typing import Any

import lightning

from fnostab.health import History
from fnostab.training.collectives import broadcast


class Pruning(lightning.Callback):
    """Stops the training after an epoch at which `wanted` says so, and notes the event `pruned` in the history.

    It asks in the first process alone, and all stop. After the last epoch it does not ask: the run has its result. It
    stands before `Checkpoints`, so that a run which is continued knows that it was stopped.
    """

    def __init__(self, history: History, wanted: Callable[[], bool] = lambda: False) -> None:
        self._history = history
        self._wanted = wanted

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: Any) -> None:
        """Stop if it is wanted."""
        epoch, epochs = len(self._history.val_loss), trainer.max_epochs or 0
        if broadcast([epoch < epochs and self._wanted()], module.device)[0]:
            self._history.events["pruned"] = {"epoch": epoch, "epochs": epochs}
            trainer.should_stop = True
