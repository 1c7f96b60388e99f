"""A run as the tracking store tells it, whoever made it, and as a ranking takes it."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from fnostab.study.names import METRIC, NUMBERS

#: What stands for the content hash of runs that do not say which dataset they saw.
NO_DATASET: Final = "not given"


@dataclass(frozen=True)
class StoredRun:
    """A run as the tracking store tells it; times are in ms, `status` is MLflow's."""

    run_id: str
    experiment_id: str
    status: str
    ended_ms: int
    tags: Mapping[str, str]
    params: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    artifact_uri: str = ""

    @property
    def arm(self) -> str:
        """The arm it trained."""
        return self.tags["arm"]

    @property
    def seed(self) -> int:
        """The seed it had."""
        return int(self.tags["seed"])

    @property
    def dataset_sha256(self) -> str:
        """Content hash of its dataset, or `NO_DATASET`."""
        return self.tags.get("dataset_sha256") or NO_DATASET

    @property
    def is_foreign(self) -> bool:
        """Whether something else than `fnostab train` made it."""
        return are_foreign(self.params)

    @property
    def is_supervised(self) -> bool:
        """Whether it was trained on the true patches."""
        return self.params.get("train.mode") == "supervised"

    @property
    def data_sha256(self) -> str:
        """What comparable runs have in common: the hash of their dataset, or of what the study's datasets are made of.

        In a study over several datasets, a training seed has one of them, the same in all arms.
        """
        return self.tags.get("datasets_sha256", self.dataset_sha256)

    @property
    def is_result(self) -> bool:
        """Whether it ran to its end and has a verdict."""
        return self.status == "FINISHED" and "verdict" in self.tags

    def to_row(self, by: str = "best_val_loss") -> dict[str, Any]:
        """The run as `ranking.rank_arms` takes it, with the metric `by`; `r_stitched` is the last one of training."""
        row: dict[str, Any] = {by: self.metrics.get(by), "arm": self.arm, "seed": self.seed, "run_id": self.run_id}
        row |= {"verdict": self.tags["verdict"], "arch": self.tags.get("arch")}
        row |= {number.name: self.metrics.get(number.metric) for number in NUMBERS if number.when == "end"}
        return row | {"r_stitched": self.metrics.get(METRIC["r_stitched"])}


def to_rows(runs: Iterable[StoredRun], by: str = "best_val_loss") -> tuple[list[dict[str, Any]], list[str]]:
    """The runs as `ranking.rank_arms` takes them, and a note if their `r_stitched` is not what its name says.

    `by` is the column that they are ranked by, which may be a metric of the store.

    Where a converged run has no `val/r_stitched`, as those of earlier versions, `test/r_factor` stands for it in all
    runs: values of two kinds must not be compared. Where no run has either, the rows have no such column.
    """
    rows = [run.to_row(by) for run in runs]
    if all(row["r_stitched"] is None and row["r_factor"] is None for row in rows):
        return [{key: value for key, value in row.items() if key != "r_stitched"} for row in rows], []
    converged = [row for row in rows if row["verdict"] == "converged"]
    during, after = ([_is_number(row[name]) for row in converged] for name in ("r_stitched", "r_factor"))
    if all(during) or not any(during + after):
        return rows, []
    rows = [row | {"r_stitched": row["r_factor"]} for row in rows]
    why = f"{during.count(False)} of {len(converged)} converged runs have no val/r_stitched"
    if all(after):
        return rows, [f"{why}, so test/r_factor, that of the stitched test object, is the r_stitched of all runs here."]
    return rows, [f"{why}, and {after.count(False)} no test/r_factor, so the arms are compared by val_loss alone."]


def _is_number(value: float | None) -> bool:
    return value is not None and not math.isnan(value)


def has_identity(tags: Mapping[str, str]) -> bool:
    """Whether the tags of a run say its arm and seed, without which it cannot be compared."""
    return bool(tags.get("arm")) and tags.get("seed", "").isdecimal()


def are_foreign(params: Mapping[str, str]) -> bool:
    """Whether the params of a run are not those of this package's config, as of one that something else made."""
    return not {"preset", "model.arch"} <= params.keys()
