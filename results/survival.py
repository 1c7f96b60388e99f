"""Who died in the studies w1_survival_*, when and in which layer: tables and figures."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fnostab.health.death import Death, death
from fnostab.ranking.claims import ALPHA, holm
from fnostab.ranking.exact_tests import failure_rate_test
from fnostab.ranking.pairs import p_text
from fnostab.report.axes import OTHER_COLOURS, in_order, new_figure, tidy
from fnostab.study.text import number
from results.cells import share, table
from results.panels import COLOURS
from results.runs import DATA, Run, read_runs

#: What the studies differ in, as a row of panels each, and the learning rates, as the columns: the study's name.
STUDIES: Final = {
    "networks and setting of the original": "w1_survival_original_{}",
    "the same at width 32": "w1_survival_width32{}",
    "networks of today, setting of the original": "w1_survival_today_{}",
    "networks of today, curved probe, phase": "w1_survival_curved_{}",
}
_RATES: Final = {"1e3": "1e-3", "2e3": "2e-3", "3e3": "3e-3"}
#: Decades of a deviation that are drawn below the largest one.
_DECADES: Final = 14


@dataclass(frozen=True)
class Fate:
    """A run, its death if it died, and the last step at which it was watched."""

    run: Run
    death: Death | None
    last_step: int


def fates(runs: Sequence[Run]) -> list[Fate]:
    """What became of each run. Raises `ValueError` for one that was not watched: nobody knows of it."""
    return [Fate(run, last_step=int(run.watched["step"][-1]), death=death(run.history)) for run in runs]


def _by_arm(found: Sequence[Fate]) -> dict[str, list[Fate]]:
    arms: dict[str, list[Fate]] = {}
    for fate in found:
        arms.setdefault(fate.run.arm, []).append(fate)
    return arms


def deaths(runs: Sequence[Run]) -> str:
    """An arm a row: how many died, when, in which stage first, and what the gradient norm was before."""
    head = ("arm", "rate", "died", "at step, median and range", "first in", "largest gradient norm before")
    head += ("times the median before", "failed by the verdict")
    rows = []
    for arm, of_arm in _by_arm(fates(runs)).items():
        died = [fate.death for fate in of_arm if fate.death]
        steps = [one.step for one in died]
        stages = Counter(one.stage or "no stage" for one in died)
        rows.append(
            (
                arm,
                ", ".join(dict.fromkeys(f"{fate.run.rate:g}" for fate in of_arm)),
                share(len(died), len(of_arm)),
                f"{np.median(steps):.0f} ({min(steps)} to {max(steps)})" if steps else "–",
                ", ".join(f"{stage} ({count})" for stage, count in stages.most_common()) or "–",
                _spread([one.grad_norm_max for one in died]),
                _spread([one.grad_norm_ratio for one in died]),
                share(sum(fate.run.failed for fate in of_arm), len(of_arm)),
            )
        )
    return table(head, rows)


def comparisons(runs: Sequence[Run]) -> str:
    """Every two arms: how many of each died, and the p-value of that, corrected for all of them."""
    counts = {
        arm: (sum(fate.death is not None for fate in of_arm), len(of_arm))
        for arm, of_arm in _by_arm(fates(runs)).items()
    }
    return compared(counts, "died")


def compared(counts: Mapping[str, tuple[int, int]], happened: str, against: str | None = None) -> str:
    """Every two arms of the `counts`: of how many runs of each it `happened`, of how many, and the p-value of that.

    Or each beside the arm `against` alone, where that was the question beforehand: fewer comparisons to correct for.
    """
    pairs = p_values(counts, against)
    rows = []
    for (a, b), (p, corrected) in pairs.items():
        text = p_text(corrected)
        cells = [f"{count} of {of}" for count, of in (counts[a], counts[b])]
        rows.append((f"{a}, {b}", *cells, p_text(p), f"**{text}**" if corrected <= ALPHA else text))
    head = ("arms", f"{happened} of the first", "of the second", "Boschloo's exact test", "corrected")
    clear = "Bold is clear" if any("**" in row[-1] for row in rows) else "Nothing here is clear"
    many = f"{len(pairs)} comparison{'s' * (len(pairs) > 1)}"
    return f"{table(head, rows)}\n\nCorrected by Holm's procedure for the {many}. {clear} (p at most {ALPHA:g})."


def p_values(
    counts: Mapping[str, tuple[int, int]], against: str | None = None
) -> dict[tuple[str, str], tuple[float, float]]:
    """By pair of arms the p-value of Boschloo's exact test of their `counts`, and that corrected for all pairs.

    The pairs are all, or those that have the arm `against`.
    """
    pairs = [pair for pair in combinations(counts, 2) if against is None or against in pair]
    ps = [failure_rate_test(*counts[a], *counts[b]) for a, b in pairs]
    return dict(zip(pairs, zip(ps, holm(ps), strict=True), strict=True))


def survival(study: str) -> str:
    """Both tables of a study."""
    runs = read_runs(study)
    return f"{deaths(runs)}\n\n{comparisons(runs)}"


def _spread(values: Sequence[float]) -> str:
    """The median and range of those that are known."""
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return "–"
    return f"{number(float(np.median(known)), '.3g')} ({min(known):.3g} to {max(known):.3g})"


def existing() -> dict[str, dict[str, str]]:
    """By row of panels and learning rate the studies whose runs are there."""
    found: dict[str, dict[str, str]] = {}
    for title, form in STUDIES.items():
        for key, rate in _RATES.items():
            study = form.format("" if key == "1e3" else f"_{key}") if "32" in form else form.format(key)
            if (DATA / f"{study}.jsonl.gz").exists():
                found.setdefault(title, {})[rate] = study
    return found


def alive() -> Figure:
    """The share of runs alive by step, an arm a line, a panel a study."""
    panels = {(title, rate): read_runs(study) for title, of in existing().items() for rate, study in of.items()}
    return shares_alive({f"{title}, {rate}": runs for (title, rate), runs in panels.items()})


def shares_alive(panels: dict[str, Sequence[Run]]) -> Figure:
    """Panels by title: by arm, the share of its runs that are alive at each step."""
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = new_figure(4.4 * columns, 0.4 + 2.9 * rows)
    axes = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for axis in axes.flat[len(panels) :]:
        axis.remove()
    for axis, (title, runs) in zip(axes.flat, panels.items(), strict=False):
        found = fates(runs)
        steps = {arm: [one.death.step if one.death else None for one in of] for arm, of in _by_arm(found).items()}
        draw_shares(axis, steps, max(fate.last_step for fate in found), "died")
        axis.set_title(title, fontsize=8.5)
        axis.legend(fontsize=7.5, frameon=False, loc="lower left")
    for axis in axes[:, 0]:
        axis.set_ylabel("share of runs alive", fontsize=9)
    return figure


def draw_shares(axes: Axes, steps: Mapping[str, Sequence[int | None]], last_step: int, happened: str) -> None:
    """By arm, the share of its runs to which it has not yet `happened`, by step (Kaplan and Meier 1958).

    `steps` has that of each run at which it happened, or None. All runs are watched to the `last_step`, so nobody
    leaves before, and the estimate is the plain share. Lines of arms lie a little under each other where they would
    hide each other.
    """
    for place, (arm, of_arm) in enumerate(steps.items()):
        when = sorted(step for step in of_arm if step is not None)
        shares = 1 - np.arange(len(when) + 1) / len(of_arm) - 0.012 * place
        label = f"{arm}: {len(when)} of {len(of_arm)} {happened}"
        colour = COLOURS.get(arm, OTHER_COLOURS[place % len(OTHER_COLOURS)])
        axes.step([0, *when, last_step], [*shares, shares[-1]], where="post", color=colour, lw=1.6, label=label)
    tidy(axes)
    axes.set_ylim(-0.06, 1.05)
    axes.set_xlabel("optimizer steps", fontsize=9)


def around_death(dying: Run, living: Run) -> Figure:
    """How far each stage's output depends on the pattern, by step, of a run that died beside one that lived.

    From 150 steps before the death to 150 after it, where the run was watched; the largest gradient norm of the steps
    between two watches is drawn below. Raises `ValueError` if the first did not die.
    """
    (fate,) = fates([dying])
    if fate.death is None:
        raise ValueError(f"`dying` must have died: {dying.arm}, seed {dying.stored.seed}, did not")
    figure = new_figure(11, 6.2)
    axes = figure.subplots(2, 2, sharex=True, sharey="row", height_ratios=(2.2, 1))
    ends = (max(0, fate.death.step - 150), min(fate.last_step, fate.death.step + 150))
    for column, run in enumerate((dying, living)):
        _stages(axes[0, column], run)
        _gradients(axes[1, column], run)
        axes[0, column].set_title(f"{run.arm}, seed {run.stored.seed}: {run.verdict}", fontsize=9.5)
        axes[1, column].set_xlabel("optimizer steps", fontsize=9)
        for axis in axes[:, column]:
            axis.set_xlim(*ends)
            if run is dying:
                axis.axvline(fate.death.step, color="0.3", ls="--", lw=0.9)
    axes[0, 0].set_ylabel("deviation of a stage's output over patterns", fontsize=9)
    axes[1, 0].set_ylabel("gradient norm", fontsize=9)
    axes[0, 1].legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1.01, 1.02))
    return figure


def _stages(axes: Axes, run: Run) -> None:
    watched = run.watched
    of = "middle_std/" if any(name.startswith("middle_std/") for name in watched) else "pattern_std/"
    series = {name.removeprefix(of): np.array(watched[name], float) for name in watched if name.startswith(of)}
    top = max(float(np.nanmax(values)) for values in series.values())
    lowest = top * 10.0**-_DECADES  # what is 0 lies at the bottom
    for colour, (stage, values) in zip(in_order(len(series)), series.items(), strict=True):
        axes.plot(watched["step"], np.maximum(values, lowest), "-", color=colour, lw=1.1, label=stage)
    axes.set_yscale("log")
    tidy(axes)


def _gradients(axes: Axes, run: Run) -> None:
    norms = np.array(run.history.get("grad_norm_preclip", ()), float)
    axes.plot(range(len(norms)), norms, color="0.25", lw=0.9)
    if (norms > 0).any():
        axes.set_yscale("log")
    tidy(axes)
