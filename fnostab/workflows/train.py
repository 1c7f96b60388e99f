"""Train one arm, everything logged: the entry point `main` of `MLproject`, and `fnostab train`."""

import gc
import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from fnostab import tracking
from fnostab.config import ArmConfig, ConfigError
from fnostab.dataset import Dataset, load_or_build
from fnostab.evaluation import Evaluation, Reconstruction, baselines, can_be_stitched, evaluate, reconstruct
from fnostab.health import Verdict, judge
from fnostab.health.history import History, plain
from fnostab.io.endings import Interrupted
from fnostab.io.files import is_disk_full
from fnostab.report.axes import to_rgb
from fnostab.report.run import frc_figure, reconstruction_figure, training_figure
from fnostab.tracking import Tracker
from fnostab.training.callbacks import (
    Checkpoints,
    ConsoleProgress,
    EpochSummary,
    Interruption,
    Pictures,
    SeriesRecorder,
)
from fnostab.training.checkpoint_files import CheckpointFiles
from fnostab.training.module import PtychoModule
from fnostab.training.processes import Meeting, find_environment, leading
from fnostab.training.shipped_model import CountsToObject
from fnostab.training.trainer import (
    check_accelerator,
    check_devices,
    check_network,
    fit,
    is_out_of_memory,
    make_trainer,
    peak_bytes,
    quieten_libraries,
    set_threads,
)
from fnostab.workflows import follow
from fnostab.workflows.runfolder import RunFolder

Report = Callable[[str], None]
Watch = Callable[[EpochSummary], None]
#: Counts shown to people who open the model: patterns of the input example.
_EXAMPLE_PATTERNS = 2
#: Pictures on the way show this many patches around the middle of the first test object: all would take too long.
_PICTURE_PATCHES = 121
#: What of a verdict's evidence is a metric as well, so that runs can be compared without reading their artifacts.
_EVIDENCE_METRICS = {
    "grad/norm_median": "grad_norm_median",
    "grad/norm_max": "grad_norm_max",
    "val/plateau_left_epoch": "plateau_left_epoch",
}


@dataclass(frozen=True)
class ArmResult:
    """What a trained arm left behind: its MLflow run, its verdict and its final metrics."""

    run_id: str
    how_to_open: str
    verdict: Verdict
    metrics: dict[str, float]
    history: History


def train_arm(
    config: ArmConfig,
    report: Report,
    data_progress: Callable[[int, int], None] | None = None,
    *,
    watch: Watch | None = None,
    tags: Mapping[str, str] | None = None,
    again: bool = True,
) -> ArmResult:
    """Train `config`, log everything to MLflow, and return where it is and what was learnt.

    `report` takes lines for people, `data_progress` (done, total) patterns while a dataset is built, `watch` an
    `EpochSummary` an epoch; `tags` are set besides the run's own. An unfinished run of the same identity is continued
    where its last checkpoint stands; one that has its result is trained anew, or, without `again`, returned as it is.
    Raises `ConfigError` for bad input, before anything is written; `AlreadyRunning` if another process trains the same
    identity; `Interrupted` after a stop signal, once everything recorded is stored. With several devices, this process
    starts one more for each and leads them; where torchrun or SLURM started all of them, those that do not lead train
    along and end here: `SystemExit`.
    """
    quieten_libraries()
    check_accelerator(config.train.accelerator)
    check_devices(config)
    check_network(config)
    if find_environment(config).global_rank() > 0:
        follow.follow(config)
        raise SystemExit(0)
    with Interruption() as interruption:
        store_uri = tracking.check_store(for_new_run=True)
        try:
            dataset = load_or_build(config.data, progress=data_progress)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        config = set_threads(config)
        tracking.open_store()
        with RunFolder(config, dataset.sha256, tracking.redacted(store_uri)) as folder:
            first_run_id = folder.first_run_id
            if first_run_id is None and not folder.is_new:
                first_run_id = tracking.find_claimed(folder.claim)
            if first_run_id is None and not again:
                results = tracking.find_results(config.study, dataset.sha256, config_sha256=config.sha256())
                found = results.get((config.arm, config.seed, config.sha256()))
                first_run_id = found.run_id if found else None
            state = tracking.run_state(first_run_id) if first_run_id else "gone"
            if first_run_id and state == "finished":
                result = _finished_result(first_run_id, report)
                folder.finish()
                return result
            if first_run_id and state in ("gone", "deleted"):
                folder.start_over()
                first_run_id = None
            opened = tracking.open_run(config, folder.path, first_run_id=first_run_id, claim=folder.claim)
            with opened as tracker:
                folder.begin(tracker.run_id, tags)
                run = _Run(config, dataset, tracker, folder.path, report, watch)
                tracker.set_tags(tags or {})
                try:
                    result = run.train(interruption)
                except Interrupted as interrupt:
                    run.log_interrupted(interrupt)
                    raise
            folder.finish()  # everything is in the store, and the run is closed
            return result


