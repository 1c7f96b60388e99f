"""What a monitored run does at each step, epoch and end, whoever's loop it is."""

import math
import re
from collections.abc import Mapping
from functools import reduce
from typing import Any, Final

import torch
from torch import Tensor

from fnostab.clipping import ClipStats
from fnostab.gradients import layer_norms
from fnostab.health import History, Verdict, judge, measure_stability
from fnostab.io.endings import Interrupted
from fnostab.io.untrusted import first_line, printable, shown
from fnostab.monitor.network import Activations, Network
from fnostab.monitor.record import Record
from fnostab.monitor.settings import Settings
from fnostab.study.names import NUMBERS
from fnostab.training.collectives import is_first, mean_over_processes
from fnostab.training.memory import is_out_of_memory, peak_bytes
from fnostab.training.series import Nowhere, RunSeries, is_finite, now_ms, reading_is_free

#: What MLflow takes as the name of a metric.
_METRIC_NAME: Final = re.compile(r"[\w.\- ]+(/[\w.\- ]+)*")
_LONGEST_NAME: Final = 250
#: Names of the monitor's own metrics, and beginnings of those.
_OWN_METRICS: Final = frozenset({"health", "grad", "stability", "weight_grad_norm"} | {n.metric for n in NUMBERS})


class Engine:
    """Records a run from `begin` to `end`, clips its gradients, and leaves out steps that are not finite.

    Of several processes the first one writes. A step's loss is the mean over processes; its gradients must be the same
    in all of them, as `DistributedDataParallel` leaves them.

    A step whose loss or gradient norm is not finite is not taken, nor is any after it, and `should_stop` says so: the
    event `non_finite` names step and layer. Where the gradients are on the CPU, the host sees that at once; fused
    optimizers leave a step out on the device. With another optimizer on another device the step is taken, and found out
    up to `series.CHUNK_STEPS` steps later.
    """

    def __init__(self, settings: Settings, model: Any, loop: str) -> None:
        self.settings = settings
        self.network = Network(model, settings.blocks)
        self.history = History(monitor={"loop": loop, "network": self.network.arch})
        if settings.baseline is not None:
            self.history.val_loss_constant = float(settings.baseline)
        self.verdict: Verdict | None = None
        self.record: Record | None = None
        self.has_ended = False
        self._optimizer: Any = None
        self._clipper = settings.clipper()
        self._series = RunSeries(self.history, Nowhere())
        self._activations = Activations({})
        #: The last that was observed of the blocks.
        self._observed: dict[str, float] = {}
        #: On the device: whether a step was not finite.
        self._bad: Tensor | None = None
        #: Of the MLflow run that a loaded state belongs to.
        self._run_id: str | None = None

    def begin(self, optimizer: Any) -> None:
        """Check the optimizer, and open the MLflow run: a new one, or that of a loaded state."""
        self.network.check_optimizer(optimizer)
        self._clipper.check(self.network.module)
        self._optimizer = optimizer
        if is_first():
            self.record = Record(self.settings, self.network.arch, self.network.device_name, self._run_id)
            self._run_id = self.record.run_id
            self._series.sink = self.record.tracker
            self._series.offer_all()
        self._activations = Activations(self.network.blocks)
        self._activations.arm()

    @property
    def should_stop(self) -> bool:
        """Whether nothing is gained by going on: a step was not finite, or the run was pruned."""
        return not self.history.events.keys().isdisjoint({"non_finite", "pruned"})

    @torch.no_grad()
    def before_step(self, loss: Tensor, *, scaled: bool = False) -> None:
        """Clip, record, and leave the step out if it must be; called when the gradients are there, and unscaled.

        `loss` is one real number; `scaled` tells that a gradient scaler may leave the step out itself.
        """
        if "non_finite" in self.history.events:
            self._leave_out()
            return
        step = self._series.steps
        at_interval = step % self.settings.layers_every_steps == 0
        self._observe(step)
        layers = layer_norms(self.network.module) if at_interval else {}
        stats = self._clipper.clip_(self.network.module)
        record = _record(loss, stats)
        skip = getattr(stats, "skip", None)
        leave_out = self._must_leave_out(record, skip, scaled)
        self._series.has_scaler |= scaled
        if self._series.add_step(record, layers):
            self.drain()
        if leave_out:
            self._leave_out()
        if self._series.steps % self.settings.layers_every_steps == 0:
            self._activations.arm()

    def _observe(self, step: int) -> None:
        """Record what the blocks put out before this step, if it was taken."""
        found = self._activations.take()
        self._observed |= found
        if not self._series.has_begun:
            moved = [f"moved/{block}" for block in self.network.blocks]
            self._series.begin(dict.fromkeys([*moved, *self._activations.names], math.nan) | found)
        elif found:
            time_ms = now_ms()
            self._series.sink.log_series((f"health/{name}", value, step, time_ms) for name, value in found.items())

    def _must_leave_out(self, record: Tensor, skip: Tensor | None, scaled: bool) -> bool:
        """Whether to leave the step out, where the host can tell; else the optimizer is told on the device."""
        if reading_is_free(record):
            return not is_finite(record.tolist()) or (skip is not None and bool(skip))
        if not all(group.get("fused") for group in self._optimizer.param_groups):
            if skip is not None:
                kind = type(self._optimizer).__name__
                rule = f"must have an optimizer that can leave out a step on the device: {kind}(..., fused=True)"
                raise ValueError(f"`clip` (={shown(self.settings.clip_algo)}) {rule}")
            return False
        # A norm that is not finite is the scaler's affair, if there is one.
        bad = ~record[: 1 if scaled else 2].isfinite().all()
        self._bad = bad if self._bad is None else self._bad | bad
        found = (self._bad if skip is None else self._bad | skip.to(record.device)).float()
        of_scaler = getattr(self._optimizer, "found_inf", None) if scaled else None
        self._optimizer.found_inf = found if of_scaler is None else torch.maximum(found, of_scaler.to(found.device))
        return False

    def _leave_out(self) -> None:
        """Have the optimizer do nothing: optimizers pass over parameters without a gradient."""
        for group in self._optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    def drain(self) -> None:
        """Copy what is recorded from the device, and see whether a step was not finite."""
        bad = self._series.drain()
        if bad is None or "non_finite" in self.history.events:
            return
        layer = self.network.first_bad(loss_is_finite=math.isfinite(self.history.loss_step[bad]))
        event: dict[str, Any] = {"step": bad} | ({"layer": layer} if layer else {})
        if self._bad is None and not self.network.is_on_cpu:
            event["applied"] = True
        self.history.events["non_finite"] = event

    def end_epoch(self, val_loss: float, metrics: Mapping[str, float]) -> None:
        """Record an epoch: its val_loss, what share of the parameters moved, and `metrics` under their own names.

        After a step that was not finite nothing is recorded.
        """
        for name in metrics:
            _check_metric_name(name)
        self.drain()
        if "non_finite" in self.history.events:
            return
        shares = self.network.moved()
        parameters_moved = shares.pop("parameters_moved")
        lr = float(self._optimizer.param_groups[0]["lr"])
        if not self._series.has_begun:
            self._observe(0)
        health = dict.fromkeys(self._activations.names, math.nan) | self._observed | shares
        self._series.end_epoch(health, val_loss=val_loss, lr=lr, parameters_moved=parameters_moved)
        step, time_ms = max(0, self._series.steps - 1), now_ms()
        self._series.sink.log_series((name, value, step, time_ms) for name, value in metrics.items())
        self._series.flush()
        self._activations.arm()

    def prune(self) -> None:
        """Note that somebody stops the run because its result is not needed."""
        self.history.events["pruned"] = {"epoch": self._series.epochs}

    def end(self, error: BaseException | None = None) -> None:
        """Judge the run and write its end; `error` is what ended it early.

        The verdict is `pruned` for an exception named TrialPruned, as Optuna's is, `interrupted` for what ends a
        process, `out_of_memory` where the memory did not suffice. Of any other error the run is FAILED and not judged.
        """
        self.has_ended = True
        self._activations.remove()
        if hasattr(self._optimizer, "found_inf"):
            del self._optimizer.found_inf
        try:
            self.drain()
        except RuntimeError:
            if error is None:  # else it is what broke the device
                raise
        if self._series.left_out:
            self.history.monitor["left_out_by_scaler"] = self._series.left_out
        status = self._note(error)
        if status == "FAILED" and error is not None:
            if self.record:
                said = printable(f"{type(error).__name__}: {first_line(error)}")
                self.record.fail(self.history, said)
            return
        series = self.history.to_mapping()
        self.verdict, stability = judge(series), measure_stability(series)
        if self.record:
            self.record.end(self.history, self.verdict, stability, status)

    def _note(self, error: BaseException | None) -> str:
        """Note what ended the run as an event; returns MLflow's status for that."""
        events = self.history.events
        if error is None:
            return "FINISHED"
        if any(kind.__name__ == "TrialPruned" for kind in type(error).__mro__):
            events.setdefault("pruned", {"epoch": self._series.epochs})
            return "FINISHED"
        if is_out_of_memory(error):
            device = self.network.device
            about = {"peak_bytes": peak_bytes(device), "device": self.network.device_name}
            events["out_of_memory"] = {"step": self.history.steps} | about
            return "FINISHED"
        if isinstance(error, (KeyboardInterrupt, SystemExit, Interrupted)):
            events["interrupted"] = True
            return "KILLED"
        return "FAILED"

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs so that the series go on in the same MLflow run."""
        return {
            "identity": self.settings.identity,
            "run_id": self._run_id,
            "series": self._series.state_dict(),
            "clip": self._clipper.state_dict(),
            "fingerprints": self.network.state_dict(),
            "observed": dict(self._observed),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`; raises `ValueError` if that is of another study, arm or seed."""
        if state["identity"] != self.settings.identity:
            ours, theirs = (_place(of) for of in (self.settings.identity, state["identity"]))
            raise ValueError(f"`state` (={shown(theirs)}) must be of the run that goes on, {shown(ours)}")
        about, baseline = self.history.monitor, self.history.val_loss_constant
        self._series.load_state_dict(state["series"])
        self.history.monitor, self.history.val_loss_constant = about, baseline
        self.history.events.pop("interrupted", None)
        self._clipper.load_state_dict(state["clip"])
        self.network.load_state_dict(state["fingerprints"])
        self._observed = dict(state["observed"])
        self._run_id = state["run_id"]


