"""What huge pages save: a training step with them, as commands train, beside one with pages of 4 kB.

    python -m benchmarks --rows pages

A process asks for them when it begins, so each measurement is one of its own; they take turns.
"""

import os
from collections.abc import Iterator
from functools import partial

from benchmarks.table import Row, faster
from benchmarks.timing import in_alternating_order
from benchmarks.waiting import in_a_process
from fnostab.io.huge_pages import TUNABLES

#: What a process is told, by what it then uses.
_TOLD = {"huge": "glibc.malloc.hugetlb=1", "small": "glibc.malloc.hugetlb=0"}


def measure(turns: int, width: int, repeats: int, threads: int) -> dict[str, list[float]]:
    """Medians in seconds of each turn, by the size of pages."""
    environments = {pages: os.environ | {TUNABLES: told} for pages, told in _TOLD.items()}
    measures = {
        pages: partial(in_a_process, environment, threads, width, repeats)
        for pages, environment in environments.items()
    }
    return in_alternating_order(measures, turns)


def rows(turns: int, widths: tuple[int, ...], repeats: int) -> Iterator[Row]:
    """Huge pages beside small ones, on one thread, a width a row."""
    for width in widths:
        ms = {pages: [1e3 * value for value in of] for pages, of in measure(turns, width, repeats, threads=1).items()}
        yield faster(f"step at width {width} with huge pages", "pages of 4 kB", ms["huge"], ms["small"], "ms", None)
