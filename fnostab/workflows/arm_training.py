"""One training of an arm, from its network to its verdict, with all that it logs."""

import gc
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from fnostab.config import ArmConfig
from fnostab.dataset import ORIENTATIONS, Dataset, combined, r_by_orientation
from fnostab.evaluation import Evaluation, baselines, can_be_stitched, consistency_warning, evaluate
from fnostab.health import Stability, Verdict, better_orientation, judge, measure_stability
from fnostab.health.history import History
from fnostab.study.names import tracked
from fnostab.tracking.exports import BEFORE_ACCIDENT
from fnostab.tracking.run import how_to_open
from fnostab.tracking.tracker import Tracker
from fnostab.tracking.verdict import evidence_numbers
from fnostab.training.callbacks import (
    Checkpoints,
    ConsoleProgress,
    EpochSummary,
    Interruption,
    Pictures,
    Pruning,
    SeriesRecorder,
    StageRecorder,
)
from fnostab.training.checkpoint_files import CheckpointFiles
from fnostab.training.memory import is_out_of_memory, peak_bytes
from fnostab.training.module import PtychoModule
from fnostab.training.processes import Meeting, leading
from fnostab.training.supervised import constant_object_loss
from fnostab.training.together import Member
from fnostab.training.trainer import fit, make_trainer
from fnostab.workflows import PrintLine, follow
from fnostab.workflows.logbook import Logbook

#: Is told how a run stands after each epoch; what it answers with True ends there, with the verdict `pruned`.
Watch = Callable[[EpochSummary], bool | None]


@dataclass(frozen=True)
class ArmResult:
    """What a trained arm left behind: its MLflow run, its verdict, its stability (None if it never learnt), metrics."""

    run_id: str
    how_to_open: str
    verdict: Verdict
    stability: Stability | None
    metrics: dict[str, float]
    history: History


