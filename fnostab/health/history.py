"""The recorded series of one run: what `history.json` holds and what the verdict is decided from."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

#: Names of the per-step series, in the order in which `History.add_steps` takes them.
STEP_SERIES = ("loss_step", "grad_norm_preclip", "grad_norm_postclip", "clipped_fraction")


@dataclass
class History:
    """Series of one run: lists with one value an epoch, lists with one value an optimizer step, constants, events.

    `train_loss`, `val_loss` (R-factor), `lr` and `object_std_ratio` have one value an epoch, and so has `val_amp_ssim`
    where the truth is known; the names in `STEP_SERIES` have one an optimizer step. The series in `health`, by name,
    have one value from before the first step and then one an epoch. `object_correlation` and `twin_correlation` are
    those of `metrics.orientation` at the end. `events` holds what ended a run early, and is empty if nothing did.
    """

    train_loss: list[float] = field(default_factory=list)
    val_loss: list[float] = field(default_factory=list)
    lr: list[float] = field(default_factory=list)
    object_std_ratio: list[float] = field(default_factory=list)
    val_amp_ssim: list[float] = field(default_factory=list)
    loss_step: list[float] = field(default_factory=list)
    grad_norm_preclip: list[float] = field(default_factory=list)
    grad_norm_postclip: list[float] = field(default_factory=list)
    clipped_fraction: list[float] = field(default_factory=list)
    health: dict[str, list[float]] = field(default_factory=dict)
    val_loss_constant: float = math.nan
    val_loss_floor: float = math.nan
    val_loss_mean_pattern: float = math.nan
    object_correlation: float = math.nan
    twin_correlation: float = math.nan
    events: dict[str, Any] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        """Optimizer steps recorded so far."""
        return len(self.loss_step)

    def add_steps(self, rows: list[list[float]]) -> None:
        """Append optimizer steps; each row holds the values of `STEP_SERIES`."""
        for row in rows:
            for name, value in zip(STEP_SERIES, row, strict=True):
                getattr(self, name).append(value)

    def add_epoch(
        self, *, train_loss: float, val_loss: float, lr: float, object_std_ratio: float, val_amp_ssim: float | None
    ) -> None:
        """Append one epoch."""
        self.train_loss.append(train_loss)
        self.val_loss.append(val_loss)
        self.lr.append(lr)
        self.object_std_ratio.append(object_std_ratio)
        if val_amp_ssim is not None:
            self.val_amp_ssim.append(val_amp_ssim)

    def add_health(self, values: Mapping[str, float]) -> None:
        """Append one value to each series of `health`: before the first step, and then after each epoch."""
        for name, value in values.items():
            self.health.setdefault(name, []).append(value)

    def to_mapping(self) -> dict[str, Any]:
        """Plain numbers, lists and strings, ready for JSON; non-finite values as NaN, Infinity, -Infinity strings."""
        mapping = asdict(self)
        if not mapping["events"]:
            del mapping["events"]
        return {key: plain(value) for key, value in mapping.items()}

    def to_json(self) -> str:
        """The text of `history.json`."""
        return json.dumps(self.to_mapping(), allow_nan=False)

    def load(self, mapping: dict[str, Any]) -> None:
        """Take over what `to_mapping` gave."""
        for entry in fields(self):
            if entry.name in mapping:
                setattr(self, entry.name, _with_numbers(mapping[entry.name]))
        # A largest norm weight of one block lay under the name of that of all, which a store of files refuses.
        self.health = {name.replace("_absmax/", "_absmax_of/"): values for name, values in self.health.items()}


def plain(value: Any) -> Any:
    """`value`, a number, text, list or dict, with non-finite numbers as text, which JSON has no numbers for."""
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def _with_numbers(value: Any) -> Any:
    if isinstance(value, list):
        return [_with_numbers(item) for item in value]
    if isinstance(value, dict):
        return {key: _with_numbers(item) for key, item in value.items()}
    return float(value) if value in ("NaN", "Infinity", "-Infinity") else value
