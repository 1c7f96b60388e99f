"""Pieces of sentences with the numbers that docs/findings.md, the README and the model card say in words.

tests/test_results.py looks for each piece on its page, and for numbers on a page that no piece holds. Those of the
questions' pages are in `results.answers`.
"""

from typing import Final

from fnostab.ranking import probability_of_improvement
from results import early_warning, losses as lost_stages, why
from results.phrases import (
    Pieces,
    arm_runs,
    both_pres,
    costs,
    ends,
    failed,
    loss,
    p_value,
    r_factor,
    rose,
    under,
)
from results.runs import (
    BETTER,
    STUDIES,
    median,
    of_arm,
    pair,
    ranked,
    read_runs,
    row_of,
    schedule_arm,
    sensitivity,
    values,
)
from results.stability import SMALL, all_runs, correlation, no_object, risen

#: Studies under Adam.
ADAM: Final = tuple(study for study in STUDIES if not study.endswith("_sgd"))
#: Studies of pre at 1e-3 without the overlap term, however long.
_PRE: Final = (*SMALL, "q6_longer", "full_size")
#: Settings of question 4 with the curved probe, 1e6 photons and more, 8 epochs and a constant rate of 1e-3.
_CURVED: Final = (
    *("curved probe", "the same, five other seeds", "8 blocks", "16 blocks", "no phase", "1e6 photons"),
    *("random fields", "photographs"),
)
#: Datasets of question 7 on which pre leads.
LED: Final = ("q7_probe", "q7_1e6", "q7_grf", "q7_image")


def totals() -> Pieces:
    """Failures of all runs."""
    runs = list(all_runs())
    lost = [run for run in runs if run.failed]
    sgd = [run for run in all_runs(set(STUDIES) - set(ADAM)) if run.failed]
    rates = [run for run in read_runs("q5_lr") if run.failed]
    yield f"Of {len(runs):,} runs {len(lost)} failed"
    yield f"{len(sgd)} under SGD, {len(rates)} under Adam"
    yield f"{sum(run.verdict == 'collapsed' for run in lost)} of the {len(lost)} died"
    yield f"{len(sgd) + len(rates)} of the {len(lost)} failures"


def steadiness() -> Pieces:
    """How many runs under Adam rose."""
    adam = list(all_runs(ADAM))
    for over in (1.2, 1.5):
        found = risen(adam, over)
        yield f"{over:g} times the lowest before in {len(found)} of {len(adam):,}"
        yield f"{sum(run.verdict == 'converged' for run in found)} of these {len(found)}"
    yield f"all five rose over {min(run.drawdown or 0 for run in read_runs('full_size')):.1f} times"


def objects() -> Pieces:
    """Converged runs that have no object, or another."""
    converged = [run for run in all_runs() if not run.failed]
    known = [run for run in converged if isinstance(run.history.get("object_correlation"), float)]
    far = sum(run.history["object_correlation"] < 0.5 for run in known)
    twins = sum(run.history["twin_correlation"] > run.history["object_correlation"] for run in known)
    yield f"{len(no_object())} of {len(converged):,} converged runs"
    yield f"{far} of the {len(known):,} with a truth"
    yield f"{twins} are nearer to its twin"


def original() -> Pieces:
    """The order of the original's arms where it is found again."""
    arms = ("control", "agc", "stable")
    yield ", ".join(f"{arm} {loss('q7_probe', arm)}" for arm in arms)
    objects = [r_factor("q7_probe", arm) for arm in arms]
    yield f"{objects[0]}, {objects[1]} and {objects[2]}"
    agc, stable = (pair("q7_probe", "control", arm).p_corrected for arm in arms[1:])
    yield f"p = {agc:.2g} and {stable:.2g}"
    yield f"over agc at a constant rate ({_overlap('agc', 'constant')})"
    found = [_overlap("stable", "cosine", by) for by in ("best_val_loss", "r_stitched")]
    yield f"over stable with a cosine ({found[0]}, by R {found[1]})"


def _overlap(arm: str, schedule: str, by: str = "best_val_loss") -> str:
    return p_value("q6_overlap", schedule_arm("control", schedule), schedule_arm(arm, schedule), by)


