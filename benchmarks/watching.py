"""What watching costs: ten training steps, and one look at all stages on the fixed batch, by turns.

    python -m benchmarks.watching --turns 15

Both are timed as processor time of one thread, which other work on the machine moves less than the wall clock. The
steps are those of the ordinary way; what is written to a store comes on top.
"""

import argparse
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from benchmarks.timing import Spread, ratio, spread
from fnostab.config import resolve_config
from fnostab.dataset import load_or_build
from fnostab.training.batches import EpochOrder, PatchLoader, resident
from fnostab.training.fixed_batch import watch_fixed_batch
from fnostab.training.joint import Step, take_together
from fnostab.training.module import PtychoModule

#: Steps from one look to the next.
EVERY = 10


class Watching(NamedTuple):
    """Processor time of the steps and of the look of each turn, in seconds."""

    steps: list[float]
    watch: list[float]

    @property
    def cost(self) -> Spread:
        """Processor time with watching over that without it."""
        return ratio([a + b for a, b in zip(self.steps, self.watch, strict=True)], self.steps)


def measure(preset: str = "quick", turns: int = 15, **keys: object) -> Watching:
    """Time both `turns` times, after one of each that warms up; `keys` are further ones of the config."""
    few = {"data.max_train_patches": 512, "data.max_val_patches": 64}
    config = resolve_config({"preset": preset, "optim.schedule": "constant", **few, **keys})
    torch.manual_seed(config.seed)
    dataset = load_or_build(config.data)
    module = PtychoModule(config, dataset).train()
    order = EpochOrder(dataset.train, config.train.batch_size, config.seed, config.train.overlap_weight > 0)
    loader = PatchLoader(resident(dataset.train, module.device), order)
    batches = [batch for batch, _ in zip(loader, range(EVERY), strict=False)]
    optimizer = module.configure_optimizers()

    def steps() -> None:
        for place in range(EVERY):
            take_together([Step(module, optimizer, batches[place % len(batches)])])

    def watch() -> None:
        torch.stack(list(watch_fixed_batch(module).values())).tolist()

    found = Watching([], [])
    for turn in range(turns + 1):
        for function, times in ((steps, found.steps), (watch, found.watch)):
            seconds = _processor_s(function)
            if turn:
                times.append(seconds)
    return found


def _processor_s(function: Callable[[], None]) -> float:
    begun = time.process_time()
    function()
    return time.process_time() - begun


def main() -> None:
    """Print what is found."""
    parser = argparse.ArgumentParser(description="what watching every ten steps costs")
    parser.add_argument("--preset", default="quick")
    parser.add_argument("--turns", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = measure(arguments.preset, arguments.turns)
    print(f"{EVERY} steps {spread(found.steps)} s, a look {spread(found.watch)} s: {found.cost} times the time")


if __name__ == "__main__":
    main()
