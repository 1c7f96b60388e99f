"""What a monitored run writes to its MLflow run: how it begins, and what it came to."""

import json
import logging
from pathlib import Path

import fnostab
from fnostab.health import History, Stability, Verdict
from fnostab.health.history import plain
from fnostab.io.files import atomic_write_text
from fnostab.monitor.settings import Settings
from fnostab.study.names import METRIC, tracked
from fnostab.tracking.checkout import folder_commit
from fnostab.tracking.errors import StoreUnavailable
from fnostab.tracking.run import end_run, how_to_open, start_guest_run
from fnostab.tracking.tracker import Tracker
from fnostab.tracking.verdict import description, evidence_numbers, verdict_layout, verdict_tags

logger = logging.getLogger(__name__)


class Record:
    """The MLflow run of a monitored training, which is MLflow's active run until it ends.

    `run_id` is that of a run to go on with, or None; `device` names where the network is. Raises `ConfigError` where
    the store does not take a run, before anything is written to it.
    """

    def __init__(self, settings: Settings, arch: str, device: str, run_id: str | None) -> None:
        name = f"{settings.arm}-seed{settings.seed}"
        self._folder = Path.cwd() / f"{settings.study}-{name}-unsent"
        self.tracker: Tracker = start_guest_run(name, self._folder, run_id=run_id)
        try:
            self._begin(settings, arch, device)
        except BaseException:
            end_run(self.run_id, "FAILED")
            raise

    @property
    def run_id(self) -> str:
        """The id of the run."""
        return self.tracker.run_id

    @property
    def how_to_open(self) -> str:
        """How to see the run in the UI."""
        return how_to_open(self.run_id, self.tracker.experiment_id)

    def _begin(self, settings: Settings, arch: str, device: str) -> None:
        tracker = self.tracker
        commit, code = folder_commit(Path.cwd())
        about = {"fnostab_version": fnostab.__version__, "git_commit": commit, "device": device}
        tracker.set_tags(settings.tags(arch) | about)
        tracker.delete_tags("verdict", "verdict_reason", "verdict_version", "stability")
        tracker.log_params(settings.all_params(arch))
        if code:
            tracker.log_text(code, "code.diff")
        if settings.baseline is not None:
            tracker.log_metrics({METRIC["val_loss_constant"]: settings.baseline}, step=0)

    def end(self, history: History, verdict: Verdict, stability: Stability | None, status: str) -> None:
        """Write what the run came to, and end it.

        Where the store does not take it, the files are written beside the training and a warning says where: whoever
        trained shall not lose what comes after.
        """
        best = verdict.evidence.get("best_val_loss")
        found = tracked(({} if best is None else {"best_val_loss": float(best)}) | evidence_numbers(verdict))
        layout = verdict_layout(verdict, stability) | found
        self.tracker.log_metrics(found, step=max(0, history.steps - 1))
        if status == "FINISHED":
            texts = {"metrics.json": json.dumps(plain(layout), indent=2, allow_nan=False)}
            numbers = {} if best is None else {"best_val_loss": float(best)}
            note = description(verdict, stability, numbers | evidence_numbers(verdict))
            self._finish(history, verdict_tags(verdict, stability), texts, status, note)
        else:
            self._finish(history, verdict_tags(verdict, None), {}, status)

    def fail(self, history: History, reason: str) -> None:
        """Write what was recorded, and why the training ended without a result."""
        self._finish(history, {"verdict_reason": reason}, {}, "FAILED")

    def _finish(
        self, history: History, tags: dict[str, str], texts: dict[str, str], status: str, note: str | None = None
    ) -> None:
        tracker, texts = self.tracker, {"history.json": history.to_json()} | texts
        try:
            for name, text in texts.items():
                tracker.log_text(text, name)
            if note:
                tracker.set_description(note)
            tracker.finish()
            # The tags come last: a run that has a verdict is whole.
            tracker.set_tags(tags)
        except StoreUnavailable as away:
            self._folder.mkdir(exist_ok=True)
            for name, text in texts.items():
                atomic_write_text(self._folder / name, text)
            logger.warning("%s; run %s has no verdict there, and its files are in %s", away, self.run_id, self._folder)
            status = "FAILED"
        end_run(self.run_id, status)
