"""Options of code that users name: keys that this package does not know, with values that JSON has."""

import json
import keyword
import math
from collections.abc import Mapping
from typing import Any, Final

import yaml

from fnostab.io.untrusted import shown

#: More options are no options, and longer values are none.
_MOST: Final = 64
_LONGEST: Final = 500


def checked_options(key: str, options: Mapping[Any, Any]) -> dict[str, Any]:
    """The `options` given for `key`: names of Python with numbers, texts, true, false, null, or lists of those.

    As for all other keys, text that reads as one of the others is that. Raises ValueError with one line.
    """
    if len(options) > _MOST:
        raise ValueError(f"`{key}` (={len(options)} options) must be at most {_MOST}")
    checked = {}
    for name, value in options.items():
        if not isinstance(name, str) or not name.isidentifier() or keyword.iskeyword(name):
            raise ValueError(f"`{key}.{shown(name)}` (={shown(value)}) must be called like an argument in Python")
        checked[name] = _plain(f"`{key}.{name}` (={shown(value)})", value)
        if len(json.dumps(checked[name])) > _LONGEST:
            raise ValueError(f"`{key}.{name}` (={shown(value)}) must be shorter than {_LONGEST} characters")
    return checked


def _plain(label: str, value: Any) -> Any:
    if isinstance(value, str):
        value = _read(value)
    if isinstance(value, list | tuple):
        return [_plain(label, item) for item in value]
    if value is not None and not isinstance(value, bool | int | float | str):
        raise ValueError(f"{label} must be a number, a text, true, false, null, or a list of those")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{label} must be a finite number")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ValueError(f"{label} must be a whole number of 64 bits")
    if isinstance(value, str) and not value.isprintable():
        raise ValueError(f"{label} must be text on one line")
    return value


def _read(text: str) -> Any:
    """What `text` reads as: JSON, since YAML takes 1e-3 for text, else YAML; itself if that is text, or no value."""
    for read in (json.loads, yaml.safe_load):
        try:
            value = read(text[: _LONGEST + 1])
        except (ValueError, LookupError, AttributeError, TypeError, RecursionError, yaml.YAMLError):
            continue
        if value is None and text or isinstance(value, bool | int | float | list):
            return value
    return text
