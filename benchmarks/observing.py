"""What observing costs: a training with every series, verdict input and picture on, beside the same with all of it off.

    python -m benchmarks.observing --preset quick --epochs 1 --turns 24 --threads 1

Observed: loss, norms and clipped fraction of every step, per-parameter norms, activations and SSIM of every epoch, the
writing to a fresh sqlite store, MLflow's system metrics. Off: the network, the physics, clipping by PyTorch, the
R-factor on the validation patches. Both train the same weights on the same batches.

The two take turns (off, on, on, off), so that a drift of the machine meets them alike, and each turn is taken twice:
as wall clock, and as processor time of the process, all of its threads, which other work on the machine moves less.
The time inside of what observes is also summed up by a stopwatch, which sees neither threads nor what a step costs more
elsewhere. Pictures, which come every few epochs only, are left out.
"""

import argparse
import contextlib
import gc
import logging
import math
import os
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import lightning
import torch

from benchmarks.table import Row, percent
from benchmarks.timing import Spread, ratio, spread
from fnostab.config import ArmConfig, resolve_config
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
from fnostab.training.step import TrainingStep
from fnostab.training.trainer import make_trainer

#: What the validation of an epoch does besides the R-factor of its patches.
_OF_EPOCHS = ("stitched_amplitude_ssim", "stitch_patches")
#: The methods of `SeriesRecorder` that a training calls.
_OF_THE_RECORDER = ("on_fit_start", "on_train_start", "on_train_batch_end", "on_train_epoch_end")


class BareStep(TrainingStep):
    """A step that clips as PyTorch does; its record, which a CUDA graph hands out, is loss and norm alone."""

    def prepare(self, optimizer: torch.optim.Optimizer, *, measures_layers: bool = False) -> None:
        norm = torch.nn.utils.clip_grad_norm_(self._module.generator.parameters(), self._module.config.clip.val)
        self.record = torch.stack([self._loss, norm, norm, norm])


class Unobserved(PtychoModule):
    """Trains alike and looks at nothing but the R-factor of patches."""

    def __init__(self, config: ArmConfig, dataset: Dataset) -> None:
        super().__init__(config, dataset)
        self.step = BareStep(self, self.step.clipper)


class Cost(NamedTuple):
    """Seconds of wall clock, and of processors in all threads of the process."""

    wall_s: float
    cpu_s: float


class Observed(NamedTuple):
    """What each training cost without and with observing, a turn each, and the share inside of what observes."""

    off: list[Cost]
    on: list[Cost]
    inside: list[float]

    @property
    def wall(self) -> Spread:
        """Wall clock with observing over that without, of each turn."""
        return ratio([cost.wall_s for cost in self.on], [cost.wall_s for cost in self.off])

    @property
    def cpu(self) -> Spread:
        """The same of processor time."""
        return ratio([cost.cpu_s for cost in self.on], [cost.cpu_s for cost in self.off])


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


class Clock(lightning.Callback):
    """Measures from the beginning of epoch `first` to the end; with 0, from before the first step's observations."""

    def __init__(self, first: int, watch: Stopwatch | None) -> None:
        self._first, self._watch = first, watch
        self._begun = Cost(0.0, 0.0)

    def start(self, device: torch.device) -> None:
        """Start the clock, and the stopwatch."""
        self._begun = _read(device)
        if self._watch:
            self._watch.total_s = 0.0

    def on_train_epoch_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        if 0 < trainer.current_epoch == self._first:
            self.start(module.device)

    def stop(self, device: torch.device) -> Cost:
        """What it cost until now."""
        return Cost(*(now - then for now, then in zip(_read(device), self._begun, strict=True)))


