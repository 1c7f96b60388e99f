"""Peak memory and speed of `fnostab reconstruct` against the number of patterns, each in a process of its own.

    python -m benchmarks.streaming --model models:/fnostab-stage-a-quick@champion --patterns 500,5000

The scans are random counts on a square grid, 9 px apart, in HDF5 files as detectors write them (a frame a chunk, 16
bits, not compressed): memory and speed do not depend on what the patterns show. CPU seconds are those of the process.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import h5py
import numpy as np

_STEP_PX = 9.0


def write_scan(path: Path, n: int, size: int, mean_counts: float) -> None:
    """Write `n` random patterns and their positions, by a few at a time."""
    side = int(np.ceil(n**0.5))
    rows, columns = (axis.ravel()[:n] * _STEP_PX for axis in np.mgrid[:side, :side])
    with h5py.File(path, "w") as file:
        data = file.create_dataset("data", (n, size, size), "u2", chunks=(1, size, size))
        for start in range(0, n, 100):
            shape = (min(100, n - start), size, size)
            data[start : start + 100] = np.random.default_rng(start).poisson(mean_counts, shape)
        file["y"], file["x"] = rows, columns


def measured(model: str, scan: Path, options: list[str]) -> tuple[int, float, str]:
    """Peak memory in MiB, CPU seconds, and the line on its times, of one reconstruction."""
    command = [sys.executable, "-m", "fnostab", "reconstruct", "--model", model, "--data", str(scan)]
    command += ["--out", str(scan.with_name("recon.npz")), "--paths", "patterns=/data,y_px=/y,x_px=/x"]
    with subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True) as process:
        said = process.stdout.read() if process.stdout else ""
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(said)
    line = next(line for line in said.splitlines() if line.startswith("patterns: "))
    return usage.ru_maxrss // 1024, usage.ru_utime + usage.ru_stime, line.removeprefix("patterns: ")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="any that fnostab reconstruct takes")
    parser.add_argument("--patterns", default="500,5000", help="numbers of patterns")
    parser.add_argument("--size", type=int, default=64, help="pixels of a pattern along each axis")
    parser.add_argument("--mean_counts", type=float, default=30.0, help="counts of a pixel")
    arguments, options = parser.parse_known_args()
    print("| patterns | file, MB | peak memory, MiB | CPU s | of which |\n|---|---|---|---|---|")
    for n in map(int, arguments.patterns.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            scan = Path(folder) / "scan.h5"
            write_scan(scan, n, arguments.size, arguments.mean_counts)
            memory, seconds, line = measured(arguments.model, scan, options)
            print(f"| {n} | {scan.stat().st_size / 1e6:.0f} | {memory} | {seconds:.1f} | {line} |", flush=True)


if __name__ == "__main__":
    main()
