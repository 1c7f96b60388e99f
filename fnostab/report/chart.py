"""The curves of all arms in one chart that the page draws itself, an SVG whose arms can be switched off."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from matplotlib.ticker import LogLocator, MaxNLocator
from numpy.typing import NDArray

from fnostab.report.axes import colours
from fnostab.report.curves import frame, typical
from fnostab.study.arm_series import quartiles
from fnostab.study.curves import Floats
from fnostab.study.result import StudyResult, StudyRun
from fnostab.study.text import number

#: Units of the drawing, which the page scales to its width; the margins hold the numbers of the axes.
_WIDTH: Final = 900.0
_HEIGHT: Final = 480.0
_LEFT: Final = 74.0
_RIGHT, _TOP, _BOTTOM = 14.0, 12.0, 58.0
#: Points of a line; of longer curves, as many at even distances.
_MOST_POINTS: Final = 120


class Tick(NamedTuple):
    """A place on an axis, and what stands there."""

    at: float
    text: str


class RunLine(NamedTuple):
    """The line of a run: `points` as SVG takes them, what it is, and where it ends if the run failed."""

    points: str
    told: str
    failed: bool
    end: tuple[float, float] | None


@dataclass(frozen=True)
class ArmLines:
    """What is drawn of an arm: its runs, the median over them, and the area between the quartiles."""

    arm: str
    colour: str
    runs: Sequence[RunLine]
    median: str
    area: str


@dataclass(frozen=True)
class Chart:
    """A chart with a logarithmic y axis; `levels` are lines across it, `below` tells those that are under its frame.

    `arms` holds every arm of the page.
    """

    title: str
    x_ticks: Sequence[Tick]
    y_ticks: Sequence[Tick]
    levels: Sequence[Tick]
    below: str
    arms: Sequence[ArmLines]
    width: float = _WIDTH
    height: float = _HEIGHT
    left: float = _LEFT
    right: float = _WIDTH - _RIGHT
    bottom: float = _HEIGHT - _BOTTOM


def curve_charts(result: StudyResult) -> list[Chart]:
    """A chart of val_loss by epoch, and one of the stitched R-factor where it is known; none without curves."""
    drawn = result.drawn_runs
    constant, floor = (typical([getattr(run.curves, name) for run in drawn]) for name in ("constant", "floor"))
    words = ("best constant prediction", "lowest possible") if result.is_foreign else ("best constant object", "noise")
    levels = dict(zip(words, (constant, floor), strict=True))
    titles = {"val_loss": "val_loss" if result.is_foreign else "val_loss (R-factor of each patch)"}
    titles["r_stitched"] = "r_stitched (R-factor of the stitched object)"
    return [
        _chart(result, title, name, levels if name == "val_loss" else {})
        for name, title in titles.items()
        if any(np.isfinite(getattr(run.curves, name)).any() for run in drawn)
    ]


class _Frame:
    """Where a value stands in the drawing; values outside stand at its border."""

    def __init__(self, longest: int, bottom: float, top: float) -> None:
        self.longest = max(longest, 2)
        self.low, self.high = bottom / 1.06, top * 1.06

    def x(self, epoch: float) -> float:
        return _LEFT + (_WIDTH - _RIGHT - _LEFT) * (epoch - 1) / (self.longest - 1)

    def y(self, value: float) -> float:
        share = math.log(min(max(value, self.low), self.high) / self.low) / math.log(self.high / self.low)
        return _HEIGHT - _BOTTOM - (_HEIGHT - _BOTTOM - _TOP) * share

    def points(self, values: Floats) -> list[tuple[float, float]]:
        """The points of a curve by epoch that has values above 0; at its largest, what is infinite."""
        epochs = _thinned(np.flatnonzero(values > 0))
        return [(self.x(float(epoch + 1)), self.y(float(values[epoch]))) for epoch in epochs]

    def x_ticks(self) -> list[Tick]:
        values = MaxNLocator(6, integer=True).tick_values(1, self.longest)
        return [Tick(self.x(value), f"{value:g}") for value in values if 1 <= value <= self.longest]

    def y_ticks(self) -> list[Tick]:
        decades = math.log10(self.high / self.low)
        if decades < 0.9:
            values = MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]).tick_values(self.low, self.high)
        else:
            subs = (1.0, 2.0, 5.0) if decades < 2.3 else (1.0,)
            values = LogLocator(subs=subs, numticks=9).tick_values(self.low, self.high)
        return [Tick(self.y(value), f"{value:g}") for value in values if self.low <= value <= self.high]


def _chart(result: StudyResult, title: str, name: str, levels: dict[str, float]) -> Chart:
    curves = [getattr(run.curves, name) for run in result.drawn_runs]
    bottom, top = frame(curves, *(levels.values() or (math.nan, math.nan)))
    found = _Frame(max(map(len, curves)), bottom, top)
    colour_of = colours(result.arms)
    arms = [_arm_lines(found, arm, colour_of[arm], result.drawn(arm), name) for arm in result.drawn_arms]
    known = {told: value for told, value in levels.items() if math.isfinite(value)}
    lines = [Tick(found.y(value), told) for told, value in known.items() if value >= bottom]
    below = [f"{told}: {number(value)}" for told, value in known.items() if value < bottom]
    return Chart(title, found.x_ticks(), found.y_ticks(), lines, ", ".join(below), arms)


def _arm_lines(found: _Frame, arm: str, colour: str, runs: Sequence[StudyRun], name: str) -> ArmLines:
    lines = [_run_line(found, run, getattr(run.curves, name)) for run in runs]
    counted = [getattr(run.curves, name) for run in runs if not run.missing]
    counted = [curve for curve in counted if np.isfinite(curve).any()]
    middle = quartiles(counted) if len(counted) > 1 else {}
    median = found.points(np.where(np.isfinite(middle["median"]), middle["median"], np.nan)) if middle else []
    area: list[tuple[float, float]] = []
    if "low_quartile" in middle:
        low = np.where(np.isfinite(middle["low_quartile"]), middle["low_quartile"], np.nan)
        high = np.where(np.isnan(low), np.nan, middle["high_quartile"])
        area = found.points(low) + found.points(high)[::-1]
    return ArmLines(arm, colour, [line for line in lines if line.points], _svg(median), _svg(area))


def _run_line(found: _Frame, run: StudyRun, values: Floats) -> RunLine:
    points = found.points(np.where(np.isfinite(values), values, np.nan))
    told = f"{run.arm}, seed {run.seed}: {run.verdict}, best val_loss {number(run.best_val_loss)}"
    if len(points) == 1:  # a line of one point would not be seen
        points = [points[0], (points[0][0] + 0.1, points[0][1])]
    return RunLine(_svg(points), told, run.failed, points[-1] if run.failed and points else None)


def _thinned(places: NDArray[np.intp]) -> NDArray[np.intp]:
    """At most `_MOST_POINTS` of the `places`, the first and the last among them."""
    if len(places) <= _MOST_POINTS:
        return places
    return places[np.linspace(0, len(places) - 1, _MOST_POINTS).round().astype(np.intp)]


def _svg(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
