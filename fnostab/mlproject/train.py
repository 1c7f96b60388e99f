"""Train one arm, everything logged: the entry point `main` of `MLproject`, and `fnostab train`."""

import json
import logging
import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from fnostab import metrics, tracking
from fnostab.callbacks import Checkpoints, Interrupted, Interruption, Pictures, Progress, SeriesRecorder
from fnostab.config import ArmConfig, ConfigError
from fnostab.datamodule import PtychoDataModule
from fnostab.dataset import Dataset, Split, load_or_build
from fnostab.history import History, plain
from fnostab.optics import far_field_amplitude
from fnostab.report import reconstruction_figure, to_rgb
from fnostab.runfolder import RunFolder
from fnostab.scan import Reassembly, reassemble, stitched_r_factor
from fnostab.tracking import Tracker
from fnostab.training import CountsToObject, PtychoModule, check_accelerator, make_trainer, true_patches

Report = Callable[[str], None]
#: Counts shown to people who open the model: patterns of the input example.
_EXAMPLE_PATTERNS = 2


@dataclass(frozen=True)
class ArmResult:
    """What a trained arm left behind: its MLflow run and its final metrics."""

    run_id: str
    how_to_open: str
    metrics: dict[str, float]
    history: History


def train_arm(config: ArmConfig, report: Report, data_progress: Callable[[int, int], None] | None = None) -> ArmResult:
    """Train `config`, log everything to MLflow, and return where it is and what was learnt.

    `report` takes lines for people, `data_progress` (done, total) patterns while a dataset is built. An unfinished run
    of the same identity is continued where its last checkpoint stands. Raises `ConfigError` for bad input, before
    anything is written; `AlreadyRunning` if another process trains the same identity; `Interrupted` after SIGTERM or
    Ctrl-C, once everything recorded is stored.
    """
    _quieten_libraries()
    check_accelerator(config.train.accelerator)
    with Interruption() as interruption:
        store_uri = tracking.check_store()
        try:
            dataset = load_or_build(config.data, progress=data_progress)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        config = _with_threads(config)
        torch.manual_seed(config.seed)
        module = PtychoModule(config, dataset)
        tracking.connect()
        with RunFolder(config, dataset.sha256, store_uri) as folder:
            first_run_id = folder.first_run_id
            if first_run_id and not tracking.run_is_unfinished(first_run_id):
                folder.start_over()
                first_run_id = None
            with tracking.open_run(config, first_run_id=first_run_id) as tracker:
                folder.begin(tracker.run_id)
                run = _Run(config, dataset, module, tracker, folder.path, report)
                try:
                    result = run.train(interruption)
                except Interrupted as interrupt:
                    run.log_interrupted(interrupt)
                    raise
            folder.finish()  # everything is in the store, and the run is closed
            return result


def _with_threads(config: ArmConfig) -> ArmConfig:
    """Set torch's CPU threads, and put their number into the config: it changes the last bits."""
    threads = config.train.threads or os.cpu_count() or 1
    torch.set_num_threads(threads)
    return config.model_copy(update={"train": config.train.model_copy(update={"threads": threads})})


def _quieten_libraries() -> None:
    """Keep news that nobody acts on off the terminal; warnings stay, but for one that Lightning causes in torch."""
    for name in ("lightning.pytorch", "lightning.fabric", "mlflow.system_metrics"):
        logging.getLogger(name).setLevel(logging.WARNING)
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\)")


