"""What is observed, said and kept while a run trains."""

import math
import signal
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import lightning
import torch
from tqdm import tqdm

from fnostab.datamodule import PatchLoader
from fnostab.history import STEP_SERIES, History

#: Steps between copies of the recorded values from the device; a copy waits for the device once.
_CHUNK_STEPS = 250
#: The names under which the series of a step are tracked, in the order of `STEP_SERIES`.
STEP_KEYS = ("train/loss", "grad/norm_preclip", "grad/norm_postclip", "grad/clipped_fraction")

#: Tracked name of each epoch series, and its name in the history.
EPOCH_KEYS = {"val/loss": "val_loss", "lr": "lr", "health/object_std_ratio": "object_std_ratio"}


class MetricSink(Protocol):
    """Where series go while a run trains."""

    def log_series(self, rows: Iterable[tuple[str, float, int, int]]) -> None:
        """Take (key, value, optimizer step, time in ms) rows; may keep them until `flush`."""

    def flush(self) -> bool:
        """Write what was kept; False if that was not possible now."""


class SeriesRecorder(lightning.Callback):
    """Records the loss, norms and clipped fraction of every step, and the epoch's values, without a per-step wait.

    Values stay on the device for up to `_CHUNK_STEPS` steps. History and times travel in the checkpoint: a resumed run
    has the series of an unbroken one, and offers the sink everything from the start, so that what an outage kept from
    the store gets there. `truth_std` is the deviation of the true object, by which the predicted one's is divided; if
    None, its own best so far.
    """

    def __init__(self, history: History, sink: MetricSink, truth_std: float | None = None) -> None:
        self.history = history
        self._sink = sink
        self._truth_std = truth_std
        self._best_std = 0.0
        self._pending: list[torch.Tensor] = []
        self._pending_layers: list[tuple[int, dict[str, torch.Tensor]]] = []
        self._step_times_ms: list[int] = []
        #: Last step and time in ms of each epoch.
        self._epochs: list[tuple[int, int]] = []
        self._patches = 0
        self._started_at = 0.0
        self.samples_per_s = 0.0

    def on_train_start(self, trainer: lightning.Trainer, module: Any) -> None:
        """Start counting patches; offer the sink what a checkpoint brought."""
        self._patches, self._started_at = 0, time.monotonic()
        self._offer_steps(0)
        self._offer_epochs(0)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep the step's record."""
        self._pending.append(module.step_record)
        self._step_times_ms.append(_now_ms())
        self._patches += batch.global_size
        if module.layer_norms:
            self._pending_layers.append((len(self._step_times_ms) - 1, module.layer_norms))
        if len(self._pending) >= _CHUNK_STEPS:
            self.drain(trainer)

    def drain(self, trainer: lightning.Trainer) -> None:
        """Copy the pending records from the device into the history and the sink; stop on a non-finite one."""
        first = self.history.steps
        self.history.add_steps(self._rows())
        self._pending = []
        self._offer_steps(first)
        for step in range(first, self.history.steps):
            if not (
                math.isfinite(self.history.loss_step[step]) and math.isfinite(self.history.grad_norm_preclip[step])
            ):
                self.history.events.setdefault("non_finite", {"step": step})
                trainer.should_stop = True
        for step, norms in self._pending_layers:
            values = torch.stack(list(norms.values())).tolist()
            self._sink.log_series(
                (f"weight_grad_norm/{name}", value, step, self._step_times_ms[step])
                for name, value in zip(norms, values, strict=True)
            )
        self._pending_layers = []

    def _rows(self) -> list[list[float]]:
        """The pending records; those that a checkpoint brought lie on the CPU."""
        if not self._pending:
            return []
        device = self._pending[-1].device
        rows: list[list[float]] = torch.stack([record.to(device) for record in self._pending]).tolist()
        return rows

    def _offer_steps(self, first: int) -> None:
        series = [getattr(self.history, name) for name in STEP_SERIES]
        self._sink.log_series(
            (key, values[step], step, self._step_times_ms[step])
            for step in range(first, self.history.steps)
            for key, values in zip(STEP_KEYS, series, strict=True)
        )

    def _offer_epochs(self, first: int) -> None:
        for epoch, (step, time_ms) in list(enumerate(self._epochs))[first:]:
            self._sink.log_series(
                (key, getattr(self.history, name)[epoch], step, time_ms) for key, name in EPOCH_KEYS.items()
            )

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: Any) -> None:
        """Record the epoch; validation has run by now."""
        self.drain(trainer)
        begun = self._epochs[-1][0] + 1 if self._epochs else 0
        losses = self.history.loss_step[begun:]
        object_std = float(trainer.callback_metrics["object_std"])
        self._best_std = max(self._best_std, object_std)
        reference = self._best_std if self._truth_std is None else self._truth_std
        self.history.add_epoch(
            train_loss=sum(losses) / len(losses),
            val_loss=float(trainer.callback_metrics["val_loss"]),
            lr=float(trainer.optimizers[0].param_groups[0]["lr"]),
            object_std_ratio=object_std / reference if reference else math.nan,
        )
        self._epochs.append((self.history.steps - 1, _now_ms()))
        self._offer_epochs(len(self._epochs) - 1)
        self._sink.flush()

    def on_train_end(self, trainer: lightning.Trainer, module: Any) -> None:
        """Note the speed, validation and checkpoints included."""
        self.samples_per_s = self._patches / (time.monotonic() - self._started_at)

    def on_exception(self, trainer: lightning.Trainer, module: Any, exception: BaseException) -> None:
        """Write what was recorded before the run goes down."""
        self.drain(trainer)
        self._sink.flush()

    def state_dict(self) -> dict[str, Any]:
        """The history, its times, and records that still lie on the device."""
        return {
            "history": self.history.to_mapping(),
            "pending": self._rows(),
            "pending_layers": [
                (step, {name: float(norm) for name, norm in norms.items()}) for step, norms in self._pending_layers
            ],
            "step_times_ms": list(self._step_times_ms),
            "epochs": list(self._epochs),
            "best_std": self._best_std,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue the saved history."""
        self.history.load(state["history"])
        self._pending = [torch.tensor(row) for row in state["pending"]]
        self._pending_layers = [
            (step, {name: torch.tensor(norm) for name, norm in norms.items()})
            for step, norms in state["pending_layers"]
        ]
        self._step_times_ms = state["step_times_ms"]
        self._epochs = state["epochs"]
        self._best_std = state["best_std"]


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


class Checkpoints(lightning.Callback):
    """Keeps `last.ckpt` (every epoch, and every `every_s` seconds inside one) and `best.ckpt` (lowest val_loss).

    Written to a temporary name and renamed, so a checkpoint is whole or not there. torch's RNG state and the place in
    the epoch travel along. (Lightning saves the loader's place too, but does not restore it if the number of steps was
    asked for while the optimizers were made, as a schedule does: seen with Lightning 2.6.)
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
        checkpoint["place_in_epoch"] = _loader(trainer).state_dict()

    def on_load_checkpoint(self, trainer: lightning.Trainer, module: Any, checkpoint: dict[str, Any]) -> None:
        """Take over the place in the epoch."""
        self._place = checkpoint["place_in_epoch"]

    def on_train_start(self, trainer: lightning.Trainer, module: Any) -> None:
        """Put the loader where it stood."""
        if self._place is not None:
            _loader(trainer).load_state_dict(self._place)
            self._place = None

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if it is time; not after an epoch's last batch, whose validation is still to come."""
        due = time.monotonic() - self._saved_at > self._every_s
        if due and batch_idx + 1 < trainer.num_training_batches:
            self._save(trainer, self.last)

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: Any) -> None:
        """Save the epoch, and as the best one if it is."""
        val_loss = float(trainer.callback_metrics["val_loss"])
        # A loss that is not a number counts as infinite, so that there is always a best checkpoint, and any number
        # beats it.
        if val_loss < self.best_val_loss or not self.best.exists():
            self.best_val_loss = val_loss if math.isfinite(val_loss) else math.inf
            self._save(trainer, self.best)
        self._save(trainer, self.last)

    def _save(self, trainer: lightning.Trainer, path: Path) -> None:
        partial = path.with_suffix(".partial")
        trainer.save_checkpoint(partial)
        partial.replace(path)
        self._saved_at = time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        """The best loss so far, and torch's RNG state."""
        return {"best_val_loss": self.best_val_loss, "torch_rng": torch.get_rng_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them over."""
        self.best_val_loss = state["best_val_loss"]
        torch.set_rng_state(state["torch_rng"])


def _loader(trainer: lightning.Trainer) -> PatchLoader:
    loader = trainer.train_dataloader
    assert isinstance(loader, PatchLoader)
    return loader


class Progress(lightning.Callback):
    """Says how training goes: a bar with loss, gradient norm and ETA on a terminal, a line an epoch otherwise."""

    def __init__(self, report: Callable[[str], None], *, terminal: bool | None = None) -> None:
        self._report = report
        self._terminal = sys.stderr.isatty() if terminal is None else terminal
        self._bar: tqdm[Any] | None = None
        self._started_at = 0.0
        self._first_step = 0
        self._last_shown_at = 0.0

    def on_train_start(self, trainer: lightning.Trainer, module: Any) -> None:
        """Open the bar at the first step to come."""
        self._started_at = time.monotonic()
        self._first_step = trainer.global_step
        if self._terminal:
            total = int(trainer.estimated_stepping_batches)
            self._bar = tqdm(total=total, initial=trainer.global_step, unit="step", dynamic_ncols=True)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the bar on, and estimate the whole time after the first steps."""
        if trainer.global_step - self._first_step == _ESTIMATE_STEPS:
            self._estimate(trainer, module)
        if self._bar is None:
            return
        self._bar.update(1)
        now = time.monotonic()
        if now - self._last_shown_at > _SHOW_EVERY_S:  # reading the record waits for the device
            self._last_shown_at = now
            loss, norm, *_ = module.step_record.tolist()
            self._bar.set_postfix(epoch=trainer.current_epoch + 1, loss=f"{loss:.4f}", grad=f"{norm:.3g}")

    def _estimate(self, trainer: lightning.Trainer, module: Any) -> None:
        seconds_a_step = (time.monotonic() - self._started_at) / _ESTIMATE_STEPS
        left_s = seconds_a_step * (int(trainer.estimated_stepping_batches) - trainer.global_step)
        advice = ""
        if left_s > _LONG_S and module.device.type == "cpu":
            advice = " on this CPU; `-P preset=quick` takes minutes"
        self._say(f"about {in_words(left_s)} left{advice}")

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: Any) -> None:
        """Say the epoch's losses."""
        val_loss = float(trainer.callback_metrics["val_loss"])
        done = trainer.global_step - self._first_step
        elapsed_s = time.monotonic() - self._started_at
        left_s = elapsed_s / max(1, done) * (int(trainer.estimated_stepping_batches) - trainer.global_step)
        eta = f", {in_words(left_s)} left" if left_s > 0 else ""
        self._say(f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}: val_loss {val_loss:.4f}{eta}")

    def _say(self, line: str) -> None:
        if self._bar is not None:
            self._bar.clear()
        self._report(line)

    def on_train_end(self, trainer: lightning.Trainer, module: Any) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()

    def on_exception(self, trainer: lightning.Trainer, module: Any, exception: BaseException) -> None:
        """Close the bar."""
        self.on_train_end(trainer, module)


