"""The last and the best checkpoint, whole or not there."""

import math
import time
from pathlib import Path
from typing import Any

import lightning
import torch

from fnostab.datamodule import training_loader
from fnostab.processes import first_says


class Checkpoints(lightning.Callback):
    """Keeps `last.ckpt` (every epoch, and every `every_s` seconds inside one) and `best.ckpt` (lowest val_loss).

    Written to a temporary name and renamed, so a checkpoint is whole or not there. torch's RNG state and the place in
    the epoch travel along. Of several processes the first one decides when, and writes. (Lightning saves the loader's
    place too, but does not restore it if the number of steps was asked for while the optimizers were made, as a
    schedule does: seen with Lightning 2.6.)
    """

    def __init__(self, folder: Path, every_s: float) -> None:
        self.last = folder / "last.ckpt"
        self.best = folder / "best.ckpt"
        self.best_val_loss = math.inf
        self._every_s = every_s
        self._saved_at = time.monotonic()
        self._place: dict[str, int] | None = None

    def on_save_checkpoint(self, trainer: lightning.Trainer, module: Any, checkpoint: dict[str, Any]) -> None:
        """Note the place in the epoch."""
        checkpoint["place_in_epoch"] = training_loader(trainer).state_dict()

    def on_load_checkpoint(self, trainer: lightning.Trainer, module: Any, checkpoint: dict[str, Any]) -> None:
        """Take over the place in the epoch."""
        self._place = checkpoint["place_in_epoch"]

    def on_train_start(self, trainer: lightning.Trainer, module: Any) -> None:
        """Put the loader where it stood."""
        if self._place is not None:
            training_loader(trainer).load_state_dict(self._place)
            self._place = None

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if it is time; not after an epoch's last batch, or a bad step: the validation is still to come."""
        due = first_says(time.monotonic() - self._saved_at > self._every_s, module.device)
        if due and batch_idx + 1 < trainer.num_training_batches and not module.has_stopped:
            self._save(trainer, self.last)

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: Any) -> None:
        """Save the epoch, and as the best one if it is."""
        val_loss = float(trainer.callback_metrics["val_loss"])
        # A loss that is not a number counts as infinite, so that there is always a best checkpoint, and any number
        # beats it.
        if first_says(val_loss < self.best_val_loss or not self.best.exists(), module.device):
            self.best_val_loss = val_loss if math.isfinite(val_loss) else math.inf
            self._save(trainer, self.best)
        self._save(trainer, self.last)

    def _save(self, trainer: lightning.Trainer, path: Path) -> None:
        partial = path.with_suffix(".partial")
        trainer.save_checkpoint(partial)  # all processes have a part in it
        if trainer.is_global_zero:
            partial.replace(path)
        self._saved_at = time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        """The best loss so far, and torch's RNG state."""
        return {"best_val_loss": self.best_val_loss, "torch_rng": torch.get_rng_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them over."""
        self.best_val_loss = state["best_val_loss"]
        torch.set_rng_state(state["torch_rng"])
