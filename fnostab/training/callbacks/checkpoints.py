"""When checkpoints are written, and what is restored from them."""

import math
import time
from typing import Any

import lightning
import torch

from fnostab.health.config import DEFAULTS
from fnostab.training.checkpoint_files import CheckpointFiles
from fnostab.training.collectives import OccasionalBroadcast, broadcast


class Checkpoints(lightning.Callback):
    """Saves the last checkpoint every epoch and every `every_s` seconds inside one, and the best one.

    The best has the lowest `select_by`, `val_loss` or `r_stitched`, of the epochs at which that was taken; until then,
    the lowest `val_loss`. `best_val_loss` is the lowest of all epochs, infinite if there is none.

    Where val_loss rises over `relapse_ratio` times the lowest before, the checkpoint from before that epoch is kept; of
    several times, the last. `accident_epoch` is that epoch, counted from 1, and 0 if there was none.

    A checkpoint also holds torch's RNG state and the place in the epoch. Of several processes the first one decides
    when to save, and writes the file. (Lightning saves the loader's place too, but does not restore it if the number of
    steps was asked for while the optimizers were made, as a schedule does: seen with Lightning 2.6.)
    """

    def __init__(self, files: CheckpointFiles, every_s: float, select_by: str = "val_loss") -> None:
        self.best_val_loss = math.inf
        self._select_by = select_by
        #: 0 and the value it was selected by; or 1 and its val_loss, while that was not taken.
        self._best: tuple[int, float] = (1, math.inf)
        self._files = files
        self._every_s = every_s
        self._saved_at = time.monotonic()
        self._place: dict[str, int] | None = None
        self._shared = OccasionalBroadcast()
        self.accident_epoch = 0
        self._has_risen = False

    def on_save_checkpoint(self, trainer: Any, module: Any, checkpoint: dict[str, Any]) -> None:
        """Note the place in the epoch."""
        checkpoint["place_in_epoch"] = trainer.train_dataloader.state_dict()

    def on_load_checkpoint(self, trainer: lightning.Trainer, module: Any, checkpoint: dict[str, Any]) -> None:
        """Read the place in the epoch."""
        self._place = checkpoint["place_in_epoch"]

    def on_train_start(self, trainer: Any, module: Any) -> None:
        """Let the loader continue from its place."""
        if self._place is not None:
            trainer.train_dataloader.load_state_dict(self._place)
            self._place = None

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if it is time, but not after an epoch's last batch, before its validation, nor after a bad step.

        Where steps are taken together, it waits until the last of them has ended.
        """
        due = self._shared.after_step(time.monotonic() - self._saved_at > self._every_s, module.device)
        is_last = due and batch_idx + 1 == trainer.num_training_batches
        if due and not is_last and not module.is_ahead and not module.has_stopped:
            self._save_last(trainer)

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: Any) -> None:
        """Save the epoch, and as the best one if it is."""
        val_loss, selected = (_or_infinite(trainer.callback_metrics[name]) for name in ("val_loss", self._select_by))
        self._note_accident(trainer, val_loss)
        self.best_val_loss = min(self.best_val_loss, val_loss)
        found = (0, selected) if math.isfinite(selected) else (1, val_loss)
        # There is always a best checkpoint, and any number beats one that is none.
        is_best = found < self._best or not self._files.has_best
        if broadcast([is_best], module.device)[0]:
            self._best = found
            trainer.save_checkpoint(self._files.best)
        self._save_last(trainer)

    def _note_accident(self, trainer: lightning.Trainer, val_loss: float) -> None:
        """Keep what was saved last if an accident begins with this epoch."""
        has_risen = val_loss > DEFAULTS.relapse_ratio * self.best_val_loss
        if has_risen and not self._has_risen:
            self.accident_epoch = trainer.current_epoch + 1
            if trainer.is_global_zero:
                self._files.keep_before_accident()
        self._has_risen = has_risen

    def _save_last(self, trainer: lightning.Trainer) -> None:
        trainer.save_checkpoint(self._files.last)  # a collective operation
        self._saved_at = time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        """The best so far, and torch's RNG state."""
        accident = {"accident_epoch": self.accident_epoch, "has_risen": self._has_risen}
        best = {"best_val_loss": self.best_val_loss, "best": self._best}
        return {**best, **accident, "torch_rng": torch.get_rng_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore them; a checkpoint from before there was a choice has the lowest loss alone."""
        self.best_val_loss = state["best_val_loss"]
        self._best = state.get("best", (0, self.best_val_loss))
        self.accident_epoch = state.get("accident_epoch", 0)
        self._has_risen = state.get("has_risen", False)
        torch.set_rng_state(state["torch_rng"])


def _or_infinite(value: torch.Tensor) -> float:
    """`value`, or infinity if it is not finite."""
    return float(value) if value.isfinite() else math.inf