@dataclass
class ArmTraining:
    """One training, from its network to its verdict."""

    config: ArmConfig
    dataset: Dataset
    tracker: Tracker
    logbook: Logbook
    folder: Path
    report: PrintLine
    weights: Mapping[str, torch.Tensor] | None = None

    def __post_init__(self) -> None:
        self._files = CheckpointFiles(self.folder, self.report)
        self._checkpoints = Checkpoints(self._files, self.config.train.checkpoint_every_s, self.config.train.select_by)
        self._device = torch.device("cpu")
        self._best_steps = 0

    def run(self, interruption: Interruption, watch: Watch | None) -> ArmResult:
        """Train, evaluate, judge, log."""
        tracker, logbook, history = self.tracker, self.logbook, self.logbook.history
        known = self._known()
        results: dict[str, float] = {}
        evaluation = None
        with self._running_out_of_memory():
            results |= self._fit(interruption, watch, known)
        interruption.check()  # of a signal that came while the memory ran out
        if history.val_loss:
            results["best_val_loss"] = self._checkpoints.best_val_loss
        _free_memory()
        with self._running_out_of_memory():
            if module := self._best():
                evaluation = self._evaluate(module)
                results |= evaluation.metrics if evaluation else {}
                logbook.log_model(module, self._best_steps)
        series = history.to_mapping()
        verdict, stability = judge(series), measure_stability(series)
        with self._running_out_of_memory():
            self._log_before_accident(verdict)
        results |= evidence_numbers(verdict)
        logbook.end(verdict, stability, results, evaluation, self._files)
        where = how_to_open(tracker.run_id, tracker.experiment_id)
        return ArmResult(tracker.run_id, where, verdict, stability, tracked(known | results), history)

    def train(self, interruption: Interruption, watch: Watch | None, member: Member) -> None:
        """Train in step with others, and leave the rest to somebody else's `run`."""
        self.tracker.status = "SCHEDULED"
        speed = self._fit(interruption, watch, self._known(), member)
        self.tracker.log_metrics(tracked(speed), step=0)

    def _known(self) -> dict[str, float]:
        """What is known before the first step."""
        known = baselines(self.dataset, self.config.train.learn_probe)
        if self.config.train.mode == "supervised":
            known["supervised_loss_constant"] = constant_object_loss(self.dataset)
        return known

    def _fit(
        self,
        interruption: Interruption,
        watch: Watch | None,
        known: dict[str, float],
        member: Member | None = None,
    ) -> dict[str, float]:
        """Build the network and train it; what is noticed on the way goes into the history."""
        config = self.config
        recorder = SeriesRecorder(self.logbook.history, self.tracker, config.train.give_up_epoch)
        console = ConsoleProgress(self.report, watch, terminal=False if member else None)
        pruning = Pruning(self.logbook.history, lambda: console.stop_wanted)
        stages = StageRecorder(self.logbook.history, self.tracker)
        callbacks = [recorder, console, pruning, stages, self._checkpoints, interruption]
        if self.logbook.keeps_all:
            callbacks.insert(4, Pictures(self.logbook.draw, config.train.picture_every_epochs))
        trainer = make_trainer(config, callbacks, self._files)
        self._device = trainer.strategy.root_device
        self.logbook.begin(_device_name(self._device), known)
        self._check_positions()
        last = self._files.newest_complete() if self.tracker.resumed else None
        resume_from = str(last) if last else None
        meeting = Meeting(self.dataset.sha256, resume_from)
        with leading(trainer, config, meeting, follow.COMMAND, self.report):
            fit(trainer, config, self.dataset, resume_from, self.weights, member)
        # Nothing is left to train where only the upload was.
        return {"samples_per_s": recorder.samples_per_s} if recorder.samples_per_s else {}

    def _check_positions(self) -> None:
        """Say before a training what looks wrong with a scan; the verdict at its end counts its positions."""
        for line in self.dataset.warnings:
            self.report(f"warning: {line}")
        found = r_by_orientation(self.dataset)
        self.logbook.history.r_by_orientation = found
        if better := better_orientation(found):
            best = combined(self.config.data.orient, min(ORIENTATIONS, key=lambda name: found[name]))
            self.report(f"warning: the axes of the scan's positions look wrong: {better}; try data.orient={best}")

    @contextmanager
    def _running_out_of_memory(self) -> Iterator[None]:
        """Make an event of an error that says that the memory does not suffice."""
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            history, device = self.logbook.history, _device_name(self._device)
            peak = peak_bytes(self._device)
            history.events["out_of_memory"] = {"step": history.steps, "peak_bytes": peak, "device": device}

    def _best(self) -> PtychoModule | None:
        """The network with its best weights; None if it did not fit into the memory, or never gave finite numbers."""
        if "out_of_memory" in self.logbook.history.events or not math.isfinite(self._checkpoints.best_val_loss):
            return None
        weights, self._best_steps = self._files.kept_best()
        module = PtychoModule(self.config, self.dataset)
        module.load_state_dict(weights)
        return module.to(self._device)

    def _log_before_accident(self, verdict: Verdict) -> None:
        """Log the network as it was before the last accident, if it had learnt by then and is another than the best."""
        learnt_at = verdict.evidence.get("plateau_left_epoch")
        if not self.logbook.keeps_all or learnt_at is None or self._checkpoints.accident_epoch <= learnt_at:
            return
        if (kept := self._files.kept_before_accident()) and kept.steps != self._best_steps:
            module = PtychoModule(self.config, self.dataset)
            module.load_state_dict(kept.weights)
            self.logbook.log_model(module, kept.steps, name=BEFORE_ACCIDENT)

    def _evaluate(self, module: PtychoModule) -> Evaluation | None:
        """Reconstruct the test objects and log them; None if the network blew up so far that there are none."""
        patches = module.reconstruct(self.dataset.test)
        if not can_be_stitched(patches):
            return None
        beam = module.beam.detached()
        found = evaluate(patches, self.dataset, beam, self.config.train.learn_probe)
        for name in ("object_correlation", "twin_correlation"):
            setattr(self.logbook.history, name, found.metrics.get(name, math.nan))
        for one in found.reconstructions:
            if warning := consistency_warning(one.stitched):
                self.report(warning)
        self.logbook.log_reconstructions(found, beam)
        return found


def _free_memory() -> None:
    """Free the network that was trained and its optimizer, which Lightning's objects keep alive in circles."""
    gc.collect()
    torch.cuda.empty_cache()


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
