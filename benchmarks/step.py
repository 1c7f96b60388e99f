"""One training step beside its floor and its peers.

    python -m benchmarks.step --repeats 15                      # the control arm on this machine's CPU cores
    python -m benchmarks.step --device cuda --repeats 50

A step is forward, far field, loss, backward, clipping with the norms that are recorded, and the update. All variants
take turns. The peers use what they would: PyTorch's own clipping and Adam.

- `ours`: the network, clipping and optimizer of a run.
- `floor`: the same without spectral layers.
- `plain`: the network with PyTorch's FFTs and channels first, with the fused Adam.
- `original`: the original study's network and its habits: complex one-sided weights at every level, Adam not fused,
  one norm after the other fetched with `.item()`.
- `neuraloperator`: `plain` with that library's spectral layer for as many modes.
"""

import argparse
import os
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks import peers
from benchmarks.timing import by_turns, ratio, spread
from fnostab.clipping import clip_gradients_
from fnostab.config import ModelConfig
from fnostab.models import build_generator
from fnostab.optics import curved_disk, far_field_amplitude

#: Names of the variants, the peers last.
VARIANTS = ("ours", "floor", "plain", "original", "neuraloperator")


def variant(name: str, network: nn.Module) -> tuple[nn.Module, torch.optim.Optimizer, Callable[[nn.Module], object]]:
    """Network, optimizer and clipping of a variant: `ours` trains `network` itself, so it is made last."""
    ours = partial(clip_gradients_, algorithm="norm", value=1.0)
    if name in ("ours", "floor"):
        made = peers.without_spectral(network) if name == "floor" else network
        return made, torch.optim.Adam(made.parameters(), lr=1e-3, fused=True), ours
    spectral = {"original": peers.OriginalConv, "neuraloperator": peers.neuraloperator_layer}.get(name, peers.FFTConv)
    made = peers.plain(network, spectral).to(next(network.parameters()).device)
    if name == "original":
        return made, torch.optim.Adam(made.parameters(), lr=1e-3, foreach=False), _clip_one_by_one
    fused = name != "neuraloperator"  # whose complex weights the fused one does not take
    return made, torch.optim.Adam(made.parameters(), lr=1e-3, fused=fused), _clip_at_once


def _clip_at_once(network: nn.Module) -> Tensor:
    return nn.utils.clip_grad_norm_(network.parameters(), 1.0)


def _clip_one_by_one(network: nn.Module) -> float:
    norms = [p.grad.norm().item() for p in network.parameters() if p.grad is not None]
    nn.utils.clip_grad_norm_(network.parameters(), 1.0, foreach=False)
    return sum(norm**2 for norm in norms) ** 0.5


def training_step(name: str, network: nn.Module, N: int, batch_size: int, device: torch.device) -> Callable[[], Tensor]:
    """One step of the variant, on patterns that are no zeros."""
    made, optimizer, clip = variant(name, network)
    made.train()
    generator = torch.Generator().manual_seed(1)
    patterns = torch.rand(batch_size, 1, N, N, generator=generator).to(device)
    probe = torch.from_numpy(curved_disk(N)).to(device)

    def step() -> Tensor:
        optimizer.zero_grad()
        patches = torch.view_as_complex(made(patterns))[..., 0]
        loss = (far_field_amplitude(patches, probe) - patterns[:, 0]).abs().mean()
        loss.backward()
        clip(made)
        optimizer.step()
        return loss.detach()

    return step


def measure(
    width: int = 32, N: int = 64, batch_size: int = 16, repeats: int = 15, device: str = "cpu"
) -> dict[str, list[float]]:
    """Seconds of every step by variant."""
    torch.manual_seed(0)
    where = torch.device(device)
    network = build_generator(ModelConfig(width=width), N).to(where)
    steps = {name: training_step(name, network, N, batch_size, where) for name in reversed(VARIANTS)}
    return by_turns({name: steps[name] for name in VARIANTS}, repeats, where)


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--N", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=15, help="at least 2")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    times = measure(arguments.width, arguments.N, arguments.batch_size, arguments.repeats, arguments.device)
    print("| variant | ms, median (quartiles) | over ours |\n|---|---|---|")
    for name, values in times.items():
        print(f"| {name} | {spread([1e3 * value for value in values])} | {ratio(values, times['ours'])} |")


if __name__ == "__main__":
    main()
