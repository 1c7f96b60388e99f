"""The monitor of a plain PyTorch loop."""

import functools
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from types import FrameType, TracebackType
from typing import Any, TypeVar

import torch
from torch import Tensor

from fnostab.health import History, Verdict
from fnostab.monitor.engine import Engine
from fnostab.monitor.settings import Clip, Settings

T = TypeVar("T")


def run(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    study: str,
    arm: str,
    seed: int,
    clip: Clip | None = None,
    baseline: float | None = None,
    dataset: str | None = None,
    params: Mapping[str, object] | None = None,
    blocks: Sequence[str] = (),
    layers_every_steps: int = 100,
    state: Mapping[str, Any] | None = None,
) -> "MonitoredRun":
    """Monitor the training of `model` by `optimizer` while the returned context lasts.

    - `study`, `arm`, `seed`: by these, `fnostab compare --study` finds and ranks the run.
    - `clip`: a rule and its limit, such as ("agc", 0.01), or a mapping of the arguments of `clipping.Clipper`.
    - `baseline`: the val_loss of the best constant prediction. Without it the verdict is `unknown`.
    - `dataset`: a name, of which the hash is taken, or the SHA-256 of the data: runs are compared on one dataset alone.
    - `params`: logged as the run's parameters.
    - `blocks`: patterns of module names; mean and deviation of what they put out are recorded, and whether they move.
    - `layers_every_steps`: steps between two records of each parameter's gradient norm, and of the blocks' outputs.
    - `state`: a `MonitoredRun.state_dict` to go on from, in the same MLflow run.

    Raises `ValueError` with one line, parameter, value and rule, before anything is written.
    """
    settings = Settings(study, arm, seed, clip, baseline, dataset, params or {}, blocks, layers_every_steps)
    return MonitoredRun(Engine(settings, model, "plain"), optimizer, state)


class MonitoredRun:
    """A run that is recorded at each step of its optimizer, whoever calls that; see `run`.

    In place of `optimizer.step()` the loop calls `step(loss)`. A loop that is somebody else's calls `optimizer.step()`
    itself; then `watch_loss` tells the loss. The context's end judges the run and writes the end of its MLflow run; an
    exception is noted and goes on. SIGTERM raises `SystemExit` in the context, unless somebody else handles it.
    """

    def __init__(self, engine: Engine, optimizer: torch.optim.Optimizer, state: Mapping[str, Any] | None) -> None:
        self._engine = engine
        self._optimizer = optimizer
        self._loss: Tensor | None = None
        self._is_scaled = False
        self._hook: Any = None
        self._sigterm: Any = None
        if state is not None:
            engine.load_state_dict(state)

    def __enter__(self) -> "MonitoredRun":
        self._engine.begin(self._optimizer)
        self._hook = self._optimizer.register_step_pre_hook(self._before_step)
        if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
            self._sigterm = signal.signal(signal.SIGTERM, _exit)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hook.remove()
        try:
            self._engine.end(error)
        finally:
            if self._sigterm is not None:
                signal.signal(signal.SIGTERM, self._sigterm)

    def step(self, loss: Tensor, *, scaler: torch.amp.GradScaler | None = None) -> None:
        """Take an optimizer step whose gradients are there: clip if asked, record, `optimizer.step()`.

        With a `scaler`, unscale the gradients first, and then take `scaler.step(optimizer)`; `loss` is the unscaled
        one, and `scaler.update()` and `zero_grad()` are the loop's. Backward passes whose gradients add up count
        nothing by themselves.
        """
        self._loss, self._is_scaled = loss.detach(), scaler is not None
        try:
            if scaler is None:
                self._optimizer.step()
            else:
                scaler.unscale_(self._optimizer)
                scaler.step(self._optimizer)
        finally:
            self._loss, self._is_scaled = None, False

    def watch_loss(self, loss_function: Callable[..., T]) -> Callable[..., T]:
        """For a loop that is not yours: `loss_function`, whose last value with a gradient is the next step's loss."""

        @functools.wraps(loss_function, updated=())
        def watched(*arguments: Any, **named: Any) -> T:
            loss = loss_function(*arguments, **named)
            if isinstance(loss, Tensor) and loss.requires_grad:
                self._loss = loss.detach()
            return loss

        return watched

    def _before_step(self, optimizer: torch.optim.Optimizer, arguments: Any, named: Any) -> None:
        if len(arguments) > 1 or named.get("closure") is not None:
            raise ValueError("`closure` (=a function) must not be given to the step of an optimizer that is monitored")
        if getattr(optimizer, "grad_scale", None) is not None:
            raise ValueError(
                f"`optimizer` (={type(optimizer).__name__}, fused) must have its gradients unscaled before the step: "
                "call run.step(loss, scaler=scaler), or scaler.unscale_(optimizer)"
            )
        if self._loss is None:
            raise ValueError(
                "`loss` (=None) must be known when the optimizer steps: call run.step(loss) in place of "
                "optimizer.step(), or let run.watch_loss(loss_function) tell it"
            )
        self._engine.before_step(self._loss, scaled=self._is_scaled)
        self._loss = None

    def epoch(self, val_loss: float | Tensor, **metrics: float | Tensor) -> None:
        """Record an epoch's `val_loss`, lower is better, and further metrics under their own names."""
        self._engine.end_epoch(_number(val_loss), {name: _number(value) for name, value in metrics.items()})

    def prune(self) -> None:
        """Note that the run is stopped because its result is not needed: verdict `pruned`, no failure."""
        self._engine.prune()

    @property
    def should_stop(self) -> bool:
        """Whether nothing is gained by going on: a step was not finite, and none is taken since, or it was pruned."""
        return self._engine.should_stop

    @property
    def history(self) -> History:
        """What is recorded, less up to 250 steps that are still on the device."""
        return self._engine.history

    @property
    def verdict(self) -> Verdict | None:
        """The verdict; None before the context's end, and after an error."""
        return self._engine.verdict

    @property
    def run_id(self) -> str | None:
        """The MLflow run; None before the context, and in a process that writes nothing."""
        return self._engine.record.run_id if self._engine.record else None

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs beside network and optimizer; `run` goes on from it if it is given as `state`."""
        return self._engine.state_dict()


def _number(value: float | Tensor) -> float:
    return float(value.detach() if isinstance(value, Tensor) else value)


def _exit(signum: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + signum)
