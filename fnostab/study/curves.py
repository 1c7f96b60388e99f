"""What the curves of a run are drawn from: a few kB, however many steps it has."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

#: Points that are kept of a series of steps: about one for every two pixels of a panel.
BINS: Final = 200

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Binned:
    """A series in bins of steps: each bin's middle step, its median and its maximum over finite values (NaN if none).

    `not_finite` holds the steps whose value is not a finite number.
    """

    step: Floats
    median: Floats
    maximum: Floats
    not_finite: NDArray[np.intp]


def binned(values: Floats) -> Binned:
    """Bin a series (steps,) into `BINS` bins of as equal length as can be; a shorter series has a bin a step."""
    parts = np.array_split(np.where(np.isfinite(values), values, np.nan), min(BINS, max(len(values), 1)))
    known = [part[np.isfinite(part)] for part in parts]
    ends = np.cumsum([0, *map(len, parts)])
    return Binned(
        step=(ends[:-1] + ends[1:] - 1) / 2,
        median=np.array([np.median(part) if part.size else np.nan for part in known]),
        maximum=np.array([part.max() if part.size else np.nan for part in known]),
        not_finite=np.flatnonzero(~np.isfinite(values)),
    )


@dataclass(frozen=True)
class Curves:
    """The validation loss by epoch, the gradient's norm before clipping by step, and what the loss is held against.

    `r_stitched` is the R-factor of the stitched validation object by epoch, NaN where it was not taken; or empty.
    """

    val_loss: Floats
    grad_norm: Binned
    constant: float  #: R-factor of the best constant object; NaN where it is not known
    floor: float  #: R-factor of photon noise alone; NaN where it is not known
    r_stitched: Floats

    @classmethod
    def of(cls, history: Any) -> "Curves":
        """Take the curves from the content of a `history.json`; raises ValueError for what is no history."""
        if not isinstance(history, Mapping):
            raise ValueError("it must hold an object")
        series = {}
        for name in ("val_loss", "grad_norm_preclip", "r_stitched"):
            values = history.get(name)
            if not isinstance(values, (list, tuple, type(None))):
                raise ValueError(f"`{name}` must be a list")
            series[name] = np.array([_number(value) for value in values or ()], dtype=np.float64)
        constant, floor = (_number(history.get(f"val_loss_{name}")) for name in ("constant", "floor"))
        return cls(series["val_loss"], binned(series["grad_norm_preclip"]), constant, floor, series["r_stitched"])


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return np.nan


#: Those of a run without a history.
NO_CURVES: Final = Curves.of({})
