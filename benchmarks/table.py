"""The table of the benchmarks: its rows, how ratios are written, and the command that measures and prints it."""

import platform
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.timing import Spread, ratio, spread

#: What a processor may have for products in low precision, as Linux calls it, and as people do.
_FEATURES = {"avx512_bf16": "AVX512-BF16", "amx_bf16": "AMX"}
_CPUINFO = Path("/proc/cpuinfo")


class Row(NamedTuple):
    """A line of the table; `value` is a ratio, or a share in per cent, and `met` None where there is no target."""

    what: str
    against: str
    target: str
    value: str
    met: bool | None
    times: str


def faster(what: str, peer: str, ours: list[float], theirs: list[float], unit: str, at_least: float | None) -> Row:
    """The row of how much faster we are than a peer, in turns of `unit`."""
    found = ratio(theirs, ours)
    target, met = ("-", None) if at_least is None else (f">= {at_least:g} x faster", found.median >= at_least)
    times = f"{spread(ours)} {unit} against {spread(theirs)} {unit}"
    return Row(what, peer, target, f"{multiple(found)} faster", met, times)


def multiple(found: Spread) -> str:
    """A ratio with its quartiles."""
    return f"{found.median:.2f} x ({found.low:.2f}-{found.high:.2f})"


def percent(found: Spread) -> str:
    """A share in per cent with its quartiles."""
    return f"{found.median:.1f} % ({found.low:.1f}-{found.high:.1f})"


def measure_and_print(names: list[str], rows_by_name: Mapping[str, Callable[[], Iterator[Row]]]) -> None:
    """Measure the rows of `names`, print each when it is there, and all of them at the end."""
    rows: list[Row] = []
    for name in names:
        for row in rows_by_name[name]():
            print(line(row), flush=True)
            rows.append(row)
    print("", machine(), "", *table(rows), sep="\n")


def table(rows: list[Row]) -> list[str]:
    """The rows as a table in Markdown."""
    header = ["| what | against | target | measured | met | times: median (quartiles) |", "|---|---|---|---|---|---|"]
    return [*header, *map(line, rows)]


def line(row: Row) -> str:
    """A row as a line in Markdown."""
    met = {True: "yes", False: "**no**", None: "-"}[row.met]
    return f"| {row.what} | {row.against} | {row.target} | {row.value} | {met} | {row.times} |"


def machine() -> str:
    """What the numbers were measured on."""
    command = ["git", "describe", "--always", "--dirty"]
    commit = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    device = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    instructions = ", ".join([torch.backends.cpu.get_cpu_capability(), *cpu_features()])
    return (
        f"commit {commit.stdout.strip() or 'unknown'}; {processor()}, {torch.get_num_threads()} threads{device}; "
        f"torch {torch.__version__} ({instructions})"
    )


def processor() -> str:
    """The name of the processor."""
    return _cpuinfo().get("model name") or platform.processor() or platform.machine()


def cpu_features() -> list[str]:
    """What the processor has for bf16: AVX512-BF16, AMX, both or nothing; where the system does not say so, nothing."""
    flags = _cpuinfo().get("flags", "").split()
    return [name for flag, name in _FEATURES.items() if flag in flags]


def _cpuinfo() -> dict[str, str]:
    """What Linux says of the first processor; empty elsewhere."""
    try:
        text = _CPUINFO.read_text(encoding="utf-8")
    except OSError:
        return {}
    pairs = (one.partition(":") for one in text.split("\n\n")[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}
