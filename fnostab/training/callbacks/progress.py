"""How a run stands, said while it trains: a bar or lines."""

import math
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import lightning
from tqdm import tqdm

#: Steps of the first span whose pace is measured, and how much the pace of two spans may differ.
_FIRST_SPAN = 10
_STEADY = 0.25
_SHOW_EVERY_S = 0.5
#: A run that takes longer on a CPU is told of the preset that does not, unless it is that one.
_LONG_S = 1800.0
_SHORT_PRESETS = ("quick", "smoke")


class EpochSummary(NamedTuple):
    """How a run stands after an epoch, for a display of several runs."""

    epoch: int
    epochs: int
    val_loss: float
    seconds_left: float


class ConsoleProgress(lightning.Callback):
    """Shows how training goes: a bar with loss, gradient norm and ETA on a terminal, a line an epoch otherwise.

    `watch`, if given, is called after every epoch; `stop_wanted` tells whether its last answer was to stop the run.
    """

    def __init__(
        self,
        report: Callable[[str], None],
        watch: Callable[[EpochSummary], bool | None] | None = None,
        *,
        terminal: bool | None = None,
    ) -> None:
        self._report = report
        self._watch = watch
        self.stop_wanted = False
        self._terminal = sys.stderr.isatty() if terminal is None else terminal
        self._bar: tqdm[Any] | None = None
        self._started_at = 0.0
        self._first_step = 0
        self._last_shown_at = 0.0
        self._pace: _Pace | None = None

    def on_train_start(self, trainer: lightning.Trainer, module: Any) -> None:
        """Open the bar at the first step to come."""
        self._started_at = time.monotonic()
        self._first_step = trainer.global_step
        self._pace = _Pace()
        if self._terminal:
            total = int(trainer.estimated_stepping_batches)
            self._bar = tqdm(total=total, initial=trainer.global_step, unit="step", dynamic_ncols=True)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the bar on, and estimate the time that is left as soon as the pace is steady."""
        if self._pace and (seconds_a_step := self._pace.after_step()):
            self._estimate(seconds_a_step, trainer, module)
        if self._bar is None:
            return
        self._bar.update(1)
        now = time.monotonic()
        if now - self._last_shown_at > _SHOW_EVERY_S:  # reading the record waits for the device
            self._last_shown_at = now
            loss, norm, *_ = module.step_record.tolist()
            self._bar.set_postfix(epoch=trainer.current_epoch + 1, loss=f"{loss:.4f}", grad=f"{norm:.3g}")

    def _estimate(self, seconds_a_step: float, trainer: lightning.Trainer, module: Any) -> None:
        self._pace = None
        left_s = seconds_a_step * (int(trainer.estimated_stepping_batches) - trainer.global_step)
        advice = ""
        if left_s > _LONG_S and module.device.type == "cpu" and module.config.preset not in _SHORT_PRESETS:
            advice = " on this CPU; `-P preset=quick` takes minutes"
        self._say(f"about {duration_text(left_s)} left{advice}")

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: Any) -> None:
        """Say the epoch's losses, and what time is left; a first estimate that did not come by now is not needed."""
        self._pace = None
        val_loss = float(trainer.callback_metrics["val_loss"])
        done = trainer.global_step - self._first_step
        elapsed_s = time.monotonic() - self._started_at
        steps_left = 0 if trainer.should_stop else int(trainer.estimated_stepping_batches) - trainer.global_step
        left_s = elapsed_s / max(1, done) * steps_left
        if self._watch:
            summary = EpochSummary(trainer.current_epoch + 1, trainer.max_epochs or 0, val_loss, left_s)
            self.stop_wanted = bool(self._watch(summary))
        eta = f", {duration_text(left_s)} left" if left_s > 0 and not self.stop_wanted else ""
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


def duration_text(seconds: float) -> str:
    """A duration for people: `12 s`, `3 min`, `9 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.0f} h"


class _Pace:
    """Finds out how long a step takes, once the pace is steady: the first steps on a busy machine take much longer."""

    def __init__(self) -> None:
        self._steps = 0
        self._span = _FIRST_SPAN
        self._span_started_at = time.monotonic()
        self._previous_s = math.inf

    def after_step(self) -> float | None:
        """Seconds a step, if the last half of the steps took as long as the half before; else None."""
        self._steps += 1
        if self._steps % self._span:
            return None
        now = time.monotonic()
        seconds_a_step = (now - self._span_started_at) / self._span
        is_steady = abs(seconds_a_step - self._previous_s) <= _STEADY * seconds_a_step
        self._previous_s, self._span, self._span_started_at = seconds_a_step, self._steps, now
        return seconds_a_step if is_steady else None
