"""Numbers and names as the text of a report."""

import math
import re
from typing import Final

#: What stands where a value is not known or means nothing.
UNKNOWN: Final = "–"


def number(value: float | None, form: str = ".3g") -> str:
    """`value` in the format `form`; a dash for None and NaN, ∞ for infinities."""
    if value is None or math.isnan(value):
        return UNKNOWN
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    return format(value, form)


def interval(low: float | None, high: float | None, form: str = ".3g") -> str:
    """`[low, high]`, or nothing without an interval."""
    return "" if low is None or high is None else f"[{number(low, form)}, {number(high, form)}]"


def percent_interval(low: float | None, high: float | None) -> str:
    """The interval of a share, in whole per cent."""
    return "" if low is None or high is None else f"[{100 * low:.0f}, {100 * high:.0f} %]"


def markdown(text: str) -> str:
    """`text` on one line, with nothing in it that Markdown, or HTML within it, takes for more than text."""
    escaped = re.sub(r"([\\`*~\[\]<>|])", r"\\\1", " ".join(text.split()))
    escaped = escaped.replace("\\<", "&lt;").replace("\\>", "&gt;")
    return re.sub(r"^(#|[+-](?= ))|(?<!\w)_|_(?!\w)", lambda found: "\\" + found.group(), escaped)


def shortened(text: str, length: int) -> str:
    """`text` on one line of printable characters, its middle left out where it is longer than `length`."""
    line = "".join(character if character.isprintable() else " " for character in text)
    line = " ".join(line.split())
    if len(line) <= length:
        return line
    head = (length - 1) // 2
    return f"{line[:head]}…{line[len(line) - (length - 1 - head) :]}"
