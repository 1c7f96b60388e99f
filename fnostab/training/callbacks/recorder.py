"""The series of a run, recorded without waiting for the device at each step."""

import math
import time
from collections.abc import Iterable
from typing import Any, Protocol

import lightning
import torch

from fnostab.health import EPOCH_SERIES, STEP_SERIES, History
from fnostab.health.stability import stability_series
from fnostab.metrics import progress
from fnostab.models.layers import moved
from fnostab.study.names import METRIC
from fnostab.training.collectives import broadcast

#: Steps between copies of the recorded values from the device; a copy waits for the device once.
_CHUNK_STEPS = 250


class MetricSink(Protocol):
    """Where series go while a run trains."""

    def log_series(self, rows: Iterable[tuple[str, float, int, int]]) -> None:
        """Take (key, value, optimizer step, time in ms) rows; may keep them until `flush`."""

    def flush(self) -> bool:
        """Write what was kept; False if that was not possible now."""


class SeriesRecorder(lightning.Callback):
    """Records the loss, norms and clipped fraction of every step, and the epoch's values, without a per-step wait.

    Values stay on the device for up to `_CHUNK_STEPS` steps. The checkpoint holds the history and its times, so a
    resumed run has the series of an unbroken one. It offers the sink everything from the start, and so the store gets
    what it missed in an outage. `object_std_ratio` is the deviation of the predicted object over `module.truth_std`,
    that of the true one, or over its own best so far if that is None. `module.observe()` gives the values of
    `History.health` before the first step and after each epoch; `module.fingerprints()` tells what share of the blocks'
    tensors moved in the epoch. Training stops at the first step, or validation, that is not finite: the series end
    there, and the event `non_finite` names step and layer. From the end of `give_up_epoch` on, it also stops if no
    epoch had `metrics.progress` over 0, of R or of a supervised run's own loss, and that is known of all of them: the
    event `given_up` names the epoch.
    """

    def __init__(self, history: History, sink: MetricSink, give_up_epoch: int | None = None) -> None:
        self.history = history
        self._sink = sink
        self._give_up_epoch = give_up_epoch
        self._best_std = 0.0
        #: Of the weights at the start of the epoch.
        self._fingerprints: dict[str, list[int]] = {}
        self._pending: list[torch.Tensor] = []
        self._layers: list[tuple[int, dict[str, float]]] = []
        self._step_times_ms: list[int] = []
        #: Last step and time in ms of each epoch, and the time before the first step.
        self._epochs: list[tuple[int, int]] = []
        self._begun_ms = 0
        self._patches = 0
        self._started_at = 0.0
        self.samples_per_s = 0.0

    def on_fit_start(self, trainer: lightning.Trainer, module: Any) -> None:
        """Offer the sink what was restored from a checkpoint, even if nothing is left to train."""
        self.offer_all()

    def offer_all(self) -> None:
        """Offer the sink all that is recorded, from the first step on."""
        self._offer_steps(0)
        self._offer_start()
        self._offer_epochs(0)

    @property
    def epochs(self) -> int:
        """Epochs that are recorded."""
        return len(self._epochs)

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
        if not self._begun_ms:
            self._begun_ms = _now_ms()
            not_yet = {f"moved/{name}": math.nan for name in self._fingerprints if name}
            self.history.add_health(module.observe() | not_yet)
            self._offer_start()
        self._patches, self._started_at = 0, time.monotonic()

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep the step's record."""
        self._pending.append(module.step_record)
        self._step_times_ms.append(_now_ms())
        self._patches += batch.global_size
        if module.layer_norms:  # at an interval: this waits for the device
            norms = torch.stack(list(module.layer_norms.values())).tolist()
            self._layers.append((len(self._step_times_ms) - 1, dict(zip(module.layer_norms, norms, strict=True))))
        bad_already = _reading_is_free(module.step_record) and not _is_finite(module.step_record.tolist())
        if bad_already or len(self._pending) >= _CHUNK_STEPS:
            self.drain(trainer, module)

    def drain(self, trainer: Any, module: Any) -> None:
        """Copy the pending records from the device into the history and the sink; stop at one that is not finite."""
        first, rows = self.history.steps, self._rows()
        self._pending = []
        bad = next((place for place, row in enumerate(rows) if not _is_finite(row)), None)
        if bad is not None:  # the optimizer took none of the later steps
            rows = rows[: bad + 1]
            del self._step_times_ms[first + len(rows) :]
            batch = trainer.train_dataloader.batch(first + bad - self._steps_before_epoch)
            self._stop(trainer, first + bad, module.first_bad_layer(batch))
        self.history.add_steps(rows)
        self._layers = [entry for entry in self._layers if entry[0] < self.history.steps]
        self._offer_steps(first)

    def _stop(self, trainer: lightning.Trainer, step: int, layer: str | None) -> None:
        self.history.events.setdefault("non_finite", {"step": step} | ({"layer": layer} if layer else {}))
        trainer.should_stop = True

    @property
    def _steps_before_epoch(self) -> int:
        return self._epochs[-1][0] + 1 if self._epochs else 0

    def _rows(self) -> list[list[float]]:
        """The pending records; those restored from a checkpoint are on the CPU."""
        if not self._pending:
            return []
        device = self._pending[-1].device
        rows: list[list[float]] = torch.stack([record.to(device) for record in self._pending]).tolist()
        return rows

    def _offer_steps(self, first: int) -> None:
        series = {METRIC[name]: getattr(self.history, name) for name in STEP_SERIES}
        self._sink.log_series(
            (key, values[step], step, self._step_times_ms[step])
            for step in range(first, self.history.steps)
            for key, values in series.items()
        )
        self._sink.log_series(
            (f"weight_grad_norm/{name}", value, step, self._step_times_ms[step])
            for step, norms in self._layers
            if first <= step < self.history.steps
            for name, value in norms.items()
        )

    def _offer_start(self) -> None:
        self._sink.log_series(
            (f"health/{name}", values[0], 0, self._begun_ms)
            for name, values in self.history.health.items()
            if not math.isnan(values[0])
        )

    def _offer_epochs(self, first: int) -> None:
        series = {METRIC[name]: getattr(self.history, name) for name in EPOCH_SERIES if name in METRIC}
        series[METRIC["progress"]] = self._progress
        series |= self._stability
        health = self.history.health.items()
        for epoch, (step, time_ms) in list(enumerate(self._epochs))[first:]:
            rows = [(key, values[epoch], step, time_ms) for key, values in series.items() if epoch < len(values)]
            # Those of health have one value more, from before the first step; they count the steps done.
            rows += [(f"health/{name}", values[epoch + 1], step + 1, time_ms) for name, values in health]
            # A loss that is no number says something; anything else was not taken, or could not be.
            self._sink.log_series(row for row in rows if row[0] == METRIC["val_loss"] or not math.isnan(row[1]))

    @property
    def _progress(self) -> list[float]:
        history = self.history
        return [progress(value, history.val_loss_constant, history.val_loss_floor) for value in history.val_loss]

    @property
    def _supervised_progress(self) -> list[float]:
        history = self.history
        return [progress(value, history.supervised_loss_constant, math.nan) for value in history.supervised_loss]

    @property
    def _stability(self) -> dict[str, list[float]]:
        """The measures of stability as they stood after each epoch."""
        finished = {"loss_step": self.history.loss_step[: self._steps_before_epoch]}
        return {METRIC[name]: values for name, values in stability_series(vars(self.history) | finished).items()}

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        """Record the epoch; validation has run by now."""
        self.drain(trainer, module)
        losses = self.history.loss_step[self._steps_before_epoch :]
        found = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self._best_std = max(self._best_std, found["object_std"])
        reference = self._best_std if module.truth_std is None else module.truth_std
        before, self._fingerprints = self._fingerprints, module.fingerprints()
        moves = moved(before, self._fingerprints)
        self.history.add_epoch(
            train_loss=sum(losses) / len(losses),
            val_loss=found["val_loss"],
            lr=float(trainer.optimizers[0].param_groups[0]["lr"]),
            object_std_ratio=found["object_std"] / reference if reference else math.nan,
            **{name: found[name] for name in ("r_stitched", "patch_consistency", "shared_light")},
            parameters_moved=moves.pop("parameters_moved"),
            **{name: found.get(name) for name in ("val_amp_ssim", "supervised_loss")},
        )
        self.history.add_health(module.observe() | moves)
        if not math.isfinite(found["val_loss"]):
            batches = trainer.val_dataloaders.whole_batches()
            layers = (module.first_bad_layer(batch, training=False) for batch in batches)
            self._stop(trainer, self.history.steps - 1, next(filter(None, layers), None))
        self._epochs.append((self.history.steps - 1, _now_ms()))
        self._offer_epochs(len(self._epochs) - 1)
        self._give_up_if_hopeless(trainer, module)
        self._sink.flush()

    def _give_up_if_hopeless(self, trainer: lightning.Trainer, module: Any) -> None:
        epoch, epochs = len(self.history.val_loss), trainer.max_epochs or 0
        if self._give_up_epoch is None or not self._give_up_epoch <= epoch < epochs:
            return
        hopeless = not self.had_to_stop and all(value <= 0 for value in self._progress + self._supervised_progress)
        if broadcast([hopeless], module.device)[0]:  # the first process alone knows the constant object's loss
            self.history.events["given_up"] = {"epoch": epoch, "epochs": epochs}
            trainer.should_stop = True

    def on_train_end(self, trainer: lightning.Trainer, module: Any) -> None:
        """Note the speed, validation and checkpoints included."""
        self.samples_per_s = self._patches / (time.monotonic() - self._started_at)

    def on_exception(self, trainer: lightning.Trainer, module: Any, exception: BaseException) -> None:
        """Write what was recorded before the run goes down."""
        self.drain(trainer, module)
        self._sink.flush()

    def state_dict(self) -> dict[str, Any]:
        """The history, its times, and the records that are still on the device."""
        return {
            "history": self.history.to_mapping(),
            "pending": self._rows(),
            "layers": list(self._layers),
            "step_times_ms": list(self._step_times_ms),
            "epochs": list(self._epochs),
            "begun_ms": self._begun_ms,
            "best_std": self._best_std,
            "fingerprints": self._fingerprints,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue the saved history."""
        self.history.load(state["history"])
        self._pending = [torch.tensor(row) for row in state["pending"]]
        self._layers = [*state["layers"], *state.get("pending_layers", [])]  # the latter from 0f04361 and before
        self._step_times_ms = state["step_times_ms"]
        self._epochs = state["epochs"]
        self._begun_ms = state["begun_ms"]
        self._best_std = state["best_std"]
        self._fingerprints = state.get("fingerprints", {})  # not in checkpoints from before they were taken


def _reading_is_free(record: torch.Tensor) -> bool:
    """Whether reading `record` does not wait for a device."""
    return record.device.type == "cpu"


def _is_finite(row: list[float]) -> bool:
    """Whether loss and gradient norm of a step's record are finite."""
    return math.isfinite(row[0]) and math.isfinite(row[1])


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
