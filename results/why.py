"""Pieces of sentences of the pages of why it came out as it did, like those of `results.words` and `results.answers`.

Those of who dies are in `results.losses`.
"""

import math
from collections.abc import Iterable
from typing import Final

from fnostab.health.parts import lost_at_end
from fnostab.ranking.exact_tests import rank_test
from fnostab.ranking.pairs import p_text
from results import causes
from results.activations import most_grown
from results.causes import CLIPPING, EFFECTS
from results.losses import lost_by_arm, lost_stages, peak_before
from results.paired import seed_ratios
from results.phrases import Pieces, count, ends, failed, loss, p_value, rose, under
from results.power import rate_power, shown_rate
from results.runs import Run, median, of_arm, ranked, read_runs, row_of
from results.survival import p_values

_BLOCKS: Final = "w2_block_clip_defocused"
_EPSILON: Final = "w3_epsilon"
_ACCIDENT: Final = "w4_relative"
_DECODER: Final = "w4_decoder"
#: Optimizer steps of a run of `_DECODER`.
_DECODER_STEPS: Final = 384
_RATE: Final = "w4_rate"
_LATER: Final = "w5_layerscale"
_LONG: Final = "w6_long"
_CONFIRM: Final = "w6_confirm"
_REGISTERED: Final = "champion_long"
#: The champion, and the arm that `_LONG` chose.
_RIVALS: Final = ("pre_cosine", "control_cosine")


def blocks() -> Pieces:
    """docs/results/block-and-clipping.md."""
    changes = [causes.change(_BLOCKS, arm, other) for _, arm, other in EFFECTS]
    yield f"{changes[0]} in the block of control and {changes[1]} in the stable one"
    yield f"{changes[2]} without clipping and {changes[3]} with it"
    yield from clipping()
    raised = {by: [_raised(pairs.values(), by) for pairs in (CLIPPING, causes.BLOCK)] for by in causes.BY}
    yield f"and R in {raised['r_stitched'][0]}"
    yield f"raised val_loss in {raised['best_val_loss'][1]}, by less, and R in {raised['r_stitched'][1]}"
    free, clipped = _by_clipping()
    norms = [[run.metrics["grad/norm_median"] for run in of] for of in (free, clipped)]
    yield f"from {median(norms[0]):.1f} to {median(norms[1]):.1f}"
    yield f"at least {min(norms[1]):.1f} in every run that clips"


def clipping() -> Pieces:
    """What it, docs/findings.md and the page of the original's outcome say of clipping on the original's setting."""
    free, clipped = _by_clipping()
    yield f"{_raised(CLIPPING.values(), 'best_val_loss')} pairs of runs with the same seed"
    yield f"{rose(clipped, 1.2)} runs that clip"
    yield f"{rose(free, 1.2)} that do not"


def _raised(pairs: Iterable[tuple[str, str]], by: str) -> str:
    """In how many pairs of runs with the same seed the second arm's value is the higher one."""
    return count(ratio > 1 for both in pairs for ratio in seed_ratios(_BLOCKS, *both, by))


def _by_clipping() -> tuple[list[Run], list[Run]]:
    """Runs of both blocks without clipping, and with it."""
    free, clipped = ([run for both in CLIPPING.values() for run in of_arm(_BLOCKS, both[place])] for place in (0, 1))
    return free, clipped


def epsilon() -> Pieces:
    """docs/results/epsilon.md."""
    arms = causes.both_epsilons()
    for other in ("plain", "control"):
        leads = [under(_EPSILON, *names) for names in zip(arms["pre"], arms[other], strict=True)]
        yield f"from {leads[0]:.0f} to {leads[1]:.0f} % over {other}"
    losses, objects = (
        {arm: [100 * (ratio - 1) for ratio in seed_ratios(_EPSILON, *both, by)] for arm, both in arms.items()}
        for by in causes.BY
    )
    yield f"({max(abs(median(losses[arm])) for arm in ('plain', 'control')):.1f} % in the median, either way)"
    higher = count(change > 0 for change in losses["pre"])
    yield f"loses, {median(losses['pre']):.0f} %, in {higher} pairs"
    others = ("control", "plain", "stable_1")
    falls = [f"{-median(objects[arm]):.0f}" for arm in others]
    lower = count(change < 0 for arm in others for change in objects[arm])
    yield f"{lower} pairs of control, plain and stable_1"
    lower = count(change < 0 for change in objects["pre"])
    yield f"by {falls[0]}, {falls[1]} and {falls[2]} % in the median, in {lower} of pre"
    runs = read_runs(_EPSILON)
    yield f"{count(run.verdict == 'inconsistent' for run in runs)} runs are `inconsistent`"
    without, with_norm = (
        ends((most_grown(run.health) for run in runs if run.base_arm in names), form)
        for names, form in ((("plain", "control"), ".0f"), (("pre", "stable_1"), ".1f"))
    )
    yield f"{without} times without a norm (plain, control) and {with_norm} times with one"