def _finished_result(run_id: str, report: Report) -> ArmResult:
    """The result of a run that another process finished; it may have been killed after its last word to the store."""
    tracking.resume_into(run_id)
    found = tracking.read_run(run_id)
    report(f"MLflow run {run_id} was finished already")
    history = History()
    history.load(found.history or {})
    how_to_open = tracking.how_to_open(run_id, found.experiment_id)
    return ArmResult(run_id, how_to_open, judge(history.to_mapping()), found.metrics, history)


class _Run:
    """One training from its first tag to its last artifact."""

    def __init__(
        self,
        config: ArmConfig,
        dataset: Dataset,
        tracker: Tracker,
        folder: Path,
        report: Report,
        watch: Watch | None,
    ) -> None:
        self.config = config
        self.dataset = dataset
        self.tracker = tracker
        self.report = report
        self._watch = watch
        self.history = History()
        self.files = CheckpointFiles(folder, report)
        self.checkpoints = Checkpoints(self.files, config.train.checkpoint_every_s)
        self._folder = folder
        self._baselines = baselines(dataset, config.train.learn_probe)

    def train(self, interruption: Interruption) -> ArmResult:
        """Train, evaluate, judge, log."""
        tracker, history = self.tracker, self.history
        for key, value in self._baselines.items():
            setattr(history, key.replace("/", "_"), value)
        results = dict(self._baselines)
        with self._running_out_of_memory():
            results |= self._fit(interruption)
        if history.val_loss:
            results["best_val_loss"] = self.checkpoints.best_val_loss
        _free_memory()
        evaluation = None
        with self._running_out_of_memory():
            if module := self._best():
                evaluation = self._evaluate(module)
                results |= evaluation.metrics if evaluation else {}
                if self._keeps_all:
                    self._log_model(module)
        if self._keeps_all:
            self._log_picture(to_rgb(training_figure(history, self._title)), "figures/training.png", "training")
        verdict = judge(history.to_mapping())
        found = {key: verdict.evidence[name] for key, name in _EVIDENCE_METRICS.items()}
        results |= {key: float(value) for key, value in found.items() if value is not None}
        tracker.log_metrics({k: v for k, v in results.items() if k not in self._baselines}, step=history.steps - 1)
        self._log_outcome(verdict, results, evaluation)
        how_to_open = tracking.how_to_open(tracker.run_id, tracker.experiment_id)
        return ArmResult(tracker.run_id, how_to_open, verdict, results, history)

    def _fit(self, interruption: Interruption) -> dict[str, float]:
        """Build the network and train it; what is noticed on the way goes into the history."""
        config = self.config
        recorder = SeriesRecorder(self.history, self.tracker, config.train.give_up_epoch)
        callbacks = [recorder, ConsoleProgress(self.report, self._watch), self.checkpoints, interruption]
        if self._keeps_all:
            callbacks.insert(2, Pictures(self._draw, config.train.picture_every_epochs))
        trainer = make_trainer(config, callbacks, self.files)
        self._device = trainer.strategy.root_device
        self._log_beginning()
        last = self.files.newest_complete() if self.tracker.resumed else None
        resume_from = str(last) if last else None
        meeting = Meeting(self.dataset.sha256, resume_from)
        with leading(trainer, config, meeting, follow.COMMAND, self.report):
            fit(trainer, config, self.dataset, resume_from)
        # Nothing is left to train where only the upload was.
        return {"samples_per_s": recorder.samples_per_s} if recorder.samples_per_s else {}

    @contextmanager
    def _running_out_of_memory(self) -> Iterator[None]:
        """Make an event of an error that says that the memory does not suffice."""
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            device = _device_name(self._device)
            peak = peak_bytes(self._device)
            self.history.events["out_of_memory"] = {"step": self.history.steps, "peak_bytes": peak, "device": device}

    def _log_beginning(self) -> None:
        config, tracker, device = self.config, self.tracker, _device_name(self._device)
        tracker.set_tags(tracking.run_tags(config, self.dataset, device))
        tracker.delete_tags("verdict", "verdict_reason")
        tracker.log_config(config)
        tracker.log_dataset(self.dataset)
        tracker.log_metrics(self._baselines, step=0)
        verb = "continuing" if tracker.resumed else "training"
        processes = config.train.devices * config.train.nodes
        where = f"{processes} processes ({device})" if processes > 1 else device
        self.report(f"{verb} {config.arm}, seed {config.seed}, on {where}: MLflow run {tracker.run_id}")

    def _best(self) -> PtychoModule | None:
        """The network with its best weights; None if it did not fit into the memory, or never gave finite numbers."""
        if "out_of_memory" in self.history.events or not math.isfinite(self.checkpoints.best_val_loss):
            return None
        module = PtychoModule(self.config, self.dataset)
        module.load_state_dict(self.files.best_weights())
        return module.to(self._device)

    def _evaluate(self, module: PtychoModule) -> Evaluation | None:
        """Reconstruct the test objects and log them; None if the network blew up so far that there are none."""
        patches = module.reconstruct(self.dataset.test)
        if not can_be_stitched(patches):
            return None
        found = evaluate(patches, self.dataset, module.probe_array, self._free)
        self.history.object_correlation = found.metrics.get("test/object_correlation", math.nan)
        self.history.twin_correlation = found.metrics.get("test/twin_correlation", math.nan)
        if not self._keeps_all:
            return found
        for index, reconstruction in enumerate(found.reconstructions):
            self._log_reconstruction(index, reconstruction, module.probe_array)
        if found.reconstructions[0].comparison:
            picture = to_rgb(frc_figure(found.reconstructions, self._title))
            self._log_picture(picture, "figures/frc.png", "frc")
        return found

    @property
    def _keeps_all(self) -> bool:
        """Whether model, pictures and checkpoints go to the store as well as the numbers."""
        return self.config.train.artifacts == "all"

    @property
    def _free(self) -> bool:
        """Whether ramp and shift of the object are free: only where the probe is learnt."""
        return self.config.train.learn_probe

    def _log_reconstruction(self, index: int, reconstruction: Reconstruction, probe: NDArray[np.complex64]) -> None:
        title = f"{self._title}: test object {index}, R = {reconstruction.r_factor:.4f}"
        figure = reconstruction_figure(reconstruction, probe, title)
        self._log_picture(to_rgb(figure), f"recon/object_{index}.png", "reconstruction" if index == 0 else None)
        stitched = reconstruction.stitched
        path = self._folder / f"object_{index}.npz"
        np.savez_compressed(
            path, object=stitched.object, light=stitched.light, origin_px=stitched.origin_px, probe=probe
        )
        self.tracker.log_artifact(path, "recon")

    @property
    def _title(self) -> str:
        return f"{self.config.arm}, seed {self.config.seed}"

    def _draw(self, module: PtychoModule, epoch: int, step: int) -> None:
        """Pictures with the weights as they stand: the middle of the first test object, FRC, loss and gradients."""
        test = self.dataset.test
        members = np.flatnonzero(test.object_index == test.object_index[0])
        away = np.abs(test.positions_px[members] - np.median(test.positions_px[members], axis=0)).max(axis=1)
        part = test.part(np.sort(members[np.argsort(away, kind="stable")[:_PICTURE_PATCHES]]))
        patches = module.reconstruct(part)
        if not can_be_stitched(patches):
            return
        found = reconstruct(patches, part, self.dataset, module.probe_array, self._free)
        title = f"{self._title}, epoch {epoch}"
        figures = {
            "reconstruction": reconstruction_figure(found, module.probe_array, title),
            "training": training_figure(self.history, title),
        }
        if found.comparison:
            figures["frc"] = frc_figure([found], title)
        try:
            for key, figure in figures.items():
                self.tracker.log_image(to_rgb(figure), key, step)
        except OSError as error:
            if not is_disk_full(error):
                raise
            self.report(f"no pictures of epoch {epoch}: the disk is full")

    def _log_picture(self, pixels: NDArray[np.uint8], name: str, key: str | None) -> None:
        """Log a picture of the run's end as the artifact `name`, and as the last that the UI shows under `key`."""
        self.tracker.log_picture(pixels, name)
        if key:
            self.tracker.log_image(pixels, key, self.history.steps - 1)

    def _log_outcome(self, verdict: Verdict, results: dict[str, float], evaluation: Evaluation | None) -> None:
        """Verdict, final numbers and series."""
        tracker, history = self.tracker, self.history
        vacuous = evaluation.vacuous if evaluation else []
        tags = {"verdict": verdict.label, "verdict_reason": verdict.reason, "vacuous": ",".join(vacuous)}
        if "twin" in verdict.evidence:
            tags["twin"] = str(verdict.evidence["twin"]).lower()
        tracker.set_tags(tags)
        layout = {"verdict": verdict.label, "verdict_reason": verdict.reason, "evidence": verdict.evidence}
        layout |= {"vacuous": vacuous} | (evaluation.summary if evaluation else {}) | results
        tracker.log_text(json.dumps(plain(layout), indent=2, allow_nan=False), "metrics.json")
        tracker.log_text(history.to_json(), "history.json")
        for path in self.files.at_the_end if self._keeps_all else ():
            tracker.log_artifact(path, "checkpoints")

    def _log_model(self, module: PtychoModule) -> None:
        probe_path = self._folder / "probe.npz"
        # What a reconstruction of another scan needs to know of the training; see `tracking.models`.
        np.savez(probe_path, probe=module.probe_array, mean_counts=module.mean_counts, scale=module.scale)
        shipped = CountsToObject(module.generator, module.input_scale).cpu().eval()
        example = np.array(self.dataset.test.counts[:_EXAMPLE_PATTERNS])
        self.tracker.log_model(shipped, example, extra_files=[probe_path])

    def log_interrupted(self, interrupt: Interrupted) -> None:
        """Store what an interrupted run has so far, with its verdict."""
        self.history.events = {"interrupted": True}
        reason = f"{interrupt} after {self.history.steps} steps; the same command continues it"
        self.report(reason)
        try:
            self.tracker.set_tags({"verdict": "interrupted", "verdict_reason": reason})
            self.tracker.log_text(self.history.to_json(), "history.json")
        except tracking.StoreUnavailable as away:
            self.report(str(away))


def _free_memory() -> None:
    """Free the network that was trained and its optimizer, which Lightning's objects keep alive in circles."""
    gc.collect()
    torch.cuda.empty_cache()


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
