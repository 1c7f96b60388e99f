"""Tables and a figure of why it came out as it did: block and clipping, Adam's epsilon, LayerScale, long trainings."""

import math
import statistics
from collections.abc import Mapping
from typing import Final

from matplotlib.figure import Figure

from fnostab.report.axes import OTHER_COLOURS, log_axis, new_figure
from fnostab.study.text import number
from results.cells import against, failed, family, loss, metric, share, stitched, table
from results.losses import at_the_end
from results.paired import paired, side_by_side
from results.phrases import rose
from results.runs import Run, median, of_arm, ranked, read_runs, row_of

#: Two by two: block and clipping, and what the effects of either are called.
EFFECTS: Final = (
    ("clipping, block of control", "control", "plain"),
    ("clipping, stable block", "stable_norm", "stable"),
    ("stable block, without clipping", "stable", "plain"),
    ("stable block, clipped", "stable_norm", "control"),
    ("the original's two: both at once", "control", "stable"),
)
#: By block the arm without clipping and the one with it.
CLIPPING: Final = {"control": ("plain", "control"), "stable": ("stable", "stable_norm")}
#: By whether it clips the arm with the block of control and the one with the stable block.
BLOCK: Final = {"not clipped": ("plain", "stable"), "clipped": ("control", "stable_norm")}
BY: Final = ("best_val_loss", "r_stitched")
_EPSILON: Final = "w3_epsilon"
#: The rule by which the original's later runs were called crashed.
CRASH_SSIM: Final = 0.5
CRASH_LOSS: Final = 0.15


def crashed(run: Run) -> bool:
    """Whether the later runs of the original would have called this one crashed: SSIM under 0.5, or loss over 0.15.

    The SSIM is that of the amplitude of the test object, the loss the last of validation. An SSIM that means nothing,
    as of a constant object, says nothing here, and the loss decides.
    """
    ssim = run.metrics.get("test/amp_ssim")
    last = run.history["val_loss"][-1]
    is_low = ssim is not None and math.isfinite(ssim) and ssim < CRASH_SSIM
    return is_low or not (isinstance(last, int | float) and last <= CRASH_LOSS)


def blocks(study: str) -> str:
    """Question 2: the arms of two by two, then what clipping and block change, each with the other one fixed."""
    head = ("arm", "failed", "median best val_loss", "stitched R-factor, median", "largest rise of val_loss, median")
    head += ("over 1.2 times", "median gradient norm", "amplitude SSIM", "lost a stage")
    rows = []
    for row in ranked(study).table:
        runs = of_arm(study, row["arm"])
        norm = median(run.metrics["grad/norm_median"] for run in runs)
        cells = (median_rise(runs), rose(runs, 1.2), number(norm, ".1f"), _ssim(study, row["arm"]))
        rows.append((row["arm"], failed(row), loss(row), stitched(row), *cells, at_the_end(runs)))
    effects = [
        (what, f"{arm} against {other}", change(study, arm, other), *(against(study, arm, other, by) for by in BY))
        for what, arm, other in EFFECTS
    ]
    head_2 = ("effect", "arms", "median val_loss", "the first is better", "the first is better by R")
    return f"{table(head, rows)}\n\n{table(head_2, effects)}\n\n{family(study)}"


def block_pairs(study: str) -> str:
    """Question 2: seed by seed, clipping in either block, then the stable block with and without clipping."""
    by_clipping = paired(study, CLIPPING, "clipped over not", "clipped")
    return f"{by_clipping}\n\n{paired(study, BLOCK, 'stable block over the other', 'with it')}"


def block_figure(study: str) -> Figure:
    """Question 2: every run, by loss and by object."""
    return side_by_side(study, CLIPPING, "none | norm 1.0")


def epsilon() -> str:
    """Question 3: every arm at both epsilons, and how far pre is ahead of the others at either."""
    study, names = _EPSILON, _epsilons()
    head = ("arm", "eps", "failed", "median best val_loss", "lower at 1e-12", "stitched R-factor, median")
    head += ("lower by it", "pre's median val_loss is under it by", "lost a stage")
    rows = []
    for (arm, eps), name in names.items():
        row, small = row_of(study, name), eps == 1e-12
        better_by = [against(study, name, names[arm, 1e-8], by) if small else "" for by in BY]
        lead = "" if arm == "pre" else _under(study, names["pre", eps], name)
        told = (failed(row), loss(row), better_by[0], stitched(row), better_by[1], lead)
        rows.append((arm, f"{eps:g}", *told, at_the_end(of_arm(study, name))))
    return f"{table(head, rows)}\n\n{family(study)}"


