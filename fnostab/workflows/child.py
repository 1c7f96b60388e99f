"""The runs of a study, wherever `fnostab.launch` has them executed."""

import os
import time
import traceback
from typing import Final

from fnostab.config import ArmConfig, ConfigError
from fnostab.io.endings import CommandFailed, Interrupted
from fnostab.launch import Job, Send, Update
from fnostab.tracking.errors import redacted
from fnostab.training.callbacks import EpochSummary
from fnostab.workflows.runfolder import AlreadyRunning
from fnostab.workflows.train import train_arm

#: Seconds to wait for a process that trains the same run still, such as one whose study was killed.
_PATIENCE_S: Final = 120.0


def train_job(job: Job, send: Send) -> None:
    """Train `job` and send how it stands. Nothing that goes wrong with it is raised."""
    config = ArmConfig.model_validate(job.config)
    pid = os.getpid()
    send(Update("running", "starting", epochs=config.train.epochs, pid=pid))

    def watch(done: EpochSummary) -> None:
        send(Update("running", "", done.epoch, done.epochs, done.val_loss, done.seconds_left, pid=pid))

    def report(line: str) -> None:
        if not line.startswith("epoch "):
            send(Update("running", line, pid=pid, epochs=config.train.epochs))

    started_at = time.monotonic()
    try:
        while True:
            try:
                # A process whose study was killed may have finished this run since it was planned.
                result = train_arm(config, report, watch=watch, tags=job.tags, again=False)
                break
            except AlreadyRunning as error:
                if time.monotonic() - started_at > _PATIENCE_S:
                    raise
                send(Update("running", f"waiting: {error}", epochs=config.train.epochs, pid=pid))
                time.sleep(1)
    except Interrupted as interrupt:
        send(Update("interrupted", str(interrupt), signum=interrupt.signum))
    except (ConfigError, CommandFailed) as error:
        send(Update("failed", str(error)))
    except Exception as error:
        first_line = (str(error).strip().splitlines() or [""])[0]
        details = redacted(traceback.format_exc())
        send(Update("failed", redacted(f"{type(error).__name__}: {first_line}"), details=details))
    else:
        send(
            Update(
                "done",
                result.verdict.reason,
                epoch=len(result.history.val_loss),
                epochs=config.train.epochs,
                val_loss=result.metrics.get("best_val_loss"),
                verdict=result.verdict.label,
                run_id=result.run_id,
            )
        )