class _Run:
    """One training from its first tag to its last artifact."""

    def __init__(
        self,
        config: ArmConfig,
        dataset: Dataset,
        module: PtychoModule,
        tracker: Tracker,
        folder: Path,
        report: Report,
    ) -> None:
        self.config = config
        self.dataset = dataset
        self.module = module
        self.tracker = tracker
        self.folder = folder
        self.report = report
        self.history = History()
        self.checkpoints = Checkpoints(folder, config.train.checkpoint_every_s)

    def train(self, interruption: Interruption) -> ArmResult:
        """Train, evaluate, log."""
        config, tracker, history = self.config, self.tracker, self.history
        recorder = SeriesRecorder(history, tracker, self.module.truth_std)
        trainer = make_trainer(
            config,
            [
                recorder,
                Progress(self.report),
                Pictures(self._draw, config.train.picture_every_epochs),
                self.checkpoints,
                interruption,
            ],
            self.folder,
        )
        device = _device_name(trainer.strategy.root_device)
        tracker.set_tags(tracking.run_tags(config, self.dataset, device))
        baselines = self._baselines()
        for key, value in baselines.items():
            setattr(history, key.replace("/", "_"), value)
        tracker.delete_tags("verdict", "verdict_reason")
        tracker.log_config(config)
        tracker.log_dataset(self.dataset)
        tracker.log_metrics(baselines, step=0)
        where = f"MLflow run {tracker.run_id}"
        self.report(
            f"{'continuing' if tracker.resumed else 'training'} {config.arm}, seed {config.seed}, on {device}: {where}"
        )

        resume_from = self.checkpoints.last if tracker.resumed and self.checkpoints.last.exists() else None
        data = PtychoDataModule(self.dataset, config)
        try:
            trainer.fit(self.module, datamodule=data, ckpt_path=resume_from, weights_only=True)
        except SystemExit:  # Lightning's own answer to SIGTERM, where it sees the signal before the callback does
            interruption.check()
            raise

        best = torch.load(self.checkpoints.best, weights_only=True, map_location="cpu")
        self.module.load_state_dict(best["state_dict"])
        results = baselines | {"best_val_loss": self.checkpoints.best_val_loss}
        if recorder.samples_per_s:  # nothing was left to train where only the upload was
            results["samples_per_s"] = recorder.samples_per_s
        results |= self._evaluate()
        tracker.log_metrics({k: v for k, v in results.items() if k not in baselines}, step=history.steps - 1)
        self._log_artifacts(results)
        how_to_open = tracking.how_to_open(tracker.run_id, tracker.experiment_id)
        return ArmResult(tracker.run_id, how_to_open, results, history)

    def _baselines(self) -> dict[str, float]:
        """R-factors on the validation patches of knowing nothing, and of photon noise alone if the truth is known."""
        dataset = self.dataset
        amplitudes = np.sqrt(dataset.val.counts) / dataset.scale
        training = np.sqrt(dataset.train.counts) / dataset.scale
        baselines = {
            "val/loss_constant": metrics.constant_object_r_factor(_empty_beam(dataset.probe), amplitudes),
            "val/loss_mean_pattern": metrics.mean_pattern_r_factor(amplitudes, training),
        }
        if dataset.val_objects is not None:
            truth = torch.from_numpy(true_patches(dataset.val, dataset.val_objects, dataset.config.N))
            probe = torch.from_numpy(np.array(dataset.probe))
            baselines["val/loss_floor"] = metrics.r_factor(far_field_amplitude(truth, probe).numpy(), amplitudes)
        return baselines

    def _evaluate(self) -> dict[str, float]:
        """Reconstruct the test objects with the best weights; log objects and pictures."""
        dataset, probe = self.dataset, self._probe()
        patches = self.module.reconstruct(dataset.test)
        amplitudes = np.sqrt(dataset.test.counts) / dataset.scale
        predicted = far_field_amplitude(torch.from_numpy(patches), torch.from_numpy(probe)).numpy()
        results = {"test/r_factor_patch": metrics.r_factor(predicted, amplitudes)}
        numerator = 0.0
        for index, members in _objects(dataset.test):
            positions, measured = dataset.test.positions_px[members], amplitudes[members]
            stitched = reassemble(patches[members], positions, probe)
            r_factor = stitched_r_factor(stitched, positions, probe, measured)
            numerator += r_factor * float(measured.sum(dtype=np.float64))
            self._log_reconstruction(index, stitched, r_factor)
        results["test/r_factor"] = numerator / float(amplitudes.sum(dtype=np.float64))
        if dataset.test_objects is not None:
            truth = true_patches(dataset.test, dataset.test_objects, dataset.config.N)
            side = metrics.orientation(patches, truth, probe)
            results |= {"test/object_correlation": side.object, "test/twin_correlation": side.twin}
            self.tracker.set_tags({"twin": str(side.is_twin).lower()})
        else:
            # The knowledge of nothing on the whole scan: what `test/r_factor` is to be compared with.
            results["test/r_factor_constant"] = metrics.constant_object_r_factor(_empty_beam(probe), amplitudes)
            results["test/r_factor_mean_pattern"] = metrics.mean_pattern_r_factor(amplitudes, amplitudes)
        return results

    def _probe(self) -> NDArray[np.complex64]:
        return np.asarray(self.module.probe.detach().cpu().numpy())

    def _truth(self, index: int) -> NDArray[np.complex64] | None:
        return None if self.dataset.test_objects is None else self.dataset.test_objects[index]

    def _log_reconstruction(self, index: int, stitched: Reassembly, r_factor: float) -> None:
        title = f"{self.config.arm}, seed {self.config.seed}: test object {index}, R = {r_factor:.4f}"
        figure = reconstruction_figure(stitched, self._probe(), self._truth(index), title)
        self.tracker.log_figure(figure, f"recon/object_{index}.png")
        if index == 0:
            self.tracker.log_image(to_rgb(figure), "reconstruction", self.history.steps - 1)
        path = self.folder / f"object_{index}.npz"
        np.savez_compressed(
            path, object=stitched.object, light=stitched.light, origin_px=stitched.origin_px, probe=self._probe()
        )
        self.tracker.log_artifact(path, "recon")

    def _draw(self, epoch: int, step: int) -> None:
        """Picture of the first test object with the weights as they stand."""
        _, members = next(iter(_objects(self.dataset.test)))
        split = self.dataset.test
        part = Split(split.counts[members], split.positions_px[members], split.object_index[members])
        stitched = reassemble(self.module.reconstruct(part), part.positions_px, self._probe())
        figure = reconstruction_figure(stitched, self._probe(), self._truth(0), f"{self.config.arm}, epoch {epoch}")
        try:
            self.tracker.log_image(to_rgb(figure), "reconstruction", step)
        except tracking.StoreAway as away:
            self.report(f"no picture of epoch {epoch}: {away}")

    def _log_artifacts(self, results: dict[str, float]) -> None:
        tracker = self.tracker
        tracker.log_text(self.history.to_json(), "history.json")
        tracker.log_text(json.dumps({key: plain(value) for key, value in results.items()}, indent=2), "metrics.json")
        tracker.log_artifact(self.checkpoints.best, "checkpoints")
        tracker.log_artifact(self.checkpoints.last, "checkpoints")
        probe_path = self.folder / "probe.npz"
        np.savez(probe_path, probe=self._probe())
        shipped = CountsToObject(self.module.generator, self.module.input_scale).cpu().eval()
        example = np.array(self.dataset.test.counts[:_EXAMPLE_PATTERNS])
        tracker.log_model(shipped, example, extra_files=[probe_path])

    def log_interrupted(self, interrupt: Interrupted) -> None:
        """Store what an interrupted run has so far, with its verdict."""
        self.history.events["interrupted"] = True
        reason = f"{interrupt} after {self.history.steps} steps; the same command continues it"
        self.report(reason)
        try:
            self.tracker.set_tags({"verdict": "interrupted", "verdict_reason": reason})
            self.tracker.log_text(self.history.to_json(), "history.json")
        except tracking.StoreAway as away:
            self.report(str(away))


def _empty_beam(probe: NDArray[np.complex64]) -> NDArray[np.float32]:
    """Far-field amplitude (N, N) of the probe alone."""
    field = torch.from_numpy(np.array(probe))
    return np.asarray(far_field_amplitude(torch.ones_like(field), field).numpy())


def _objects(split: Split) -> list[tuple[int, NDArray[np.int64]]]:
    """(object, its patches) of a split."""
    return [(int(k), np.flatnonzero(split.object_index == k)) for k in np.unique(split.object_index)]


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def main(argv: list[str] | None = None) -> int:
    """Run `fnostab train` with the arguments that MLproject hands over."""
    from fnostab.cli import main as command_line

    return command_line(["train", *(sys.argv[1:] if argv is None else argv)])


if __name__ == "__main__":
    sys.exit(main())
