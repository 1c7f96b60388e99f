"""Bring what waits on this machine to the tracking store: `fnostab sync`."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch

from fnostab.config import ArmConfig, stored_config
from fnostab.health.history import History
from fnostab.io.endings import CommandFailed
from fnostab.study.names import NUMBERS, tracked
from fnostab.tracking.errors import redacted
from fnostab.tracking.run import run_state
from fnostab.tracking.store import open_store
from fnostab.tracking.tracker import Tracker
from fnostab.training.callbacks import SeriesRecorder, StageRecorder
from fnostab.training.checkpoint_files import CheckpointFiles
from fnostab.workflows import PrintLine
from fnostab.workflows.runfolder import AlreadyRunning, RunFolder, Unfinished
from fnostab.workflows.train import train_arm

#: finished: the run is whole; uploaded: all that there is so far is stored, and the run is to be trained on; forgotten:
#: it was deleted in the store; busy: another process has it; elsewhere: it belongs to another store; failed: it waits.
State = Literal["finished", "uploaded", "forgotten", "busy", "elsewhere", "failed"]


def sync_runs(runs: Sequence[Unfinished], report: PrintLine) -> list[tuple[State, str]]:
    """Bring those of `runs` that wait for the present tracking store there; returns what became of each, in words too.

    A run whose training is over is evaluated, exported and closed, as it would have been; of one that was stopped in
    the middle, what its last checkpoint holds is uploaded, and the command that began it goes on with the training.
    Nothing is written twice. Raises `ConfigError` if the store does not answer.
    """
    store = redacted(open_store())
    return [_sync(run, store, report) for run in runs]


def _sync(run: Unfinished, store: str, report: PrintLine) -> tuple[State, str]:
    if run.store != store:
        return "elsewhere", f"it waits for the tracking store {run.store}"
    try:
        config = stored_config(run.config)
        with RunFolder(config, run.dataset_sha256, store) as folder:
            state = run_state(run.run_id)
            if state == "deleted":
                folder.finish()
                text = f"run {run.run_id} was deleted in the tracking store; what waited of it is removed here too"
                return "forgotten", text
            if state == "gone":
                text = f"the tracking store has no run {run.run_id}; to forget what waits of it, delete {folder.path}"
                return "failed", text
            is_over, text = _upload(run, config, folder.path, report)
        if not is_over:
            return "uploaded", f"{text}; the command that began it trains on"
        result = train_arm(config, report, tags=run.tags)
    except AlreadyRunning as error:
        return "busy", str(error)
    except (CommandFailed, ValueError, OSError) as error:  # bad input, such as a scan that was deleted, is one of them
        return "failed", str(error)
    return "finished", f"verdict: {result.verdict.label}: {result.verdict.reason}"


def _upload(run: Unfinished, config: ArmConfig, folder: Path, report: PrintLine) -> tuple[bool, str]:
    """Store the series in a run's last checkpoint; tells whether its training is over, and how much there was."""
    checkpoint = CheckpointFiles(folder, report).newest_complete()
    if checkpoint is None:
        return False, "there is no checkpoint yet"
    tracker = Tracker(run.run_id, folder, resumed=True)
    history = History()
    recorder = SeriesRecorder(history, tracker)
    stages = StageRecorder(history, tracker)
    states = torch.load(checkpoint, weights_only=True)["callbacks"]
    recorder.load_state_dict(states[SeriesRecorder.__qualname__])
    recorder.offer_all()
    if StageRecorder.__qualname__ in states:
        stages.load_state_dict(states[StageRecorder.__qualname__])
        stages.offer()
    known = {number.name for number in NUMBERS if number.when == "start"} & vars(history).keys()
    numbers = {name: getattr(history, name) for name in sorted(known)}
    tracker.log_metrics(tracked({name: value for name, value in numbers.items() if not math.isnan(value)}), step=0)
    tracker.finish()
    is_over = recorder.epochs == config.train.epochs or recorder.had_to_stop
    return is_over, f"{history.steps} steps of {recorder.epochs} of {config.train.epochs} epochs are stored"
