"""Stage B against Stage A: did instability emerge when the same arm got a deeper network?"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

#: A peak of the gradient norm, its maximum over its median, that grew by this factor is a sign of instability. A
#: convention: clearly more than the peaks' spread between seeds, clearly less than a blow-up.
PEAK_GROWTH: Final = 5.0
#: So is a median best_val_loss that is higher by this share.
LOSS_GROWTH: Final = 0.25
#: A deeper network costs more to train and to use, so its median best_val_loss must be lower by this share.
WORTHWHILE_GAIN: Final = 0.05

#: How a change is told: as b / a, as b - a, or as b - a in percentage points.
Kind = Literal["factor", "difference", "rate"]
#: - stay: at the shallower depth, because instability emerged;
#: - cured: take the deeper, because half or more of the shallower runs failed, and fewer of the deeper;
#: - hopeless: neither, because every shallower run failed, and half or more of the deeper;
#: - unknown: no two medians are there to compare;
#: - take: the deeper, whose median best_val_loss is lower by `WORTHWHILE_GAIN` or more;
#: - keep: the shallower, because it is not.
Advice = Literal["stay", "cured", "hopeless", "unknown", "take", "keep"]

#: What is compared, columns of `Ranking.table`.
METRICS: Final[Mapping[str, Kind]] = {
    "median_best_val_loss": "factor",
    "best_val_loss": "factor",
    "amp_ssim": "difference",
    "phase_ssim": "difference",
    "amp_mae": "factor",
    "phase_mae": "factor",
    "grad_norm_median": "factor",
    "grad_norm_max": "factor",
    "failure_rate": "rate",
}

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Estimate:
    """A value (None where it is not known) with its 95 % interval (None where there is none)."""

    value: float | None
    low: float | None = None
    high: float | None = None

    def overlaps(self, other: "Estimate") -> bool:
        """Whether both have intervals and these share a value."""
        if self.low is None or self.high is None or other.low is None or other.high is None:
            return False
        return self.low <= other.high and other.low <= self.high


@dataclass(frozen=True)
class DepthChange:
    """One metric in both stages; `change` is b / a for a factor, else b - a, and None where that is not defined."""

    kind: Kind
    a: Estimate
    b: Estimate

    @property
    def change(self) -> float | None:
        """How `b` differs from `a`."""
        if self.kind == "factor":
            return _ratio(self.b, self.a)
        return None if self.a.value is None or self.b.value is None else self.b.value - self.a.value


@dataclass(frozen=True)
class DepthComparison:
    """What more depth did to an arm: see `compare_depth`."""

    arm: str
    arch: str | None
    depths: tuple[int, int]
    runs: tuple[int, int]
    failures: tuple[int, int]
    changes: Mapping[str, DepthChange]

    def __getitem__(self, metric: str) -> DepthChange:
        return self.changes[metric]

    @property
    def hopeless(self) -> bool:
        """Whether every run had failed in Stage A already, so that nothing can emerge."""
        return self.failures[0] == self.runs[0]

    @property
    def more_failed(self) -> bool:
        """Whether more runs failed, and a higher share of them."""
        return self.failures[1] > self.failures[0] and (self["failure_rate"].change or 0) > 0

    @property
    def peaks(self) -> tuple[float, float] | None:
        """The gradient norm's maximum over its median in each stage, if both are known and finite."""
        largest, middle = self["grad_norm_max"], self["grad_norm_median"]
        first, second = _ratio(largest.a, middle.a), _ratio(largest.b, middle.b)
        return None if first is None or second is None or math.isinf(first) else (first, second)

    @property
    def peak_grew(self) -> bool:
        """Whether the gradient norm's peak grew by `PEAK_GROWTH` or more."""
        return self.peaks is not None and self.peaks[1] >= PEAK_GROWTH * self.peaks[0]

    @property
    def loss_rose(self) -> bool:
        """Whether the median best_val_loss is higher by more than `LOSS_GROWTH`."""
        return (self["median_best_val_loss"].change or 0) > 1 + LOSS_GROWTH

    @property
    def emerged(self) -> bool:
        """Whether instability emerged with depth."""
        return not self.hopeless and (self.more_failed or self.peak_grew or self.loss_rose)

    @property
    def advice(self) -> Advice:
        """Which depth to take."""
        median = self["median_best_val_loss"]
        if self.emerged:
            return "stay"
        if median.b.value is not None and math.isfinite(median.b.value) and median.a.value == math.inf:
            return "cured"
        if self.hopeless:
            return "hopeless"
        if median.change is None:
            return "unknown"
        return "take" if median.change <= 1 - WORTHWHILE_GAIN else "keep"


def compare_depth(stage_a_row: Row, stage_b_row: Row, *, depth_a: int, depth_b: int) -> DepthComparison:
    """Compare one arm at `depth_a` blocks (Stage A) and at `depth_b` (Stage B) by its rows of the two rankings.

    Rows are those of `Ranking.table` or of `Ranking.to_json_rows`. Instability *emerged* if any of these holds, and
    not every run had failed in Stage A already:

    - more runs failed, and the failure rate is higher;
    - the gradient norm's maximum over its median is `PEAK_GROWTH` times Stage A's or more;
    - the median best_val_loss is higher by more than `LOSS_GROWTH`, which slower training gives as well.

    These are rules about what was observed; whether the intervals overlap is said beside them. Raises `ValueError` for
    rows of two arms, and unless 0 < depth_a < depth_b.
    """
    if stage_a_row["arm"] != stage_b_row["arm"]:
        raise ValueError(f"`stage_b_row` (of arm {stage_b_row['arm']}) must be of arm {stage_a_row['arm']}")
    if not 0 < depth_a < depth_b:
        raise ValueError(f"`depth_b` (={depth_b}) must be > `depth_a` (={depth_a}), and both > 0")
    return DepthComparison(
        arm=stage_a_row["arm"],
        arch=stage_b_row.get("arch"),
        depths=(depth_a, depth_b),
        runs=(stage_a_row["runs"], stage_b_row["runs"]),
        failures=(stage_a_row["failures"], stage_b_row["failures"]),
        changes={
            metric: DepthChange(kind, _estimate(stage_a_row, metric), _estimate(stage_b_row, metric))
            for metric, kind in METRICS.items()
        },
    )


def _ratio(over: Estimate, under: Estimate) -> float | None:
    if over.value is None or under.value is None or not under.value > 0 or math.isinf(under.value):
        return None
    return over.value / under.value


def _estimate(row: Row, metric: str) -> Estimate:
    """The row's value; infinities that JSON has no number for are infinite again."""
    value, low, high = (_known(row.get(f"{metric}{end}")) for end in ("", "_low", "_high"))
    if metric == "median_best_val_loss":
        if value is None and 2 * row["failures"] >= row["runs"]:
            value = math.inf
        if high is None and row["runs"] > 1:
            low, high = math.inf if low is None else low, math.inf
    return Estimate(value, low, high)


def _known(value: Any) -> float | None:
    return None if value is None or math.isnan(value) else float(value)
