"""Train one arm, everything logged: the entry point `main` of `MLproject`, and `fnostab train`."""

import gc
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from fnostab.config import ArmConfig, namesake, with_sources
from fnostab.dataset import ORIENTATIONS, Dataset, combined, common_sha256, r_by_orientation
from fnostab.evaluation import Evaluation, baselines, can_be_stitched, consistency_warning, evaluate
from fnostab.health import Stability, Verdict, better_orientation, judge, measure_stability
from fnostab.health.history import History
from fnostab.io.endings import Interrupted
from fnostab.study.names import tracked
from fnostab.tracking.artifacts import read_run
from fnostab.tracking.errors import redacted
from fnostab.tracking.run import NOTE, RunState, find_claimed, how_to_open, open_run, resume_into, run_state
from fnostab.tracking.store import check_store, open_store
from fnostab.tracking.studies import find_results
from fnostab.tracking.tracker import Tracker
from fnostab.tracking.verdict import evidence_numbers
from fnostab.training.batches import Batch
from fnostab.training.callbacks import (
    Checkpoints,
    ConsoleProgress,
    EpochSummary,
    Interruption,
    Pictures,
    Pruning,
    SeriesRecorder,
)
from fnostab.training.checkpoint_files import CheckpointFiles
from fnostab.training.memory import is_out_of_memory, peak_bytes
from fnostab.training.module import PtychoModule
from fnostab.training.precision import check_precision, set_matrix_precision, settle_precision, slower_than_single
from fnostab.training.processes import Meeting, find_environment, leading
from fnostab.training.supervised import constant_object_loss
from fnostab.training.trainer import (
    check_accelerator,
    check_clipping,
    check_devices,
    check_network,
    fit,
    make_trainer,
    quieten_libraries,
    set_threads,
)
from fnostab.workflows import PrintLine, build_dataset, follow
from fnostab.workflows.logbook import Logbook
from fnostab.workflows.runfolder import RunFolder
from fnostab.workflows.warm_start import warm_start

#: Is told how a run stands after each epoch; what it answers with True ends there, with the verdict `pruned`.
Watch = Callable[[EpochSummary], bool | None]
#: Gives the loss of a step that is taken together with those of other runs, and the gradients.
LossTogether = Callable[[PtychoModule, Batch], torch.Tensor]


@dataclass(frozen=True)
class ArmResult:
    """What a trained arm left behind: its MLflow run, its verdict, its stability (None if it never learnt), metrics."""

    run_id: str
    how_to_open: str
    verdict: Verdict
    stability: Stability | None
    metrics: dict[str, float]
    history: History


def train_arm(
    config: ArmConfig,
    report: PrintLine,
    data_progress: Callable[[int, int], None] | None = None,
    *,
    watch: Watch | None = None,
    tags: Mapping[str, str] | None = None,
    again: bool = True,
    run_name: str | None = None,
    description: str | None = None,
) -> ArmResult:
    """Train `config`, log everything to MLflow, and return where it is and what was learnt.

    `report` takes lines for people, `data_progress` (done, total) patterns while a dataset is built, `watch` an
    `EpochSummary` an epoch, and may stop the run; `tags` are set besides the run's own. An unfinished run of the same
    identity is continued where its last checkpoint stands; one that has its result, or was stopped by `watch`, is
    trained anew, or, without `again`, returned as it is. `run_name` and `description` are the MLflow run's, if given.
    Raises `ConfigError` for bad input, before anything is written; `AlreadyRunning` if another process trains the same
    identity; `Interrupted` after a stop signal, once everything recorded is stored. With several devices, this process
    starts one more for each and leads them; where torchrun or SLURM started all of them, those that do not lead train
    along and end here: `SystemExit`.
    """
    config = _checked(config, report)
    if find_environment(config).global_rank() > 0:
        follow.follow(config)
        raise SystemExit(0)
    with Interruption() as interruption:
        noted = {NOTE: description} if description else {}
        with _begun(config, report, data_progress, tags or {}, noted, again=again, run_name=run_name) as begun:
            return begun if isinstance(begun, ArmResult) else begun.run(interruption, watch)


class Along(NamedTuple):
    """How a run trains along with others: what takes its steps, the signals that came, and how many runs there are."""

    loss_together: LossTogether
    signals: Sequence[int]
    runs: int


def train_along(
    config: ArmConfig, report: PrintLine, along: Along, *, watch: Watch | None = None, tags: Mapping[str, str]
) -> None:
    """Train `config` in step with others as far as that goes; for a thread of its own.

    Everything but the training is left to `train_arm` with the same arguments, which goes on from the last checkpoint;
    a run that has its result is left alone. Raises what `train_arm` does.
    """
    config = _checked(config, report)
    with Interruption(caught=along.signals) as interruption:
        interruption.check()
        with _begun(config, report, None, tags, {"seeds_at_once": str(along.runs)}, again=False) as begun:
            if not isinstance(begun, ArmResult):
                begun.train(interruption, watch, along.loss_together)


