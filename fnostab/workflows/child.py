"""The runs of a study, wherever `fnostab.launch` has them executed."""

import os
import time
import traceback
from collections.abc import Sequence
from functools import partial
from typing import Final

from fnostab.config import ArmConfig, ConfigError
from fnostab.io.endings import CommandFailed, Interrupted
from fnostab.io.untrusted import first_line
from fnostab.launch import Job, OnUpdate, Send, Update, collected_signals
from fnostab.tracking.errors import redacted
from fnostab.training.callbacks import EpochSummary
from fnostab.training.together import Member, Together
from fnostab.workflows.runfolder import AlreadyRunning
from fnostab.workflows.train import Along, train_along, train_arm

#: Seconds to wait for a process that trains the same run still, such as one whose study was killed.
_PATIENCE_S: Final = 120.0


class News:
    """Sends what a run says of itself while it trains."""

    def __init__(self, config: ArmConfig, send: Send) -> None:
        self._epochs = config.train.epochs
        self._send = send

    def watch(self, done: EpochSummary) -> None:
        """Send how the run stands after an epoch."""
        self._send(Update("running", "", done.epoch, done.epochs, done.val_loss, done.seconds_left, pid=os.getpid()))

    def report(self, line: str) -> None:
        """Send a line, unless it is about an epoch."""
        if not line.startswith("epoch "):
            self._send(Update("running", line, pid=os.getpid(), epochs=self._epochs))


def train_job(job: Job, send: Send) -> None:
    """Train `job` and send how it stands. Nothing that goes wrong with it is raised."""
    config = ArmConfig.model_validate(job.config)
    news = News(config, send)
    news.report("starting")
    started_at = time.monotonic()
    try:
        while True:
            try:
                # A process whose study was killed may have finished this run since it was planned.
                result = train_arm(config, news.report, watch=news.watch, tags=job.tags, again=False)
                break
            except AlreadyRunning as error:
                if time.monotonic() - started_at > _PATIENCE_S:
                    raise
                news.report(f"waiting: {error}")
                time.sleep(1)
    except Interrupted as interrupt:
        send(Update("interrupted", str(interrupt), signum=interrupt.signum))
    except (ConfigError, CommandFailed) as error:
        send(Update("failed", str(error)))
    except Exception as error:
        details = redacted(traceback.format_exc())
        send(Update("failed", redacted(f"{type(error).__name__}: {first_line(error)}"), details=details))
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


def train_together(jobs: Sequence[Job], send: OnUpdate) -> None:
    """Train the runs of `jobs`, which differ in their seed alone, in step; send how each stands.

    A run that is interrupted has ended. Every other one has not, whatever became of its training: `train_job` goes on
    with it from its last checkpoint, evaluates it, or finds out what is wrong with it.
    """
    news = [News(ArmConfig.model_validate(job.config), partial(send, place)) for place, job in enumerate(jobs)]

    def report_to_all(line: str) -> None:
        for each in news:
            each.report(line)

    def train(place: int) -> None:
        job, mine = jobs[place], news[place]
        along = Along(Member(together, place), caught, len(jobs))
        try:
            train_along(ArmConfig.model_validate(job.config), mine.report, along, watch=mine.watch, tags=job.tags)
        except Interrupted as interrupt:
            send(place, Update("interrupted", str(interrupt), signum=interrupt.signum))
        except Exception as error:
            mine.report(redacted(f"on its own from here: {type(error).__name__}: {first_line(error)}"))

    together = Together(report_to_all)
    report_to_all(f"starting, {len(jobs)} seeds at once")
    with collected_signals() as caught:
        together.run([partial(train, place) for place in range(len(jobs))])