def accident() -> Pieces:
    """docs/results/accident.md."""
    runs = read_runs(_ACCIDENT)
    lost = [stages for run in runs if (stages := lost_stages(run))]
    yield f"{'All' if len(lost) == len(runs) else 'Not all'} {len(runs)} lost a stage of the decoder"
    yield f"by step {max(min(stages.values()) for stages in lost)} at the latest"
    yield f"{failed(runs)} failed"
    yield f"grows {ends(most_grown(run.watched) for run in runs)} times"
    yield f"ups.1 in {sum('ups.1' in stages for stages in lost)} of {len(runs)}"
    yield from decoder()
    yield from lower_rate()


def lower_rate() -> Pieces:
    """What it says of a lower rate."""
    yield by_rate()
    runs = read_runs(_RATE)
    arms = {arm: of_arm(_RATE, arm) for arm in lost_by_arm(runs)}
    steps = [min(stages.values()) for run in runs if (stages := lost_stages(run))]
    late = count(step > _DECODER_STEPS for step in steps)
    yield f"between steps {min(steps)} and {max(steps)}, {late} after step {_DECODER_STEPS}"
    grown = [ends(most_grown(run.watched) for run in of) for of in arms.values()]
    yield f"grows {grown[0]} times at 1e-3 and {grown[1]} times at 3e-3"
    without = [failed(of) for of in arms.values()]
    yield f"{without[0]} runs at 1e-3 and {without[1]} at 3e-3 are `inconsistent`"
    losses, objects = (p_value(_RATE, *arms, by) for by in causes.BY)
    yield f"by val_loss {losses}, by R {objects}"


def by_rate() -> str:
    """What it, docs/findings.md and docs/results/README.md say of stable at the usual rate and at three times that."""
    counts = lost_by_arm(read_runs(_RATE))
    (low, seeds), (high, others) = counts.values()
    (_, corrected), *_ = p_values(counts).values()
    return f"{low} of {seeds} runs at 1e-3 and {high} of {others} at 3e-3 ({p_text(corrected)})"


def decoder() -> Pieces:
    """What it says of remedies for lost stages."""
    runs = read_runs(_DECODER)
    yield f"in {lost_decoders('none')} runs without a rule"
    yield f"in {' and '.join(lost_decoders(arm) for arm in ('norm_10', 'zclip'))} with norm 10 and ZClip"
    yield f"in {' and '.join(lost_decoders(arm) for arm in ('norm_1', 'agc'))} with norm 1.0 and AGC"
    yield f"in {' and '.join(lost_decoders(arm) for arm in ('beta2', 'warmup'))} with a beta2 of 0.99 and a warm-up"
    _, corrected = p_values(lost_by_arm(runs), "none")["none", "weight_1"]
    yield f"in {lost_decoders('weight_1')} with a norm weight of 1 at first ({p_text(corrected)})"
    grown = [most_grown(run.watched) for run in runs if run.arm == "weight_1"]
    grown_else = [most_grown(run.watched) for run in runs if run.arm != "weight_1"]
    yield f"grows {ends(grown, '.1f')} times there, and {ends(grown_else)} times in the other arms"
    lost = [(run, min(stages.values())) for run in runs if (stages := lost_stages(run))]
    steps = [step for _, step in lost]
    yield f"between steps {min(steps)} and {max(steps)}, at {median(steps):.0f} in the median"
    yield f"was over 10 times the median in {count(peak_before(run, step) > 10 for run, step in lost)}"
    kept = [run for run in runs if not lost_stages(run)]
    yield f"{failed(run for run, _ in lost)} runs that lost a stage failed, and {failed(kept)} that lost none"
    yield from _decoder_power()


def _decoder_power() -> Pieces:
    counts = lost_by_arm(read_runs(_DECODER))
    (lost, seeds), comparisons = counts["none"], len(counts) - 1
    yield f"a rate of 0 from one of {100 * (shown_rate(0, seeds, comparisons) or math.nan):.0f} %"
    chance = rate_power(0, lost / seeds, seeds, comparisons)
    yield f"of a remedy that never loses one from none, with a chance of {100 * chance:.0f} %"


def lost_decoders(arm: str) -> str:
    """What it and docs/findings.md say of stable at three times the rate: of how many runs of the arm lost a stage."""
    lost, of = lost_by_arm(read_runs(_DECODER))[arm]
    return f"{lost} of {of}"


