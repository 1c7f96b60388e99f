"""How fast onnxruntime answers beside torch, on one thread: python -m benchmarks.onnx_speed

The network is the control arm's with random weights (N 64, 4 blocks), as a run ships it: a pt2 export, and the ONNX
file made of it. Both take the same counts, by turns; times are CPU seconds, since other work may run beside. It takes
some minutes, and needs the extra `onnx`.
"""

import argparse
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):  # before torch is imported
    os.environ[name] = "1"

import numpy as np  # noqa: E402
import torch  # noqa: E402
from numpy.typing import NDArray  # noqa: E402

from benchmarks.table import multiple  # noqa: E402
from benchmarks.timing import ratio, spread  # noqa: E402
from fnostab.config import resolve_config  # noqa: E402
from fnostab.export.agreement import check_agreement  # noqa: E402
from fnostab.export.conversion import content_of, convert  # noqa: E402
from fnostab.export.layouts import Layout, fnostab_layout  # noqa: E402
from fnostab.export.sessions import open_session  # noqa: E402
from fnostab.models.registry import build_generator  # noqa: E402
from fnostab.training.shipped_model import EXAMPLE_PATTERNS, CountsToObject  # noqa: E402


def shipped(width: int, N: int) -> tuple[Layout, bytes]:
    """A network of `width` as pt2 has it, and the content of its ONNX file."""
    config = resolve_config({"arch": "hybrid", "data.N": N, "width": width, "fno_blocks": 4})
    torch.manual_seed(0)
    network = CountsToObject(build_generator(config.model, N), 0.03).eval()
    example = (torch.ones(EXAMPLE_PATTERNS, N, N),)
    exported = torch.export.export(network, example, dynamic_shapes=[{0: torch.export.Dim.AUTO}])
    layout = fnostab_layout(exported.module(), N, 1)
    return layout, content_of(convert(layout), {}, "fnostab benchmark")


def cpu_s(compute: Callable[[], Any]) -> float:
    """CPU seconds of one call."""
    start = time.process_time()
    compute()
    return time.process_time() - start


def measure(layout: Layout, content: bytes, batch: int, turns: int) -> tuple[dict[str, list[float]], float]:
    """CPU seconds of each turn by program, and the largest deviation over the largest magnitude."""
    session = open_session(content, threads=1)
    counts: NDArray[np.float32] = np.random.default_rng(0).exponential(500, (batch, *layout.shape)).astype(np.float32)
    given = torch.from_numpy(counts)

    def in_torch() -> None:
        with torch.inference_mode():
            layout.network(given)

    programs: dict[str, Callable[[], Any]] = {
        "onnxruntime": lambda: session.run(["patches"], {"counts": counts}),
        "torch": in_torch,
    }
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for turn in range(turns + 1):
        for name, program in programs.items():
            spent = cpu_s(program)
            if turn:  # the first is warm-up
                seconds[name].append(spent)
    return seconds, check_agreement(content, layout, [counts])


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a row for each width and batch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--small", action="store_true", help="a few seconds: whether it runs at all")
    options = parser.parse_args(arguments)
    turns = 2 if options.small else options.turns
    print("| width | batch | torch, ms a pattern | onnxruntime | torch / onnxruntime | largest deviation |")
    print("|---|---|---|---|---|---|")
    for width in (4,) if options.small else (16, 32):
        layout, content = shipped(width, 32 if options.small else 64)
        for batch in (16, 64):
            seconds, deviation = measure(layout, content, batch, turns)
            ms = {name: spread([1e3 * each / batch for each in values]) for name, values in seconds.items()}
            found = multiple(ratio(seconds["torch"], seconds["onnxruntime"]))
            cells = (width, batch, ms["torch"], ms["onnxruntime"], found, f"{deviation:.2g}")
            print(f"| {' | '.join(map(str, cells))} |", flush=True)


if __name__ == "__main__":
    main()
