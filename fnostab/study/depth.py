"""Stage B against Stage A: did instability emerge when the same arm got a deeper network?"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from fnostab.study.text import interval, number, percent_interval

#: A peak of the gradient norm, its maximum over its median, that grew by this factor is a sign of instability. A
#: convention: clearly more than the peaks' spread between seeds, clearly less than a blow-up.
PEAK_GROWTH: Final = 5.0
#: So is a median best_val_loss that is higher by this share.
LOSS_GROWTH: Final = 0.25
#: A deeper network costs more to train and to use, so its median best_val_loss must be lower by this share.
WORTHWHILE_GAIN: Final = 0.05

Kind = Literal["factor", "difference", "rate"]

#: Metric (a column of `Ranking.table`), its name in words, and how its change is told.
METRICS: Final[tuple[tuple[str, str, Kind], ...]] = (
    ("median_best_val_loss", "median val_loss", "factor"),
    ("best_val_loss", "best val_loss", "factor"),
    ("amp_ssim", "amplitude SSIM", "difference"),
    ("phase_ssim", "phase SSIM", "difference"),
    ("amp_mae", "amplitude MAE", "factor"),
    ("phase_mae", "phase MAE", "factor"),
    ("grad_norm_median", "gradient norm, median", "factor"),
    ("grad_norm_max", "gradient norm, maximum", "factor"),
    ("failure_rate", "failure rate", "rate"),
)

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

    def __str__(self) -> str:
        return f"{number(self.value)} {interval(self.low, self.high)}".rstrip()


@dataclass(frozen=True)
class DepthChange:
    """One metric in both stages; `change` is b / a for a factor, else b - a, and None where that is not defined."""

    metric: str
    name: str
    kind: Kind
    a: Estimate
    b: Estimate
    change: float | None


@dataclass(frozen=True)
class DepthComparison:
    """What more depth did to an arm: see `compare_depth`."""

    arm: str
    depth_a: int
    depth_b: int
    runs_a: int
    runs_b: int
    changes: tuple[DepthChange, ...]
    emerged: bool  #: whether instability emerged with depth
    evidence: tuple[str, ...]  #: sentences: which rules say so or that none does, and how sure that is
    advice: str

    def __getitem__(self, metric: str) -> DepthChange:
        return next(change for change in self.changes if change.metric == metric)


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
    changes = tuple(
        _change(metric, name, kind, _estimate(stage_a_row, metric), _estimate(stage_b_row, metric))
        for metric, name, kind in METRICS
    )
    by_metric = {change.metric: change for change in changes}
    hopeless = stage_a_row["failures"] == stage_a_row["runs"]
    signs = [] if hopeless else _signs(stage_a_row, stage_b_row, by_metric)
    if hopeless:
        evidence = [f"Every run failed at {depth_a} blocks already, so nothing emerged with depth."]
    else:
        evidence = signs or [f"No sign of it: {_failures(stage_a_row, stage_b_row)}{_peaks_in_words(by_metric)}."]
    return DepthComparison(
        arm=stage_a_row["arm"],
        depth_a=depth_a,
        depth_b=depth_b,
        runs_a=stage_a_row["runs"],
        runs_b=stage_b_row["runs"],
        changes=changes,
        emerged=bool(signs),
        evidence=(*evidence, *_how_sure(stage_a_row, stage_b_row, by_metric)),
        advice=_advice(stage_b_row, by_metric, (depth_a, depth_b), bool(signs), hopeless),
    )


def _signs(a: Row, b: Row, changes: Mapping[str, DepthChange]) -> list[str]:
    """A sentence for each rule that says that instability emerged."""
    signs = []
    if b["failures"] > a["failures"] and b["failure_rate"] > a["failure_rate"]:
        signs.append(f"More runs failed: {_failures(a, b)}.")
    peaks = _peaks(changes)
    if peaks and peaks[1] >= PEAK_GROWTH * peaks[0]:
        signs.append(
            f"The gradient norm's peak, its maximum over its median, grew from {number(peaks[0])} to "
            f"{number(peaks[1])}, by {PEAK_GROWTH:g} times or more."
        )
    median = changes["median_best_val_loss"]
    if median.change is not None and median.change > 1 + LOSS_GROWTH:
        signs.append(
            f"The median val_loss went from {number(median.a.value)} to {number(median.b.value)}"
            + (
                ": half of the runs or more failed."
                if math.isinf(median.change)
                else f", over {100 * LOSS_GROWTH:.0f} % higher; slower training gives that as well."
            )
        )
    return signs


def _how_sure(a: Row, b: Row, changes: Mapping[str, DepthChange]) -> list[str]:
    sentences = []
    rate, median = changes["failure_rate"], changes["median_best_val_loss"]
    if a["failures"] != b["failures"] and rate.a.overlaps(rate.b):
        both = " and ".join(percent_interval(rate_of.low, rate_of.high) for rate_of in (rate.a, rate.b))
        sentences.append(f"The 95 % intervals of the failure rates overlap, {both}: the difference may be chance.")
    if median.a.overlaps(median.b):
        both = " and ".join(interval(median_of.low, median_of.high) for median_of in (median.a, median.b))
        sentences.append(f"The 95 % intervals of the median val_loss overlap, {both}.")
    runs = f"{a['runs']} in Stage A and {b['runs']} in Stage B"
    if min(a["runs"], b["runs"]) == 1:
        sentences.append(f"Seeds: {runs}. One seed has no spread: this is a hint, and nothing more.")
    else:
        sentences.append(f"Seeds: {runs}.")
    return sentences


def _advice(b: Row, changes: Mapping[str, DepthChange], depths: tuple[int, int], emerged: bool, hopeless: bool) -> str:
    shallow, deep = depths
    median = changes["median_best_val_loss"]
    if emerged:
        return (
            f"Stay at {shallow} blocks, or try {b['arm']} at {deep} blocks with {_remedies(b)}, and compare again "
            "over several seeds."
        )
    if median.b.value is not None and math.isfinite(median.b.value) and median.a.value == math.inf:
        return f"Take {deep} blocks: at {shallow} half of the runs or more failed, at {deep} fewer did."
    if hopeless:
        return f"Find an arm that trains at {shallow} blocks before going deeper."
    if median.change is None:
        return f"Keep {shallow} blocks: no two median val_losses are there to compare."
    if median.change <= 1 - WORTHWHILE_GAIN:
        lower = f"the median val_loss is {100 * (1 - median.change):.0f} % lower"
        return f"Take {deep} blocks: {lower}, and there is no sign of instability."
    return (
        f"Keep {shallow} blocks: {deep} show no sign of instability, but the median val_loss is not lower by "
        f"{100 * WORTHWHILE_GAIN:.0f} % or more."
    )


def _remedies(row: Row) -> str:
    """What has not been tried by this arm, as far as its name and arch tell."""
    agc = "another clip_val" if "agc" in row["arm"].split("-") else "clip_algo=agc or another clip_val"
    return agc if row.get("arch") == "stable_hybrid" else f"{agc}, or with arch=stable_hybrid"


def _failures(a: Row, b: Row) -> str:
    return f"{a['failures']} of {a['runs']} runs failed in Stage A, {b['failures']} of {b['runs']} in Stage B"


def _peaks(changes: Mapping[str, DepthChange]) -> tuple[float, float] | None:
    """The gradient norm's maximum over its median in each stage, if both are known and positive."""
    largest, middle = changes["grad_norm_max"], changes["grad_norm_median"]
    ratios = [_ratio(over, under) for over, under in ((largest.a, middle.a), (largest.b, middle.b))]
    first, second = ratios
    return None if first is None or second is None or math.isinf(first) else (first, second)


