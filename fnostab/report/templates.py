"""The templates beside this file. What they are handed is text, whatever is in it: never HTML or Markdown."""

import base64
import functools
import math
import re
from typing import Any, Literal

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from fnostab.health.config import DEFAULTS
from fnostab.study import depth
from fnostab.study.text import interval, markdown, number, percent_interval


def render(name: str, /, **data: Any) -> str:
    """Fill in the template `name`, which ends in .html.j2 or .md.j2, with `data` and the sentences of `words()`."""
    kind: Literal["html", "md"] = "html" if name.endswith(".html.j2") else "md"
    return _environment(kind).get_template(name).render(words=words(), **data)


@functools.cache
def words() -> Any:
    """The sentences of a study's report: each macro of words.txt.j2 as a function that gives one line of text."""
    return _environment("txt").get_template("words.txt.j2").module


@functools.cache
def _environment(kind: Literal["html", "md", "txt"]) -> Environment:
    environment = Environment(
        loader=PackageLoader("fnostab.report", ""),
        autoescape=kind != "txt",
        finalize=_as_markdown if kind == "md" else None,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"png_uri": _png_uri, "web_address": _web_address, "number": number}
    environment.globals |= {"inf": math.inf, "interval": interval, "percent_interval": percent_interval}
    environment.globals |= {name: getattr(depth, name) for name in ("PEAK_GROWTH", "LOSS_GROWTH", "WORTHWHILE_GAIN")}
    environment.globals |= {"RELAPSE_RATIO": DEFAULTS.relapse_ratio}
    return environment


def _as_markdown(value: object) -> Markup:
    """What `|safe` marked and what a macro of the template gives stay as they are; all else is escaped."""
    return value if isinstance(value, Markup) else Markup(markdown(str(value)))


def _png_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _web_address(url: str | None) -> str | None:
    """`url` if it leads to a page; None for everything else, such as javascript."""
    return url if url and re.match(r"https?://", url, flags=re.IGNORECASE) else None
