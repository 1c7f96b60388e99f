"""Pictures on the way, drawn while a run trains."""

from collections.abc import Callable
from typing import Any

import lightning


class Pictures(lightning.Callback):
    """Calls `draw(module, epoch, step)` every few epochs."""

    def __init__(self, draw: Callable[[Any, int, int], None], every_epochs: int) -> None:
        self._draw = draw
        self._every = every_epochs

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: Any) -> None:
        """Draw, except after the last epoch, whose picture is drawn from the best checkpoint."""
        epoch = trainer.current_epoch + 1
        if epoch % self._every == 0 and epoch != trainer.max_epochs and not trainer.should_stop:
            self._draw(module, epoch, trainer.global_step - 1)