def _peaks_in_words(changes: Mapping[str, DepthChange]) -> str:
    peaks = _peaks(changes)
    if peaks is None:
        return ""
    return f", and the gradient norm's maximum over its median was {number(peaks[0])}, then {number(peaks[1])}"


def _ratio(over: Estimate, under: Estimate) -> float | None:
    if over.value is None or under.value is None or not under.value > 0 or math.isinf(under.value):
        return None
    return over.value / under.value


def _change(metric: str, name: str, kind: Kind, a: Estimate, b: Estimate) -> DepthChange:
    change = _ratio(b, a)
    if kind != "factor":
        change = None if a.value is None or b.value is None else b.value - a.value
    return DepthChange(metric, name, kind, a, b, change)


def _estimate(row: Row, metric: str) -> Estimate:
    """The row's value; infinities that JSON has no number for are infinite again."""
    low, high = _known(row.get(f"{metric}_low")), _known(row.get(f"{metric}_high"))
    value = _known(row.get(metric))
    if metric == "median_best_val_loss":
        if value is None and 2 * row["failures"] >= row["runs"]:
            value = math.inf
        if high is None and row["runs"] > 1:
            low, high = math.inf if low is None else low, math.inf
    return Estimate(value, low, high)


def _known(value: Any) -> float | None:
    return None if value is None or math.isnan(value) else float(value)
