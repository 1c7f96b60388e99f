"""Everything that is measured on a GPU, as one command that prints one table.

    python -m benchmarks.gpu                     # some 20 minutes on one GPU of the H100 class
    python -m benchmarks.gpu --device cpu --small     # does it run at all; seconds to minutes, no number means anything

Rows: a training step beside the original and beside neuraloperator's layer, eager and with `--compile` also with the
network compiled (which is measured before it becomes anybody's default); AGC beside the step and beside a loop over
parameters; time and memory of depth; a whole Stage A of one seed; several seeds at once beside one after another, with
the largest difference between their results. `--rows` chooses. The studies run in a temporary folder with a store of
their own; the dataset is built before the clock starts.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import mlflow
import torch

from benchmarks import clipping, depth, step
from benchmarks.table import Row, faster, measure_and_print, multiple
from benchmarks.timing import by_turns, ratio, spread
from fnostab.config import ModelConfig, resolve_config
from fnostab.dataset import load_or_build
from fnostab.models import build_generator


def step_rows(options: argparse.Namespace) -> Iterator[Row]:
    """The step beside its peers, and compiled."""
    size = {"width": 4, "N": 32, "batch_size": 4} if options.small else {"width": 32, "N": 64, "batch_size": 16}
    repeats, device = (2 if options.small else 50), torch.device(options.device)
    torch.manual_seed(0)
    network = build_generator(ModelConfig(width=size["width"]), size["N"]).to(device)
    make = partial(step.training_step, network=network, N=size["N"], batch_size=size["batch_size"], device=device)
    steps = {name: make(name) for name in ("floor", "plain", "original", "neuraloperator", "ours")}
    if options.compile:
        other = build_generator(ModelConfig(width=size["width"]), size["N"]).to(device)
        other.compile(mode=options.compile)
        steps["compiled"] = make("ours", network=other)
    seconds = by_turns(steps, repeats, device, warm_up=4)
    ms = {name: [1e3 * value for value in values] for name, values in seconds.items()}
    for name in ("ours", "compiled") if options.compile else ("ours",):
        for peer, target in (("original", 6.0), ("neuraloperator", None), ("plain", None)):
            yield faster(f"training step, {name}", peer, ms[name], ms[peer], "ms", target)
        value, times = multiple(ratio(ms[name], ms["floor"])), f"{spread(ms[name])} ms against {spread(ms['floor'])} ms"
        yield Row(f"training step, {name}", "the floor", "-", value, None, times)


def agc_rows(options: argparse.Namespace) -> Iterator[Row]:
    """AGC beside the step and the loop."""
    sizes = {"width": 4, "N": 32, "repeats": 2} if options.small else {"repeats": 50}
    yield from clipping.rows(at_most_percent=2, loop_at_least=10, device=options.device, **sizes)


def depth_rows(options: argparse.Namespace) -> Iterator[Row]:
    """Time and memory of 16 and 32 blocks."""
    rounds, width = (1, 4) if options.small else (3, 32)
    yield from depth.rows(rounds, width, options.device)


def study_rows(options: argparse.Namespace) -> Iterator[Row]:
    """A whole Stage A, three runs at once."""
    preset = "smoke" if options.small else "seed_study"
    load_or_build(resolve_config({"preset": preset}).data)
    seconds, _ = study(options, preset, "1", workers=3)
    yield Row(
        f"Stage A, {preset}, one seed", "wall clock", "<= 6 min, aim 3", f"{seconds / 60:.1f} min", seconds <= 360, ""
    )


def seeds_rows(options: argparse.Namespace) -> Iterator[Row]:
    """Seeds at once beside one after another: the same command, with more workers."""
    preset, epochs = ("smoke", "1") if options.small else ("stage_a", "2")
    load_or_build(resolve_config({"preset": preset}).data)
    extra = ["--epochs", epochs]
    count = 2 if options.small else 4
    alone_s, alone = study(options, preset, str(count), workers=1, extra=extra)
    together_s, together = study(options, preset, str(count), workers=count, extra=extra)
    largest = max(abs(together[key] / value - 1) for key, value in alone.items())
    gain = alone_s / together_s
    value = f"{gain:.2f} x runs an hour; best val_loss within {largest:.1e}"
    times = f"{len(alone)} runs in {together_s:.0f} s against {alone_s:.0f} s"
    yield Row(f"{count} runs at once on one device", "one after another", ">= 3 x", value, gain >= 3, times)


def study(
    options: argparse.Namespace, preset: str, seeds: str, workers: int, extra: list[str] | None = None
) -> tuple[float, dict[tuple[str, str], float]]:
    """Seconds of a Stage A in a fresh store, and the best val_loss by arm and seed."""
    with tempfile.TemporaryDirectory() as folder:
        store = f"sqlite:///{Path(folder) / 'mlflow.db'}"
        command = [sys.executable, "-m", "fnostab", "study", "--preset", preset, "--seeds", seeds]
        command += ["--launcher", "processes", "--workers", str(workers), "--accelerator", options.accelerator]
        command += extra or []
        start = time.perf_counter()
        subprocess.run(command, check=True, cwd=folder, env=os.environ | {"MLFLOW_TRACKING_URI": store})
        seconds = time.perf_counter() - start
        return seconds, _best_val_losses(store)


def _best_val_losses(store: str) -> dict[tuple[str, str], float]:
    """Best val_loss by arm and seed of the finished runs in `store`."""
    mlflow.set_tracking_uri(store)
    runs = mlflow.search_runs(search_all_experiments=True, filter_string="tags.verdict != ''", output_format="list")
    return {(run.data.tags["arm"], run.data.tags["seed"]): run.data.metrics["best_val_loss"] for run in runs}


ROWS: dict[str, Callable[[argparse.Namespace], Iterator[Row]]] = {
    "step": step_rows,
    "agc": agc_rows,
    "depth": depth_rows,
    "study": study_rows,
    "seeds": seeds_rows,
}


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW", help=", ".join(ROWS))
    parser.add_argument("--small", action="store_true", help="tiny sizes")
    parser.add_argument("--compile", default="", metavar="MODE", help="also compiled: default, reduce-overhead, ...")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("`device` (=cuda) must be there: this machine has no CUDA device")
    options.accelerator = "gpu" if options.device == "cuda" else "cpu"
    measure_and_print(options.rows, {name: partial(rows, options) for name, rows in ROWS.items()})


if __name__ == "__main__":
    main()
