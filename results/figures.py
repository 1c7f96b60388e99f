"""The figures of docs/results; `results.tables` writes them."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fnostab.ranking import Ranking
from fnostab.report.axes import OTHER_COLOURS, OWN_COLOURS, log_axis, new_figure, tidy
from results.runs import (
    BETTER,
    DEPTHS,
    SCHEDULES,
    clipped_fraction,
    depth_arm,
    median,
    of_arm,
    ranked,
    rate_arms,
    read_runs,
    row_of,
    schedule_arm,
    sensitivity,
)

_COLOURS: Final = {
    **OWN_COLOURS,
    "pre": "#332288",
    "plain": "#56B4E9",
    "original": "#8C6D46",
    "stable_1": "#E69F00",
    "stable_rms": "#CC79A7",
    "pre_mix": "#999933",
}
_TITLES: Final = {
    "q1_curved_phase": "curved probe, phase",
    "q1_curved_nophase": "curved probe, no phase",
    "q1_flat_phase": "flat probe, phase",
    "q1_flat_nophase": "flat probe, no phase",
    "q7_probe": "measured probe",
    "q7_1e4": "1e4 photons a pattern",
    "q7_1e6": "1e6 photons a pattern",
    "q7_scan": "measured scan",
    "q7_grf": "random fields",
    "q7_image": "photographs",
}


def original() -> Figure:
    """Every run of question 1, with medians and intervals."""
    figure = new_figure(9.5, 6.4)
    panels = figure.subplots(2, 2).flat
    for axes, study in zip(
        panels, ("q1_curved_phase", "q1_curved_nophase", "q1_flat_phase", "q1_flat_nophase"), strict=True
    ):
        _dots(axes, study, ranked(study))
        axes.set_title(_TITLES[study], fontsize=9.5)
    return figure


def carry_over() -> Figure:
    """Every run of question 7, with medians and intervals."""
    figure = new_figure(11, 6.4)
    studies = ("q7_probe", "q7_scan", "q7_1e6", "q7_1e4", "q7_grf", "q7_image")
    for axes, study in zip(figure.subplots(2, 3).flat, studies, strict=True):
        _dots(axes, study, ranked(study))
        axes.set_title(_TITLES[study], fontsize=9.5)
    return figure


def _dots(axes: Axes, study: str, ranking: Ranking) -> None:
    """An arm a column, best first: its runs, their median, and its interval where there are more than three runs."""
    losses = {row["arm"]: [run.metrics["best_val_loss"] for run in of_arm(study, row["arm"])] for row in ranking.table}
    everything = [loss for of in losses.values() for loss in of]
    log_axis(axes, min(everything), max(everything))
    for place, row in enumerate(ranking.table):
        _column(axes, place, 0.5, losses[row["arm"]], row, _COLOURS[row["arm"]])
    names = [f"{row['arm']}\n{row['runs']} runs" for row in ranking.table]
    axes.set_xticks(range(len(names)), names, fontsize=8)
    axes.set_xlim(-0.6, len(names) - 0.4)
    axes.set_ylabel("best val_loss (R-factor)", fontsize=8.5)


def _column(
    axes: Axes, place: float, width: float, losses: Sequence[float], row: Mapping[str, Any], colour: str
) -> None:
    """The runs of an arm side by side over `width`, their median, and its interval of more than three runs."""
    step = width / max(1, len(losses) - 1)
    places = [place + step * (index - (len(losses) - 1) / 2) for index in range(len(losses))]
    axes.plot(places, losses, "o", color=colour, ms=4, alpha=0.75, mew=0)
    bar = 0.68 * width
    axes.plot([place - bar, place + bar], [row["median_best_val_loss"]] * 2, color="black", lw=1.6)
    if row["runs"] > 3:
        ends = [row["median_best_val_loss_low"], row["median_best_val_loss_high"]]
        axes.plot([place] * 2, ends, color="black", lw=1.1)


def depth() -> Figure:
    """Median best val_loss against depth, and the mean activation along the blocks of the deepest networks."""
    figure = new_figure(10.5, 4.2)
    losses, means = figure.subplots(1, 2)
    rows = {row["arm"]: row for row in ranked("q2_depth").table}
    arms = list(dict.fromkeys(run.base_arm for run in read_runs("q2_depth")))
    shift = {arm: 0.12 * (place - (len(arms) - 1) / 2) for place, arm in enumerate(arms)}
    for arm in arms:
        points = [rows[depth_arm(arm, blocks)] for blocks in DEPTHS]
        places = [blocks + shift[arm] for blocks in DEPTHS]
        losses.plot(
            places, [row["median_best_val_loss"] for row in points], "-", color=_COLOURS[arm], lw=1.2, label=arm
        )
        for place, row in zip(places, points, strict=True):
            many = row["runs"] >= 10
            losses.plot(
                place, row["median_best_val_loss"], "o", color=_COLOURS[arm], ms=6, mfc=None if many else "white"
            )
            if many:
                ends = [row["median_best_val_loss_low"], row["median_best_val_loss_high"]]
                losses.plot([place] * 2, ends, color=_COLOURS[arm], lw=1.6)
    log_axis(losses, 0.045, 0.07)
    losses.set_xticks(DEPTHS, DEPTHS)
    losses.set_xlabel("encoder blocks", fontsize=9)
    losses.set_ylabel("median best val_loss", fontsize=9)
    losses.legend(fontsize=8, ncols=2, frameon=False)
    for arm in ("control", "stable", "stable_1", "pre"):
        runs = of_arm("q2_depth", depth_arm(arm, 16))
        keys = [key for key in runs[0].health if key.startswith("act_mean/encoder.3.")]
        for when, style in ((0, ":"), (-1, "-")):
            values = [median(run.health[key][when] for run in runs) for key in keys]
            means.plot(range(len(keys)), values, style, color=_COLOURS[arm], label=arm if when else None)
    tidy(means)
    means.set_xlabel("block on the coarsest grid, 16 blocks in all", fontsize=9)
    means.set_ylabel("mean of the block's output", fontsize=9)
    means.set_title("dotted: before training; solid: after", fontsize=9)
    means.legend(fontsize=8, frameon=False)
    return figure


def start() -> Figure:
    """Learning curves and norm weights by where the norm's weight starts."""
    arms = ("gamma_0", "gamma_0.01", "gamma_0.1", "gamma_1", "layerscale_0.001", "layerscale_0.1")
    figure = new_figure(10.5, 4.2)
    losses, weights = figure.subplots(1, 2)
    for arm, colour in zip(arms, OTHER_COLOURS, strict=False):
        runs = of_arm("q3_start", arm)
        for axes, series in (
            (losses, [run.history["val_loss"] for run in runs]),
            (weights, [_branch_scale(run.health) for run in runs]),
        ):
            values = [statistics.median(at) for at in zip(*series, strict=True)]
            first = 1 if axes is losses else 0
            axes.plot(range(first, first + len(values)), values, "o-", ms=3.5, lw=1.4, color=colour, label=arm)
    log_axis(losses, 0.048, 0.18)
    losses.set_ylabel("val_loss, median of 10 seeds", fontsize=9)
    losses.legend(fontsize=8, frameon=False)
    weights.set_yscale("symlog", linthresh=1e-3)
    tidy(weights)
    weights.set_ylabel("mean scale of the branch: norm weight times LayerScale", fontsize=9)
    for axes in (losses, weights):
        axes.set_xlabel("epoch", fontsize=9)
    return figure


