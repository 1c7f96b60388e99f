"""The recorded series of one run: what `history.json` holds and what the verdict is decided from."""

import json
import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any

#: Names of the per-step series, in the order in which `History.add_steps` takes them.
STEP_SERIES = ("loss_step", "grad_norm_preclip", "grad_norm_postclip", "clipped_fraction")


@dataclass
class History:
    """Series of one run: lists with one value an epoch, lists with one value an optimizer step, constants, events.

    `train_loss`, `val_loss` (R-factor), `lr` and `object_std_ratio` have one value an epoch; the names in
    `STEP_SERIES` one an optimizer step. `events` holds what ended a run early, and is empty if nothing did.
    """

    train_loss: list[float] = field(default_factory=list)
    val_loss: list[float] = field(default_factory=list)
    lr: list[float] = field(default_factory=list)
    object_std_ratio: list[float] = field(default_factory=list)
    loss_step: list[float] = field(default_factory=list)
    grad_norm_preclip: list[float] = field(default_factory=list)
    grad_norm_postclip: list[float] = field(default_factory=list)
    clipped_fraction: list[float] = field(default_factory=list)
    val_loss_constant: float = math.nan
    val_loss_floor: float = math.nan
    val_loss_mean_pattern: float = math.nan
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

    def add_epoch(self, *, train_loss: float, val_loss: float, lr: float, object_std_ratio: float) -> None:
        """Append one epoch."""
        self.train_loss.append(train_loss)
        self.val_loss.append(val_loss)
        self.lr.append(lr)
        self.object_std_ratio.append(object_std_ratio)

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
                setattr(self, entry.name, _number(mapping[entry.name]))


def plain(value: Any) -> Any:
    """`value`, a number, text or list of them, with non-finite numbers as text, which JSON has no numbers for."""
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def _number(value: Any) -> Any:
    if isinstance(value, list):
        return [_number(item) for item in value]
    return float(value) if value in ("NaN", "Infinity", "-Infinity") else value
