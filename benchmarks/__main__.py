"""Measure the table of the README: each row beside its peer, in the same run.

    python -m benchmarks                    # some 20 minutes on 2 cores (make bench)
    python -m benchmarks --rows step agc    # some rows
    python -m benchmarks --small            # seconds: whether it runs at all; the numbers mean nothing

Ratios are medians (quartiles) of turns. The rows of GPUs: python -m benchmarks.gpu.
"""

import argparse
import os
import platform
import subprocess
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch

from benchmarks import clipping, data, depth, observing, step
from benchmarks.timing import Spread, ratio, spread


class Row(NamedTuple):
    """A line of the table; `value` is a ratio, or a share in per cent."""

    what: str
    against: str
    target: str
    value: str
    held: bool | None
    times: str


def step_rows(small: bool) -> Iterator[Row]:
    """The step beside floor and peers, and the floor beside the plain one."""
    times = step.measure(width=8, N=32, repeats=3) if small else step.measure(repeats=25)
    ms = {name: spread([1e3 * value for value in values]) for name, values in times.items()}
    for peer, words, at_least in (
        ("floor", "itself without spectral layers (the floor)", None),
        ("original", "the original: complex one-sided weights, Adam not fused, `.item()` norms", 3.0),
        ("neuraloperator", "the plain network with neuraloperator's `SpectralConv`", 3.5),
        ("plain", "the plain network: FFTs, `torch.nn.Conv2d`, fused Adam", None),
    ):
        if peer == "floor":
            found = ratio(times["ours"], times["floor"])
            samples = 16 / spread(times["ours"]).median
            value = f"{_times(found)}: {samples:.0f} samples/s, {1 / found.median:.0%} of the floor's"
            yield Row("training step", words, "<= 1.3 x", value, found.median <= 1.3, _both(ms, "ours", "floor"))
        else:
            found = ratio(times[peer], times["ours"])
            target = f">= {at_least} x faster" if at_least else "-"
            met = found.median >= at_least if at_least else None
            yield Row("training step", words, target, f"{_times(found)} faster", met, _both(ms, "ours", peer))
    found = ratio(times["plain floor"], times["floor"])
    words = "the same from `torch.nn.Conv2d`"
    yield Row(
        "the floor", words, "lower it", f"{_times(found)} faster", found.median > 1, _both(ms, "floor", "plain floor")
    )


def observing_rows(small: bool) -> Iterator[Row]:
    """Norms, health and metric writing beside a training without."""
    found = observing.measure("smoke", 1, 2) if small else observing.measure("quick", 1, 4)
    inside = spread([100 * share for share in found.inside])
    words = "training with all of it off; by the stopwatch inside"
    seconds = f"{spread(found.on)} s against {spread(found.off)} s an epoch, by turns"
    yield Row("norms, health, writing at every step", words, "<= 2 %", _percent(inside), inside.median <= 2, seconds)


def agc_rows(small: bool) -> Iterator[Row]:
    """AGC beside a step that only takes the norm, as every step does."""
    width, N, repeats = (8, 32, 3) if small else (32, 64, 25)
    _, ms = clipping.measure(width=width, N=N, repeats=repeats)
    plain = ms["none (norm only)"]
    shares = [100 * (a - n) / s for a, n, s in zip(ms["agc unit"], plain, ms["step"], strict=True)]
    share = spread(shares)
    times = f"{spread(ms['agc unit'])} ms, the norm alone {spread(plain)} ms, the step {spread(ms['step'])} ms"
    yield Row(
        "AGC", "the step without clipping (its norm is taken)", "<= 3 %", _percent(share), share.median <= 3, times
    )
    loop = ratio(ms["agc, plain loop"], ms["agc unit"])
    yield Row("AGC", "a loop over parameters", "- (GPU: 10 x)", f"{_times(loop)} faster", None, _both_ms(ms))


def data_rows(small: bool) -> Iterator[Row]:
    """The Stage A dataset beside a NumPy loop."""
    seconds = data.measure(2, "smoke") if small else data.measure(5)
    found = ratio(seconds["loop"], seconds["ours"])
    of_both = spread(seconds["poisson"])
    times = f"{spread(seconds['ours'])} s against {spread(seconds['loop'])} s, {of_both} of them photon noise"
    yield Row(
        "Stage A dataset built", "a NumPy loop", ">= 10 x faster", f"{_times(found)} faster", found.median >= 10, times
    )


def depth_rows(small: bool) -> Iterator[Row]:
    """Time and memory of more blocks beside the straight line."""
    costs = depth.measure(1 if small else 3, width=4 if small else 32)
    for key, unit, words in (("seconds", 1e3, "ms"), ("bytes", 2**-20, "MiB")):
        found = {blocks: depth.over_linear(costs, blocks, key) for blocks in (16, 32)}
        value = ", ".join(f"{value:.2f} x at {blocks}" for blocks, value in found.items())
        times = ", ".join(f"{costs[blocks][key] * unit:.0f}" for blocks in depth.DEPTHS)
        name = "time of a step at 16 and 32 blocks" if key == "seconds" else "memory at 16 and 32 blocks"
        held = max(found.values()) <= 1.2
        yield Row(name, "the line through 4 and 8", "<= 1.2 x", value, held, f"{times} {words} at 4, 8, 16, 32")


ROWS: dict[str, Callable[[bool], Iterator[Row]]] = {
    "step": step_rows,
    "observing": observing_rows,
    "agc": agc_rows,
    "data": data_rows,
    "depth": depth_rows,
}


def table(rows: list[Row]) -> str:
    """The rows as Markdown."""
    signs = {True: "yes", False: "**no**", None: "-"}
    lines = ["| what | against | target | measured | met | times: median (quartiles) |", "|---|---|---|---|---|---|"]
    lines += [f"| {r.what} | {r.against} | {r.target} | {r.value} | {signs[r.held]} | {r.times} |" for r in rows]
    return "\n".join(lines)


def machine() -> str:
    """What the numbers were measured on."""
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    device = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return (
        f"commit {commit.stdout.strip() or 'unknown'}; {_processor()}, {torch.get_num_threads()} threads{device}; "
        f"torch {torch.__version__} ({torch.backends.cpu.get_cpu_capability()})"
    )


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _times(found: Spread) -> str:
    return f"{found.median:.2f} x ({found.low:.2f}-{found.high:.2f})"


def _percent(found: Spread) -> str:
    return f"{found.median:.1f} % ({found.low:.1f}-{found.high:.1f})"


def _both(ms: dict[str, Spread], ours: str, peer: str) -> str:
    return f"{ms[ours]} ms against {ms[peer]} ms"


def _both_ms(ms: dict[str, list[float]]) -> str:
    return f"{spread(ms['agc unit'])} ms against {spread(ms['agc, plain loop'])} ms"


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW", help=", ".join(ROWS))
    parser.add_argument("--small", action="store_true", help="tiny sizes")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows: list[Row] = []
    for name in arguments.rows:
        rows += ROWS[name](arguments.small)
        print(table(rows[-1:]).splitlines()[-1], flush=True)
    print("", machine(), "", table(rows), sep="\n")


if __name__ == "__main__":
    main()