def accident() -> Pieces:
    """What happened to stable at full size."""
    (stable,) = of_arm("full_size", "stable")
    losses = stable.history["val_loss"]
    yield f"from {losses[33]:.3f} to {losses[34]:.3f}"
    yield f"ended at {losses[-1]:.3f}, over {losses[-1] // min(losses):.0f} times its best"
    yield f"{stable.metrics['grad/norm_max'] / stable.metrics['grad/norm_median']:,.0f} times the median"


def clipping() -> Pieces:
    """What norm 1.0 costs."""
    yield f"{ends(map(costs, _CURVED), '.1f')} %"
    with_phase, without = (p_value(study, "plain", "control") for study in ("q1_curved_phase", "q1_curved_nophase"))
    yield f"({with_phase} with phase, {without} without)"
    yield f"{ends(map(costs, ('flat probe', 'flat probe, no phase')), '.1f')} % with a flat probe"
    yield f"{rose(arm_runs('control', SMALL), 1.2)} runs with norm 1.0 and in {rose(arm_runs('plain', SMALL), 1.2)}"
    agc, pattern = "agc_0.003-lr1.0", read_runs("q4_clip_sgd")[0].history["val_loss_mean_pattern"]
    yield f"(R {r_factor('q4_clip_sgd', agc)} against {pattern:.3f})"


def zero_start() -> Pieces:
    """What a norm weight of 0 costs."""
    arms = ("q3_start", "gamma_1", "gamma_0")
    yield f"by {under(*arms):.0f} % in the median ({p_value(*arms)})"
    yield f"(R {r_factor('q3_start', 'gamma_1')} against {r_factor('q3_start', 'gamma_0')})"


def rates() -> Pieces:
    """What becomes of runs at a learning rate of 1e-2."""
    high = [run for run in read_runs("q5_lr") if run.rate == 0.01]
    yield f"{failed(run for run in high if run.base_arm == 'stable_1')} of its runs fails".replace(
        "of 5 of its", "of its 5"
    )
    yield f"{failed(run for run in high if run.base_arm != 'stable_1')}"
    arms = sorted({run.base_arm for run in read_runs("q5_lr")}, key=sensitivity)
    yield f"{sensitivity(arms[1]) / sensitivity(arms[0]):.1f}"


def pre() -> Pieces:
    """How far pre is ahead of control, and of the norm at the end."""
    gains = [under(study, name, control) for study, control, name in BETTER.values()]
    yield f"{ends(gains)} % under control in seven settings"
    clear = [
        sum(pair(study, name, control, by).a_is_better for study, control, name in BETTER.values())
        for by in ("best_val_loss", "r_stitched")
    ]
    words = ("none", "one", "two", "three", "four", "five", "six", "seven")
    yield f"clear in {words[clear[0]]} of the seven by val_loss"
    yield f"in {words[clear[1]]} of the seven by R"


def pre_over(arm: str) -> tuple[str, str]:
    """Probability, by val_loss and by R, that pre of q1_curved_phase is better than `arm` of q3_start."""
    by_loss, by_object = (
        f"{probability_of_improvement(values('q1_curved_phase', 'pre', by), values('q3_start', arm, by)):.2f}"
        for by in ("best_val_loss", "r_stitched")
    )
    return by_loss, by_object


def jumps() -> Pieces:
    """How often the loss of pre jumps."""
    yield f"{rose(both_pres('constant'), 1.5)} runs"
    yield f"{rose(both_pres('cosine'), 1.07)}".replace("0 of", "none of")
    yield f"{rose(arm_runs('pre', _PRE), 1.5)}"


