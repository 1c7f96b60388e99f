"""Pieces of sentences with the numbers that the pages of the questions say in words; `results.words` has the others."""

import re
from collections.abc import Callable, Mapping
from itertools import combinations
from typing import Final

from fnostab.ranking import probability_of_improvement
from fnostab.ranking.claims import holm
from fnostab.ranking.exact_tests import failure_rate_test, rank_test, smallest_p
from fnostab.ranking.pairs import p_text
from results import better_arm, ensemble, losses, why, words
from results.phrases import (
    Pieces,
    arm_runs,
    count,
    ends,
    failed,
    largest_gradient,
    loss,
    p_value,
    probability,
    probability_and_p,
    r_factor,
    rose,
    under,
)
from results.runs import (
    DATA,
    LATER,
    WHY,
    Run,
    clipped_fraction,
    depth_arm,
    median,
    of_arm,
    pair,
    ranked,
    rate_arms,
    read_runs,
    row_of,
    sensitivity,
)
from results.stability import SMALL, all_runs, no_object, risen
from results.words import LED

_QUESTION_1: Final = ("q1_curved_phase", "q1_curved_nophase", "q1_flat_phase", "q1_flat_nophase")
_BY_OBJECT: Final = "r_stitched"


def original() -> Pieces:
    """Question 1."""
    phase, none, flat, flat_none = _QUESTION_1
    yield from words.original()
    lower = [
        row_of(s, "stable")["median_best_val_loss"] < row_of(s, "control")["median_best_val_loss"] for s in _QUESTION_1
    ]
    yield f"median val_loss than control in {('none', 'one', 'two', 'three', 'four')[sum(lower)]} of four settings"
    yield f"In none of {len(list(all_runs(_QUESTION_1)))} runs"
    yield f"probability {probability(phase, 'stable', 'control')} (not clear, {p_value(phase, 'stable', 'control')})"
    by = probability(phase, "stable", "control", _BY_OBJECT), p_value(phase, "stable", "control", _BY_OBJECT)
    yield f"by R with {by[0]} ({by[1]})"
    level = probability(phase, "plain", "control", _BY_OBJECT)
    yield f"by val_loss ({probability_and_p(phase, 'plain', 'control')}) and level by R ({level})"
    yield f"larger than control's ({p_value(phase, 'agc', 'control', _BY_OBJECT)})"
    plain, stable = (probability_and_p(none, arm, "control") for arm in ("plain", "stable"))
    yield f"plain ({plain}) and stable ({stable})"
    yield f"agc and control are level ({probability_and_p(none, 'agc', 'control')})"
    by = [probability(none, arm, "control", _BY_OBJECT) for arm in ("plain", "stable")]
    yield f"by R neither ({by[0]} and {by[1]})"
    yield f"at {ends((row['median_best_val_loss'] for row in ranked(flat).table), '.2f')} of"
    yield f"of {read_runs(flat)[0].history['val_loss_constant']:.2f} for a constant object"
    left = [[row["epochs_to_leave_plateau"] for row in ranked(study).table] for study in (flat, flat_none)]
    yield f"median epoch {ends(left[0], 'g')}"
    yield f"without phase {ends(left[1], 'g')}"
    p_flat = [p_value(study, "stable", "control") for study in (flat, flat_none)]
    yield f"({p_flat[0]} and {p_flat[1].removeprefix('p = ')})"
    yield f"({failed(arm_runs('stable', _QUESTION_1))} runs failed here"
    zero = [run for arm in ("gamma_0", "gamma_0_nobias", "gamma_0_rms") for run in of_arm("q3_start", arm)]
    yield f"and {failed(zero)} with a zero start"
    zero = _zero_starts()
    gone = [run for run in zero if run.verdict in ("stagnated", "collapsed")]
    yield f"{'None' if not gone else len(gone)} of {len(zero)} runs whose norm weights begin at 0"
    yield f"{count(run.verdict == 'diverged' for run in zero)} diverged"
    with_r = [run for run in zero if "val/r_stitched" in run.metrics]
    apart, together = (
        [run for run in with_r if (float(run.stored.params["train.overlap_weight"]) > 0) is has]
        for has in (False, True)
    )
    yield f"{count(run.verdict == 'inconsistent' for run in apart)} without the overlap term are inconsistent"
    yield f"{count(run.verdict == 'inconsistent' for run in together)} with it"
    yield from words.accident()
    yield from why.clipping()
    (thrown,) = of_arm("full_size", "stable")
    yield f"a norm of {largest_gradient(thrown):,.0f}"
    others = [run for run in read_runs("full_size") if run.arm != "stable"]
    yield f"of the other four were {ends(map(largest_gradient, others))}"
    yield f"rose to {ends((run.drawdown or 0 for run in others), '.2f')} times the lowest before"
    coarsest = thrown.health["act_std/encoder.3.0"]
    yield f"from a deviation of {coarsest[34]:.1f} to {coarsest[35]:,.0f}"


