"""Pieces of sentences with the numbers that docs/results/better-arm.md says in words."""

from fnostab.ranking import wilson_interval
from results import words
from results.phrases import (
    Pieces,
    arm_runs,
    both_pres,
    ends,
    failed,
    largest_gradient,
    loss,
    p_value,
    probability_and_p,
    r_factor,
    rose,
    under,
)
from results.runs import BETTER, NORMS, SCHEDULES, depth_arm, of_arm, pair, ranked, read_runs, row_of, schedule_arm
from results.stability import SMALL, risen

_BY_OBJECT = "r_stitched"


def pieces() -> Pieces:
    """All of the page."""
    yield from words.pre()
    yield from words.jumps()
    study = "q6_overlap"
    constant, cosine = (
        {arm: schedule_arm(arm, of) for arm in ("pre", "pre_norm10", "control", "agc", "stable", "plain")}
        for of in SCHEDULES
    )
    yield f"and {failed(of_arm(study, constant['pre']))} ended on a jump"
    objects = [[row_of(s, arm)["median_r_stitched"] for arm in arms] for s, *arms in BETTER.values()]
    yield f"falls by {ends(100 * (1 - pre / control) for control, pre in objects)} %"
    pres = [run for run in arm_runs("pre", (*SMALL, "q5_lr", "q6_longer", "full_size")) if run.rate == 1e-3]
    how_many = "none" if not any(run.failed for run in pres) else "?"
    yield f"all {len(pres)} runs of this arm at 1e-3 without the overlap term {how_many} failed"
    yield f"at most {100 * wilson_interval(0, len(pres))[1]:.0f} %"
    yield f"by more than 7 % in {rose(both_pres('constant'), 1.07)}"
    longer = [run for of in SCHEDULES for run in of_arm("q6_longer", schedule_arm("control", of))]
    yield f"{('none', 'one', 'two', 'three')[len(risen(longer, 1.5))]} of the ten runs of control rose over 1.5 times"
    ps = [p_value(study, cosine["pre"], cosine["control"], by) for by in ("best_val_loss", _BY_OBJECT)]
    yield f"({ps[0]} each)" if ps[0] == ps[1] else f"({ps})"
    for arm in ("pre", "pre_norm10"):
        ps = [p_value(study, constant[arm], constant["control"], by) for by in ("best_val_loss", _BY_OBJECT)]
        yield f"({ps[0]} and {ps[1].removeprefix('p = ')})"
    largest = max(map(largest_gradient, both_pres("constant") + both_pres("cosine")))
    yield f"No gradient of pre was over {largest:.1f}"
    slower = [-under(study, cosine[arm], constant[arm]) for arm in ("plain", "stable", "pre")]
    yield f"a cosine costs plain {slower[0]:.0f} %, stable {slower[1]:.0f} % and pre {slower[2]:.0f} %"
    yield f"over agc at a constant rate ({p_value(study, constant['control'], constant['agc'])})"
    by = [p_value(study, cosine["control"], cosine["stable"], by) for by in ("best_val_loss", _BY_OBJECT)]
    yield f"over stable with a cosine ({by[0]}, by R {by[1]})"
    yield from _longer()
    losses = [loss("q1_curved_phase", arm) for arm in ("control", "plain", "pre")]
    first, both = "q1_curved_phase", "q1_curved_nophase"
    yield f"(control {losses[0]}, plain {losses[1]}; clear, {p_value(first, 'plain', 'control')})"
    yield f"(plain {losses[1]}, pre {losses[2]}; not clear, {p_value(first, 'pre', 'plain')}"
    yield f"clear without phase, {p_value(both, 'pre', 'plain')}, by R {p_value(both, 'pre', 'plain', _BY_OBJECT)})"
    objects = [[r_factor(first, arm)] for arm in ("control", "plain", "pre")]
    yield f"level with control ({objects[0][0]} both)" if objects[0] == objects[1] else "?"
    yield f"({objects[2][0]}; clearly of control, not of plain, {p_value(first, 'pre', 'plain', _BY_OBJECT)})"
    yield from _norms()


def _longer() -> Pieces:
    study = "q6_longer"
    constant, cosine = ({arm: schedule_arm(arm, of) for arm in ("pre", "plain", "control")} for of in SCHEDULES)
    gaps = [under(study, of["pre"], of["control"]) for of in (constant, cosine)]
    yield f"the gap is the same {ends(gaps)} %"
    yield f"that is {p_value(study, constant['pre'], constant['control'])}: not clear"
    for of, word in ((constant, "pre is better with probability "), (cosine, "")):
        losses = [loss(study, of[arm]) for arm in ("plain", "pre")]
        yield f"({losses[0]} against {losses[1]}; {word}{probability_and_p(study, of['pre'], of['plain'])})"
    objects = [r_factor(study, of[arm]) for arm in ("pre", "plain") for of in (constant, cosine)]
    yield f"{objects[0]} and {objects[1]} against {objects[2]} and {objects[3]}"
    full = {
        arm: min(of_arm("full_size", arm)[0].history["val_loss"])
        for arm in ("plain", "pre", "control", "agc", "stable")
    }
    yield f"plain {full['plain']:.4f}, pre {full['pre']:.4f}, control {full['control']:.4f}, agc {full['agc']:.4f}"
    yield f"which reached {full['stable']:.4f}"
    yield f"{r_factor('full_size', 'pre')}, is the lowest with agc's"
    leads = list(
        zip(*(run.history["val_loss"] for run in sorted(read_runs("full_size"), key=lambda run: run.arm)), strict=True)
    )
    arms = sorted(run.arm for run in read_runs("full_size"))
    first = [arms[at.index(min(at))] for at in leads]
    yield f"plain in {first[11:].count('plain')} of {len(first) - 11}"


def _norms() -> Pieces:
    yield "val_loss with probability {} and by R with {}".format(*words.pre_over("gamma_1"))
    yield "{} and {}".format(*words.pre_over("gamma_1_rms"))
    ahead = {}
    for by in ("best_val_loss", _BY_OBJECT):
        for beginning in ("q7_", "q5_"):
            pairs = [(pre, last) for pre, last in NORMS.values() if pre[0].startswith(beginning)]
            wins = [pair(pre[0], last[1], pre[1], by).probability > 0.5 for pre, last in pairs]
            ahead[beginning, by] = "all five" if sum(wins) == 5 else ("none", "one", "two", "three", "four")[sum(wins)]
    by_loss, by_object = ahead["q7_", "best_val_loss"], ahead["q7_", _BY_OBJECT]
    yield f"stable_1 is ahead in {by_loss} by val_loss and in {by_object} by R"
    yield f"rates in {ahead['q5_', 'best_val_loss']} by val_loss and in {ahead['q5_', _BY_OBJECT]} by R"
    study = "q2_depth"
    last = [r_factor(study, depth_arm("stable_1", blocks)) for blocks in (8, 16)]
    yield f"({last[0]} and {last[1]} against pre's {r_factor(study, depth_arm('pre', 8))})"
    yield f"with {ranked('explore').comparisons} comparisons"
    yield f"{r_factor('explore', depth_arm('gain3', 8))}, in two runs"
