"""The tables and the figure of docs/results/ensemble.md, from what `results.ensemble_run` has measured."""

import functools
import json
import math
from pathlib import Path
from typing import Any, Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fnostab.report.axes import OTHER_COLOURS, new_figure, tidy
from results.cells import table
from results.phrases import Pieces
from results.runs import median

DATA: Final = Path(__file__).resolve().parent.parent / "docs" / "results" / "data" / "ensemble.json"
#: What a circular complex normal error has within one and within two deviations.
NOMINAL: Final = (1 - math.exp(-1), 1 - math.exp(-4))
#: Settings that are drawn: all would hide each other.
_DRAWN: Final = ("new objects", "random fields", "photographs", "1e4 photons", "beam of 9 rad", "defocused beam")


@functools.cache
def measured() -> dict[str, Any]:
    """What was measured."""
    found: dict[str, Any] = json.loads(DATA.read_text(encoding="utf-8"))
    return found


def calibration() -> str:
    """A setting a row: errors of the patches against their deviations, before and after the factor."""
    head = ("patches of", "error", "deviation", "error / deviation", "within 1, 2", "times the factor: within 1, 2")
    head += ("rank correlation, pixels", "patches", "told apart")
    rows = [("validation, where the factor is fitted", *_cells(measured()["validation"]), "", "")]
    for name, of in measured()["settings"].items():
        apart = "" if name == _DRAWN[0] else f"{of['told_apart']:.2f}"
        rows.append((name, *_cells(of), f"{of['patch_correlation']:.2f}", apart))
    rows.append(("*a normal error*", "", "", "1", _pair(NOMINAL), _pair(NOMINAL), "", "", ""))
    return table(head, rows)


def stitched() -> str:
    """A setting a row: the stitched objects of the mean and of the members, and their deviation."""
    head = ("objects of", "R, mean", "R, members", "amplitude's SSIM, mean", "SSIM, members")
    head += ("error / deviation", "within 1, 2", "times the factor: within 1, 2")
    rows = []
    for name, of in measured()["settings"].items():
        cells = [name]
        for key in ("r_factor", "amp_ssim"):
            means, members = zip(*(_split(one[key]) for one in of["objects"]), strict=True)
            every = [value for values in members for value in values]
            cells += [_listed(means), f"{median(every):.3f} ({min(every):.3f} to {max(every):.3f})"]
        cells.append(_listed([one["error_over_deviation"] for one in of["objects"]], ".2f"))
        for keys in (("within_1", "within_2"), ("scaled_within_1", "scaled_within_2")):
            cells.append("; ".join(_pair([one[key] for key in keys]) for one in of["objects"]))
        rows.append(tuple(cells))
    return table(head, rows)


def figure() -> Figure:
    """Errors against deviations, of patches and of stitched objects: groups of pixels of equal number."""
    drawing = new_figure(10.5, 4.6)
    panels = drawing.subplots(1, 2)
    for name, colour in zip(_DRAWN, OTHER_COLOURS, strict=False):
        of = measured()["settings"][name]
        _curve(panels[0], [of["bins"]], name, colour)
        _curve(panels[1], [one["bins"] for one in of["objects"]], name, colour)
    for axes, title in zip(panels, ("patches", "stitched objects, two of each kind"), strict=True):
        ends = (0.008, 1.2)
        factor = measured()["factor"]
        axes.plot(ends, ends, color="0.5", lw=0.9)
        axes.plot(ends, [factor * end for end in ends], "--", color="0.5", lw=0.9)
        axes.set(xscale="log", yscale="log", xlim=ends, ylim=ends, title=title)
        axes.set_xlabel("predicted deviation", fontsize=9)
        axes.set_ylabel("error", fontsize=9)
        tidy(axes)
    panels[0].legend(fontsize=8, frameon=False, loc="lower right")
    for text, place in (("error = deviation", 1.0), (f"{measured()['factor']:.2f} times that", measured()["factor"])):
        panels[1].annotate(text, (0.011, 0.0094 * place), fontsize=7.5, color="0.4", rotation=42, va="bottom")
    return drawing


def pieces() -> Pieces:
    """Numbers that docs/results/ensemble.md says in words."""
    found, settings = measured(), measured()["settings"]
    new, factor = settings["new objects"], found["factor"]
    yield f"{_both(new['within_1'], new['within_2'])} of the pixels"
    yield f"instead of {_both(*NOMINAL)}"
    yield f"multiplied by {factor:.2f}"
    yield f"{_both(new['scaled_within_1'], new['scaled_within_2'])}"
    yield f"errors are {new['error_over_deviation'] / factor:.2f} times"
    known = [of["error_over_deviation"] for name, of in settings.items() if name != "1e6 photons, not rescaled"]
    yield f"between {min(known):.2f} and {max(known):.2f} times"
    yield f"{settings['1e6 photons, not rescaled']['error_over_deviation']:.1f} times"
    yield f"rank correlation {new['pixel_correlation']:.2f}"
    others = [settings[name] for name in ("random fields", "1e4 photons", "beam of 9 rad", "defocused beam")]
    yield f"at least {100 * min(of['told_apart'] for of in others):.0f} % of the pairs"
    yield f"of a photograph in {100 * settings['photographs']['told_apart']:.0f} %"
    yield ", ".join(f"{loss:.3f}" for loss in found["val_loss"])
    means, members = zip(*(_split(one["r_factor"]) for one in new["objects"]), strict=True)
    yield f"({_listed(means)}; members {median([value for values in members for value in values]):.3f})"


def _both(one: float, two: float) -> str:
    return f"{100 * one:.1f} % and {100 * two:.1f} %"


def _cells(of: dict[str, Any]) -> tuple[str, ...]:
    """What the rows of patches have in common."""
    raw, scaled = [of["within_1"], of["within_2"]], [of["scaled_within_1"], of["scaled_within_2"]]
    numbers = (f"{of['error']:.3f}", f"{of['deviation']:.3f}", f"{of['error_over_deviation']:.2f}")
    return (*numbers, _pair(raw), _pair(scaled), f"{of['pixel_correlation']:.2f}")


def _pair(shares: Any) -> str:
    return ", ".join(f"{100 * share:.1f} %" for share in shares)


def _split(values: list[float]) -> tuple[float, list[float]]:
    """The value of the mean, and those of the members."""
    return values[-1], values[:-1]


def _listed(values: Any, form: str = ".3f") -> str:
    return ", ".join(format(value, form) for value in values)


def _curve(axes: Axes, of_objects: list[Any], name: str, colour: str) -> None:
    for index, bins in enumerate(of_objects):
        deviations, errors = np.array(bins).T
        axes.plot(deviations, errors, "o-", ms=3, lw=1.1, color=colour, label=None if index else name)
