"""The runs in docs/results/data."""

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

from fnostab.study.selection import StoredRun
from fnostab.tracking import read_exported

DATA: Final = Path(__file__).resolve().parent.parent / "docs" / "results" / "data"
#: Numbers of encoder blocks in study q2_depth.
DEPTHS: Final = (4, 8, 12, 16)


@dataclass(frozen=True)
class Run:
    """A run of a study."""

    stored: StoredRun
    history: Mapping[str, Any]

    @property
    def row(self) -> Mapping[str, Any]:
        """The run as `rank_arms` takes it."""
        return self.stored.to_row()

    @property
    def arm(self) -> str:
        """Its arm."""
        return self.stored.arm

    @property
    def base_arm(self) -> str:
        """Its arm, without what the grid of the study added to the name."""
        return self.arm.partition("-")[0]

    @property
    def metrics(self) -> Mapping[str, float]:
        """Its final metrics."""
        return self.stored.metrics

    @property
    def health(self) -> Mapping[str, list[float]]:
        """Series with one value from before the first step, and one an epoch."""
        return dict(self.history["health"])

    @property
    def rate(self) -> float:
        """Its learning rate."""
        return float(self.stored.params["optim.lr"])

    @property
    def failed(self) -> bool:
        """Whether its verdict is a failure."""
        return self.stored.tags["verdict"] != "converged"


@cache
def read_runs(study: str) -> tuple[Run, ...]:
    """The runs of a study, by arm and seed."""
    exported = read_exported(DATA / f"{study}.jsonl.gz")
    return tuple(
        Run(
            StoredRun(run.run_id, "", "FINISHED", run.ended_ms, run.tags, run.params, dict(run.metrics)),
            run.history or {},
        )
        for run in exported.runs
    )


def of_arm(study: str, arm: str) -> list[Run]:
    """The runs of one arm."""
    return [run for run in read_runs(study) if run.arm == arm]


def depth_arm(arm: str, blocks: int) -> str:
    """The name of `arm` with so many blocks, where the grid of a study varies them."""
    return f"{arm}-fno_blocks{blocks}"


def median(values: Iterable[float | None]) -> float:
    """The median of those that are known; NaN if none is."""
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else float("nan")
