"""What people see while a run trains: a bar, lines, pictures."""

import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import lightning
from tqdm import tqdm

_ESTIMATE_STEPS = 10
_SHOW_EVERY_S = 0.5
_LONG_S = 1800.0


class EpochSummary(NamedTuple):
    """Where a run stands after an epoch, for those who watch several."""

    epoch: int
    epochs: int
    val_loss: float
    seconds_left: float


class ConsoleProgress(lightning.Callback):
    """Says how training goes: a bar with loss, gradient norm and ETA on a terminal, a line an epoch otherwise.

    `watch`, if given, is called after every epoch.
    """

    def __init__(
        self,
        report: Callable[[str], None],
        watch: Callable[[EpochSummary], None] | None = None,
        *,
        terminal: bool | None = None,
    ) -> None:
        self._report = report
        self._watch = watch
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
        steps_left = 0 if trainer.should_stop else int(trainer.estimated_stepping_batches) - trainer.global_step
        left_s = elapsed_s / max(1, done) * steps_left
        if self._watch:
            self._watch(EpochSummary(trainer.current_epoch + 1, trainer.max_epochs or 0, val_loss, left_s))
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


def in_words(seconds: float) -> str:
    """A duration for people: `12 s`, `3 min`, `9 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.0f} h"


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
