"""SIGTERM and Ctrl-C, between two steps."""

import signal
from types import FrameType
from typing import Any

import lightning


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