def epsilon_pairs() -> str:
    """Question 3: the same seed at both epsilons, an arm a row."""
    return paired(_EPSILON, both_epsilons(), "1e-12 over 1e-8", "at 1e-12")


def epsilon_figure() -> Figure:
    """Question 3: every run, by loss and by object."""
    return side_by_side(_EPSILON, both_epsilons(), "1e-8 | 1e-12")


def both_epsilons() -> dict[str, tuple[str, str]]:
    """Question 3: by arm its names at 1e-8 and at 1e-12."""
    names = _epsilons()
    return {arm: (names[arm, 1e-8], names[arm, 1e-12]) for arm, eps in names if eps == 1e-8}


def _epsilons() -> dict[tuple[str, float], str]:
    """By arm and epsilon, 1e-8 first, the name that the grid gave."""
    found = {(run.base_arm, float(run.stored.params["optim.eps"])): run.arm for run in read_runs(_EPSILON)}
    return {(arm, eps): found[arm, eps] for arm in dict.fromkeys(arm for arm, _ in found) for eps in (1e-8, 1e-12)}


#: The arm beside which the others of a study of question 4 stand.
_REFERENCES: Final[Mapping[str, str]] = {"w4_decoder": "none", "w4_rate": "none-lr0.003"}


def remedies(study: str) -> str:
    """Question 4: by rule, how many runs were thrown back, and the largest gradient beside the median."""
    reference = _REFERENCES.get(study)
    head = ("rule", "failed", "rose over 1.5 times", "largest rise of val_loss, median", "highest")
    head += ("largest gradient over the median one, median", "highest", "median best val_loss")
    head += (f"better than {reference}",) if reference else ()
    head += ("stitched R-factor, median",)
    rows = []
    for row in ranked(study).table:
        runs = of_arm(study, row["arm"])
        thrown = sum(run.relapses > 0 for run in runs)
        ratios = [run.metrics["grad/norm_max"] / run.metrics["grad/norm_median"] for run in runs]
        peaks = (number(median(ratios), ".3g"), number(max(ratios), ".3g"))
        beside = (against(study, row["arm"], reference),) if reference else ()
        cells = (failed(row), share(thrown, len(runs)), median_rise(runs), highest_rise(runs), *peaks)
        rows.append((row["arm"], *cells, loss(row), *beside, stitched(row)))
    return f"{table(head, rows)}\n\n{family(study)}"


def crashes(study: str = "w5_layerscale") -> str:
    """Question 5: our verdict beside the rule of the original's later runs."""
    head = ("arm", "failed by the verdict", f"SSIM under {CRASH_SSIM:g} or last val_loss over {CRASH_LOSS:g}", "both")
    head += ("median best val_loss", "last val_loss, median", "amplitude SSIM of all runs, median")
    head += ("largest rise, median", "lost a stage")
    rows = []
    for row in ranked(study).table:
        runs = of_arm(study, row["arm"])
        lost = [run for run in runs if crashed(run)]
        last = median(_number(run.history["val_loss"][-1]) for run in runs)
        ssim = median(_number(run.metrics.get("test/amp_ssim")) for run in runs)
        cells = (str(sum(run.failed for run in lost)), loss(row), number(last, ".4f"), number(ssim, ".3f"))
        cells += (median_rise(runs), at_the_end(runs))
        rows.append((row["arm"], failed(row), share(len(lost), len(runs)), *cells))
    return table(head, rows)


def long_runs(study: str, reference: str = "pre_cosine") -> str:
    """Question 6: outcome and steadiness of long trainings, each arm beside the `reference`."""
    head = ("arm", "failed", "median best val_loss", f"better than {reference}", "stitched R-factor, median")
    head += ("better by it", "largest rise of val_loss, median", "highest", "in the second half of the epochs, highest")
    head += ("relapses", "last val_loss, median", "lost a stage")
    rows = []
    for row in ranked(study).table:
        runs = of_arm(study, row["arm"])
        by_loss, by_object = (against(study, row["arm"], reference, by) for by in BY)
        cells = (failed(row), loss(row), by_loss, stitched(row), by_object, median_rise(runs))
        last = median(_number(run.history["val_loss"][-1]) for run in runs)
        late = number(max(map(late_rise, runs)), ".2f")
        steady = (highest_rise(runs), late, str(sum(run.relapses for run in runs)))
        rows.append((row["arm"], *cells, *steady, number(last, ".4f"), at_the_end(runs)))
    return f"{table(head, rows)}\n\n{family(study)}"


