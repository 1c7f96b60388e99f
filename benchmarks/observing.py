"""What observing costs: a training with every series, verdict input and picture on, beside the same with all of it off.

    python benchmarks/observing.py --preset quick --epochs 1 --repeats 8

Observed: loss, norms and clipped fraction of every step, per-parameter norms, activations and SSIM of every epoch, the
writing to a fresh sqlite store, MLflow's system metrics. Off: the network, the physics, clipping by PyTorch, the
R-factor on the validation patches. The two take turns, so that a drift of the machine meets them alike; on a machine
with other work that comparison is still noisy, so the time inside of what observes is also summed up by a stopwatch.
Pictures come every few epochs only, so one set is timed by itself, and counted as often as the preset draws it on the
way.
"""

import argparse
import logging
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

from fnostab import tracking
from fnostab.callbacks import SeriesRecorder
from fnostab.config import ArmConfig, resolve_config
from fnostab.datamodule import PtychoDataModule
from fnostab.dataset import Dataset, load_or_build
from fnostab.mlproject.train import _Run
from fnostab.training import PtychoModule, make_trainer


class Unobserved(PtychoModule):
    """Trains alike and looks at nothing but the R-factor."""

    def __init__(self, config: ArmConfig, dataset: Dataset) -> None:
        super().__init__(config, dataset)
        self._val_objects = None  # no SSIM

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None) -> None:
        torch.nn.utils.clip_grad_norm_(self.generator.parameters(), self.config.clip.val)


def train_s(module: PtychoModule, callbacks: list, dataset: Dataset, folder: Path) -> float:
    """Seconds that the training of `module` takes."""
    trainer = make_trainer(module.config, callbacks, folder)
    data = PtychoDataModule(dataset, module.config)
    start = time.perf_counter()
    trainer.fit(module, datamodule=data, weights_only=True)
    return time.perf_counter() - start


class Stopwatch:
    """Adds up the seconds inside of some methods of some objects."""

    def __init__(self) -> None:
        self.total_s = 0.0

    def watch(self, owner: object, *names: str) -> None:
        for name in names:
            setattr(owner, name, self._timed(getattr(owner, name)))

    def _timed(self, function: Callable) -> Callable:
        def timed(*arguments, **named):
            start = time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                self.total_s += time.perf_counter() - start

        return timed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="quick")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=8)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(arguments.threads)

    whole = resolve_config({"preset": arguments.preset}).train
    config = resolve_config({"preset": arguments.preset, "epochs": arguments.epochs})
    dataset = load_or_build(config.data)
    off, on, inside, picture = [], [], [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder / 'mlflow.db'}"
        os.chdir(folder)
        tracking.connect()
        for repeat in range(2 * arguments.repeats):
            observed = repeat % 4 in (1, 2)  # off, on, on, off: a steady drift favours neither
            if not observed:
                off.append(train_s(Unobserved(config, dataset), [], dataset, folder))
                continue
            with tracking.open_run(config) as tracker:
                run = _Run(config, dataset, tracker, folder, lambda line: None)
                module = PtychoModule(config, dataset)
                recorder, watch = SeriesRecorder(run.history, tracker), Stopwatch()
                watch.watch(recorder, "on_fit_start", "on_train_start", "on_train_batch_end", "on_train_epoch_end")
                watch.watch(module, "_amplitude_ssim")
                on.append(train_s(module, [recorder], dataset, folder))
                inside.append(watch.total_s / on[-1])
                picture.append(_seconds(lambda run=run, module=module: run._draw(module, 1, 0)))
        os.chdir("/")

    middle, least = statistics.median(on) / statistics.median(off) - 1, min(on) / min(off) - 1
    sets = (whole.epochs - 1) // whole.picture_every_epochs
    share = statistics.median(picture) * sets / (statistics.median(off) / arguments.epochs * whole.epochs)
    print(f"{arguments.preset}, {arguments.epochs} epochs, {arguments.repeats} repeats, {arguments.threads} threads")
    print(f"off: {_spread(off)}; observed, without pictures: {_spread(on)}")
    print(f"series, health, writing: {100 * middle:.1f} % by the medians, {100 * least:.1f} % by the fastest")
    print(f"the same by the stopwatch: {100 * statistics.median(inside):.1f} % ({100 * max(inside):.1f} % at most)")
    print(f"one set of pictures: {_spread(picture)}; {sets} in {whole.epochs} epochs: {100 * share:.1f} %")


def _seconds(function) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} s ({min(values):.2f} to {max(values):.2f})"


if __name__ == "__main__":
    main()
