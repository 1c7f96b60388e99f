"""The monitor of a Lightning trainer."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fnostab.health import History, Verdict
from fnostab.io.untrusted import shown
from fnostab.monitor.engine import Engine
from fnostab.monitor.settings import Clip, Settings
from fnostab.training.callbacks import Callback


class StabilityMonitor(Callback):
    """Monitors the training of any LightningModule: `Trainer(callbacks=[StabilityMonitor(...)])`.

    `val` names the metric that the module logs and whose epochs the verdict is decided by, lower is better; an epoch
    is what lies between two validations, or an epoch of training where there is none. The other arguments are those of
    `monitor.run`, and so is what is recorded. The loss of a step is the sum of what was back-propagated since the step
    before: with `accumulate_grad_batches` the mean of the batches' losses. The gradients are clipped and recorded once
    they are unscaled, by `on_before_optimizer_step`, so all optimizers' steps count that Lightning takes, by automatic
    or manual optimization. A checkpoint holds the series, and a training that is resumed from it goes on in the same
    MLflow run.

    Raises `ValueError` with one line: here for bad arguments; at the start of the training, before anything is written,
    for several optimizers, for `gradient_clip_val` of the trainer, and for what `monitor.run` refuses; at the end of
    the first validation for a `val` that is not logged.
    """

    def __init__(
        self,
        *,
        study: str,
        arm: str,
        seed: int,
        clip: Clip | None = None,
        val: str = "val_loss",
        baseline: float | None = None,
        dataset: str | None = None,
        params: Mapping[str, object] | None = None,
        blocks: Sequence[str] = (),
        layers_every_steps: int = 100,
    ) -> None:
        self._settings = Settings(study, arm, seed, clip, baseline, dataset, params or {}, blocks, layers_every_steps)
        self._val = val
        self._engine: Engine | None = None
        self._state: Mapping[str, Any] = {}
        self._loss: Tensor | None = None

    def on_train_start(self, trainer: Any, module: Any) -> None:
        """Refuse what cannot be monitored, and open the run, or go on with that of the checkpoint."""
        if trainer.gradient_clip_val:
            remedy = f'clip=("{trainer.gradient_clip_algorithm or "norm"}", {trainer.gradient_clip_val})'
            rule = f"must be left to the monitor, which records what it clips: StabilityMonitor({remedy})"
            raise ValueError(f"`gradient_clip_val` (={trainer.gradient_clip_val}) {rule}")
        if len(trainer.optimizers) != 1:
            kinds = ", ".join(type(optimizer).__name__ for optimizer in trainer.optimizers)
            raise ValueError(f"`optimizers` (={shown(kinds)}) must be one: the monitor records the steps of one")
        (optimizer,) = trainer.optimizers
        if self._scaler(trainer) is not None and any(group.get("fused") for group in optimizer.param_groups):
            kind = type(optimizer).__name__
            rule = "must not be fused with a gradient scaler, which would leave its gradients scaled: fused=False"
            raise ValueError(f"`optimizer` (={kind}, fused) {rule}")
        engine = Engine(self._settings, module, "lightning")
        if self._state:
            engine.load_state_dict(self._state)
            self._state = {}
        engine.begin(optimizer)
        self._engine = engine

    def on_before_backward(self, trainer: Any, module: Any, loss: Tensor) -> None:
        """Add up the loss of the step."""
        scaler = self._scaler(trainer)
        value = loss.detach()
        if scaler is not None:
            value = value / scaler.scale(torch.ones((), device=loss.device))
        self._loss = value if self._loss is None else self._loss + value

    def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
        """Clip and record the step, whose gradients are there, unless nothing was back-propagated."""
        loss, self._loss = self._loss, None
        if loss is not None and self._engine is not None:
            self._engine.before_step(loss, scaled=self._scaler(trainer) is not None)

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Stop where a step was not finite."""
        if self._engine is not None and self._engine.should_stop:
            trainer.should_stop = True

    def on_validation_end(self, trainer: Any, module: Any) -> None:
        """Record the epoch that this validation ends."""
        if self._engine is not None and not trainer.sanity_checking:
            self._record_epoch(trainer)

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        """Record the epoch where there is no validation."""
        if self._engine is not None and not trainer.enable_validation:
            self._record_epoch(trainer)

    def _record_epoch(self, trainer: Any) -> None:
        assert self._engine is not None
        logged = trainer.callback_metrics
        if self._val not in logged:
            names = shown(", ".join(sorted(logged)) or "nothing")
            raise ValueError(f"`val` (={shown(self._val)}) must be a metric that self.log logs; logged is {names}")
        self._engine.end_epoch(float(logged[self._val]), {})
        if self._engine.should_stop:
            trainer.should_stop = True

    def on_train_end(self, trainer: Any, module: Any) -> None:
        """Judge the run, and write its end."""
        self._end(None)

    def on_exception(self, trainer: Any, module: Any, exception: BaseException) -> None:
        """Write what was recorded."""
        self._end(exception)

    def _end(self, error: BaseException | None) -> None:
        if self._engine is not None and not self._engine.has_ended:
            self._engine.end(error)

    def prune(self) -> None:
        """Note that the run is stopped because its result is not needed: verdict `pruned`, no failure."""
        if self._engine is not None:
            self._engine.prune()

    @property
    def history(self) -> History | None:
        """What is recorded; None before the training."""
        return self._engine.history if self._engine else None

    @property
    def verdict(self) -> Verdict | None:
        """The verdict; None before the end of the training, and after an error."""
        return self._engine.verdict if self._engine else None

    @property
    def run_id(self) -> str | None:
        """The MLflow run; None before the training, and in a process that writes nothing."""
        return self._engine.record.run_id if self._engine and self._engine.record else None

    def state_dict(self) -> dict[str, Any]:
        """The series and where they are written, for a checkpoint."""
        return self._engine.state_dict() if self._engine else dict(self._state)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint when the training starts."""
        self._state = state_dict

    @staticmethod
    def _scaler(trainer: Any) -> Any:
        """The gradient scaler of the trainer's precision, if it has one."""
        return getattr(trainer.precision_plugin, "scaler", None)
