"""What observing costs: a training with every series, verdict input and picture on, beside the same with all of it off.

    python -m benchmarks.observing --preset quick --epochs 1 --repeats 8

Observed: loss, norms and clipped fraction of every step, per-parameter norms, activations and SSIM of every epoch, the
writing to a fresh sqlite store, MLflow's system metrics. Off: the network, the physics, clipping by PyTorch, the
R-factor on the validation patches. The two take turns, so that a drift of the machine meets them alike; on a machine
with other work that comparison is still noisy, so the time inside of what observes is also summed up by a stopwatch.
Pictures, which come every few epochs only, are left out.
"""

import argparse
import contextlib
import logging
import math
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import torch

from fnostab.config import resolve_config
from fnostab.dataset import Dataset, load_or_build
from fnostab.evaluation import Stitched
from fnostab.health.history import History
from fnostab.tracking.run import open_run
from fnostab.tracking.store import open_store
from fnostab.training import validation
from fnostab.training.batches import make_loaders
from fnostab.training.callbacks import SeriesRecorder
from fnostab.training.checkpoint_files import CheckpointFiles
from fnostab.training.module import PtychoModule
from fnostab.training.trainer import make_trainer

#: What the validation of an epoch does besides the R-factor of its patches.
_OF_EPOCHS = ("stitched_amplitude_ssim", "stitch_patches")


class Unobserved(PtychoModule):
    """Trains alike and looks at nothing but the R-factor of patches."""

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None) -> None:
        torch.nn.utils.clip_grad_norm_(self.generator.parameters(), self.config.clip.val)


def train_s(module: PtychoModule, callbacks: list, dataset: Dataset, folder: Path) -> float:
    """Seconds that the training of `module` takes."""
    trainer = make_trainer(module.config, callbacks, CheckpointFiles(folder))
    loaders = make_loaders(trainer, dataset, module.config)
    start = time.perf_counter()
    trainer.fit(module, *loaders, weights_only=True)
    return time.perf_counter() - start


class Stopwatch:
    """Adds up the seconds inside of some functions."""

    def __init__(self) -> None:
        self.total_s = 0.0

    def timed(self, function: Callable) -> Callable:
        def timed(*arguments, **named):
            start = time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                self.total_s += time.perf_counter() - start

        return timed


def _replaced(by: Callable[[str], Callable]) -> contextlib.AbstractContextManager:
    """Have `_OF_EPOCHS` replaced by what `by` gives for each name."""
    return mock.patch.multiple(validation, **{name: by(name) for name in _OF_EPOCHS})


class Observed(NamedTuple):
    """Seconds of each training without and with observing, and the share inside of what observes."""

    off: list[float]
    on: list[float]
    inside: list[float]


def measure(preset: str = "quick", epochs: int = 1, repeats: int = 8) -> Observed:
    """Train `repeats` times each way, by turns."""
    for name in ("lightning.pytorch", "mlflow"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    config = resolve_config({"preset": preset, "epochs": epochs})
    dataset = load_or_build(config.data)
    off, on, inside = [], [], []
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name), mock.patch.dict(os.environ):
        folder = Path(name)
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder / 'mlflow.db'}"
        open_store()
        for repeat in range(2 * repeats):
            observed = repeat % 4 in (1, 2)  # off, on, on, off: a steady drift favours neither
            if not observed:
                with _replaced(lambda name: lambda *_: Stitched() if name == "stitch_patches" else math.nan):
                    off.append(train_s(Unobserved(config, dataset), [], dataset, folder))
                continue
            watch = Stopwatch()
            with (
                open_run(config, folder) as tracker,
                _replaced(lambda name, watch=watch: watch.timed(getattr(validation, name))),
            ):
                recorder = SeriesRecorder(History(), tracker)
                for name in ("on_fit_start", "on_train_start", "on_train_batch_end", "on_train_epoch_end"):
                    setattr(recorder, name, watch.timed(getattr(recorder, name)))
                on.append(train_s(PtychoModule(config, dataset), [recorder], dataset, folder))
            inside.append(watch.total_s / on[-1])
    return Observed(off, on, inside)


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="quick")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=8)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    found = measure(arguments.preset, arguments.epochs, arguments.repeats)
    middle, least = statistics.median(found.on) / statistics.median(found.off) - 1, min(found.on) / min(found.off) - 1
    print(f"{arguments.preset}, {arguments.epochs} epochs, {arguments.repeats} repeats, {arguments.threads} threads")
    print(f"off: {_spread(found.off)}; observed, without pictures: {_spread(found.on)}")
    print(f"series, health, writing: {100 * middle:.1f} % by the medians, {100 * least:.1f} % by the fastest")
    print(
        f"the same by the stopwatch: {100 * statistics.median(found.inside):.1f} % "
        f"({100 * max(found.inside):.1f} % at most)"
    )


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} s ({min(values):.2f} to {max(values):.2f})"


if __name__ == "__main__":
    main()