def _read(device: torch.device) -> Cost:
    """The time now, when the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return Cost(time.perf_counter(), time.process_time())


class Turns:
    """Trains `config` on `dataset` in `folder`, observed or not; the epochs before `first` are not counted."""

    def __init__(self, config: ArmConfig, dataset: Dataset, folder: Path, first: int) -> None:
        self._config, self._dataset, self._folder, self._first = config, dataset, folder, first

    def off(self) -> Cost:
        """Train and look at nothing."""
        with _replaced(lambda name: lambda *_: Stitched() if name == "stitch_patches" else math.nan):
            return self._train(Unobserved, [], None)

    def on(self, watch: Stopwatch) -> Cost:
        """Train and observe, with the time that `watch` can see."""
        with (
            open_run(self._config, self._folder) as tracker,
            _replaced(lambda name: watch.timed(getattr(validation, name))),
        ):
            recorder = SeriesRecorder(History(), tracker)
            for name in _OF_THE_RECORDER:
                setattr(recorder, name, watch.timed(getattr(recorder, name)))
            return self._train(PtychoModule, [recorder], watch)

    def _train(self, kind: type[PtychoModule], callbacks: list, watch: Stopwatch | None) -> Cost:
        torch.manual_seed(self._config.seed)
        module = kind(self._config, self._dataset)
        clock = Clock(self._first, watch)
        trainer = make_trainer(self._config, [clock, *callbacks], CheckpointFiles(self._folder))
        loaders = make_loaders(trainer, self._dataset, self._config)
        gc.collect()  # a trainer and its module refer to each other: those of earlier turns are no part of this one
        clock.start(torch.device("cpu"))
        trainer.fit(module, *loaders, weights_only=True)
        return clock.stop(module.device)


def _replaced(by: Callable[[str], Callable]) -> contextlib.AbstractContextManager:
    """Have `_OF_EPOCHS` replaced by what `by` gives for each name."""
    return mock.patch.multiple(validation, **{name: by(name) for name in _OF_EPOCHS})


def measure(preset: str = "quick", epochs: int = 1, turns: int = 24, first: int = 0, **keys: object) -> Observed:
    """Train `turns` times each way, by turns, after one of each that warms up.

    The epochs before `first` are not counted: on a GPU, kernels are captured then. `keys` are further ones of the
    config.
    """
    for name in ("lightning.pytorch", "mlflow"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    config = resolve_config({"preset": preset, "epochs": epochs, **keys})
    dataset = load_or_build(config.data)
    found = Observed([], [], [])
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name), mock.patch.dict(os.environ):
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{Path(name) / 'mlflow.db'}"
        open_store()
        both = Turns(config, dataset, Path(name), first)
        both.off(), both.on(Stopwatch())
        for turn in range(2 * turns):
            if turn % 4 in (0, 3):
                found.off.append(both.off())
            else:
                watch = Stopwatch()
                found.on.append(both.on(watch))
                found.inside.append(watch.total_s / found.on[-1].wall_s)
    return found


def row(found: Observed, *, by_wall: bool = False) -> Row:
    """The row of the table.

    The processor time by turns decides, since other work moves it least; on a GPU the wall clock (`by_wall`).
    """
    wall, cpu, inside = shares(found)
    words = "training with all of it off, by turns"
    seconds = f"{spread([cost.wall_s for cost in found.on])} s against {spread([cost.wall_s for cost in found.off])} s"
    value = f"{cpu} of the processor time, {wall} of the wall clock"
    met = (found.wall if by_wall else found.cpu).median <= 1.02
    return Row("norms, health, writing at every step", words, "<= 2 %", value, met, f"{seconds}; stopwatch {inside}")


def shares(found: Observed) -> tuple[str, str, str]:
    """In per cent: wall clock by turns, processor time by turns, and the stopwatch."""
    wall, cpu = (percent(Spread(*(100 * (value - 1) for value in one))) for one in (found.wall, found.cpu))
    return wall, cpu, percent(spread([100 * share for share in found.inside]))


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="quick")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--turns", type=int, default=24)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    found = measure(arguments.preset, arguments.epochs, arguments.turns)
    wall, cpu, inside = shares(found)
    print(f"{arguments.preset}, {arguments.epochs} epochs, {arguments.turns} turns, {arguments.threads} threads")
    for kind, one in (("off", found.off), ("observed, without pictures", found.on)):
        print(f"{kind}: {spread([cost.wall_s for cost in one])} s, {spread([cost.cpu_s for cost in one])} s of CPU")
    print(f"by turns: {wall} of the wall clock, {cpu} of the processor time; by the stopwatch: {inside}")


if __name__ == "__main__":
    main()