def later_runs() -> Pieces:
    """docs/results/later-runs.md."""
    ours, theirs = (of_arm(_LATER, arm) for arm in ("layerscale", "original"))
    yield f"was over {max(max(run.history['val_loss'][4:]) for run in ours):.3f} again"
    yield f"amplitude SSIM of {min(run.metrics['test/amp_ssim'] for run in ours):.3f}"
    objects = [ends((run.metrics["val/r_stitched"] for run in runs), ".3f") for runs in (theirs, ours)]
    yield f"(R {objects[0]} against {objects[1]})"
    yield f"one of its runs rose {causes.highest_rise(theirs)} times"


def registered() -> Run:
    """The run of the long champion that `fnostab compare` registers: the best of the arm that ranks first."""
    runs = of_arm(_REGISTERED, ranked(_REGISTERED).table[0]["arm"])
    return min((run for run in runs if not run.failed), key=lambda run: run.metrics["best_val_loss"])


def long_trainings() -> Pieces:
    """docs/results/long-trainings.md."""
    runs = read_runs(_LONG)
    yield f"{count(run.verdict == 'converged' for run in runs)} runs converged"
    rises = [causes.median_rise(of_arm(_LONG, arm)) for arm in _RIVALS]
    yield f"by a factor of {rises[1]} in the median at most, that of pre_cosine by {rises[0]}"
    ours, theirs = (row_of(_LONG, arm)["median_r_stitched"] for arm in _RIVALS)
    yield f"R is {ours:.3f} with pre_cosine and {theirs:.3f} with control_cosine"
    constant, falling = ([run for run in runs if run.arm.endswith("_cosine") is has] for has in (False, True))
    yield f"at most {max(map(causes.late_rise, falling)):.2f} times with a cosine"
    yield f"{ends(map(causes.late_rise, constant), '.2f')} times at a constant rate"
    yield from rates()
    yield from confirmation()
    run = registered()
    steadiness = run.stored.tags["stability"]
    yield f"{run.arm}, seed {run.stored.seed}: R {run.metrics['val/r_stitched']:.4f}, {steadiness}"


def confirmation() -> Pieces:
    """What it says of the confirmation."""
    runs = [of_arm(_CONFIRM, arm) for arm in _RIVALS]
    both = [run for of in runs for run in of]
    yield f"{count(run.verdict == 'converged' for run in both)} converged"
    yield f"{_lost_at_end(both)} lost a stage"
    yield f"val_loss {' against '.join(loss(_CONFIRM, arm) for arm in _RIVALS)}"
    yield long_objects()
    rises = [causes.median_rise(of) for of in runs]
    level = rank_test(*([run.drawdown or 0 for run in of] for of in runs))
    yield f"{rises[0]} times in the median against {rises[1]} ({p_text(level)})"
    yield f"over 1.5 times in {rose(runs[0], 1.5)} runs of pre and {rose(runs[1], 1.5)} of control"
    late = [f"{max(map(causes.late_rise, of)):.2f}" for of in runs]
    yield f"at most {late[0]} and {late[1]} times"
    yield highest_rises()


def rates() -> Pieces:
    """What it says of other learning rates."""
    yield fast_losses()
    arms = causes.by_rate()
    slower = [run for of in arms.values() for rate, runs in of.items() if rate < 2e-3 for run in runs]
    yield f"in {_lost_at_end(slower)} at the lower rates"
    half, whole = (arms[_RIVALS[0]][rate] for rate in (5e-4, 1e-3))
    objects = [f"{median(run.metrics['val/r_stitched'] for run in runs):.3f}" for runs in (half, whole)]
    yield f"pre rises to {causes.highest_rise(half)} times at most, and R is {objects[0]} instead of {objects[1]}"


def fast_losses() -> str:
    """What it and docs/findings.md say of decoders at twice the rate."""
    arms = causes.by_rate()
    control, pre, clipped = (_lost_at_end(arms[arm][2e-3]) for arm in (_RIVALS[1], _RIVALS[0], "pre_norm_cosine"))
    return f"in {control} runs of control, {pre} of pre and {clipped} of pre clipped at 1.0"


def _lost_at_end(runs: list[Run]) -> str:
    return count(bool(lost_at_end(run.history)) for run in runs)


def long_objects() -> str:
    """What it, docs/findings.md and docs/model-card.md say of the objects, after long trainings."""
    objects = " against ".join(f"{row_of(_CONFIRM, arm)['median_r_stitched']:.3f}" for arm in _RIVALS)
    by_loss, by_object = (p_value(_CONFIRM, *_RIVALS, by) for by in causes.BY)
    return f"R {objects}, {by_object}, by val_loss {by_loss}, {len(of_arm(_CONFIRM, _RIVALS[0]))} seeds"


def highest_rises() -> str:
    """What they say of the rises of val_loss on the way."""
    ours, theirs = (causes.highest_rise([*of_arm(_LONG, arm), *of_arm(_CONFIRM, arm)]) for arm in _RIVALS)
    return f"up to {ours} times its lowest, where control's rises to {theirs} times"
