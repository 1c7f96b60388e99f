"""The tables and figures of docs/statistics.md, from docs/results/error_rates.json."""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from math import comb
from pathlib import Path
from typing import Any, Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.error_rates import LOOKS, RESULTS, VARIANTS
from fnostab.ranking.claims import ALPHA, Design
from fnostab.ranking.exact_tests import fewest_seeds
from fnostab.ranking.intervals import wilson_interval
from fnostab.report.axes import OTHER_COLOURS, new_figure, tidy, to_png
from results.cells import table
from results.tables import with_tables

PAGE: Final = RESULTS.parent.parent / "statistics.md"

Row = Mapping[str, Any]


@cache
def results() -> Mapping[str, Any]:
    """The numbers, as `benchmarks.error_rates` stored them."""
    return dict(json.loads(RESULTS.read_text(encoding="utf-8")))


def equal_rows(**chosen: Any) -> list[Row]:
    """The rows of equal arms that have these values."""
    return [row for row in results()["equal"] if all(row[name] == value for name, value in chosen.items())]


def percent(count: int, studies: int, digits: int = 1) -> str:
    """A share in per cent with its interval (Wilson, 95 %)."""
    low, high = (100 * end for end in wilson_interval(count, studies))
    return f"{100 * count / studies:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def family(arms: Sequence[str]) -> str:
    """What a group of equal arms is called."""
    return "control and 6 stable" if tuple(arms) == VARIANTS else f"{len(arms)} arms"


def _families() -> list[list[str]]:
    return [list(arms) for arms in dict.fromkeys(tuple(row["arms"]) for row in equal_rows(kind="plain"))]


def made_by() -> str:
    """Command and machine."""
    found = results()
    (studies,) = {row["studies"] for row in found["equal"]}
    (earlier,) = {row["earlier_studies"] for row in found["equal"]} - {0}
    (unequal,) = {row["studies"] for row in found["power"]}
    return (
        f"`{found['command']}`: {studies} studies of equal arms a row ({earlier} of them under the earlier rule), "
        f"{unequal} of unequal ones; {found['machine']}."
    )


def error_rates() -> str:
    """False claims under today's rules."""
    rows = []
    for arms in _families():
        for kind, words in (("plain", ""), ("failures and ties", ", with failures and ties")):
            cells = []
            for seeds, looks in ((3, []), (5, []), (10, []), (LOOKS[-1], list(LOOKS))):
                (row,) = equal_rows(arms=arms, kind=kind, seeds=seeds, looks=looks)
                headlines = f"{100 * row['headlines'] / row['studies']:.1f}"
                cells.append(f"{percent(row['claims'], row['studies'])}; {headlines}")
            rows.append((family(arms) + words, *cells))
    return table(("equal arms", "3 seeds", "5 seeds", "10 seeds", "until decided, at most 30"), rows)


def earlier_rule() -> str:
    """False claims under the earlier rule."""
    rows = []
    for arms in _families():
        cells = []
        for seeds in (2, 3, 5, 10):
            found = equal_rows(arms=arms, kind="plain", seeds=seeds, looks=[], earlier=True)
            shares = [
                [100 * row[f"earlier_{what}"] / row["earlier_studies"] for what in ("claims", "headlines")]
                for row in found
            ]
            cells += [f"{claims:.0f}; {headlines:.0f}" for claims, headlines in shares] or [""]
        rows.append((family(arms), *cells))
    return table(("equal arms", "2 seeds", "3 seeds", "5 seeds", "10 seeds"), rows)


def unequal_spread() -> str:
    """Claims about two arms of which neither is better, but whose losses spread differently."""
    rows = equal_rows(kind="unequal spread")
    head = [f"{row['seeds']} seeds" if not row["looks"] else "until decided, at most 30" for row in rows]
    return table(("", *head), [("an arm called better", *(percent(row["claims"], row["studies"]) for row in rows))])


def power() -> str:
    """How often the best arm is found."""
    rows = []
    for row in results()["power"]:
        studies, fixed, sequential = row["studies"], row["fixed"], row["sequential"]
        found = dict(zip(fixed["seeds"], fixed["found"], strict=True))
        wrong = dict(zip(fixed["seeds"], fixed["wrong"], strict=True))
        rows.append(
            (
                effect_name(row),
                ", ".join(f"{p:.2f}" for p in row["probabilities"]),
                *(f"{100 * found[seeds] / studies:.0f}" for seeds in (5, 10, 30)),
                f"{100 * sequential['found'] / studies:.0f}",
                f"{sequential['runs'] / studies / len(row['arms']):.1f}",
                f"{100 * wrong[5] / studies:.1f}; {100 * sequential['wrong'] / studies:.1f}",
            )
        )
    head = ("the best arm, and the others", "its probability of improvement", "found with 5 seeds", "10", "30")
    head += (
        "found until decided, at most 30",
        "with this mean number of seeds an arm",
        "a wrong claim: 5 seeds; until decided",
    )
    return table(head, rows)


def effect_name(row: Row) -> str:
    """The arms of an effect and their study."""
    best, *others = (arm.partition("-")[0] for arm in row["arms"])
    return f"{best} over {', '.join(others)} ({row['study']})"


