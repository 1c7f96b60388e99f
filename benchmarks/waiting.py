"""What it costs that threads sleep while they wait for each other, and what it saves where other work takes a core.

    python -m benchmarks --rows waiting

A training step on two threads, which spin while they wait as OpenMP has it (`OMP_WAIT_POLICY` unset), or sleep
(`PASSIVE`): alone, and beside a process that keeps one core busy for each core but one. The library reads the variable
once, so each measurement is a process of its own; they take turns. "Alone" means that this benchmark runs nothing else:
a machine with other work has none.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import product

import torch

from benchmarks.step import training_step
from benchmarks.table import Row, faster
from benchmarks.timing import by_turns, in_alternating_order
from fnostab.config import ModelConfig
from fnostab.io.openmp import OPENMP_CHOICES
from fnostab.models import build_generator

#: Keeps a core busy until the process that started it is gone.
_BUSY = "import os; parent = os.getppid()\nwhile os.getppid() == parent: pass"
_SPIN, _SLEEP = "spin", "sleep"


def step_s(threads: int, width: int, repeats: int) -> list[float]:
    """Seconds of each step in this process."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    network = build_generator(ModelConfig(width=width), 64)
    step = training_step("ours", network, 64, 16, torch.device("cpu"))
    return by_turns({"step": step}, repeats)["step"]


def measure(turns: int, width: int, repeats: int, threads: int = 2) -> dict[tuple[bool, str], list[float]]:
    """Medians in seconds of each turn, by whether others are busy and by how threads wait."""

    def step(busy: bool, how: str) -> float:
        with _busy_processes(max(1, (os.cpu_count() or 1) - 1)) if busy else contextlib.nullcontext():
            return in_a_process(_waiting(how), threads, width, repeats)

    return in_alternating_order({case: partial(step, *case) for case in product((False, True), (_SPIN, _SLEEP))}, turns)


def _waiting(how: str) -> dict[str, str]:
    environment = {name: value for name, value in os.environ.items() if name not in OPENMP_CHOICES}
    return environment | ({"OMP_WAIT_POLICY": "PASSIVE"} if how == _SLEEP else {})


def in_a_process(environment: Mapping[str, str], threads: int, width: int, repeats: int) -> float:
    """The median of the seconds of a step in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.waiting", *map(str, (threads, width, repeats))]
    said = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    return statistics.median(json.loads(said))


@contextmanager
def _busy_processes(count: int) -> Iterator[None]:
    processes = [subprocess.Popen([sys.executable, "-c", _BUSY]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def rows(turns: int, width: int, repeats: int) -> Iterator[Row]:
    """Sleeping beside spinning, alone and beside busy processes."""
    found = measure(turns, width, repeats)
    for busy, where in ((True, "beside busy processes"), (False, "alone")):
        sleeping, spinning = ([1e3 * seconds for seconds in found[busy, how]] for how in (_SLEEP, _SPIN))
        what = f"step on 2 threads that sleep while they wait, {where}"
        yield faster(what, "threads that spin", sleeping, spinning, "ms", 2.0 if busy else None)


def main() -> None:
    """Print the seconds of each step in this process as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("threads", "width", "repeats"):
        parser.add_argument(name, type=int)
    print(json.dumps(step_s(**vars(parser.parse_args()))))


if __name__ == "__main__":
    main()
