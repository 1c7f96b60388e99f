"""Tell a ranked study: as Markdown, in a few lines, as figures, and as one self-contained HTML file.

Everything here is a pure function of a `StudyResult`. Names and reasons come from tags, which anyone can write, so they
are text everywhere, never markup.
"""

import base64
import functools
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

from fnostab.ranking import Ranking
from fnostab.report.axes import colours
from fnostab.report.figures import MOST_ARMS, figures
from fnostab.report.tables import (
    HOW_TO_READ,
    depth_headline,
    depth_table,
    pairs_table,
    ranking_table,
    reasons_of_failures,
    runs_table,
    what_is_missing,
)
from fnostab.study.result import MOST_LINES, StudyResult, StudyRun, best_and_worst
from fnostab.study.text import interval, markdown, number, shortened

__all__ = [
    "StudyResult",
    "StudyRun",
    "best_and_worst",
    "figures",
    "html_report",
    "short_summary",
    "summary_markdown",
]

#: Characters that `short_summary` never exceeds.
SHORT: Final = 1000
#: Pixels per inch of the figures in HTML: sharp on a screen, small in a file.
DPI: Final = 120

DEPTH: Final = "Stage A and Stage B"
MEANINGS: Final = {
    "gold": "The stable architecture beats control",
    "silver": "agc fails less often than control, at little loss",
    "control": "control beats the others",
    "undecided": "No decision between the arms",
}
#: Figure -> its heading and its caption.
CAPTIONS: Final = {
    "best_val_loss": (
        "Best val_loss",
        "A dot a run, lower is better; the bar is the arm's median over all its runs with its 95 % interval. Failed "
        "runs count as infinite and lie in the band at the top.",
    ),
    "failure_rates": ("Failure rates", "The share of failed runs with its 95 % Wilson interval."),
    "learning_curves": (
        "Learning curves",
        "R-factor on validation patches after each epoch, a line a seed. Values above the frame are drawn at its top.",
    ),
    "gradient_norms": (
        "Gradient norms",
        "Norm of the whole gradient before clipping, a line a seed. Of long runs, each point tells the median and the "
        "maximum of the steps around it, so that a spike of one step stays visible.",
    ),
    "depth": (
        "What depth changed",
        "The same arm at both depths, with 95 % intervals where there are any.",
    ),
}


def headline(result: StudyResult) -> str:
    """What came out, in one line; `told` says why."""
    table, decision = result.ranking.table, result.ranking.decision
    if result.depth:
        return depth_headline(result.depth)
    if len(table) == 1:
        return f"{table[0]['arm']} alone: {table[0]['failures']} of {table[0]['runs']} runs failed"
    if decision.label == "undecided" and _beats_all(result.ranking):  # of other arms than the rule is about
        return f"{decision.winner} beats every other arm"
    return f"{MEANINGS[decision.label]}; {f'{decision.winner} ranks first' if decision.winner else 'every run failed'}"


def _beats_all(ranking: Ranking) -> bool:
    """Whether the first in rank is better than each other arm beyond doubt."""
    first = ranking.table[0]["arm"]
    return all(pair.a_is_better for pair in ranking.pairs if pair.a == first)


def told(result: StudyResult) -> list[tuple[str, str]]:
    """The paragraphs below the headline, each with its stressed beginning and its rest."""
    label, colon, why = result.ranking.decision.text.partition(": ")
    decision = (f"{label}{colon}".strip(), why)
    if result.depth is None:
        return [decision]
    depth = (result.depth.advice, " ".join(result.depth.evidence))
    return [depth] if len(result.ranking.table) == 1 else [depth, decision]


def summary_markdown(result: StudyResult, *, brief: bool = False) -> str:
    """The study in Markdown, the decision first; about 4,000 characters for 3 arms of 5 seeds.

    `brief` leaves out what grows with the number of runs: every pair of arms, every run, and why runs failed.
    """
    pairs = None if brief else pairs_table(result.ranking)
    parts = [
        f"# Study {markdown(result.study)}",
        f"**{markdown(headline(result))}.**",
        *(f"**{markdown(stressed)}** {markdown(rest)}" for stressed, rest in told(result)),
        "## Ranking",
        ranking_table(result.ranking).markdown(),
        *(["## Probability of improvement", pairs.markdown()] if pairs else []),
        *([f"## {DEPTH}", depth_table(result.depth).markdown()] if result.depth else []),
        *([] if brief else ["## Runs", runs_table(result).markdown()]),
        *_listed("## Why runs failed", [] if brief else reasons_of_failures(result.all_runs)),
        *_listed("## What is missing", what_is_missing(result)),
        *_listed("## How to read this", HOW_TO_READ),
        *_listed("## Facts", [f"{name}: {value}" for name, value in _facts(result).items()]),
    ]
    return "\n\n".join(parts) + "\n"