def chosen_rates(study: str = "w6_rates", common: str = "w6_long") -> str:
    """Question 6: each arm of `study` at every learning rate, that of the study `common` too, on the seeds of `study`.

    Bold is the arm's lowest median of the stitched validation R-factor, of the rates at which no run failed.
    """
    head = ("arm", "learning rate", "failed", "median best val_loss", "stitched R-factor, median")
    head += ("largest rise of val_loss, median", "highest", "lost a stage")
    rows = []
    for arm, rates in by_rate(study, common).items():
        medians = {rate: _stitched_median(runs) for rate, runs in rates.items()}
        lowest = min(medians.values())
        for rate, runs in rates.items():
            failures = share(sum(run.failed for run in runs), len(runs))
            best = number(median(run.metrics["best_val_loss"] for run in runs), ".4f")
            by_object = number(medians[rate], ".3f")
            by_object = f"**{by_object}**" if medians[rate] == lowest < math.inf else by_object
            cells = (failures, best, by_object, median_rise(runs), highest_rise(runs), at_the_end(runs))
            rows.append((arm, f"{rate:g}", *cells))
    return table(head, rows)


def by_rate(study: str = "w6_rates", common: str = "w6_long") -> dict[str, dict[float, list[Run]]]:
    """Question 6: the runs of each arm of `study` by learning rate, with those of `common` that have the same seeds."""
    seeds = {run.stored.seed for run in read_runs(study)}
    runs = [*read_runs(study), *(run for run in read_runs(common) if run.stored.seed in seeds)]
    rates = sorted({run.rate for run in runs})
    arms = dict.fromkeys(run.base_arm for run in read_runs(study))
    return {
        arm: {rate: [run for run in runs if (run.base_arm, run.rate) == (arm, rate)] for rate in rates} for arm in arms
    }


def _stitched_median(runs: list[Run]) -> float:
    """Of runs of which none failed; else infinite."""
    return math.inf if any(run.failed for run in runs) else median(run.metrics["val/r_stitched"] for run in runs)


def long_curves(study: str) -> Figure:
    """Median val_loss of each arm by epoch, and by the time that it took, as its runs trained that fast."""
    figure = new_figure(11, 4.2)
    epochs, minutes = figure.subplots(1, 2, sharey=True)
    arms = [row["arm"] for row in ranked(study).table]
    every = []
    for arm, colour in zip(arms, OTHER_COLOURS, strict=False):
        runs = [run for run in of_arm(study, arm) if not run.failed]
        if not runs:
            continue
        losses = [statistics.median(at) for at in zip(*(run.history["val_loss"] for run in runs), strict=True)]
        per_epoch_s = median(_patches(run) / run.metrics["samples_per_s"] for run in runs)
        numbers = range(1, 1 + len(losses))
        epochs.plot(numbers, losses, color=colour, lw=1.3, label=arm)
        minutes.plot([epoch * per_epoch_s / 60 for epoch in numbers], losses, color=colour, lw=1.3)
        every += losses
    for axes in (epochs, minutes):
        log_axis(axes, min(every), max(every))
    epochs.set_xlabel("epoch", fontsize=9)
    epochs.set_ylabel("val_loss, median of the runs that did not fail", fontsize=9)
    minutes.set_xlabel("minutes of training, validation not counted", fontsize=9)
    epochs.legend(fontsize=8, frameon=False)
    return figure


def _patches(run: Run) -> float:
    return float(run.stored.params["data.max_train_patches"])


def median_rise(runs: list[Run]) -> str:
    return number(median(run.drawdown for run in runs), ".2f")


def highest_rise(runs: list[Run]) -> str:
    return number(max((run.drawdown for run in runs if run.drawdown is not None), default=math.nan), ".2f")


def late_rise(run: Run) -> float:
    """The largest ratio of a val_loss in the second half of the epochs to the lowest before it."""
    losses = [math.inf if (loss := _number(value)) is None else loss for value in run.history["val_loss"]]
    late = range(max(1, len(losses) // 2), len(losses))
    return max((losses[epoch] / min(losses[:epoch]) for epoch in late), default=math.nan)


def _ssim(study: str, arm: str) -> str:
    return metric(study, arm, "test/amp_ssim", ".3f")


def change(study: str, arm: str, other: str) -> str:
    """By how many per cent the median val_loss of `arm` is over or under that of `other`."""
    ours, theirs = (row_of(study, name)["median_best_val_loss"] for name in (arm, other))
    return f"{100 * (ours / theirs - 1):+.1f} %" if math.isfinite(ours) and math.isfinite(theirs) else "–"


def _under(study: str, arm: str, other: str) -> str:
    ours, theirs = (row_of(study, name)["median_best_val_loss"] for name in (arm, other))
    return f"{100 * (1 - ours / theirs):.0f} %" if math.isfinite(ours) and math.isfinite(theirs) else "–"


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
