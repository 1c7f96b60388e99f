"""Measure the table of docs/speed.md: each row beside its peer, in the same run, with huge pages as commands have them.

    python -m benchmarks                    # some 30 minutes on 2 cores (make bench)
    python -m benchmarks --rows step agc    # some rows
    python -m benchmarks --small            # a minute or two: whether it runs at all; the numbers mean nothing

Ratios are medians (quartiles) of turns. The rows of GPUs: python -m benchmarks.gpu.
"""

import argparse
import os
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial

import torch

from benchmarks import clipping, data, depth, fixed_cost, monitor, observing, pages, step, waiting
from benchmarks.table import Row, cpu_features, faster, measure_and_print, multiple, percent
from benchmarks.timing import ratio, spread
from benchmarks.training import Case, full_case, ms_by_turns, small_case, step_ms
from fnostab.config import resolve_config
from fnostab.io.huge_pages import start_again_with_huge_pages


def step_rows(small: bool) -> Iterator[Row]:
    """The step beside its floor and its peers."""
    seconds = step.measure(width=8, N=32, repeats=3) if small else step.measure(repeats=25)
    ms = {name: [1e3 * value for value in values] for name, values in seconds.items()}
    found = ratio(ms["ours"], ms["floor"])
    samples_per_s = 16e3 / spread(ms["ours"]).median
    value = f"{multiple(found)}: {samples_per_s:.0f} samples/s, {1 / found.median:.0%} of the floor's"
    times = f"{spread(ms['ours'])} ms against {spread(ms['floor'])} ms"
    words = "itself without spectral layers (the floor)"
    yield Row("training step", words, "<= 1.3 x", value, found.median <= 1.3, times)
    for peer, words, at_least in (
        ("original", "the original: complex one-sided weights, Adam not fused, `.item()` norms", 3.0),
        ("neuraloperator", "the plain network with neuraloperator's `SpectralConv`", 3.5),
        ("plain", "the plain network: FFTs, channels first, fused Adam", None),
    ):
        yield faster("training step", words, ms["ours"], ms[peer], "ms", at_least)


def bf16_rows(small: bool) -> Iterator[Row]:
    """The step in both precisions; what is asked of it depends on the processor."""
    case = small_case("cpu") if small else full_case("cpu", turns=7, steps=8, epochs=2)
    ms = ms_by_turns(case, {name: {"train.precision": name} for name in ("bf16-mixed", "32-true")})
    at_least = {"AMX": 2.2, "AVX512-BF16": 1.3}
    target = max((at_least[name] for name in cpu_features()), default=None)
    words = f"32-true, on a processor with {' and '.join(cpu_features()) or 'no bf16 instructions'}"
    yield faster("training step, bf16-mixed", words, ms["bf16-mixed"], ms["32-true"], "ms", target)


def observing_rows(small: bool) -> Iterator[Row]:
    """Norms, health and metric writing beside a training without."""
    yield observing.row(observing.measure("smoke", 1, 2) if small else observing.measure("quick", 1, 24))


def monitor_rows(small: bool) -> Iterator[Row]:
    """A foreign training under the monitor beside the same without."""
    found = monitor.measure(2, 3, width=8, size=16) if small else monitor.measure()
    inside = spread([100 * share for share in found.inside])
    words = "an FNO of neuraloperator trained without; by the stopwatch inside"
    turns = multiple(ratio(found.on, found.off))
    times = f"{spread(found.on)} s against {spread(found.off)} s of 50 steps: {turns} by turns"
    yield Row("the monitor on a foreign training", words, "<= 2 %", percent(inside), inside.median <= 2, times)


def agc_rows(small: bool) -> Iterator[Row]:
    """AGC beside a step and a loop."""
    sizes = {"width": 8, "N": 32, "repeats": 3} if small else {"repeats": 25}
    yield from clipping.rows(at_most_percent=3, **sizes)


def data_rows(small: bool) -> Iterator[Row]:
    """The Stage A dataset beside a NumPy loop."""
    seconds = data.measure(2, "smoke") if small else data.measure(5)
    row = faster("Stage A dataset built", "a NumPy loop", seconds["ours"], seconds["loop"], "s", 10.0)
    yield row._replace(times=f"{row.times}, {spread(seconds['poisson'])} of them photon noise")


def waiting_rows(small: bool) -> Iterator[Row]:
    """Threads that sleep while they wait beside threads that spin."""
    yield from waiting.rows(2, 4, 2) if small else waiting.rows(7, 16, 8)


def pages_rows(small: bool) -> Iterator[Row]:
    """Huge pages beside small ones."""
    yield from pages.rows(2, (4,), 2) if small else pages.rows(7, (16, 32), 12)


def denormals_rows(small: bool) -> Iterator[Row]:
    """A training whose numbers next to zero count as zero beside one that keeps them, as the original would."""
    patches = {"data.max_train_patches": 1024, "data.max_val_patches": 16}
    keys = {"preset": "seed_study", "width": 16, "epochs": 5, "accelerator": "cpu", **patches}
    case = small_case("cpu") if small else Case(keys, 3)
    ms = ms_by_turns(case, {"zero": {}}, {"kept": lambda: step_ms(resolve_config(case.keys), nullcontext)})
    what = "step of a training of 320 steps, numbers under 1.2e-38 taken as zero"
    yield faster(what, "the same, where they are kept", ms["zero"], ms["kept"], "ms", None)


def depth_rows(small: bool) -> Iterator[Row]:
    """Time and memory of more blocks beside the straight line."""
    yield from depth.rows(1, width=4) if small else depth.rows(3)


def fixed_rows(small: bool) -> Iterator[Row]:
    """A whole command beside the imports that it can't do without."""
    yield from fixed_cost.rows(2, "--train.epochs", "1") if small else fixed_cost.rows(5)


ROWS: dict[str, Callable[[bool], Iterator[Row]]] = {
    "step": step_rows,
    "bf16": bf16_rows,
    "observing": observing_rows,
    "monitor": monitor_rows,
    "agc": agc_rows,
    "data": data_rows,
    "waiting": waiting_rows,
    "pages": pages_rows,
    "denormals": denormals_rows,
    "depth": depth_rows,
    "fixed": fixed_rows,
}


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW", help=", ".join(ROWS))
    parser.add_argument("--small", action="store_true", help="tiny sizes")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    measure_and_print(arguments.rows, {name: partial(rows, arguments.small) for name, rows in ROWS.items()})


if __name__ == "__main__":
    start_again_with_huge_pages()
    main()
