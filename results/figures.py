"""The figures of docs/results; `results.tables` writes them."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fnostab.report.axes import OTHER_COLOURS, log_axis, new_figure, tidy
from results import activations, ensemble, losses, precision, survival
from results.causes import block_figure, epsilon_figure, long_curves
from results.groups import groups
from results.panels import COLOURS, LABELS, by_both, column, dots_of_arms, drawn, scale
from results.runs import (
    BETTER,
    DEPTHS,
    SCHEDULES,
    WHY,
    clipped_fraction,
    depth_arm,
    median,
    of_arm,
    pair,
    ranked,
    rate_arms,
    read_runs,
    row_of,
    schedule_arm,
    sensitivity,
)


def original() -> Figure:
    """Every run of question 1, by loss and by object, with medians and intervals."""
    return by_both(("q1_curved_phase", "q1_curved_nophase", "q1_flat_phase", "q1_flat_nophase"), 4, (15, 6.4))


def carry_over() -> Figure:
    """Every run of question 7, by loss and by object, with medians and intervals."""
    return by_both(("q7_probe", "q7_scan", "q7_1e6", "q7_1e4", "q7_grf", "q7_image"), 3, (11, 12))


def depth() -> Figure:
    """Medians of val_loss and R against depth, and the mean activation along the blocks of the deepest networks."""
    figure = new_figure(15, 4.2)
    *panels, means = figure.subplots(1, 3)
    for axes, by, ends in zip(panels, LABELS, ((0.045, 0.07), (0.05, 0.32)), strict=True):
        log_axis(axes, *ends)
        _depth(axes, by)
        axes.legend(fontsize=8, ncols=2, frameon=False)
    for arm in ("control", "stable", "stable_1", "pre"):
        runs = of_arm("q2_depth", depth_arm(arm, 16))
        keys = [key for key in runs[0].health if key.startswith("act_mean/encoder.3.")]
        for when, style in ((0, ":"), (-1, "-")):
            values = [median(run.health[key][when] for run in runs) for key in keys]
            means.plot(range(len(keys)), values, style, color=COLOURS[arm], label=arm if when else None)
    tidy(means)
    means.set_xlabel("block on the coarsest grid, 16 blocks in all", fontsize=9)
    means.set_ylabel("mean of the block's output", fontsize=9)
    means.set_title("dotted: before training; solid: after", fontsize=9)
    means.legend(fontsize=8, frameon=False)
    return figure


def _depth(axes: Axes, by: str) -> None:
    """An arm a line; dots are filled, and have their interval, where there are ten runs."""
    rows = {row["arm"]: row for row in ranked("q2_depth").table}
    arms = list(dict.fromkeys(run.base_arm for run in read_runs("q2_depth")))
    for index, arm in enumerate(arms):
        points = {d + 0.12 * (index - (len(arms) - 1) / 2): rows[depth_arm(arm, d)] for d in DEPTHS}
        medians = [row[f"median_{by}"] for row in points.values()]
        axes.plot(list(points), medians, "-", color=COLOURS[arm], lw=1.2, label=arm)
        for place, row in points.items():
            many = row["runs"] >= 10
            axes.plot(place, row[f"median_{by}"], "o", color=COLOURS[arm], ms=6, mfc=None if many else "white")
            if many:
                ends = [row[f"median_{by}_low"], row[f"median_{by}_high"]]
                axes.plot([place] * 2, ends, color=COLOURS[arm], lw=1.6)
    axes.set_xticks(DEPTHS, DEPTHS)
    axes.set_xlabel("encoder blocks", fontsize=9)
    axes.set_ylabel(f"{LABELS[by]}, median", fontsize=9)


def start() -> Figure:
    """Learning curves and norm weights by where the norm's weight starts."""
    arms = ("gamma_0", "gamma_0.01", "gamma_0.1", "gamma_1", "layerscale_0.001", "layerscale_0.1")
    figure = new_figure(10.5, 4.2)
    losses, weights = figure.subplots(1, 2)
    for arm, colour in zip(arms, OTHER_COLOURS, strict=False):
        runs = of_arm("q3_start", arm)
        for axes, series in (
            (losses, [run.history["val_loss"] for run in runs]),
            (weights, [_branchscale(run.health) for run in runs]),
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


def _branchscale(health: Mapping[str, Sequence[float]]) -> list[float]:
    weights = health["norm_weight_absmean"]
    scales = health.get("layerscale_absmean", [1.0] * len(weights))
    return [weight * scale for weight, scale in zip(weights, scales, strict=True)]


def clipping() -> Figure:
    """Medians of val_loss and R against the clipped fraction, a dot a setting."""
    figure = new_figure(13, 4.6)
    panels = figure.subplots(1, 2)
    for axes, by in zip(panels, LABELS, strict=True):
        scale(axes, read_runs("q4_clip"), by)
        _clipping(axes, by)
    panels[0].legend(fontsize=8, frameon=False)
    return figure


def _clipping(axes: Axes, by: str) -> None:
    families = {"norm": "#0072B2", "agc": "#009E73", "agc_tensor": "#E69F00", "value": "#CC79A7", "none": "black"}
    rows = {row["arm"]: row for row in ranked("q4_clip").table}
    for family, colour in families.items():
        arms = [arm for arm in rows if (arm if arm == "none" else arm.rpartition("_")[0]) == family]
        arms.sort(key=clipped_fraction)
        dots = {arm: (clipped_fraction(arm), rows[arm][f"median_{by}"]) for arm in arms}
        axes.plot(*zip(*dots.values(), strict=True), "o-", color=colour, lw=1, ms=5, label=family)
        for arm, dot in dots.items():
            name = arm.rpartition("_")[2]
            axes.annotate(name, dot, xytext=(4, 3), textcoords="offset points", fontsize=7, color=colour)
            found = [drawn(run, by) for run in of_arm("q4_clip", arm)]
            axes.plot([dot[0]] * 2, [min(found), max(found)], color=colour, lw=0.7, alpha=0.6)
    axes.set_xlabel("clipped fraction, mean over steps", fontsize=9)
    axes.set_ylabel(f"{LABELS[by]}:\nmedian, lowest and highest of 5 seeds", fontsize=9)


def learning_rates() -> Figure:
    """Median best val_loss and stitched R-factor against the learning rate, of the runs that did not fail.

    Dots are hollow where some failed.
    """
    figure = new_figure(11, 4.4)
    panels = figure.subplots(1, 2)
    for axes, by, ends in zip(panels, LABELS, ((0.043, 0.4), (0.045, 0.4)), strict=True):
        log_axis(axes, *ends)
        for arm, of in rate_arms("q5_lr").items():
            runs = {rate: [run for run in of_arm("q5_lr", name) if not run.failed] for rate, name in of.items()}
            found = {rate: [drawn(run, by) for run in alive] for rate, alive in runs.items() if alive}
            label = f"{arm}, sensitivity {sensitivity(arm):.3f}"
            medians = [statistics.median(at) for at in found.values()]
            axes.plot(list(found), medians, "o-", color=COLOURS[arm], ms=5, lw=1.4, label=label)
            for rate, at in found.items():
                axes.plot([rate] * 2, [min(at), max(at)], color=COLOURS[arm], lw=0.8)
                if len(at) < len(of_arm("q5_lr", of[rate])):
                    axes.plot(rate, statistics.median(at), "o", color=COLOURS[arm], ms=5, mfc="white")
        constant = read_runs("q5_lr")[0].history["val_loss_constant"]
        axes.axhline(constant, color="0.5", lw=0.8, ls="--")
        axes.text(3e-5, constant * 1.02, "best constant object", fontsize=8, color="0.35")
        axes.set_xscale("log")
        axes.set_xlabel("learning rate", fontsize=9)
        axes.set_ylabel(f"{LABELS[by]}: median, lowest and highest\nof the runs that did not fail", fontsize=8.5)
    panels[0].legend(fontsize=8, frameon=False, loc="upper right", ncols=2)
    return figure


def better() -> Figure:
    """Pre beside control, by loss and by object: all runs, in every setting; a star where the difference is clear."""
    figure = new_figure(10, 7)
    for axes, by, ends in zip(figure.subplots(2, 1), LABELS, ((0.027, 0.16), (0.026, 0.28)), strict=True):
        log_axis(axes, *ends)
        for place, (study, *names) in enumerate(BETTER.values()):
            for side, name, arm in zip((-0.2, 0.2), names, ("control", "pre"), strict=True):
                column(axes, place + side, 0.24, of_arm(study, name), row_of(study, name), COLOURS[arm], by)
            if pair(study, names[1], names[0], by).a_is_better:
                axes.plot(place, ends[1] * 0.93, "*", color="black", ms=9)
        for arm in ("control", "pre"):
            axes.plot([], [], "o", color=COLOURS[arm], ms=4, label=arm)
        axes.plot([], [], "*", color="black", ms=8, ls="", label="clear")
        axes.plot([], [], "x", color="0.3", ms=6, ls="", label="failed")
        axes.set_xticks(range(len(BETTER)), [setting.replace(", ", "\n") for setting in BETTER], fontsize=8.5)
        axes.set_ylabel(LABELS[by], fontsize=9)
        axes.legend(fontsize=8.5, frameon=False, loc="lower left", ncols=4)
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
            longer.plot(range(1, 1 + len(losses)), losses, style, color=COLOURS[arm], lw=1.3, label=label)
    longer.set_title("1,024 patches, 40 epochs; solid: constant rate, dashed: cosine", fontsize=9)
    longer.set_ylabel("val_loss, median of 5 seeds", fontsize=9)
    log_axis(full, 0.0095, 0.18)
    for run in read_runs("full_size"):
        losses = run.history["val_loss"]
        full.plot(range(1, 1 + len(losses)), losses, color=COLOURS[run.arm], lw=1.3, label=run.arm)
    full.set_title("13,778 patches, width 32, 50 epochs", fontsize=9)
    full.set_ylabel("val_loss, one seed", fontsize=9)
    for axes in (longer, full):
        axes.set_xlabel("epoch", fontsize=9)
        axes.legend(fontsize=8, frameon=False)
    return figure


def every_run(study: str) -> Figure:
    """Every run's validation loss by epoch, and its object."""
    figure = new_figure(10.5, 3.8)
    loss, by_object = figure.subplots(1, 2)
    runs = read_runs(study)
    every = [value for run in runs for value in run.history["val_loss"]]
    log_axis(loss, min(every), max(every))
    for run in runs:
        losses = run.history["val_loss"]
        loss.plot(range(1, 1 + len(losses)), losses, color=COLOURS[run.arm], lw=1)
    for row in ranked(study).table:
        loss.plot([], [], color=COLOURS[row["arm"]], label=row["arm"])
    loss.axhline(runs[0].history["val_loss_constant"], color="0.5", lw=0.8, ls="--")
    loss.set_xlabel("epoch", fontsize=9)
    loss.set_ylabel("val_loss, every seed; dashed: best constant object", fontsize=8.5)
    loss.legend(fontsize=8, frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=5, columnspacing=1)
    dots_of_arms(by_object, study, ranked(study), "r_stitched")
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
    "gridsize": partial(groups, "gridsize"),
    "gridsize_scan": partial(groups, "gridsize_scan"),
    "original_five": partial(every_run, "original_five"),
    "ensemble": ensemble.figure,
    "precision": precision.figure,
    **({"w1_survival": survival.alive} if survival.existing() else {}),
    "w1_stages": partial(losses.by_stage, "w1_survival_original_3e3"),
    "w1_kept": partial(losses.kept, "w1_survival_original_3e3"),
    "w4_relative": partial(losses.by_stage, "w4_relative"),
    **{study: partial(losses.kept, study) for study in WHY if study in ("w4_decoder", "w4_rate")},
    "w1_activations": partial(activations.grown_by_step, "w1_survival_original_3e3"),
    **{study: partial(block_figure, study) for study in WHY if study.startswith("w2_")},
    "w3_epsilon": epsilon_figure,
    "activation_rates": activations.grown_by_rate,
    **{study: partial(every_run, study) for study in WHY if study.startswith("w5_")},
    **{study: partial(long_curves, study) for study in WHY if study in ("w6_long", "w6_confirm")},
}
