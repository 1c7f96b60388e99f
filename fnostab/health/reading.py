"""Values of a history that may be incomplete, foreign or damaged."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray


def mapping(value: Any) -> Mapping[str, Any]:
    """Return `value` if it is a mapping, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def number(value: Any) -> float:
    """Read a number or its text; NaN for everything that is not finite."""
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan
    return found if math.isfinite(found) else math.nan


def series(history: Mapping[str, Any], name: str) -> NDArray[np.float64]:
    """Read the list `name`, with NaN for everything that is not finite; empty if there is none."""
    values = history.get(name)
    if not isinstance(values, (list, tuple, np.ndarray)):
        values = []
    return np.array([number(value) for value in values], dtype=np.float64)


def value_at(history: Mapping[str, Any], name: str, place: int) -> float:
    """One value of the list `name`, as `series` reads it; NaN if there is none at `place`."""
    values = history.get(name)
    if not isinstance(values, (list, tuple, np.ndarray)) or not -len(values) <= place < len(values):
        return math.nan
    return number(values[place])
