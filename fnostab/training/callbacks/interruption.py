"""Stop signals, heard between two steps."""

import signal
from collections.abc import Sequence
from types import FrameType
from typing import Any

import lightning

from fnostab.io.endings import STOP_SIGNALS, Interrupted
from fnostab.training.collectives import OccasionalBroadcast, broadcast


class Interruption(lightning.Callback):
    """Raises `Interrupted` on a stop signal: between two steps while training, so that no step is half taken.

    As a context manager it takes over all `STOP_SIGNALS`. Outside of training, or at the second signal, it raises at
    once. Of several processes the first one hears the signals, and all raise after the same step; one that `follows`
    hears none. For a run in a thread, which no signal reaches, somebody else collects them in `caught`.
    """

    def __init__(self, *, follows: bool = False, caught: Sequence[int] | None = None) -> None:
        self._handler: Any = signal.SIG_IGN if follows else self._on_signal
        self._caught = caught
        self._own_signum = 0
        self._training = False
        self._previous: dict[int, Any] = {}
        self._shared = OccasionalBroadcast()

    def __enter__(self) -> "Interruption":
        for signum in STOP_SIGNALS if self._caught is None else ():
            self._previous[signum] = signal.signal(signum, self._handler)
        return self

    @property
    def _signum(self) -> int:
        return next(iter(self._caught or ()), self._own_signum)

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        again, self._own_signum = self._own_signum != 0, signum
        if again or not self._training:
            raise Interrupted(signum)

    def on_train_start(self, trainer: lightning.Trainer, module: Any) -> None:
        """From here on a signal waits for the end of the step."""
        self._training = True
        if self._previous:  # Lightning's own handler exits, or talks to the other processes in the middle of a step
            signal.signal(signal.SIGTERM, self._handler)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Raise if a signal came."""
        _raise(self._shared.after_step(self._signum, module.device))

    def on_train_end(self, trainer: lightning.Trainer, module: Any) -> None:
        """From here on a signal raises at once; one that came after the last step, now."""
        self._training = False
        _raise(broadcast([self._signum], module.device)[0])

    def on_exception(self, trainer: lightning.Trainer, module: Any, exception: BaseException) -> None:
        """Training has ended without `on_train_end`, out of memory for instance: a signal raises at once again."""
        self._training = False

    def check(self) -> None:
        """Raise if a signal came."""
        _raise(self._signum)


def _raise(signum: int) -> None:
    if signum:
        raise Interrupted(signum)