def _check_metric_name(name: str) -> None:
    """Refuse what MLflow does not take, and a name that is one of the monitor's own, or a path under or over it."""
    if not _METRIC_NAME.fullmatch(name) or len(name) > _LONGEST_NAME:
        raise ValueError(
            f"`metrics` (={shown(name)}) must be of letters, digits, spaces and _ - . /, as MLflow's names are"
        )
    for own in _OWN_METRICS:
        if f"{name}/".startswith(f"{own}/") or own.startswith(f"{name}/"):
            raise ValueError(f"`metrics` (={shown(name)}) must not be in the way of the monitor's own metric {own}")


def _record(loss: Tensor, stats: ClipStats) -> Tensor:
    """Loss, norms and clipped fraction as one tensor, shape (4,), on the gradients' device."""
    if loss.numel() != 1 or loss.is_complex():
        raise ValueError(f"`loss` (=a {loss.dtype} of shape {tuple(loss.shape)}) must be one real number")
    values = [mean_over_processes(loss.detach().reshape(())), *stats[:3]]
    dtype = reduce(torch.promote_types, (value.dtype for value in values))
    return torch.stack([value.to(values[0].device, dtype) for value in values])


def _place(identity: Mapping[str, Any]) -> str:
    return "{study}, {arm}, seed {seed}".format(**identity)
