"""Small real trainings for tests: no MLflow, only the series."""

import warnings

import lightning
import mlflow
import numpy as np
import torch

from fnostab.config import resolve_config
from fnostab.dataset import load_or_build
from fnostab.evaluation import baselines
from fnostab.formats.own import write_scan
from fnostab.health.history import History
from fnostab.models.registry import build_generator
from fnostab.optics import Beam
from fnostab.tracking.exports import signature
from fnostab.training.batches import make_loaders
from fnostab.training.callbacks import Checkpoints, SeriesRecorder, StageRecorder
from fnostab.training.checkpoint_files import CheckpointFiles
from fnostab.training.module import PtychoModule
from fnostab.training.shipped_model import CountsToObject
from fnostab.training.trainer import make_trainer


def write_small_scan(path, **arrays):
    """Write a simulated scan of 32 x 32 pixels and 49 positions to a file, as if measured; returns its dataset.

    `arrays` stand in for those of the scan, or are written besides.
    """
    keys = {"preset": "smoke", "data.object_size": 64, "data.stride_test_px": 5, "data.max_train_patches": 8}
    source = load_or_build(resolve_config(keys).data)
    counts, positions_px = source.test.counts, source.test.positions_px
    given = {"counts": counts, "probe": source.probe * source.scale, "positions_px": positions_px}
    write_scan(path, **given | arrays)
    return source


class Sink:
    """Keeps the rows that it is given."""

    def __init__(self):
        self.rows = []

    def log_series(self, rows):
        self.rows += rows

    def flush(self):
        return True


class KillAfter(lightning.Callback):
    """Ends the process, as far as a test can, after so many steps."""

    def __init__(self, steps):
        self.steps = steps

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.steps:
            raise SystemError("killed")


def new_module(config):
    torch.manual_seed(config.seed)
    return PtychoModule(config, load_or_build(config.data))


def fit(config, folder, module=None, *, resume=False, checkpoint_every_s=60.0, extra=()):
    """Train; returns the module, the history and the sink. `extra` callbacks run after the recorder's."""
    module = module or new_module(config)
    dataset = load_or_build(config.data)
    history, sink = History(), Sink()
    for name, value in baselines(dataset, config.train.learn_probe).items():
        setattr(history, name, value)
    files = CheckpointFiles(folder)
    recorder = SeriesRecorder(history, sink, config.train.give_up_epoch)
    stages = StageRecorder(history, sink)
    callbacks = [recorder, stages, Checkpoints(files, checkpoint_every_s, config.train.select_by), *extra]
    trainer = make_trainer(config, callbacks, files)
    loaders = make_loaders(trainer, dataset, config)
    trainer.fit(module, *loaders, ckpt_path=files.last if resume else None, weights_only=True)
    return module, history, sink


def save_untrained_model_of(scan, folder, width=2):
    """Save a network with random weights for single patterns as those of the NPZ file `scan`; returns its folder."""
    with np.load(scan) as arrays:
        probe, mean_counts = arrays["probe"], float(arrays["counts"].sum() / len(arrays["counts"]))
    scale = 100.0
    return save_untrained_model(folder, Beam.of(probe / scale), scale, mean_counts, width=width)


def save_untrained_model(folder, beam, scale, mean_counts, gridsize=1, width=2):
    """Save a network with random weights as an MLflow model of this package, as a run ships it; returns its folder.

    Its patches are about 1 and vary, so that they can be stitched, and no training is needed.
    """
    N, C = beam.probe.shape[-1], gridsize**2
    config = resolve_config({"data.N": N, "width": width, "fno_blocks": 1, "model.modes": 4, "data.gridsize": gridsize})
    torch.manual_seed(0)
    network = CountsToObject(build_generator(config.model, N, C), mean_counts**-0.5 * N, C).eval()
    example = np.random.default_rng(0).poisson(mean_counts / N**2, (2, N, N) if C == 1 else (2, C, N, N))
    beside = folder.with_name("probe.npz")
    np.savez(beside, **beam.to_arrays(), scale=scale, mean_counts=mean_counts)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mlflow.pytorch.save_model(
            network,
            str(folder),
            serialization_format="pt2",
            signature=signature(N, gridsize),
            input_example=example.astype(np.float32),
            extra_files=[str(beside)],
            pip_requirements=["torch"],
        )
    return folder