def findings() -> Pieces:
    """docs/findings.md."""
    for part in (totals, steadiness, objects, original, accident, clipping, zero_start, rates, pre, jumps):
        yield from part()
    yield from lost_stages.pieces()
    yield from why.clipping()
    yield why.highest_rises()
    yield why.long_objects()
    yield why.fast_losses()
    yield f"in {why.lost_decoders('none')} runs without a rule"
    yield f"with a weight of 1 in {why.lost_decoders('weight_1')}"
    yield why.by_rate()
    yield f"({p_value('q1_curved_nophase', 'stable', 'control')})"
    yield f"{rose(arm_runs('pre', SMALL), 1.2)} of pre"
    yield f"with phase ({p_value('q1_curved_phase', 'control', 'agc', 'r_stitched')})"
    yield f"not clearly ({p_value('q3_start', 'gamma_1', 'gamma_0', 'r_stitched')})"
    without, with_it = ("q1_curved_phase", "q1_curved_nophase", "q3_start"), "q6_overlap"
    yield f"{ends(map(correlation, without), '.2f')} without the overlap term and {correlation(with_it):.2f} with it"
    yield "probability of {} by val_loss and {} by R".format(*pre_over("gamma_1"))
    yield "{} and {}".format(*pre_over("gamma_1_rms"))
    yield f"by {ends(under(study, 'pre', 'control') for study in LED)} %"
    losses = [row["median_best_val_loss"] for row in ranked("q7_scan").table]
    yield f"within {100 * (max(losses) / min(losses) - 1):.1f} % in loss"
    found = early_warning.tried(early_warning.Rule(0.5, 0.0), STUDIES)
    how_many = "all" if found.right == found.stopped else str(found.right)
    yield f"Of {found.stopped} such runs {how_many} failed in the end; they are {100 * found.recall:.0f} % of all"


def readme() -> Pieces:
    """README.md."""
    lost = [run for run in all_runs() if run.failed]
    far = [run for run in lost if run.stored.tags["study"].endswith("_sgd") or run.stored.tags["study"] == "q5_lr"]
    yield f"Of {len(list(all_runs())):,} runs {len(lost)} failed, {len(far)} of them under SGD or at learning rates"
    yield f"far from 1e-3; {sum(run.verdict == 'collapsed' for run in lost)} died"
    yield from lost_stages.threshold()


def in_short() -> Pieces:
    """docs/results/README.md."""
    yield from readme()
    yield f"by {ends(map(costs, _CURVED), '.1f')} % with the curved probe"


def model_card() -> Pieces:
    """docs/model-card.md."""
    study = "q6_overlap"
    name, control = (schedule_arm(arm, "cosine") for arm in ("pre", "control"))
    for arm, by, form in (
        *((name, "best_val_loss", ".4f"), (control, "best_val_loss", ".4f")),
        *((name, "r_stitched", ".3f"), (control, "r_stitched", ".3f")),
    ):
        row = row_of(study, arm)
        low, high = row[f"median_{by}_low"], row[f"median_{by}_high"]
        yield f"{row[f'median_{by}']:{form}} ({low:{form}} to {high:{form}})"
    ps = dict.fromkeys(p_value(study, name, control, by) for by in ("best_val_loss", "r_stitched"))
    yield f"both clear ({' and '.join(ps)}, corrected for the study's {ranked(study).comparisons} comparisons)"
    ssim = [median(run.metrics["test/amp_ssim"] for run in of_arm(study, arm)) for arm in (name, control)]
    yield f"SSIM {ssim[0]:.2f} against {ssim[1]:.2f}"
    run = why.registered()
    best, by_object = run.metrics["best_val_loss"], run.metrics["val/r_stitched"]
    yield f"seed {run.stored.seed}, best R-factor {best:.4f}, of the object {by_object:.4f}"
    yield f"{'some' if risen(of_arm(study, name), 1.2) else 'no'} val_loss rose over 1.2 times"
    six = [key for key in BETTER if key != "4 blocks, overlap term, cosine"]
    yield f"its val_loss is {ends(under(BETTER[key][0], BETTER[key][2], BETTER[key][1]) for key in six)} % lower"
    yield f"other datasets {ends(under(study, 'pre', 'control') for study in LED)} %"
    best = [min(values("champion", "pre")), *sorted(values("champion", "control"))]
    yield f"best R-factor {best[0]:.4f}, where control's three seeds reached {best[1]:.3f} to {best[-1]:.3f}"
    yield f"nothing clear ({p_value('champion', 'pre', 'control')})"
    constant = [schedule_arm(arm, "constant") for arm in ("pre", "control")]
    yield f"({loss(study, constant[0])})"
    yield f"leaves it open ({p_value(study, *constant)})"
    yield why.long_objects()
    yield why.highest_rises()
    (full,) = of_arm("full_size", "pre")
    yield f"rose {full.drawdown:.2f} times"
