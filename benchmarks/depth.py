"""What blocks cost: time and memory of a step at 4 to 32 blocks, beside the straight line through 4 and 8.

    python -m benchmarks.depth --rounds 3

Each depth runs in a process of its own, whose peak memory is what the system says; rounds take turns.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.step import training_step
from benchmarks.table import Row
from benchmarks.timing import by_turns
from fnostab.config import ModelConfig
from fnostab.models import build_generator
from fnostab.training.memory import peak_bytes

DEPTHS = (4, 8, 16, 32)


def one_depth(blocks: int, width: int, device: str) -> dict[str, float]:
    """Seconds of a step (median of 5) and peak bytes of this process, or of the GPU."""
    torch.manual_seed(0)
    where = torch.device(device)
    network = build_generator(ModelConfig(width=width, fno_blocks=blocks), 64).to(where)
    step = training_step("ours", network, 64, 16, where)
    seconds = statistics.median(by_turns({"step": step}, 5, where, warm_up=1)["step"])
    return {"seconds": seconds, "bytes": _peak_of_this_program() if where.type == "cpu" else peak_bytes(where)}


def _peak_of_this_program() -> float:
    """Peak bytes since the program began; `getrusage`, on Linux, counts the one that started it too."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return peak_bytes(torch.device("cpu"))
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM:")))


def measure(rounds: int = 3, width: int = 32, device: str = "cpu") -> dict[int, dict[str, float]]:
    """Medians over the rounds of seconds and bytes by depth."""
    found: dict[int, list[dict[str, float]]] = {blocks: [] for blocks in DEPTHS}
    for _ in range(rounds):
        for blocks in DEPTHS:
            command = [sys.executable, "-m", "benchmarks.depth", "--only", str(blocks)]
            command += ["--width", str(width), "--device", device, "--threads", str(torch.get_num_threads())]
            said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            found[blocks].append(json.loads(said))
    return {
        blocks: {key: statistics.median(one[key] for one in ones) for key in ("seconds", "bytes")}
        for blocks, ones in found.items()
    }


def over_linear(costs: dict[int, dict[str, float]], blocks: int, key: str) -> float:
    """The cost of `blocks` over c(4) + (blocks - 4) (c(8) - c(4)) / 4."""
    four, eight = costs[4][key], costs[8][key]
    return costs[blocks][key] / (four + (blocks - 4) * (eight - four) / 4)


def rows(rounds: int, width: int = 32, device: str = "cpu") -> Iterator[Row]:
    """Time and memory of 16 and 32 blocks beside the straight line."""
    costs = measure(rounds, width, device)
    for key, what, unit, words in (("seconds", "time of a step", 1e3, "ms"), ("bytes", "memory", 2**-20, "MiB")):
        found = {blocks: over_linear(costs, blocks, key) for blocks in (16, 32)}
        value = ", ".join(f"{value:.2f} x at {blocks}" for blocks, value in found.items())
        times = ", ".join(f"{costs[blocks][key] * unit:.0f}" for blocks in DEPTHS)
        what, times = f"{what} at 16 and 32 blocks", f"{times} {words} at 4, 8, 16, 32"
        yield Row(what, "the line through 4 and 8", "<= 1.2 x", value, max(found.values()) <= 1.2, times)


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads")
    parser.add_argument("--only", type=int, help="measure this depth in this process and print it as JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.only:
        print(json.dumps(one_depth(arguments.only, arguments.width, arguments.device)))
        return
    costs = measure(arguments.rounds, arguments.width, arguments.device)
    print("| blocks | step ms | over linear | peak MiB | over linear |\n|---|---|---|---|---|")
    for blocks, cost in costs.items():
        time, memory = (over_linear(costs, blocks, key) for key in ("seconds", "bytes"))
        mib = cost["bytes"] / 2**20
        print(f"| {blocks} | {1e3 * cost['seconds']:.0f} | {time:.2f} | {mib:.0f} | {memory:.2f} |")


if __name__ == "__main__":
    main()