def _zero_starts() -> list[Run]:
    """Runs of all studies whose norm weights begin at 0, trained with Adam at 1e-3 to 3e-3."""
    runs = [run for study in (*words.ADAM, *LATER, *WHY) for run in read_runs(study) if 1e-3 <= run.rate <= 3e-3]
    params = [run.stored.params for run in runs]
    is_zero = [p["model.arch"].startswith("stable") and not float(p.get("model.gamma_init", 0)) for p in params]
    return [run for run, zero in zip(runs, is_zero, strict=True) if zero]


def depth() -> Pieces:
    """Question 2."""
    study = "q2_depth"
    runs = read_runs(study)
    yield f"No run of {len(runs)} failed" if not any(run.failed for run in runs) else "?"
    deep = [depth_arm(arm, blocks) for arm in ("stable", "control") for blocks in (8, 16)]
    stable, control = [r_factor(study, arm) for arm in deep[:2]], [r_factor(study, arm) for arm in deep[2:]]
    yield f"{stable[0]} at 8 blocks and {stable[1]} at 16, against control's {control[0]} and {control[1]}"
    yield f"Not clear ({p_value(study, deep[1], deep[3], _BY_OBJECT)} at 16)"
    peaks = {
        (arm, blocks): max(map(largest_gradient, of_arm(study, depth_arm(arm, blocks))))
        for arm in ("control", "plain", "stable_1", "pre")
        for blocks in (4, 8, 12, 16)
    }
    yield f"up to {peaks['control', 4]:.0f} at 4 blocks and {peaks['control', 16]:.0f} at 16 in control"
    yield f"{peaks['plain', 12]:,.0f} in plain at 12 ({peaks['plain', 16]:.0f} at 16)"
    without_norm = [
        median(map(largest_gradient, of_arm(study, depth_arm(arm, blocks))))
        for arm in ("control", "plain")
        for blocks in (4, 8, 12, 16)
    ]
    yield f"({ends(without_norm)})"
    calm = max(value for (arm, _), value in peaks.items() if arm in ("stable_1", "pre"))
    yield f"No run of stable_1 or pre was over {calm + 0.5:.0f}"
    last = "act_mean/encoder.3.12"
    before, after = (
        median(run.health[last][when] for run in of_arm(study, depth_arm("pre", 16))) / 13 for when in (0, -1)
    )
    yield f"+{before:.1f} a block before training, +{after:.1f} after"


def start() -> Pieces:
    """Question 3."""
    study = "q3_start"
    yield from words.zero_start()
    yield f"leaves the mean in ({p_value(study, 'gamma_1_rms', 'gamma_0', _BY_OBJECT)})"
    bias = [of(study, arm) for of in (loss, r_factor) for arm in ("gamma_1_nobias", "gamma_1")]
    yield f"({bias[0]} without against {bias[1]}, R {bias[2]} against {bias[3]})"
    mean = [of(study, f"gamma_{weight}{end}") for weight in (1, 0) for of in (loss, r_factor) for end in ("_rms", "")]
    yield f"({mean[0]} against {mean[1]}; at weight 0, {mean[4]} against {mean[5]})"
    told = f"probability {probability(study, 'gamma_1_rms', 'gamma_1', _BY_OBJECT)}"
    told += f", {p_value(study, 'gamma_1_rms', 'gamma_1', _BY_OBJECT)}"
    yield f"({mean[2]} against {mean[3]}, better with {told}; at weight 0, {mean[6]} against {mean[7]})"
    weight = [median(run.health["norm_weight_absmean"][1] for run in of_arm(study, arm)) for arm in ("gamma_0",)]
    yield f"after one epoch it is {weight[0]:.3f}"
    kept = [
        median(run.health["norm_weight_absmean"][-1] for run in of_arm(study, arm)) for arm in ("gamma_1", "gamma_0.1")
    ]
    yield f"1.00 stays {kept[0]:.2f}, 0.1 becomes {kept[1]:.2f}"
    sgd = "q3_start_sgd"
    arms = [f"gamma_{weight}-lr0.01" for weight in (1, 0)]
    losses = [row_of(sgd, arm)["median_best_val_loss"] for arm in arms]
    objects = [r_factor(sgd, arm) for arm in arms]
    yield f"from {losses[0]:.3f} at weight 1 to {losses[1]:.3f} at 0 (R {objects[0]} and {objects[1]})"
    slow, fast = (
        [row_of(of, arm)["epochs_to_leave_plateau"] for of, arm in zip((sgd, study), names, strict=True)]
        for names in ((arms[1], "gamma_0"), (arms[0], "gamma_1"))
    )
    under_sgd, under_adam = (f"{zero:.0f} instead of {one:.0f}" for zero, one in zip(slow, fast, strict=True))
    yield f"at epoch {under_sgd} (under Adam at epoch {under_adam})"
    lost = [run for run in read_runs(sgd) if run.failed]
    counts = [sum(run.verdict == verdict for run in lost) for verdict in ("non_finite", "collapsed")]
    yield f"Of the {len(lost)} failures {counts[0]} ended in numbers that are not finite, and {counts[1]} died"


