"""Tell a ranked study: as Markdown, in a run's description, and as one self-contained HTML file.

Everything here is a pure function of a `StudyResult`. Names and reasons come from tags, which anyone can write, so they
are text everywhere, never markup.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from fnostab.report.axes import MOST_ARMS, Picture, colours
from fnostab.report.chart import curve_charts
from fnostab.report.figures import draw_figures
from fnostab.report.tables import (
    depth_table,
    details_table,
    known_measures,
    looks_table,
    p_values_table,
    pairs_table,
    ranking_table,
    runs_table,
)
from fnostab.report.templates import render, words
from fnostab.study.result import MOST_LINES, StudyResult, StudyRun, best_and_worst
from fnostab.study.text import shortened

#: Characters that a row of the ranking table has at least.
_LEAST_ROW: Final = 60


def summary_markdown(result: StudyResult, *, brief: bool = False) -> str:
    """The study in Markdown, the decision first; about 7,000 characters for 3 arms of 5 seeds.

    `brief` leaves out what grows with the number of runs: every pair of arms, every run, and why runs failed.
    """
    text = render("study.md.j2", **_told(result), brief=brief, runs=None if brief else runs_table(result))
    return text.rstrip("\n") + "\n"


def html_report(result: StudyResult, pictures: Mapping[str, Picture] | None = None) -> str:
    """The study as one HTML file that asks nothing of the network, for light and dark screens of any width.

    `pictures` are what `draw_figures` drew of the result, where that is done already.
    """
    pictures = draw_figures(result)[0] if pictures is None else pictures
    return render(
        "study.html.j2",
        **_told(result),
        figures={name: _shown(name, picture, result) for name, picture in pictures.items()},
        pictured=[(arm, _pictured(result.of_arm(arm), result.ranking.by)) for arm in result.drawn_arms],
        unpictured=len(result.arms) - len(result.drawn_arms),
        any_pictures=not result.is_foreign or any(run.pictures for run in result.runs),
        colours=colours(result.arms),
        measures=known_measures(result),
        p_values=p_values_table(result.ranking),
        charts=curve_charts(result),
    )


def note_markdown(result: StudyResult, most: int) -> str:
    """The decision and the ranking table in Markdown, for the description of a run.

    At most `most` characters, 1,000 or more: what does not fit of the table is counted, and long texts are shortened.
    """
    table = ranking_table(result.ranking)
    paragraphs = _paragraphs(result)
    told = [(shortened(stressed, 300), shortened(rest, most // (2 * len(paragraphs)))) for stressed, rest in paragraphs]
    short: dict[str, Any] = {
        "study": shortened(result.study, 100),
        "headline": shortened(_line(words().headline(result)), 300),
    }
    short |= {"told": told, "ranking": table, "dataset": result.dataset_sha256[:12]}
    rows = min(len(table.rows), most // _LEAST_ROW)
    while True:
        more = len(table.rows) - rows
        order = _line(words().order(result)) if rows else ""
        text = render("note.md.j2", **short, most=rows, more=more, order=order).strip()
        if len(text) <= most or not rows:
            return text[:most]
        rows -= 1


def _told(result: StudyResult) -> dict[str, Any]:
    """What Markdown and HTML tell alike."""
    return {
        "result": result,
        "headline": _line(words().headline(result)),
        "told": _paragraphs(result),
        "order": _line(words().order(result)),
        "ranking": ranking_table(result.ranking),
        "details": details_table(result.ranking),
        "pairs": pairs_table(result.ranking),
        "clear": _line(words().clear(result.ranking)),
        "looks": looks_table(result.looks),
        "depths": [{"arm": depth.arm, "table": depth_table(depth)} for depth in result.depths],
        "missing": [*(_line(words().missing(*found)) for found in result.missing), *result.notes],
        "facts": {**result.facts, "dataset": result.dataset_sha256},
        "how_to_read": [text for text in map(_line, words().how_to_read(result).splitlines()) if text],
    }


def _paragraphs(result: StudyResult) -> list[tuple[str, str]]:
    """The paragraphs below the headline, each with its stressed beginning and its rest."""
    label, colon, why = result.ranking.decision.text.partition(": ")
    depths = [(_line(words().advice(depth)), _line(words().evidence(depth))) for depth in result.depths]
    return depths if depths and len(result.ranking.table) == 1 else [*depths, (f"{label}{colon}".strip(), why)]


def _pictured(runs: Sequence[StudyRun], by: str) -> list[tuple[str, StudyRun]]:
    """The arm's best and worst run, and whichever else has pictures, each with what it is."""
    extremes = best_and_worst(runs, by)
    others = [run for run in runs if run.pictures and run not in extremes]
    names = ["best run", "worst run"] if len(extremes) > 1 else ["only run"]
    return [*zip(names, extremes, strict=False), *(("run", run) for run in others)]


def _shown(name: str, picture: Picture, result: StudyResult) -> dict[str, Any]:
    """What the template needs of a figure."""
    heading, _ = words().figures[name]
    caption = _line(words().caption(name, result, MOST_ARMS, MOST_LINES))
    arms = ", ".join(shortened(arm, 60) for arm in result.arms[:MOST_ARMS])
    more = f" and {len(result.arms) - MOST_ARMS} more arms" if len(result.arms) > MOST_ARMS else ""
    alt = f"{heading} of {len(result.runs)} runs of {arms}{more}. {caption}"
    return {"heading": heading, "caption": caption, "alt": alt, "png": picture.png, "width": picture.width_px}


def _line(text: str) -> str:
    """What a macro gave, on one line."""
    return " ".join(text.split())
