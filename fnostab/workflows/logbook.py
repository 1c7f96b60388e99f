"""What a training writes to its MLflow run: how it begins, pictures on the way, what it came to."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from fnostab.config import ARCHITECTURES, ArmConfig, source_files
from fnostab.dataset import Dataset
from fnostab.evaluation import Evaluation, Reconstruction, can_be_stitched, reconstruct
from fnostab.health import History, Stability, Verdict
from fnostab.health.history import plain
from fnostab.io.endings import Interrupted
from fnostab.models.neuralop import batches_of_any_size
from fnostab.optics import Beam
from fnostab.report.axes import to_rgb
from fnostab.report.run import frc_figure, reconstruction_figure, training_figure
from fnostab.report.watched import watched_figure
from fnostab.study.names import tracked
from fnostab.tracking.checkout import uncommitted_code
from fnostab.tracking.errors import StoreUnavailable
from fnostab.tracking.exports import MODEL, log_model
from fnostab.tracking.run import artifact_page
from fnostab.tracking.tracker import Tracker, run_tags
from fnostab.tracking.verdict import StoredPicture, description, verdict_layout, verdict_tags
from fnostab.training.checkpoint_files import CheckpointFiles
from fnostab.training.module import PtychoModule
from fnostab.training.shipped_model import EXAMPLE_PATTERNS, CountsToObject

#: Pictures on the way show this many patches around the middle of the first test object: all would take too long.
_PICTURE_PATCHES: Final = 121

T = TypeVar("T")


class Logbook:
    """Writes one training to its run; with `train.artifacts=numbers`, neither pictures nor model nor checkpoints.

    A picture that cannot be drawn is left out, and `report` takes a line that says so. What the store does not take
    raises `StoreUnavailable`.
    """

    def __init__(
        self, config: ArmConfig, dataset: Dataset, tracker: Tracker, folder: Path, report: Callable[[str], None]
    ) -> None:
        self.history = History()
        self.keeps_all = config.train.artifacts == "all"
        self._config = config
        self._dataset = dataset
        self._tracker = tracker
        self._folder = folder
        self._report = report
        self._title = f"{config.arm}, seed {config.seed}"
        self._baselines: dict[str, float] = {}
        self._model_id: str | None = None

    def begin(self, device: str, baselines: dict[str, float]) -> None:
        """Write what is known before the first step; `baselines` are the numbers of `evaluation.baselines`."""
        config, tracker = self._config, self._tracker
        self._baselines = tracked(baselines)
        for name, value in baselines.items():
            setattr(self.history, name, value)
        tracker.set_tags(run_tags(config, self._dataset, device))
        tracker.delete_tags("verdict", "verdict_reason", "vacuous")
        tracker.log_config(config)
        tracker.log_dataset(self._dataset)
        for source in source_files(config):
            tracker.log_artifact(source, "code")
        if code := uncommitted_code():
            tracker.log_text(code, "code.diff")
        verb = "continuing" if tracker.resumed else "training"
        processes = config.train.devices * config.train.nodes
        where = f"{processes} processes ({device})" if processes > 1 else device
        self._report(f"{verb} {config.arm}, seed {config.seed}, on {where}: MLflow run {tracker.run_id}")

    def draw(self, module: PtychoModule, epoch: int, step: int) -> None:
        """Pictures with the weights as they stand: the middle of the first test object, FRC, loss and gradients."""
        title, when = f"{self._title}, epoch {epoch}", f" of epoch {epoch}"
        drawings: dict[str, tuple[Any, ...]] = {"training": (training_figure, self.history, title)}
        if found := self._sparing("reconstruction" + when, self._reconstruct_middle, module):
            drawings["reconstruction"] = (reconstruction_figure, found, module.probe_array, title)
            if found.comparison:
                drawings["frc"] = (frc_figure, [found], title)
        for key, drawing in drawings.items():
            pixels = self._sparing(key + when, _pixels, *drawing)
            if pixels is not None:  # a full disk has no room for it
                self._sparing(key + when, self._tracker.log_image, pixels, key, step)

    def _reconstruct_middle(self, module: PtychoModule) -> Reconstruction | None:
        """The middle of the first test object; None if the network blew up."""
        test = self._dataset.test
        members = np.flatnonzero(test.object_index == test.object_index[0])
        away = np.abs(test.positions_px[members] - np.median(test.positions_px[members], axis=0)).max(axis=1)
        part = test.part(np.sort(members[np.argsort(away, kind="stable")[:_PICTURE_PATCHES]]))
        patches = module.reconstruct(part)
        if not can_be_stitched(patches):
            return None
        return reconstruct(patches, part, self._dataset, module.beam.detached(), self._config.train.learn_probe)

    def log_reconstructions(self, evaluation: Evaluation, beam: Beam) -> None:
        """Write the test objects, with pictures of them."""
        if not self.keeps_all:
            return
        for index, one in enumerate(evaluation.reconstructions):
            title = f"{self._title}: test object {index}, R = {one.r_factor:.4f}"
            key = "reconstruction" if index == 0 else None
            self._log_picture(f"recon/object_{index}.png", key, reconstruction_figure, one, beam.probe.numpy(), title)
            path = self._folder / f"object_{index}.npz"
            stitched = one.stitched
            arrays: dict[str, Any] = {"object": stitched.object, "light": stitched.light, **beam.to_arrays()}
            np.savez_compressed(path, origin_px=stitched.origin_px, **arrays)
            self._tracker.log_artifact(path, "recon")
        if evaluation.compared:
            self._log_picture("figures/frc.png", "frc", frc_figure, evaluation.reconstructions, self._title)

    def log_model(self, module: PtychoModule, steps: int, name: str = MODEL) -> None:
        """Write the network as it was after `steps` steps, ready to be served; `module` ends up on the CPU."""
        if not self.keeps_all:
            return
        probe_path = self._folder / "probe.npz"
        # What a reconstruction of another scan needs to know of the training; see `tracking.models`.
        beside: dict[str, Any] = module.beam.to_arrays()
        if self._config.train.learn_probe:
            beside["start_probe"] = self._dataset.probe
        np.savez(probe_path, mean_counts=module.mean_counts, scale=module.scale, **beside)
        if "modes" in beside:
            self._report(
                f"the model exports the first of {len(beside['modes'])} modes as its probe, and all as its modes"
            )
        data, test = self._config.data, self._dataset.test
        shipped = CountsToObject(module.generator, module.input_scale, data.group_size, module.mask).cpu().eval()
        example = np.array(test.counts[:EXAMPLE_PATTERNS])
        if data.gridsize > 1:
            members = test.groups(data.gridsize).members
            example = test.counts[np.resize(members, (EXAMPLE_PATTERNS, data.group_size))]
        with torch.no_grad():
            shipped(torch.from_numpy(example))  # a network may keep what it makes at its first call
        with batches_of_any_size():
            is_own = self._config.model.arch in ARCHITECTURES
            # The store must have what was measured at that step before the model is linked to it.
            self._tracker.flush()
            files, step = [probe_path], max(0, steps - 1)
            of_model = log_model(self._tracker, shipped, example, files, name=name, step=step, try_it=not is_own)
        if name == MODEL:
            self._model_id = of_model

    def end(
        self,
        verdict: Verdict,
        stability: Stability | None,
        results: dict[str, float],
        evaluation: Evaluation | None,
        files: CheckpointFiles,
    ) -> None:
        """Write verdict, stability, final numbers, series and checkpoints; the recorder wrote stability's measures."""
        tracker, history = self._tracker, self.history
        if self.keeps_all:
            self._log_picture("figures/training.png", "training", training_figure, history, self._title)
            if history.watched:
                self._log_picture("figures/watched.png", "watched", watched_figure, history, self._title)
        numbers = tracked(results)
        self._log_once(numbers)
        vacuous = evaluation.vacuous if evaluation else []
        tags = verdict_tags(verdict, stability) | ({"vacuous": ",".join(vacuous)} if vacuous else {})
        if "twin" in verdict.evidence:
            tags["twin"] = str(verdict.evidence["twin"]).lower()
        tracker.set_tags(tags)
        tracker.set_description(self._description(verdict, stability, results, evaluation))
        layout = verdict_layout(verdict, stability)
        layout |= {"vacuous": vacuous} | (evaluation.summary if evaluation else {}) | self._baselines | numbers
        tracker.log_text(json.dumps(plain(layout), indent=2, allow_nan=False), "metrics.json")
        tracker.log_text(history.to_json(), "history.json")
        for path in files.at_the_end if self.keeps_all else ():
            tracker.log_artifact(path, "checkpoints")

    def _log_once(self, numbers: Mapping[str, float]) -> None:
        """Write numbers of which a run has one, after all series, and last those that all runs on a dataset share.

        They stand at step 0, because the UI draws bars of what has no other step, and dots of what has one. It compares
        runs by the number first that they had first.
        """
        self._tracker.log_metrics(numbers, step=0, model_id=self._model_id)
        self._tracker.log_metrics(self._baselines, step=0)

    def _description(
        self,
        verdict: Verdict,
        stability: Stability | None,
        results: Mapping[str, float],
        evaluation: Evaluation | None,
    ) -> str:
        """What the run's page says first: the verdict, the numbers that it goes with, and a picture if there is one."""
        history = self.history
        numbers = {"val_loss_constant": history.val_loss_constant, "val_loss_floor": history.val_loss_floor}
        numbers["r_stitched"] = history.r_stitched[-1] if history.r_stitched else math.nan
        has_picture = self.keeps_all and evaluation is not None
        if not has_picture:
            return description(verdict, stability, {**numbers, **results})
        run_id, path = self._tracker.run_id, "recon/object_0.png"
        picture = StoredPicture(run_id, path, artifact_page(run_id, self._tracker.experiment_id, path))
        return description(verdict, stability, {**numbers, **results}, picture)

    def log_interrupted(self, interrupt: Interrupted) -> None:
        """Write what an interrupted training has so far."""
        self.history.events = {"interrupted": True}
        reason = f"{interrupt} after {self.history.steps} steps; the same command continues it"
        self._report(reason)
        self._log_once({})
        try:
            self._tracker.set_tags({"verdict": "interrupted", "verdict_reason": reason})
            self._tracker.log_text(self.history.to_json(), "history.json")
        except StoreUnavailable as away:
            self._report(str(away))

    def _log_picture(self, name: str, key: str | None, *drawing: Any) -> None:
        """Write a picture of the end as the artifact `name`, and as the last that the UI shows under `key`."""
        pixels = self._sparing(name, _pixels, *drawing)
        if pixels is None:
            return
        self._tracker.log_picture(pixels, name)
        if key:
            self._tracker.log_image(pixels, key, self.history.steps - 1)

    def _sparing(self, picture: str, function: Callable[..., T], *arguments: Any) -> T | None:
        """What `function` gives; if it raises, None and a line: a picture that fails shall cost a run nothing else."""
        try:
            return function(*arguments)
        except Exception as error:
            words = (str(error).splitlines() or [""])[0]
            self._report(f"no picture {picture}: {type(error).__name__}: {words}")
            return None


def _pixels(draw: Callable[..., Any], *arguments: Any) -> NDArray[np.uint8]:
    return to_rgb(draw(*arguments))
