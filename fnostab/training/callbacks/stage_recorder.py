"""What all stages of the network do on a fixed batch, recorded every few steps."""

from typing import Any

import lightning
from torch import Tensor

from fnostab.health import History
from fnostab.models.network_stages import stage_grad_norms
from fnostab.training.collectives import is_first
from fnostab.training.fixed_batch import watch_fixed_batch
from fnostab.training.series import MetricSink
from fnostab.training.watched_series import WatchedSeries


class StageRecorder(lightning.Callback):
    """Watches the network before step 0, every `train.watch_every_steps` steps, and after the last step of a training.

    What is recorded at a step is that of the weights before its update: `watch_fixed_batch`, and with it the norm of
    each stage's gradient before clipping on the step's own batch. After the last step there is no gradient: NaN. Of
    several processes the first one watches, and no other waits for it in a collective.

    It comes after the `SeriesRecorder` of the same `history`, which restores it from checkpoints, and after whatever
    may end the training with an epoch; and before `Checkpoints`.
    """

    def __init__(self, history: History, sink: MetricSink) -> None:
        self._series = WatchedSeries(history, sink)
        self._found: dict[str, Tensor] = {}

    def on_fit_start(self, trainer: lightning.Trainer, module: Any) -> None:
        """Offer the sink what was restored from a checkpoint, even if nothing is left to train."""
        self.offer()

    def offer(self) -> None:
        """Offer the sink what it was not offered."""
        self._series.offer()

    def on_train_batch_start(self, trainer: lightning.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        """Watch the fixed batch, if it is time."""
        if module.is_watched(trainer.global_step):
            assert not module.is_ahead
            self._found = watch_fixed_batch(module)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add the gradients of the step that was watched."""
        if self._found:
            found = self._found | stage_grad_norms(module.generator, module.step.layer_norms)
            self._found = {}
            self._series.add(trainer.global_step - 1, found, module.truth_std)
        self.offer()

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: Any) -> None:
        """Watch once more after the training's last step; of a step that was not finite, nothing after it is kept."""
        if module.config.train.watch_every_steps is None or not is_first():
            return
        self._series.cut()
        if trainer.should_stop or trainer.current_epoch + 1 == trainer.max_epochs:
            self._series.add(self._series.history.steps, watch_fixed_batch(module), module.truth_std)
        self.offer()
        self._series.flush()

    def on_exception(self, trainer: lightning.Trainer, module: Any, exception: BaseException) -> None:
        """Write what was watched before the run goes down."""
        self.offer()
        self._series.flush()

    def state_dict(self) -> dict[str, Any]:
        """What the history does not hold; nothing of a run that is not watched."""
        return self._series.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from the saved state."""
        self._series.load_state_dict(state)
