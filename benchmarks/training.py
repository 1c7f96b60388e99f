"""Steps of real trainings, timed: what Lightning, the module, clipping and the optimizer take together.

Trainings are chosen by the keys of their configs alone, so whatever a key switches on is measured as a user gets it.
Those that are compared take turns; each turn is a training of its own, whose first epoch, with whatever a device
captures, compiles or looks up, is not counted.
"""

import gc
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import lightning
import torch

from benchmarks.timing import in_alternating_order
from fnostab.config import ArmConfig, resolve_config
from fnostab.dataset import load_or_build
from fnostab.health.history import History
from fnostab.training.batches import make_loaders
from fnostab.training.callbacks import SeriesRecorder
from fnostab.training.checkpoint_files import CheckpointFiles
from fnostab.training.denormals import denormals_are_zero
from fnostab.training.module import PtychoModule
from fnostab.training.precision import check_precision, set_matrix_precision
from fnostab.training.series import Nowhere
from fnostab.training.trainer import make_trainer


class Case(NamedTuple):
    """What all trainings of a comparison have in common: keys, and the number of turns."""

    keys: Mapping[str, Any]
    turns: int


def full_case(device: str, turns: int = 4, steps: int = 64, epochs: int = 5) -> Case:
    """The control arm at full size: width 32, 4 blocks, N 64, batch 16; `steps` steps an epoch."""
    patches = {"data.max_train_patches": 16 * steps, "data.max_val_patches": 16}
    return Case({"preset": "stage_a", "epochs": epochs, "accelerator": _accelerator(device), **patches}, turns)


def small_case(device: str) -> Case:
    """A training that ends in a second on a CPU, and whose times mean nothing."""
    patches = {"data.max_train_patches": 48, "data.max_val_patches": 16}
    return Case({"preset": "smoke", "epochs": 2, "accelerator": _accelerator(device), **patches}, 2)


def _accelerator(device: str) -> str:
    return "gpu" if device == "cuda" else "cpu"


def ms_by_turns(
    case: Case, variants: Mapping[str, Mapping[str, Any]], others: Mapping[str, Callable[[], float]] | None = None
) -> dict[str, list[float]]:
    """Milliseconds a step of each variant, which lays its keys over those of `case`: the median epoch of each turn.

    `others` are timed in each turn too, and give milliseconds themselves. Every second turn goes the other way round.
    """
    _quieten()
    configs = {name: resolve_config({**case.keys, **keys}) for name, keys in variants.items()}
    timed: dict[str, Callable[[], float]] = {name: _trains(config) for name, config in configs.items()}
    return in_alternating_order(timed | dict(others or {}), case.turns)


def _trains(config: ArmConfig) -> Callable[[], float]:
    return lambda: step_ms(config)


def step_ms(config: ArmConfig, numbers: Callable[[], AbstractContextManager[object]] = denormals_are_zero) -> float:
    """Train as `config` says and return the milliseconds of a step: the median of the epochs after the first.

    `numbers` makes the block that the training is in, by default that of a run. Raises `ConfigError` if the device has
    not the precision that `config` asks for.
    """
    check_precision(config)
    set_matrix_precision(config)
    dataset = load_or_build(config.data)
    torch.manual_seed(config.seed)
    clock = _EpochClock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(config, [SeriesRecorder(History(), Nowhere()), clock], CheckpointFiles(Path(folder)))
        loaders = make_loaders(trainer, dataset, config)
        gc.collect()  # a trainer and its module refer to each other: those of earlier turns are no part of this one
        with numbers():
            trainer.fit(PtychoModule(config, dataset), *loaders, weights_only=True)
    return 1e3 * statistics.median(clock.seconds_a_step[1:])


class _EpochClock(lightning.Callback):
    """Notes the seconds a step of each epoch, without its validation."""

    def __init__(self) -> None:
        self.seconds_a_step: list[float] = []
        self._begun = (0.0, 0)

    def on_train_epoch_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        self._begun = (_now(module.device), trainer.global_step)

    def on_validation_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        begun, step = self._begun
        self.seconds_a_step.append((_now(module.device) - begun) / (trainer.global_step - step))


def _now(device: torch.device) -> float:
    """The time at which the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _quieten() -> None:
    for name in ("lightning.pytorch", "mlflow"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