def _branch_scale(health: Mapping[str, Sequence[float]]) -> list[float]:
    weights = health["norm_weight_absmean"]
    scales = health.get("layerscale_absmean", [1.0] * len(weights))
    return [weight * scale for weight, scale in zip(weights, scales, strict=True)]


def clipping() -> Figure:
    """Median best val_loss against the clipped fraction, a dot a setting."""
    figure = new_figure(7.5, 4.4)
    axes = figure.subplots()
    families = {"norm": "#0072B2", "agc": "#009E73", "agc_tensor": "#E69F00", "value": "#CC79A7", "none": "black"}
    rows = {row["arm"]: row for row in ranked("q4_clip").table}
    log_axis(axes, min(row["best_val_loss"] for row in rows.values()), 0.072)
    for family, colour in families.items():
        arms = [arm for arm in rows if (arm if arm == "none" else arm.rpartition("_")[0]) == family]
        arms.sort(key=clipped_fraction)
        places = [clipped_fraction(arm) for arm in arms]
        axes.plot(
            places, [rows[arm]["median_best_val_loss"] for arm in arms], "o-", color=colour, lw=1, ms=5, label=family
        )
        for place, arm in zip(places, arms, strict=True):
            axes.annotate(
                arm.rpartition("_")[2],
                (place, rows[arm]["median_best_val_loss"]),
                xytext=(4, 3),
                textcoords="offset points",
                fontsize=7,
                color=colour,
            )
            losses = [run.metrics["best_val_loss"] for run in of_arm("q4_clip", arm)]
            axes.plot([place] * 2, [min(losses), max(losses)], color=colour, lw=0.7, alpha=0.6)
    axes.set_xlabel("clipped fraction, mean over steps", fontsize=9)
    axes.set_ylabel("best val_loss: median, lowest and highest of 5 seeds", fontsize=9)
    axes.legend(fontsize=8, frameon=False)
    return figure