def fewest() -> str:
    """How many seeds could decide anything."""
    rows = []
    for arms, words in (
        (2, "2 arms"),
        (3, "3 arms"),
        (3, "Stage A: control, stable, agc"),
        (6, "6 arms"),
        (12, "12 arms"),
    ):
        comparisons = comb(arms, 2) + words.startswith("Stage A")
        levels = Design(looks=LOOKS).levels(comparisons)
        first = next(look for look, level in zip(LOOKS, levels, strict=True) if level)
        shares = sum(level > 0 for level in levels)
        seeds = fewest_seeds(comparisons, ALPHA)
        rows.append((words, str(comparisons), str(seeds), f"{first}, of {shares} looks with {ALPHA / shares:.4f} each"))
    head = ("study", "comparisons", "seeds an arm that can decide", "first look of `--until decided` that can")
    return table(head, rows)


TABLES: Final[Mapping[str, Callable[[], str]]] = {
    "made_by": made_by,
    "error_rates": error_rates,
    "earlier_rule": earlier_rule,
    "unequal_spread": unequal_spread,
    "power": power,
    "fewest": fewest,
}


def draw_error_rates() -> Figure:
    """False claims of equal arms: by the earlier rule, and by today's."""
    figure = new_figure(10, 4)
    earlier, today = figure.subplots(1, 2)
    families = _families()
    for place, arms in enumerate(families):
        for shift, seeds in zip((-0.24, -0.08, 0.08, 0.24), (2, 3, 5, 10), strict=True):
            for row in equal_rows(arms=arms, kind="plain", seeds=seeds, looks=[], earlier=True):
                _share(
                    earlier, place + shift, row["earlier_claims"], row["earlier_studies"], str(seeds), OTHER_COLOURS[3]
                )
        designs = [(seeds, [], str(seeds)) for seeds in (3, 5, 10)] + [(LOOKS[-1], list(LOOKS), "u")]
        for shift, (seeds, looks, name) in zip((-0.3, -0.1, 0.1, 0.3), designs, strict=True):
            for kind, colour, beside in (("plain", "#0072B2", -0.04), ("failures and ties", "#D55E00", 0.04)):
                (row,) = equal_rows(arms=arms, kind=kind, seeds=seeds, looks=looks)
                above = name if kind == "plain" else ""
                _share(today, place + shift + beside, row["claims"], row["studies"], above, colour)
    for axes, title in ((earlier, "Earlier: an interval leaves out 0.5"), (today, "Now: exact tests, corrected")):
        axes.set_xticks(range(len(families)), [family(arms).replace(" and ", "\nand ") for arms in families])
        axes.axhline(100 * ALPHA, color="#882255", linewidth=1, linestyle="--")
        axes.set_title(title, fontsize=10)
        tidy(axes)
    earlier.set_ylim(0, 105)
    today.set_ylim(0, 8)
    earlier.set_ylabel("studies of equal arms that claim something, %", fontsize=9)
    today.plot([], [], "o", color="#0072B2", markersize=4, label="no failures")
    today.plot([], [], "o", color="#D55E00", markersize=4, label="20 % fail, a quarter ties")
    today.legend(fontsize=8, frameon=False, loc="upper left", ncols=2)
    figure.supxlabel("numbers at the dots: seeds an arm; u: until decided, at most 30. Dashed: 5 %", fontsize=9)
    return figure


def _share(axes: Axes, x: float, count: int, studies: int, name: str, colour: str) -> None:
    """A share in per cent with its interval, and a name over it."""
    low, high = (100 * end for end in wilson_interval(count, studies))
    axes.plot([x, x], [low, high], color=colour, linewidth=1.2)
    axes.plot([x], [100 * count / studies], "o", color=colour, markersize=3.5)
    axes.annotate(name, (x, high), (0, 2), textcoords="offset points", ha="center", fontsize=7, color="0.3")


def draw_power() -> Figure:
    """How often the best arm is found, by seeds an arm: fixed designs, and until decided."""
    figure = new_figure(10, 4.4)
    fixed, sequential = figure.subplots(1, 2, sharey=True)
    for row, colour in zip(results()["power"], OTHER_COLOURS, strict=False):
        name, studies, looks = effect_name(row), row["studies"], row["sequential"]
        fixed.plot(
            row["fixed"]["seeds"], [100 * found / studies for found in row["fixed"]["found"]], ".-", color=colour
        )
        shares = [100 * found / studies for found in looks["ended_by"]]
        sequential.plot(LOOKS, shares, ".-", color=colour, label=name)
        mean = looks["runs"] / studies / len(row["arms"])
        sequential.plot([mean], [100 * looks["found"] / studies], "D", color=colour, markersize=5)
    for axes, title in ((fixed, "Fixed number of seeds"), (sequential, "Until decided: found by this look")):
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("seeds an arm", fontsize=9)
        axes.set_xticks(LOOKS)
        axes.set_ylim(0, 103)
        tidy(axes)
    fixed.set_ylabel("studies that find the best arm, %", fontsize=9)
    sequential.plot([], [], "D", color="0.4", markersize=5, label="mean number of seeds, and found in the end")
    figure.legend(fontsize=8, frameon=False, loc="outside lower center", ncols=2)
    return figure


FIGURES: Final[Mapping[str, Callable[[], Figure]]] = {"error_rates": draw_error_rates, "power": draw_power}


def write() -> None:
    """Write the page's tables, and its figures."""
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8"), TABLES), encoding="utf-8")
    for name, draw in FIGURES.items():
        (figures() / f"{name}.png").write_bytes(to_png(draw()))


def figures() -> Path:
    """Where the figures of the results are."""
    return RESULTS.parent / "figures"