_ESTIMATE_STEPS = 10
_SHOW_EVERY_S = 0.5
_LONG_S = 1800.0


def in_words(seconds: float) -> str:
    """A duration for people: `12 s`, `3 min`, `9 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.0f} h"


class Pictures(lightning.Callback):
    """Calls `draw(epoch, step)` every few epochs."""

    def __init__(self, draw: Callable[[int, int], None], every_epochs: int) -> None:
        self._draw = draw
        self._every = every_epochs

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: Any) -> None:
        """Draw, except after the last epoch, whose picture is drawn from the best checkpoint."""
        epoch = trainer.current_epoch + 1
        if epoch % self._every == 0 and epoch != trainer.max_epochs:
            self._draw(epoch, trainer.global_step - 1)


class Interrupted(BaseException):
    """SIGTERM or Ctrl-C came. No `KeyboardInterrupt`: Lightning would turn that one into an exit of its own."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum


class Interruption(lightning.Callback):
    """Raises `Interrupted` on SIGTERM and Ctrl-C: between two steps while training, so that no step is half taken.

    As a context manager it takes over both signals. Outside of training, or at the second signal, it raises at once.
    """

    def __init__(self) -> None:
        self._signum = 0
        self._training = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "Interruption":
        for signum in (signal.SIGTERM, signal.SIGINT):
            self._previous[signum] = signal.signal(signum, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)

    def check(self) -> None:
        """Raise `Interrupted` if a signal came."""
        if self._signum:
            raise Interrupted(self._signum)

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        again, self._signum = self._signum != 0, signum
        if again or not self._training:
            raise Interrupted(signum)

    def on_train_start(self, trainer: lightning.Trainer, module: Any) -> None:
        """From here on a signal waits for the end of the step."""
        self._training = True

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Raise if a signal came."""
        self.check()

    def on_train_end(self, trainer: lightning.Trainer, module: Any) -> None:
        """From here on a signal raises at once; one that came after the last step, now."""
        self._training = False
        self.check()
