"""The recorded series of one run: what `history.json` holds and what the verdict is decided from."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Final

from fnostab.io.untrusted import shown


def _one_per(unit: str) -> Any:
    return field(default_factory=list, metadata={"unit": unit})


@dataclass
class History:
    """Series of one run: lists with one value an epoch, lists with one value an optimizer step, constants, events.

    `val_loss` is an R-factor, and `val_amp_ssim` is empty where the truth is not known. `r_stitched` is the R-factor of
    the one object that the validation patches make together (of a scan: all patches), NaN at epochs where it was not
    taken, with `patch_consistency` and `shared_light` of those patches, as `scan.Reassembly` has them;
    `r_stitched_constant` and `r_stitched_mean_pattern` are those of knowing nothing, on the same patterns.
    `supervised_loss` is the loss of a supervised run on the validation patches, and empty for others;
    `supervised_loss_constant` is that of the best constant object. `parameters_moved` is the share of the blocks'
    parameter tensors that changed in the epoch. The series in `health`, by name, have one value from before the first
    step and then one an epoch. Those in `watched`, of a run that is watched every few steps, have one value each time;
    `step` says how many steps were done then. `object_correlation` and `twin_correlation` are those of
    `metrics.orientation` at the end, `r_by_orientation` what `dataset.r_by_orientation` gives for a measured scan.
    `events` holds what ended a run early, and is empty if nothing did. `monitor` is empty for runs of this package; a
    run that it did not train itself (`fnostab.monitor`) says there what it was. Its `val_loss` is whatever loss was
    given, `val_loss_constant` that of a constant prediction, and the mapping of its history leaves out what is not
    known.
    """

    train_loss: list[float] = _one_per("epoch")
    val_loss: list[float] = _one_per("epoch")
    lr: list[float] = _one_per("epoch")
    object_std_ratio: list[float] = _one_per("epoch")
    r_stitched: list[float] = _one_per("epoch")
    patch_consistency: list[float] = _one_per("epoch")
    shared_light: list[float] = _one_per("epoch")
    parameters_moved: list[float] = _one_per("epoch")
    val_amp_ssim: list[float] = _one_per("epoch")
    supervised_loss: list[float] = _one_per("epoch")
    loss_step: list[float] = _one_per("step")
    grad_norm_preclip: list[float] = _one_per("step")
    grad_norm_postclip: list[float] = _one_per("step")
    clipped_fraction: list[float] = _one_per("step")
    health: dict[str, list[float]] = field(default_factory=dict)
    watched: dict[str, list[float]] = field(default_factory=dict)
    val_loss_constant: float = math.nan
    val_loss_floor: float = math.nan
    val_loss_mean_pattern: float = math.nan
    r_stitched_constant: float = math.nan
    r_stitched_mean_pattern: float = math.nan
    supervised_loss_constant: float = math.nan
    object_correlation: float = math.nan
    twin_correlation: float = math.nan
    r_by_orientation: dict[str, float] = field(default_factory=dict)
    events: dict[str, Any] = field(default_factory=dict)
    monitor: dict[str, Any] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        """Optimizer steps recorded so far."""
        return len(self.loss_step)

    def add_steps(self, rows: list[list[float]]) -> None:
        """Append optimizer steps; each row holds the values of `STEP_SERIES`."""
        for row in rows:
            for name, value in zip(STEP_SERIES, row, strict=True):
                getattr(self, name).append(value)

    def add_epoch(self, **values: float | None) -> None:
        """Append one epoch: values of `EPOCH_SERIES` by name; there may be none to take of some.

        A series that earlier epochs, of an earlier version, have no value of begins with NaN for them.
        """
        epochs = len(self.val_loss)
        for name in EPOCH_SERIES:
            if (value := values.get(name)) is not None:
                series = getattr(self, name)
                series += [math.nan] * (epochs - len(series)) + [value]

    def add_health(self, values: Mapping[str, float]) -> None:
        """Append one value to each series of `health`: before the first step, and then after each epoch.

        A new series begins with NaN for the times before.
        """
        times = max(map(len, self.health.values()), default=0)
        for name, value in values.items():
            self.health.setdefault(name, [math.nan] * times).append(value)

    def add_watched(self, values: Mapping[str, float]) -> None:
        """Append one value to each series of `watched`, `step` among them; NaN where there was, or is, none."""
        times = len(self.watched.get("step", ()))
        for name in self.watched | dict(values):
            series = self.watched.setdefault(name, [])
            series += [math.nan] * (times - len(series)) + [values.get(name, math.nan)]

    def to_mapping(self) -> dict[str, Any]:
        """Give plain numbers, lists and strings for JSON; non-finite values as strings NaN, Infinity, -Infinity."""
        mapping = asdict(self)
        for name in ("watched", "events", "r_by_orientation", "monitor"):
            if not mapping[name]:
                del mapping[name]
        if self.monitor:
            mapping = {name: value for name, value in mapping.items() if _is_known(value)}
        return {key: plain(value) for key, value in mapping.items()}

    def to_json(self) -> str:
        """Write the text of `history.json`."""
        return json.dumps(self.to_mapping(), allow_nan=False)

    def load(self, mapping: Mapping[str, Any]) -> None:
        """Take over what `to_mapping` gave; other keys are left out.

        Raises ValueError, in one line, for what is no mapping, and for a series or a number that is none.
        """
        mapping = checked_mapping(mapping)
        loaded = {entry.name: each(mapping[entry.name], _as_number) for entry in fields(self) if entry.name in mapping}
        for name, value in loaded.items():
            if not _is_like(getattr(self, name), value):
                kind = {list: "a list of numbers", float: "a number"}.get(type(getattr(self, name)), "an object")
                raise ValueError(f"`{name}` (={shown(value)}) of a history must be {kind}")
        for name, value in loaded.items():
            setattr(self, name, value)
        # A largest norm weight of one block lay under the name of that of all, which a store of files refuses.
        self.health = {name.replace("_absmax/", "_absmax_of/"): values for name, values in self.health.items()}


#: Names of the series with a value per optimizer step, in the order in which `History.add_steps` takes them.
STEP_SERIES: Final = tuple(entry.name for entry in fields(History) if entry.metadata.get("unit") == "step")
#: Names of the series with a value per epoch.
EPOCH_SERIES: Final = tuple(entry.name for entry in fields(History) if entry.metadata.get("unit") == "epoch")


def _is_known(value: Any) -> bool:
    return not (value == [] or (isinstance(value, float) and math.isnan(value)))


def checked_mapping(history: Any) -> Mapping[str, Any]:
    """Return `history`, or raise ValueError if it is not what a `history.json` can hold."""
    if not isinstance(history, Mapping):
        raise ValueError(f"`history` (={shown(history)}) must be an object of series by name, as in history.json")
    return history


def each(value: Any, change: Callable[[Any], Any]) -> Any:
    """Apply `change` to every number and text in lists and dicts."""
    if isinstance(value, list):
        return [each(item, change) for item in value]
    if isinstance(value, dict):
        return {key: each(item, change) for key, item in value.items()}
    return change(value)


def plain(value: Any) -> Any:
    """Write the non-finite numbers in `value` as text: JSON has no numbers for them."""
    return each(value, _as_text)


def finite_or_none(value: Any) -> Any:
    """Give None for NaN and infinities, and Python's number for a float of NumPy."""
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value


def _as_text(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def _as_number(value: Any) -> Any:
    """Undo `_as_text`."""
    return float(value) if value in ("NaN", "Infinity", "-Infinity") else value


def _is_like(default: Any, value: Any) -> bool:
    """Whether `value` can stand where a history has `default`."""
    if isinstance(default, float):
        return isinstance(value, int | float)
    if isinstance(default, list):
        return isinstance(value, list) and all(isinstance(item, int | float) for item in value)
    return isinstance(value, dict)
