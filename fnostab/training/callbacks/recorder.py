"""The series of a run, recorded without waiting for the device at each step."""

import math
import time
from typing import Any

import lightning

from fnostab.health import History
from fnostab.models.layers import moved
from fnostab.training.collectives import broadcast
from fnostab.training.series import MetricSink, RunSeries


class SeriesRecorder(lightning.Callback):
    """Records the loss, norms and clipped fraction of every step, and the epoch's values, without a per-step wait.

    The series are those of `RunSeries`, and the checkpoint holds them. `object_std_ratio` is the deviation of the
    predicted object over `module.truth_std`, that of the true one, or over its own best so far if that is None.
    `module.observe()` gives the values of `History.health` before the first step and after each epoch;
    `module.fingerprints()` tells what share of the blocks' tensors moved in the epoch. Training stops at the first
    step, or validation, that is not finite: the series end there, and the event `non_finite` names step and layer. From
    the end of `give_up_epoch` on, it also stops if no epoch had `metrics.progress` over 0, of R or of a supervised
    run's own loss, and that is known of all of them: the event `given_up` names the epoch.
    """

    def __init__(self, history: History, sink: MetricSink, give_up_epoch: int | None = None) -> None:
        self.history = history
        self._series = RunSeries(history, sink)
        self._give_up_epoch = give_up_epoch
        self._best_std = 0.0
        #: Of the weights at the start of the epoch.
        self._fingerprints: dict[str, list[int]] = {}
        self._patches = 0
        self._started_at = 0.0
        self.samples_per_s = 0.0

    def on_fit_start(self, trainer: lightning.Trainer, module: Any) -> None:
        """Offer the sink what was restored from a checkpoint, even if nothing is left to train."""
        self.offer_all()

    def offer_all(self) -> None:
        """Offer the sink all that is recorded, from the first step on."""
        self._series.offer_all()

    @property
    def epochs(self) -> int:
        """Epochs that are recorded."""
        return self._series.epochs

    @property
    def had_to_stop(self) -> bool:
        """Whether an event has ended the training."""
        return not self.history.events.keys().isdisjoint({"non_finite", "given_up", "pruned"})

    def on_train_start(self, trainer: lightning.Trainer, module: Any) -> None:
        """Observe the network as it starts, and start the clock; a run that had to stop stops again."""
        if self.had_to_stop:
            trainer.should_stop = True
        if not self._fingerprints:  # or the checkpoint is of an earlier version
            self._fingerprints = module.fingerprints()
        if not self._series.has_begun:
            not_yet = {f"moved/{name}": math.nan for name in self._fingerprints if name}
            self._series.begin(module.observe() | not_yet)
        self._patches, self._started_at = 0, time.monotonic()

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep the step's record."""
        self._patches += batch.global_size
        if self._series.add_step(module.step_record, module.layer_norms):
            self.drain(trainer, module)

    def drain(self, trainer: Any, module: Any) -> None:
        """Copy the pending records from the device into the history and the sink; stop at one that is not finite."""
        bad = self._series.drain()
        if bad is not None:
            batch = trainer.train_dataloader.batch(bad - self._series.steps_before_epoch)
            self._stop(trainer, bad, module.first_bad_layer(batch))

    def _stop(self, trainer: lightning.Trainer, step: int, layer: str | None) -> None:
        self.history.events.setdefault("non_finite", {"step": step} | ({"layer": layer} if layer else {}))
        trainer.should_stop = True

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        """Record the epoch; validation has run by now."""
        self.drain(trainer, module)
        found = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self._best_std = max(self._best_std, found["object_std"])
        reference = self._best_std if module.truth_std is None else module.truth_std
        before, self._fingerprints = self._fingerprints, module.fingerprints()
        moves = moved(before, self._fingerprints)
        parameters_moved = moves.pop("parameters_moved")
        self._series.end_epoch(
            module.observe() | moves,
            val_loss=found["val_loss"],
            lr=float(trainer.optimizers[0].param_groups[0]["lr"]),
            object_std_ratio=found["object_std"] / reference if reference else math.nan,
            **{name: found[name] for name in ("r_stitched", "patch_consistency", "shared_light")},
            parameters_moved=parameters_moved,
            **{name: found.get(name) for name in ("val_amp_ssim", "supervised_loss")},
        )
        if not math.isfinite(found["val_loss"]):
            batches = trainer.val_dataloaders.whole_batches()
            layers = (module.first_bad_layer(batch, training=False) for batch in batches)
            self._stop(trainer, self.history.steps - 1, next(filter(None, layers), None))
        self._give_up_if_hopeless(trainer, module)
        self._series.flush()

    def _give_up_if_hopeless(self, trainer: lightning.Trainer, module: Any) -> None:
        epoch, epochs = len(self.history.val_loss), trainer.max_epochs or 0
        if self._give_up_epoch is None or not self._give_up_epoch <= epoch < epochs:
            return
        progress = self._series.progress + self._series.supervised_progress
        hopeless = not self.had_to_stop and all(value <= 0 for value in progress)
        if broadcast([hopeless], module.device)[0]:  # the first process alone knows the constant object's loss
            self.history.events["given_up"] = {"epoch": epoch, "epochs": epochs}
            trainer.should_stop = True

    def on_train_end(self, trainer: lightning.Trainer, module: Any) -> None:
        """Note the speed, validation and checkpoints included."""
        self.samples_per_s = self._patches / (time.monotonic() - self._started_at)

    def on_exception(self, trainer: lightning.Trainer, module: Any, exception: BaseException) -> None:
        """Write what was recorded before the run goes down."""
        self.drain(trainer, module)
        self._series.flush()

    def state_dict(self) -> dict[str, Any]:
        """The series, the best deviation, and the fingerprints."""
        return self._series.state_dict() | {"best_std": self._best_std, "fingerprints": self._fingerprints}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue the saved series."""
        self._series.load_state_dict(state)
        self._best_std = state["best_std"]
        self._fingerprints = state.get("fingerprints", {})  # not in checkpoints from before they were taken
