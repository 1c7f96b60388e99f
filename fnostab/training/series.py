"""The series of a run: recorded on the device, copied to the host a chunk at a time, and offered to a sink."""

import math
import time
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from fnostab.health import EPOCH_SERIES, STEP_SERIES, History
from fnostab.health.stability import stability_series
from fnostab.metrics import progress
from fnostab.study.names import METRIC

#: Steps between copies of the recorded values from the device; a copy waits for the device once.
CHUNK_STEPS = 250


class MetricSink(Protocol):
    """Where series go while a run trains."""

    def log_series(self, rows: Iterable[tuple[str, float, int, int]]) -> None:
        """Take (key, value, optimizer step, time in ms) rows; may keep them until `flush`."""

    def flush(self) -> bool:
        """Write what was kept; False if that was not possible now."""


class Nowhere:
    """The sink of a process that writes nothing."""

    def log_series(self, rows: Iterable[tuple[str, float, int, int]]) -> None:
        """Forget them."""

    def flush(self) -> bool:
        """Have nothing to write."""
        return True


class RunSeries:
    """Fills a `History` with steps and epochs, and offers a sink the same numbers under their names in the store.

    Records of steps stay on the device for up to `CHUNK_STEPS` steps, so that no step waits for it. Nothing after a
    step that is not finite is kept. `state_dict` holds all of it with its times, so a resumed run has the series of an
    unbroken one; it offers the sink everything from the start, and so the store gets what it missed in an outage.

    A gradient scaler leaves out the steps at which its scale was too large for the gradients, until it has found a
    fitting one. Where there is one (`has_scaler`), these are no steps of the series: `left_out` counts them.
    """

    def __init__(self, history: History, sink: MetricSink) -> None:
        self.history = history
        self.sink = sink
        self._pending: list[Tensor] = []
        self._layers: list[tuple[int, dict[str, float]]] = []
        self._step_times_ms: list[int] = []
        #: Last step and time in ms of each epoch, and the time before the first step.
        self._epochs: list[tuple[int, int]] = []
        self._begun_ms = 0
        self.has_scaler = False
        self.left_out = 0

    @property
    def has_begun(self) -> bool:
        """Whether `begin` was called, by this process or before the checkpoint."""
        return self._begun_ms > 0

    @property
    def epochs(self) -> int:
        """Epochs that are recorded."""
        return len(self._epochs)

    @property
    def steps(self) -> int:
        """Steps that are recorded, those that are still on the device among them."""
        return len(self._step_times_ms)

    @property
    def steps_before_epoch(self) -> int:
        """Steps of the epochs that are recorded."""
        return self._epochs[-1][0] + 1 if self._epochs else 0

    def begin(self, health: Mapping[str, float]) -> None:
        """Start the series, with the values of `History.health` from before the first step."""
        self._begun_ms = now_ms()
        self.history.add_health(health)
        self._offer_start()

    def add_step(self, record: Tensor, layers: Mapping[str, Tensor]) -> bool:
        """Keep a step: its `STEP_SERIES`, shape (4,), and norms of parameters, for which this waits; none do not.

        Returns whether it is time to `drain`: the chunk is full, or the host can tell for free that the step is bad.
        """
        self._pending.append(record)
        self._step_times_ms.append(now_ms())
        if layers:
            norms = torch.stack(list(layers.values())).tolist()
            self._layers.append((len(self._step_times_ms) - 1, dict(zip(layers, norms, strict=True))))
        bad_already = reading_is_free(record) and not is_finite(record.tolist())
        return bad_already or len(self._pending) >= CHUNK_STEPS

    def drain(self) -> int | None:
        """Copy the pending records from the device into the history and the sink; the step that is not finite, if one.

        The series end with that step.
        """
        first, rows = self.history.steps, self._rows()
        self._pending = []
        if self.has_scaler:
            rows = self._without_left_out(first, rows)
        bad = next((place for place, row in enumerate(rows) if not is_finite(row)), None)
        if bad is not None:  # the optimizer took none of the later steps
            rows = rows[: bad + 1]
            del self._step_times_ms[first + len(rows) :]
        self.history.add_steps(rows)
        self._layers = [entry for entry in self._layers if entry[0] < self.history.steps]
        self._offer_steps(first)
        return None if bad is None else first + bad

    def end_epoch(self, health: Mapping[str, float], **values: float | None) -> None:
        """Record an epoch: values of `EPOCH_SERIES`, and those of `History.health`; `train_loss` is filled in."""
        losses = self.history.loss_step[self.steps_before_epoch :]
        train_loss = sum(losses) / len(losses) if losses else math.nan
        self.history.add_epoch(train_loss=train_loss, **values)
        self.history.add_health(health)
        self._epochs.append((self.history.steps - 1, now_ms()))
        self._offer_epochs(len(self._epochs) - 1)

    def offer_all(self) -> None:
        """Offer the sink all that is recorded, from the first step on."""
        self._offer_steps(0)
        self._offer_start()
        self._offer_epochs(0)

    def flush(self) -> bool:
        """Have the sink write what it kept."""
        return self.sink.flush()

    def _rows(self) -> list[list[float]]:
        """The pending records; those restored from a checkpoint are on the CPU."""
        if not self._pending:
            return []
        device = self._pending[-1].device
        rows: list[list[float]] = torch.stack([record.to(device) for record in self._pending]).tolist()
        return rows

    def _without_left_out(self, first: int, rows: list[list[float]]) -> list[list[float]]:
        """The rows, from step `first` on, without those that a gradient scaler left out."""
        kept = [place for place, row in enumerate(rows) if not math.isfinite(row[0]) or math.isfinite(row[1])]
        step_of = {first + place: first + new for new, place in enumerate(kept)}
        self.left_out += len(rows) - len(kept)
        self._step_times_ms[first:] = [self._step_times_ms[first + place] for place in kept]
        self._layers = [
            (step_of.get(step, step), norms) for step, norms in self._layers if step < first or step in step_of
        ]
        return [rows[place] for place in kept]

    def _offer_steps(self, first: int) -> None:
        series = {METRIC[name]: getattr(self.history, name) for name in STEP_SERIES}
        self.sink.log_series(
            (key, values[step], step, self._step_times_ms[step])
            for step in range(first, self.history.steps)
            for key, values in series.items()
        )
        self.sink.log_series(
            (f"weight_grad_norm/{name}", value, step, self._step_times_ms[step])
            for step, norms in self._layers
            if first <= step < self.history.steps
            for name, value in norms.items()
        )

    def _offer_start(self) -> None:
        self.sink.log_series(
            (f"health/{name}", values[0], 0, self._begun_ms)
            for name, values in self.history.health.items()
            if not math.isnan(values[0])
        )

    def _offer_epochs(self, first: int) -> None:
        series = {METRIC[name]: getattr(self.history, name) for name in EPOCH_SERIES if name in METRIC}
        series[METRIC["progress"]] = self.progress
        series |= self._stability
        health = self.history.health.items()
        for epoch, (step, time_ms) in list(enumerate(self._epochs))[first:]:
            rows = [(key, values[epoch], step, time_ms) for key, values in series.items() if epoch < len(values)]
            # Those of health have one value more, from before the first step; they count the steps done.
            rows += [(f"health/{name}", values[epoch + 1], step + 1, time_ms) for name, values in health]
            # A loss that is no number says something; anything else was not taken, or could not be.
            self.sink.log_series(row for row in rows if row[0] == METRIC["val_loss"] or not math.isnan(row[1]))

    @property
    def progress(self) -> list[float]:
        """`metrics.progress` by val_loss, an epoch each."""
        history = self.history
        return [progress(value, history.val_loss_constant, history.val_loss_floor) for value in history.val_loss]

    @property
    def supervised_progress(self) -> list[float]:
        """The same by a supervised run's own loss; empty for others."""
        history = self.history
        return [progress(value, history.supervised_loss_constant, math.nan) for value in history.supervised_loss]

    @property
    def _stability(self) -> dict[str, list[float]]:
        """The measures of stability as they stood after each epoch."""
        finished = {"loss_step": self.history.loss_step[: self.steps_before_epoch]}
        return {METRIC[name]: values for name, values in stability_series(vars(self.history) | finished).items()}

    def state_dict(self) -> dict[str, Any]:
        """The history, its times, and the records that are still on the device."""
        return {
            "history": self.history.to_mapping(),
            "pending": self._rows(),
            "layers": list(self._layers),
            "step_times_ms": list(self._step_times_ms),
            "epochs": list(self._epochs),
            "begun_ms": self._begun_ms,
        } | ({"left_out": self.left_out} if self.left_out else {})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue the saved history."""
        self.history.load(state["history"])
        self._pending = [torch.tensor(row) for row in state["pending"]]
        self._layers = [*state["layers"], *state.get("pending_layers", [])]  # the latter from 0f04361 and before
        self._step_times_ms = list(state["step_times_ms"])
        self._epochs = list(state["epochs"])
        self._begun_ms = state["begun_ms"]
        self.left_out = state.get("left_out", 0)


def reading_is_free(record: Tensor) -> bool:
    """Whether reading `record` does not wait for a device."""
    return record.device.type == "cpu"


def is_finite(row: list[float]) -> bool:
    """Whether loss and gradient norm of a step's record are finite."""
    return math.isfinite(row[0]) and math.isfinite(row[1])


def now_ms() -> int:
    """The time in ms, as MLflow counts it."""
    return time.time_ns() // 1_000_000