def clipping() -> Pieces:
    """Question 4."""
    yield from words.clipping()
    yield f"clips {100 * clipped_fraction('norm_1'):.0f} % of the steps"
    lost = [-under("q4_clip", arm, "none") for arm in ("norm_1", "agc_0.01")]
    yield f"cost {lost[0]:.0f} and {lost[1]:.0f} %"
    study = "q1_curved_phase"
    by_loss, by_object = (probability_and_p(study, "agc", "control", by) for by in ("best_val_loss", _BY_OBJECT))
    yield f"by val_loss ({by_loss}), and clearly worse by R ({by_object})"
    sgd = "q4_clip_sgd"
    best = [row_of(sgd, arm)["median_best_val_loss"] for arm in ("none-lr0.01", "agc_0.003-lr1.0")]
    yield f"the best is {best[0]:.3f} at 0.01"
    yield f"the lowest loss of all, {best[1]:.3f}"
    yield f"Adam without any clipping reaches {row_of('q4_clip', 'none')['median_best_val_loss']:.3f}"
    failures = [run for run in read_runs(sgd) if run.failed]
    died = sum(run.verdict == "collapsed" for run in failures)
    yield f"Of the {len(failures)} failures {died} died"


def learning_rate() -> Pieces:
    """Question 5."""
    arms = rate_arms("q5_lr")
    order = sorted(arms, key=sensitivity)
    yield f"by a factor of {sensitivity(order[1]) / sensitivity(order[0]):.1f}"
    yield f"control's {sensitivity('control'):.3f} is low"
    best = {min(of, key=lambda rate: row_of("q5_lr", of[rate])["median_r_stitched"]) for of in arms.values()}
    yield f"{'3e-4' if best == {3e-4} else best} for all {('six',)[len(arms) - 6]} arms"
    more = [
        row_of("q5_lr", of[3e-3])["median_r_stitched"] / row_of("q5_lr", of[3e-4])["median_r_stitched"]
        for of in arms.values()
    ]
    yield f"at 3e-3 R is {ends(more, '.1f')} times as large"
    low = {arm: row_of("q5_lr", of[3e-5])["median_best_val_loss"] for arm, of in arms.items()}
    gains = [100 * (1 - low[a] / low[b]) for a in ("pre", "stable_1") for b in ("control", "plain", "agc")]
    yield f"{ends(gains)} % under the arms without one"
    died = [run for run in read_runs("q5_lr") if run.verdict == "collapsed"]
    yield f"Of the {sum(run.failed for run in read_runs('q5_lr'))} failures {len(died)} are at 1e-2"
    yield f"from {ends(map(largest_gradient, died), ',.0f')}, and then an object with a contrast of exactly"
    high = [run for run in read_runs("q5_lr") if run.rate == 0.01]
    own, others = ([run for run in high if (run.base_arm == "stable_1") == is_own] for is_own in (True, False))
    yield f"({failed(own)} failures against {failed(others)})"
    yield f"object's, {high[0].history['val_loss_constant']:.3f}"


def carry_over() -> Pieces:
    """Question 7."""
    studies = (*LED, "q7_1e4", "q7_scan")
    yield f"median val_loss is {ends(under(study, 'pre', 'control') for study in LED)} % under control's"
    for by, text in (("best_val_loss", "better with probability"), (_BY_OBJECT, "by R with")):
        yield f"{text} {ends((pair(study, 'pre', 'control', by).probability for study in LED), '.2f')}"
    comparisons = ranked("q7_probe").comparisons
    yield f"{comparisons} comparisons the least possible p-value is {comparisons * smallest_p(5):.2f}"
    yield ", ".join(f"{arm} {loss('q7_probe', arm)}" for arm in ("control", "agc", "stable"))
    yield f"pre is {under('q7_probe', 'pre', 'control'):.0f} % under control"
    scan = [row["median_best_val_loss"] for row in ranked("q7_scan").table]
    yield f"within {100 * (max(scan) / min(scan) - 1):.1f} % of each other"
    yield f"R-factor of {ends((row['median_r_stitched'] for row in ranked('q7_scan').table), '.3f')}"
    faint = [row["median_best_val_loss"] for row in ranked("q7_1e4").table]
    yield f"all arms at {ends(faint, '.3f')}, *under* the {read_runs('q7_1e4')[0].history['val_loss_floor']:.3f}"
    yield f"in {len(no_object(['q7_1e4']))} of {len(read_runs('q7_1e4'))} runs R is not under"
    ssim = [median(run.metrics["test/amp_ssim"] for run in of_arm("q7_1e4", arm)) for arm in ("stable_1", "control")]
    yield f"stable_1 is first, {ssim[0]:.2f} against control's {ssim[1]:.2f}"
    leads = [pair(study, "pre", "control", _BY_OBJECT).probability > 0.5 for study in studies]
    yield f"by R on {'all' if all(leads) else 'not all'} six"
    runs = list(all_runs(studies))
    yield f"No run of {len(runs)} failed" if not any(run.failed for run in runs) else "?"


