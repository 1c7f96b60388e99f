"""Stages of a network that stopped telling patterns apart, in runs that went on without them: a table and a figure."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from fnostab.health import stage_losses
from fnostab.health.parts import lost_at_end, names_of
from fnostab.ranking.pairs import p_text
from fnostab.report.axes import in_order, new_figure, tidy
from fnostab.study.text import number
from results.activations import DEEPEST, most_grown
from results.cells import share, table
from results.phrases import Pieces, count, ends
from results.runs import LATER, WHY, Run, median, read_runs
from results.survival import compared, draw_shares, p_values

#: Lower shares are drawn here.
_LOWEST: Final = 1e-8
#: Learning rates of which the pages say together how many stages were lost: up to the usual one, twice that, and more.
_RANGES: Final = ((0.0, 1e-3), (2e-3, 2e-3), (3e-3, 5e-3))
#: Steps before a loss in which its gradient is looked for.
_BEFORE: Final = 50


def lost_stages(run: Run) -> dict[str, int]:
    """`stage_losses` of the run. Raises `ValueError` for a run that was not watched."""
    return stage_losses({"watched": run.watched})


def first_losses(runs: Sequence[Run]) -> dict[str, list[int | None]]:
    """By arm, the step at which each of its runs lost its first stage; None for one that lost none."""
    steps: dict[str, list[int | None]] = {}
    for run in runs:
        steps.setdefault(run.arm, []).append(min(lost_stages(run).values(), default=None))
    return steps


def lost_by_arm(runs: Sequence[Run]) -> dict[str, tuple[int, int]]:
    """By arm, how many runs lost a stage, of how many."""
    return {arm: (sum(step is not None for step in steps), len(steps)) for arm, steps in first_losses(runs).items()}


def peak_before(run: Run, step: int) -> float:
    """The largest gradient norm shortly before `step`, as a multiple of the median of all; NaN without them."""
    norms = np.array(run.history.get("grad_norm_preclip", ()), dtype=float)
    shortly = norms[max(0, step - _BEFORE) : step]
    return float(np.nanmax(shortly) / np.nanmedian(norms)) if len(shortly) else math.nan


def _deviations(watched: Mapping[str, Sequence[float]]) -> dict[str, list[NDArray[np.float64]]]:
    """By stage: the deviation of its output over patterns, in the middle of its images, and its whole deviation."""
    kinds = ("middle_std", "act_std")
    return {of: [np.array(watched[f"{kind}/{of}"], float) for kind in kinds] for of in names_of(watched, kinds[0])}


def stages(study: str, against: str | None = None) -> str:
    """An arm a row: how many runs lost a stage, when, which first, and how they did; then every two arms by that.

    Or each beside the arm `against` alone.
    """
    head = ("arm", "lost a stage", "the first at step, median and range", "which")
    head += (f"largest gradient norm of the {_BEFORE} steps before, over the median of the run",)
    head += (f"largest deviation of what {DEEPEST} gives, times the first",)
    head += ("median val_loss with a loss", "without")
    runs = read_runs(study)
    rows, counts = [], lost_by_arm(runs)
    for arm in counts:
        of_one = [(run, lost_stages(run)) for run in runs if run.arm == arm]
        first = [(run, *next(iter(lost.items()))) for run, lost in of_one if lost]
        steps = [step for _, _, step in first]
        which = Counter(stage for _, stage, _ in first)
        cells = (
            share(*counts[arm]),
            f"{np.median(steps):.0f} ({min(steps)} to {max(steps)})" if steps else "–",
            ", ".join(f"{stage} ({of_it})" for stage, of_it in which.most_common()) or "–",
            _spread([peak_before(run, step) for run, _, step in first]),
            _spread([most_grown(run.watched) for run, _ in of_one]),
        )
        losses = [_middle([run for run, lost in of_one if bool(lost) is has]) for has in (True, False)]
        rows.append((arm, *cells, *losses))
    return f"{table(head, rows)}\n\n{compared(counts, 'lost a stage', against)}"


def pieces() -> Pieces:
    """What docs/findings.md and docs/results/survival.md say of them in words."""
    high, low = (read_runs(f"w1_survival_original_{rate}") for rate in ("3e3", "1e3"))
    bare, normed = ([run for run in high if (run.arm in ("control", "plain")) is is_bare] for is_bare in (True, False))
    lost, lost_normed = (sum(bool(lost_stages(run)) for run in runs) for runs in (bare, normed))
    yield f"{lost} of {len(bare)} runs whose blocks have no norm"
    yield f"in {lost_normed} of {len(normed)} whose blocks end with one"
    counts = lost_by_arm(high)
    yield f"({p_text(p_values(counts)['control', 'stable_norm'][1])}"
    yield f"{'All' if all(run.verdict == 'converged' for run in high) else 'Not all'} {len(high)} converged"
    yield f"{ends(most_grown(run.watched) for run in bare)} times without a norm"
    yield f"at most {max(most_grown(run.watched) for run in normed):.1f} times with one"
    yield f"{('none', 'one')[sum(bool(lost_stages(run)) for run in low)]} of {len(low)} runs"
    yield from threshold()
    died = [run for run in read_runs("q5_lr") if run.rate == 0.01 and run.verdict == "collapsed"]
    yield f"{len(died)} runs that died at"


def threshold() -> Pieces:
    """What these pages, README.md and docs/results/README.md say of lost stages by learning rate."""
    by_rate = [(rate, lost) for rate, blocks in lost_by_rate().items() for of in blocks.values() for lost in of]
    usual, twice, high = (count(lost for rate, lost in by_rate if low <= rate <= top) for low, top in _RANGES)
    yield f"{usual} runs at 1e-3 and under"
    yield f"{twice} at 2e-3 and in {high} at 3e-3 to 5e-3"


def at_the_end(runs: Sequence[Run]) -> str:
    """How many of the runs ended with a stage lost, and which; watched or not. A dash where no series can tell."""
    found = [lost for run in runs if (lost := lost_at_end(run.history)) is not None]
    if not found:
        return "–"
    which = Counter(stage for lost in found for stage in lost)
    named = ", ".join(f"{stage} {of_it}" for stage, of_it in which.most_common(3))
    return f"{sum(map(bool, found))} of {len(found)}" + (f" ({named})" if named else "")


def by_rate() -> str:
    """A learning rate a row: how many runs of all studies whose series can tell lost a stage, by block."""
    rows = []
    for rate, blocks in lost_by_rate().items():
        of_both = [lost for of in blocks.values() for lost in of]
        cells = [share(sum(lost), len(lost)) if lost else "–" for lost in (blocks[False], blocks[True], of_both)]
        rows.append((f"{rate:g}", *cells))
    return table(("learning rate", "blocks without a norm", "blocks with one", "both"), rows)


def lost_by_rate() -> dict[float, dict[bool, list[bool]]]:
    """By learning rate and by whether blocks have a norm, of each run whose series can tell whether it lost a stage.

    Of one that was watched for good, by its steps; of another at its last epoch.
    """
    found: dict[float, dict[bool, list[bool]]] = {}
    for run in (run for study in (*LATER, *WHY) for run in read_runs(study)):
        lost = lost_stages(run) if run.history.get("watched") else lost_at_end(run.history)
        if lost is not None:
            has_norm = not run.stored.params["model.arch"].startswith("hybrid")
            found.setdefault(run.rate, {False: [], True: []})[has_norm].append(bool(lost))
    return dict(sorted(found.items()))


def by_stage(study: str) -> Figure:
    """By step, how much of each stage's deviation is over patterns: the first seed of every arm."""
    runs = list({run.arm: run for run in reversed(read_runs(study))}.values())[::-1]
    figure = new_figure(11, 0.6 + 2.9 * -(-len(runs) // 2))
    panels = figure.subplots(-(-len(runs) // 2), 2, sharex=True, sharey=True, squeeze=False).flat
    for axes in panels[len(runs) :]:
        axes.remove()
    for axes, run in zip(panels, runs, strict=False):
        watched = run.watched
        of_stages = _deviations(watched)
        for colour, (stage, (told, whole)) in zip(in_order(len(of_stages)), of_stages.items(), strict=True):
            axes.plot(watched["step"], np.maximum(told / whole, _LOWEST), color=colour, lw=1.1, label=stage)
        lost = ", ".join(f"{stage} from step {step}" for stage, step in lost_stages(run).items())
        axes.set_title(f"{run.arm}: {f'lost {lost}' if lost else 'lost no stage'}", fontsize=9.5)
        axes.set_yscale("log")
        tidy(axes)
    figure.supxlabel("optimizer steps", fontsize=9)
    figure.supylabel("deviation over patterns / whole deviation", fontsize=9)
    beside = figure.axes[min(1, len(runs) - 1)]
    beside.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1.01, 1.02))
    return figure


def kept(study: str) -> Figure:
    """By arm, the share of its runs in which every stage still tells patterns apart, by step."""
    runs = read_runs(study)
    figure = new_figure(7.5, 4.2)
    axes = figure.subplots()
    draw_shares(axes, first_losses(runs), int(max(run.watched["step"][-1] for run in runs)), "lost a stage")
    axes.set_ylabel("share of runs that lost no stage", fontsize=9)
    axes.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.01, 1.02))
    return figure


def _spread(values: Sequence[float]) -> str:
    known = [value for value in values if math.isfinite(value)]
    return f"{number(median(known), '.2g')} ({min(known):.2g} to {max(known):.2g})" if known else "–"


def _middle(runs: Sequence[Run]) -> str:
    return number(median([run.metrics["best_val_loss"] for run in runs]), ".4f") if runs else "–"