def learning_rates() -> Figure:
    """Median best val_loss against the learning rate."""
    figure = new_figure(7, 4.2)
    axes = figure.subplots()
    log_axis(axes, 0.043, 0.22)
    for arm, of in rate_arms("q5_lr").items():
        losses = [[run.metrics["best_val_loss"] for run in of_arm("q5_lr", name)] for name in of.values()]
        label = f"{arm}, sensitivity {sensitivity(arm):.3f}"
        axes.plot(
            list(of), [statistics.median(at) for at in losses], "o-", color=_COLOURS[arm], ms=5, lw=1.4, label=label
        )
        for rate, at in zip(of, losses, strict=True):
            axes.plot([rate] * 2, [min(at), max(at)], color=_COLOURS[arm], lw=0.8)
    axes.axhline(read_runs("q5_lr")[0].history["val_loss_constant"], color="0.5", lw=0.8, ls="--")
    axes.text(3e-5, 0.205, "best constant object", fontsize=8, color="0.35")
    axes.set_xscale("log")
    axes.set_xlabel("learning rate", fontsize=9)
    axes.set_ylabel("best val_loss: median, lowest and highest of 5 seeds", fontsize=8.5)
    axes.legend(fontsize=8, frameon=False)
    return figure


def better() -> Figure:
    """The better arm beside the control: all runs, in every setting."""
    figure = new_figure(10, 4)
    axes = figure.subplots()
    log_axis(axes, 0.027, 0.09)
    for place, (study, *names) in enumerate(BETTER.values()):
        for side, name, arm in zip((-0.2, 0.2), names, ("control", "pre"), strict=True):
            losses = [run.metrics["best_val_loss"] for run in of_arm(study, name)]
            _column(axes, place + side, 0.24, losses, row_of(study, name), _COLOURS[arm])
    for arm in ("control", "pre"):
        axes.plot([], [], "o", color=_COLOURS[arm], ms=4, label=arm)
    axes.set_xticks(range(len(BETTER)), [setting.replace(", ", "\n") for setting in BETTER])
    axes.set_ylabel("best val_loss (R-factor)", fontsize=9)
    axes.legend(fontsize=9, frameon=False, loc="upper left", ncols=2)
    return figure


def curves() -> Figure:
    """Learning curves of longer trainings: five times as long, and at full size."""
    figure = new_figure(11, 4.4)
    longer, full = figure.subplots(1, 2)
    log_axis(longer, 0.029, 0.16)
    for arm in ("control", "plain", "pre"):
        for schedule, style in zip(SCHEDULES, ("-", "--"), strict=True):
            runs = of_arm("q6_longer", schedule_arm(arm, schedule))
            losses = [statistics.median(at) for at in zip(*(run.history["val_loss"] for run in runs), strict=True)]
            label = arm if style == "-" else None
            longer.plot(range(1, 1 + len(losses)), losses, style, color=_COLOURS[arm], lw=1.3, label=label)
    longer.set_title("1,024 patches, 40 epochs; solid: constant rate, dashed: cosine", fontsize=9)
    longer.set_ylabel("val_loss, median of 5 seeds", fontsize=9)
    log_axis(full, 0.0095, 0.18)
    for run in read_runs("full_size"):
        losses = run.history["val_loss"]
        full.plot(range(1, 1 + len(losses)), losses, color=_COLOURS[run.arm], lw=1.3, label=run.arm)
    full.set_title("13,778 patches, width 32, 50 epochs", fontsize=9)
    full.set_ylabel("val_loss, one seed", fontsize=9)
    for axes in (longer, full):
        axes.set_xlabel("epoch", fontsize=9)
        axes.legend(fontsize=8, frameon=False)
    return figure


#: Figures by the name of their file.
FIGURES: Final[Mapping[str, Callable[[], Figure]]] = {
    "q1_original": original,
    "q2_depth": depth,
    "q3_start": start,
    "q4_clipping": clipping,
    "q5_learning_rates": learning_rates,
    "q6_better": better,
    "q6_curves": curves,
    "q7_carry_over": carry_over,
}