def short_summary(result: StudyResult) -> str:
    """The decision and the order of the arms in at most `SHORT` characters of plain text, for a description."""
    ranked = [
        f"{place}. {row['arm']}: median best val_loss "
        + f"{number(row['median_best_val_loss'])} "
        + interval(row["median_best_val_loss_low"], row["median_best_val_loss_high"])
        + f"{'' if row['median_best_val_loss_low'] is None else ', '}{row['failures']} of {row['runs']} runs failed."
        for place, row in enumerate(result.ranking.table, start=1)
    ]
    why = " ".join(f"{stressed} {rest}" for stressed, rest in told(result))
    text = f"Study {result.study}, dataset {result.dataset_sha256[:12]}. {headline(result)}. {why}"
    lines = [shortened(text, SHORT - 200)]
    for place, line in enumerate(ranked):
        rest = f"And {len(ranked) - place} more arms."
        if sum(len(kept) + 1 for kept in lines) + len(line) + len(rest) + 1 > SHORT:
            lines.append(rest)
            break
        lines.append(line)
    return "\n".join(lines)


def html_report(result: StudyResult, drawn: Mapping[str, Figure] | None = None) -> str:
    """The study as one HTML file that asks nothing of the network, for light and dark screens of any width.

    `drawn` are the `figures` of the result, where there are some already.
    """
    template = _environment().get_template("study.html.j2")
    return template.render(
        result=result,
        headline=headline(result),
        told=told(result),
        ranking=ranking_table(result.ranking),
        pairs=pairs_table(result.ranking),
        depth=depth_table(result.depth) if result.depth else None,
        depth_heading=DEPTH,
        figures={name: _shown(name, figure, result) for name, figure in (drawn or figures(result)).items()},
        pictured=[(arm, _pictured(result.of_arm(arm))) for arm in result.drawn_arms],
        unpictured=len(result.arms) - len(result.drawn_arms),
        colours=colours(result.arms),
        missing=what_is_missing(result),
        facts=_facts(result),
        how_to_read=HOW_TO_READ,
    )


def _facts(result: StudyResult) -> dict[str, str]:
    return {**result.facts, "dataset": result.dataset_sha256}


def _listed(heading: str, sentences: Sequence[str]) -> list[str]:
    """A heading and a list, or nothing."""
    return [heading, "\n".join(f"- {markdown(sentence)}" for sentence in sentences)] if sentences else []


def _pictured(runs: Sequence[StudyRun]) -> list[tuple[str, StudyRun]]:
    """The arm's best and worst run, and whichever else has pictures, each with what it is."""
    extremes = best_and_worst(runs)
    others = [run for run in runs if run.pictures and run not in extremes]
    names = ["best run", "worst run"] if len(extremes) > 1 else ["only run"]
    return [*zip(names, extremes, strict=False), *(("run", run) for run in others)]


def _shown(name: str, figure: Figure, result: StudyResult) -> dict[str, Any]:
    """What the template needs of a figure."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    heading, caption = CAPTIONS[name]
    caption = " ".join([caption, *_left_out(name, result)])
    arms = ", ".join(shortened(arm, 60) for arm in result.arms[:MOST_ARMS])
    more = f" and {len(result.arms) - MOST_ARMS} more arms" if len(result.arms) > MOST_ARMS else ""
    return {
        "heading": heading,
        "caption": caption,
        "alt": f"{heading} of {len(result.runs)} runs of {arms}{more}. {caption}",
        "png": buffer.getvalue(),
        "width": round(96 * figure.get_figwidth()),
    }


def _left_out(name: str, result: StudyResult) -> list[str]:
    """What a figure does not show, in words; the tables have everything."""
    if name in ("best_val_loss", "failure_rates"):
        ranked = len(result.ranking.table)
        return [f"The first {MOST_ARMS} of {ranked} arms in rank."] if ranked > MOST_ARMS else []
    if name not in ("learning_curves", "gradient_norms"):
        return []
    shown, arms = len(result.drawn_arms), len(result.arms)
    sentences = [f"The first {shown} of {arms} arms in rank."] if shown < arms else []
    if any(len(result.of_arm(arm)) > MOST_LINES for arm in result.drawn_arms):
        sentences.append(
            f"Of an arm with more runs, {MOST_LINES} at even distances in the order from the best to the worst; "
            "medians are over these."
        )
    return sentences


def _png_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _web_address(url: str | None) -> str | None:
    """`url` if it leads to a page; None for everything else, such as javascript."""
    return url if url and re.match(r"https?://", url, flags=re.IGNORECASE) else None


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("fnostab.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"png_uri": _png_uri, "web_address": _web_address, "number": number}
    return environment