def _checked(config: ArmConfig, report: PrintLine) -> ArmConfig:
    """`config` with the hashes of its source files, if it can be trained here; raises `ConfigError` if not."""
    quieten_libraries()
    check_accelerator(config.train.accelerator)
    config = settle_precision({config.arm: config})[config.arm]
    check_devices(config)
    check_precision(config)
    config = with_sources(config)
    check_network(config)
    check_clipping(config)
    for line in (namesake(config.model.arch), slower_than_single(config)):
        if line:
            report(line)
    return config


@contextmanager
def _begun(
    config: ArmConfig,
    report: PrintLine,
    data_progress: Callable[[int, int], None] | None,
    tags: Mapping[str, str],
    further_tags: Mapping[str, str],
    *,
    again: bool,
    run_name: str | None = None,
) -> Iterator["_Training | ArmResult"]:
    """A training with its folder and its MLflow run, both held inside the block; or its result, if it has one.

    At the end of the block the run ends as its tracker says; if it is finished, nothing is left of the folder, which
    remembers `tags` for those who go on with the run.
    """
    store_uri = check_store(for_new_run=True)
    start = warm_start(config)
    config = start.config
    dataset = build_dataset(config.dataset, data_progress)
    config = set_threads(config)
    set_matrix_precision(config)
    open_store()
    with RunFolder(config, dataset.sha256, redacted(store_uri)) as folder:
        run_id, state = _earlier_run(config, dataset.sha256, folder, again)
        if run_id and state == "finished":
            yield _finished_result(run_id, report)
        else:
            opened = open_run(config, folder.path, first_run_id=run_id, claim=folder.claim, run_name=run_name)
            with opened as tracker:
                tags = {**tags, **start.tags}
                folder.begin(tracker.run_id, tags)
                tracker.set_tags({**tags, **further_tags})
                logbook = Logbook(config, dataset, tracker, folder.path, report)
                try:
                    yield _Training(config, dataset, tracker, logbook, folder.path, report, start.weights)
                except Interrupted as interrupt:
                    logbook.log_interrupted(interrupt)
                    raise
            if tracker.status != "FINISHED":
                return
        folder.finish()  # everything is in the store, and the run is closed


def _earlier_run(config: ArmConfig, dataset_sha256: str, folder: RunFolder, again: bool) -> tuple[str | None, RunState]:
    """The run of this identity and how it stands: it is to be continued, or finished, or gone and a new one is made."""
    run_id = folder.first_run_id or find_claimed(folder.claim)
    if run_id is None and not again:
        data_sha256 = common_sha256(config.data, dataset_sha256)
        results = find_results(config.study, data_sha256, config_sha256=config.sha256())
        found = results.get((config.arm, config.seed, config.sha256()))
        run_id = found.run_id if found else None
    state = run_state(run_id) if run_id else "gone"
    if run_id and state in ("gone", "deleted"):
        folder.start_over()
        run_id = None
    return run_id, state


def _finished_result(run_id: str, report: PrintLine) -> ArmResult:
    """The result of a run that another process finished; it may have been killed after its last word to the store."""
    resume_into(run_id)
    found, stored = read_run(run_id)
    report(f"MLflow run {run_id} was finished already")
    history = History()
    history.load(stored or {})
    where = how_to_open(run_id, found.experiment_id)
    series = history.to_mapping()
    return ArmResult(run_id, where, judge(series), measure_stability(series), dict(found.metrics), history)


@dataclass
class _Training:
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
                logbook.log_model(module)
        series = history.to_mapping()
        verdict, stability = judge(series), measure_stability(series)
        results |= evidence_numbers(verdict)
        logbook.end(verdict, stability, results, evaluation, self._files)
        where = how_to_open(tracker.run_id, tracker.experiment_id)
        return ArmResult(tracker.run_id, where, verdict, stability, tracked(known | results), history)

    def train(self, interruption: Interruption, watch: Watch | None, loss_together: LossTogether) -> None:
        """Train in step with others, and leave the rest to somebody else's `run`."""
        self.tracker.status = "SCHEDULED"
        speed = self._fit(interruption, watch, self._known(), loss_together)
        self.tracker.log_metrics(tracked(speed), step=self.logbook.history.steps - 1)

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
        loss_together: LossTogether | None = None,
    ) -> dict[str, float]:
        """Build the network and train it; what is noticed on the way goes into the history."""
        config = self.config
        recorder = SeriesRecorder(self.logbook.history, self.tracker, config.train.give_up_epoch)
        console = ConsoleProgress(self.report, watch, terminal=False if loss_together else None)
        pruning = Pruning(self.logbook.history, lambda: console.stop_wanted)
        callbacks = [recorder, console, pruning, self._checkpoints, interruption]
        if self.logbook.keeps_all:
            callbacks.insert(3, Pictures(self.logbook.draw, config.train.picture_every_epochs))
        trainer = make_trainer(config, callbacks, self._files)
        self._device = trainer.strategy.root_device
        self.logbook.begin(_device_name(self._device), known)
        self._check_positions()
        last = self._files.newest_complete() if self.tracker.resumed else None
        resume_from = str(last) if last else None
        meeting = Meeting(self.dataset.sha256, resume_from)
        with leading(trainer, config, meeting, follow.COMMAND, self.report):
            fit(trainer, config, self.dataset, resume_from, self.weights, loss_together)
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
        module = PtychoModule(self.config, self.dataset)
        module.load_state_dict(self._files.best_weights())
        return module.to(self._device)

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
