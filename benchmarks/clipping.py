"""What clipping costs: each rule as a share of one training step, beside PyTorch's own and a plain loop.

    python -m benchmarks.clipping --device cpu --width 32
    python -m benchmarks.clipping --device cuda --width 32 --repeats 50

A step is forward, backward and Adam of the hybrid network on random patterns, without clipping. Steps and clippings are
interleaved, so that a drift of the machine meets them alike; times are medians with quartiles over the repeats.
Our rules also give the norms before and after and the clipped fraction; the peers do not.
"""

import argparse
import copy
import statistics
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.table import Row, faster, percent
from benchmarks.timing import spread, timed
from fnostab.clipping import Clipper, clip_gradients_
from fnostab.config import AUTO_CLIP_VALUES, ModelConfig
from fnostab.models import build_generator


def agc_loop_(parameters: Iterable[nn.Parameter], clip_factor: float = 0.01, eps: float = 1e-3) -> None:
    """AGC as it is usually written (timm, NFNets): parameter by parameter, masked copies, units on axis 0."""
    for parameter in parameters:
        if parameter.grad is None:
            continue
        axes = tuple(range(1, parameter.ndim)) or None
        weight_norm = torch.linalg.vector_norm(parameter.detach(), dim=axes, keepdim=True)
        gradient_norm = torch.linalg.vector_norm(parameter.grad, dim=axes, keepdim=True)
        limit = weight_norm.clamp_(min=eps).mul_(clip_factor)
        clipped = parameter.grad * (limit / gradient_norm.clamp(min=1e-6))
        parameter.grad.copy_(torch.where(gradient_norm > limit, clipped, parameter.grad))


def measure(
    arch: str = "hybrid",
    width: int = 32,
    fno_blocks: int = 4,
    N: int = 64,
    batch_size: int = 16,
    repeats: int = 20,
    device: str = "cpu",
) -> tuple[str, dict[str, list[float]]]:
    """What was measured, in words, and milliseconds of every repeat by name; `step` is the training step."""
    where = torch.device(device)
    torch.manual_seed(0)
    config = ModelConfig(arch=arch, width=width, fno_blocks=fno_blocks)
    network = build_generator(config, N).to(where)
    patterns = torch.rand(batch_size, 1, N, N, device=where)
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-3, fused=True)

    def step() -> None:
        optimiser.zero_grad()
        network(patterns).abs().mean().backward()
        optimiser.step()

    step()
    saved: list[Tensor] = [copy.deepcopy(p.grad) for p in network.parameters() if p.grad is not None]

    def restore() -> None:
        with_gradient = [p.grad for p in network.parameters() if p.grad is not None]
        torch._foreach_copy_(with_gradient, saved)

    parameters = list(network.parameters())
    rules: dict[str, Callable[[], object]] = {
        "none (norm only)": lambda: clip_gradients_(network, "none", 0.0),
        "norm": lambda: clip_gradients_(network, "norm", 1.0),
        "norm, torch": lambda: nn.utils.clip_grad_norm_(parameters, 1.0),
        "value": lambda: clip_gradients_(network, "value", 0.5),
        "value, torch": lambda: nn.utils.clip_grad_value_(parameters, 0.5),
        "agc unit": lambda: clip_gradients_(network, "agc", 0.01),
        "agc tensor": lambda: clip_gradients_(network, "agc", 0.01, "tensor"),
        **{name: partial(Clipper(name, AUTO_CLIP_VALUES[name]).clip_, network) for name in ("zclip", "adagc", "skip")},
        "agc, plain loop": lambda: torch.no_grad()(agc_loop_)(parameters),
    }
    times: dict[str, list[float]] = {name: [] for name in ("step", *rules)}
    for repeat in range(repeats + 2):  # the first two warm up
        measured = {"step": 1e3 * timed(step, where)}
        for name, rule in rules.items():
            restore()
            measured[name] = 1e3 * timed(rule, where)
        if repeat >= 2:
            for name, value in measured.items():
                times[name].append(value)
    n_parameters = sum(p.numel() for p in parameters)
    what = (
        f"{arch}, width {width}, {fno_blocks} blocks, N {N}, batch "
        f"{batch_size}: {n_parameters:,} parameters in {len(parameters)} tensors; torch {torch.__version__}, "
        f"{device}, {torch.get_num_threads()} threads, {repeats} repeats"
    )
    return what, times


def rows(at_most_percent: float, loop_at_least: float | None = None, **sizes: Any) -> Iterator[Row]:
    """AGC beside a step that only takes the norm, as every step does, and beside the loop; `sizes` go to `measure`."""
    _, ms = measure(**sizes)
    agc, norm, step = ms["agc unit"], ms["none (norm only)"], ms["step"]
    share = spread([100 * (a - n) / s for a, n, s in zip(agc, norm, step, strict=True)])
    times = f"{spread(agc)} ms, the norm alone {spread(norm)} ms, the step {spread(step)} ms"
    words, target = "the step without clipping (its norm is taken)", f"<= {at_most_percent:g} %"
    yield Row("AGC", words, target, percent(share), share.median <= at_most_percent, times)
    yield faster("AGC", "a loop over parameters", agc, ms["agc, plain loop"], "ms", loop_at_least)


def table(times: dict[str, list[float]]) -> str:
    """A Markdown table: median, quartiles, share of the step, and the ratio to the plain AGC loop."""
    step, loop = statistics.median(times["step"]), statistics.median(times["agc, plain loop"])
    rows = ["| rule | median ms | quartiles ms | share of a step | against the plain loop |", "|---|---|---|---|---|"]
    for name, values in times.items():
        low, median, high = statistics.quantiles(values, n=4)
        rows.append(f"| {name} | {median:.2f} | {low:.2f}-{high:.2f} | {median / step:.2%} | {median / loop:.2f} |")
    return "\n".join(rows)


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--arch", default="hybrid")
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--fno-blocks", type=int, default=4)
    parser.add_argument("--N", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=20, help="at least 2")
    parser.add_argument("--threads", type=int, default=None, help="CPU threads; default: all cores")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    del arguments.threads
    what, times = measure(**vars(arguments))
    print(what, table(times), sep="\n\n")


if __name__ == "__main__":
    main()
