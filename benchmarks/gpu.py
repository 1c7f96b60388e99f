"""Everything that is measured on a GPU, as one command that prints one table and keeps it in one file.

    python -m benchmarks.gpu --minutes 10             # on one GPU of the H100 class
    python -m benchmarks.gpu --minutes 10             # again: what is missing from the file, and nothing else
    python -m benchmarks.gpu --render gpu.json        # the table of a file, for docs/speed.md
    python -m benchmarks.gpu --device cpu --small     # does it run at all; minutes, and no number means anything

The rows come in the order of their value: a training step, launched as one CUDA graph, beside the original's; bf16; the
graph itself; eight seeds at once; a whole Stage A; observing; AGC; neuraloperator's layer; tf32; depth. Steps are those
of real trainings of the control arm at full size, chosen by keys of the config (`benchmarks/training.py`).

The file is written after each of them. What it has of the same code, device and size is not measured again. What would
not fit into the minutes that are left, as it took before or as `benchmarks/gpu_rows.py` says, is left out and named.
What fails is named with its error, and the others go on; the exit code is 1 then. Studies have a temporary store of
their own, and their datasets are built before the clock starts.
"""

import argparse
import sys
import time
from pathlib import Path

import torch

from benchmarks.gpu_rows import MEASUREMENTS, Setting
from benchmarks.ledger import Ledger, Origin, rendered, sources_sha256
from benchmarks.table import line, machine, processor


def measure(names: list[str], setting: Setting, ledger: Ledger) -> bool:
    """Measure what the ledger lacks of `names`, as far as the time allows; returns whether none failed."""
    well = True
    for name in names:
        if ledger.is_measured(name):
            _say(f"{name}: measured before")
            continue
        needed_s = ledger.seconds(name) or MEASUREMENTS[name].about_s(setting.small)
        left_s = max(0.0, setting.seconds_left)
        if needed_s > left_s:
            ledger.left_out(name, f"it takes about {needed_s:.0f} s, and {left_s:.0f} s were left")
            _say(f"{name}: left out")
            continue
        start = time.monotonic()
        try:
            rows = list(MEASUREMENTS[name].measure(setting))
        except Exception as error:
            reason = (str(error).strip().splitlines() or [""])[0]
            ledger.failed(name, f"{type(error).__name__}: {reason}")
            _say(f"{name}: failed: {type(error).__name__}: {reason}")
            well = False
        else:
            ledger.measured(name, rows, time.monotonic() - start)
            _say(*map(line, rows))
    return well


def _say(*lines: str) -> None:
    print(*lines, sep="\n", flush=True)


def main() -> int:
    """Parse, measure, print; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = list(MEASUREMENTS)
    parser.add_argument("--minutes", type=float, default=10.0, help="what would take longer is left out")
    parser.add_argument("--file", type=Path, default=Path("benchmarks-gpu.json"), help="where the numbers are kept")
    parser.add_argument("--rows", nargs="+", choices=names, default=names, metavar="ROW", help=", ".join(names))
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--small", action="store_true", help="tiny sizes")
    parser.add_argument("--render", type=Path, metavar="FILE", help="print the table of a file and measure nothing")
    options = parser.parse_args()
    setting = Setting(options.device, options.small, time.monotonic() + 60 * options.minutes)
    try:
        if options.render:
            _say(*rendered(options.render))
            return 0
        if options.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("`device` (=cuda) must be there: this machine has no CUDA device")
        device = torch.cuda.get_device_name() if options.device == "cuda" else processor()
        ledger = Ledger(options.file, Origin(machine(), device, options.small, sources_sha256()))
    except ValueError as error:
        parser.error(str(error))
    well = measure(options.rows, setting, ledger)
    _say("", *rendered(options.file))
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
