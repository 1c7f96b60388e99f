"""What the arms of a study come to, kept up to date in its parent run while the runs finish."""

import json
import logging
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import Final

from fnostab.health import FAILED, NO_RESULT
from fnostab.launch import Update
from fnostab.study.arm_series import FinishedRun, Series, series_by_epoch, series_by_run
from fnostab.study.curves import NO_CURVES, Curves
from fnostab.study.plan import Planned
from fnostab.study.result import StudyResult
from fnostab.study.stored_run import StoredRun
from fnostab.tracking.arm_series import ArmSeriesWriter
from fnostab.tracking.artifacts import read_artifacts
from fnostab.tracking.store import read_stored_run

logger = logging.getLogger(__name__)

#: Runs of a study whose histories are read for its series; of more, what they came to is kept, and no curves by epoch.
MOST_CURVES: Final = 1000


def series_of_result(result: StudyResult, stored: Iterable[StoredRun]) -> Series:
    """The series of a ranked study; `stored` are its runs as the store tells them."""
    ended_ms = {run.run_id: run.ended_ms for run in stored}
    runs = [
        FinishedRun(run.run_id, run.arm, run.failed, ended_ms[run.run_id], run.best_val_loss, run.curves)
        for run in result.runs
        if not run.missing
    ]
    return _series_of(runs, result.arms if len(result.runs) <= MOST_CURVES else ())


class ArmSeries:
    """Writes the series of a study's arms to its parent run, after each run of it that ends.

    Nothing that goes wrong with that is raised, as it costs the study nothing: the next run that ends, and
    `fnostab compare`, write what is missing.
    """

    def __init__(self, parent_run_id: str) -> None:
        self._writer = ArmSeriesWriter(parent_run_id)
        self._known: dict[str, FinishedRun] = {}
        self._has_warned = False

    def update(self, planned: Iterable[Planned], ends: Iterable[Update], *, at_the_end: bool = False) -> None:
        """Write how the arms stand after the runs with these `ends`.

        The curves of an arm by epoch are those of all its runs that are `planned`, or `at_the_end` of all that ended.
        """
        try:
            self._read([end.run_id for end in ends if end.state == "done" and end.run_id])
            done = Counter(run.arm for run in self._known.values())
            expected = Counter(run.arm for run in planned)
            complete = {arm for arm, number in done.items() if at_the_end or number >= expected[arm]}
            self._writer.write(_series_of(list(self._known.values()), complete))
        except Exception as error:
            if not self._has_warned:
                logger.warning("the series of the study's arms wait: %s; `fnostab compare` writes them", error)
            self._has_warned = True

    def _read(self, run_ids: Iterable[str]) -> None:
        """Take note of what the runs came to that are not known yet."""
        new = [read_stored_run(run_id) for run_id in run_ids if run_id not in self._known]
        new = [run for run in new if run.tags.get("verdict", NO_RESULT[0]) not in NO_RESULT]
        few = len(self._known) + len(new) <= MOST_CURVES
        histories = read_artifacts(new, "history.json", _curves) if few else [None] * len(new)
        for run, curves in zip(new, histories, strict=True):
            failed = run.tags["verdict"] in FAILED
            loss = float("inf") if failed else run.metrics.get("best_val_loss", float("inf"))
            known = curves if isinstance(curves, Curves) else NO_CURVES
            self._known[run.run_id] = FinishedRun(run.run_id, run.arm, failed, run.ended_ms, loss, known)


def _series_of(runs: Sequence[FinishedRun], arms: Collection[str]) -> Series:
    """The series by finished run of all arms, and by epoch of those `arms`."""
    found = dict(series_by_run(runs))
    for arm in arms:
        found |= series_by_epoch([run for run in runs if run.arm == arm])
    return found


def _curves(content: bytes) -> Curves:
    return Curves.of(json.loads(content))