def verdicts() -> Pieces:
    """docs/results/verdicts.md."""
    runs = list(all_runs())
    lost = [run for run in runs if run.failed]
    yield f"{len(lost)} of {len(runs):,} runs failed"
    yield f"{sum(run.verdict == 'collapsed' for run in lost)} of them died"
    changed = [run for run in runs if run.first_verdict != run.verdict]
    yield f"the verdict of {len(changed)} runs"
    died = [run for run in changed if run.verdict == "collapsed"]
    before = [sum(run.first_verdict == verdict for run in died) for verdict in ("stagnated", "diverged")]
    yield f"{before[0]} `stagnated` and {before[1]} `diverged` runs are `collapsed`"
    adam = [run for run in died if run.stored.tags["study"] == "q5_lr"]
    yield f"{len(adam)} of them are the failures at a learning rate of 1e-2 under Adam"
    yield f"from {ends(map(largest_gradient, adam), ',.0f')}"
    yield f"{len(died) - len(adam)} are under SGD"
    low, high = (risen(all_runs(words.ADAM), over) for over in (1.2, 1.5))
    total = len(list(all_runs(words.ADAM)))
    yield f"Under Adam {len(low)} of {total:,} runs rose over 1.2 times, {len(high)} over 1.5 times"
    ended = [sum(run.verdict == "converged" for run in of) for of in (low, high)]
    yield f"{ended[0]} and {ended[1]} of them converged"
    for arm, text in (("control", "in {} runs"), ("plain", "in {}"), ("pre", "pre in {}"), ("stable", "stable in {}")):
        yield text.format(rose(arm_runs(arm, SMALL), 1.2))
    yield f"over 40 epochs {rose(read_runs('q6_longer'), 1.2)}"
    yield f"at full size {rose(read_runs('full_size'), 1.2)}"
    yield from words.objects()
    curved = no_object(("q1_curved_phase", "q2_depth"))
    yield f"{sum(run.base_arm == 'stable' for run in curved)} of the {len(curved)} in"


def stage_a_quick() -> Pieces:
    """docs/results/stage-a-quick.md, whose runs were not kept: from the table of its summary."""
    summary = (DATA.parent / "stage_a_quick_summary.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\w+) \| converged \| \w+ \| \d+ \| ([\d.]+) \|$", summary, flags=re.MULTILINE)
    losses = {arm: [float(value) for name, value in rows if name == arm] for arm in ("control", "stable", "agc")}
    failures = failure_rate_test(0, 5, 0, 5)
    pairs = list(combinations(losses, 2))
    ps = holm([*(rank_test(losses[a], losses[b]) for a, b in pairs), failures])
    found = dict(zip(pairs, ps, strict=False))
    yield f"25 of 25 ({p_text(found['control', 'stable'])})"
    yield f"{probability_of_improvement(losses['control'], losses['agc']):.2f} ({p_text(found['control', 'agc'])})"
    yield f"the study's {len(ps)} comparisons"
    yield f"{probability_of_improvement(losses['stable'], losses['agc']):.2f} ({p_text(found['stable', 'agc'])})"


#: By page, the pieces that must stand on it.
ANSWERS: Final[Mapping[str, Callable[[], Pieces]]] = {
    "docs/findings.md": words.findings,
    "README.md": words.readme,
    "docs/results/README.md": words.in_short,
    "docs/model-card.md": words.model_card,
    "docs/results/original-outcome.md": original,
    "docs/results/depth.md": depth,
    "docs/results/start.md": start,
    "docs/results/clipping.md": clipping,
    "docs/results/learning-rate.md": learning_rate,
    "docs/results/better-arm.md": better_arm.pieces,
    "docs/results/carry-over.md": carry_over,
    "docs/results/ensemble.md": ensemble.pieces,
    "docs/results/survival.md": losses.pieces,
    "docs/results/block-and-clipping.md": why.blocks,
    "docs/results/epsilon.md": why.epsilon,
    "docs/results/accident.md": why.accident,
    "docs/results/later-runs.md": why.later_runs,
    "docs/results/long-trainings.md": why.long_trainings,
    "docs/results/verdicts.md": verdicts,
    "docs/results/stage-a-quick.md": stage_a_quick,
}
