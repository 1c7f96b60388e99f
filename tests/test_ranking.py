import itertools
import json
import math
import random
import sys

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy import stats

from fnostab.ranking import interquartile_mean, probability_of_improvement, rank_arms, wilson_interval
from fnostab.ranking.decision import MOST_SEEDS
from fnostab.ranking.exact_tests import seeds_to_tell_apart
from fnostab.ranking.intervals import Bootstrap, trimmed_mean

INF = math.inf
LOSSES = st.lists(st.sampled_from([0.01, 0.02, 0.03, 0.05, 0.08, INF]), min_size=1, max_size=9)


def run(arm, seed, best_val_loss, verdict="converged", **more):
    return {"arm": arm, "seed": seed, "best_val_loss": best_val_loss, "verdict": verdict, **more}


def study(**losses):
    """Runs by arm; None is a failed run."""
    return [
        run(arm, seed, 0.2 if loss is None else loss, "stagnated" if loss is None else "converged")
        for arm, values in losses.items()
        for seed, loss in enumerate(values)
    ]


def order(ranked):
    return [row["arm"] for row in ranked.table]


def row_of(ranked, arm):
    return next(row for row in ranked.table if row["arm"] == arm)


def pair_of(ranked, a, b):
    return next(pair for pair in ranked.pairs if (pair.a, pair.b) == (a, b))


ORIGINAL = [
    run("stable", 20260128, 0.178, "stagnated", arch="stable_hybrid", amp_ssim=0.277, phase_ssim=math.nan),
    run("agc", 20260128, 0.0243, arch="hybrid", amp_ssim=0.811, phase_ssim=0.989),
    run("control", 20260128, 0.0138, arch="hybrid", amp_ssim=0.925, phase_ssim=0.997),
]


# Estimates


@pytest.mark.parametrize(
    ("failures", "runs", "low", "high"),
    [(0, 10, 0, 0.2775), (1, 10, 0.0179, 0.4042), (5, 10, 0.2366, 0.7634), (10, 10, 0.7225, 1), (0, 3, 0, 0.5615)],
)
def test_wilson_interval_of_worked_examples(failures, runs, low, high):
    assert wilson_interval(failures, runs) == pytest.approx((low, high), abs=5e-5)


@settings(deadline=None)
@given(st.integers(1, 500).flatmap(lambda runs: st.tuples(st.integers(0, runs), st.just(runs))))
def test_wilson_interval_is_scipys_and_stays_between_zero_and_one(counts):
    found = wilson_interval(*counts)
    assert found == pytest.approx(tuple(stats.binomtest(*counts).proportion_ci(method="wilson")), abs=1e-12)
    assert 0 <= found[0] <= counts[0] / counts[1] <= found[1] <= 1


def test_wilson_interval_ends_exactly_at_zero_and_one():
    for runs in range(1, 200):
        assert wilson_interval(0, runs)[0] == 0
        assert wilson_interval(runs, runs)[1] == 1


@pytest.mark.parametrize(("failures", "runs", "name"), [(0, 0, "runs"), (4, 3, "failures"), (-1, 3, "failures")])
def test_wilson_interval_refuses_impossible_counts(failures, runs, name):
    with pytest.raises(ValueError, match=f"`{name}` "):
        wilson_interval(failures, runs)


@settings(deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40))
def test_interquartile_mean_is_scipys_quarter_trimmed_mean(values):
    assert interquartile_mean(values) == pytest.approx(stats.trim_mean(values, 0.25), rel=1e-12, abs=1e-9)


def test_interquartile_mean_is_infinite_only_if_the_middle_half_holds_an_infinity():
    assert interquartile_mean([INF, 1, 3, 2]) == 2.5
    assert interquartile_mean([INF, 1, INF, 2]) == INF
    assert interquartile_mean([INF, 1, 2]) == INF


@settings(deadline=None)
@given(LOSSES, LOSSES)
def test_probability_of_improvement_is_the_mann_whitney_statistic_and_lower_is_better(a, b):
    greater = stats.mannwhitneyu(b, a, method="asymptotic").statistic if len({*a, *b}) > 1 else len(a) * len(b) / 2
    assert probability_of_improvement(a, b) == pytest.approx(greater / (len(a) * len(b)))
    assert probability_of_improvement(a, b) + probability_of_improvement(b, a) == pytest.approx(1)


def test_two_infinities_tie():
    assert probability_of_improvement([INF, INF], [INF]) == 0.5
    assert probability_of_improvement([0.1, INF], [INF, INF]) == 0.75


@pytest.mark.parametrize("values", [[], [0.1, math.nan]])
def test_estimates_refuse_nothing_and_nan(values):
    with pytest.raises(ValueError, match="`values` must"):
        interquartile_mean(values)
    with pytest.raises(ValueError, match="`b` must"):
        probability_of_improvement([0.1], values)


@settings(deadline=None)
@given(LOSSES.filter(lambda values: len(values) > 1), st.integers(0, 2**32 - 1))
def test_intervals_are_ordered_drawn_values_and_the_medians_contains_the_median(values, seed):
    drawn = Bootstrap.draw(values, np.random.default_rng(seed), 500)
    low, high = drawn.interval(np.median)
    assert min(values) <= low <= np.median(values) <= high <= max(values)
    low, high = drawn.interval(trimmed_mean)
    assert low <= high
    assert min(values) - 1e-12 <= low
    assert high <= max(values) + 1e-12  # a mean of equal numbers may be off in its last digit


def test_a_bootstrap_resamples_the_seeds_with_replacement():
    values = [3.0, 1.0, 2.0, INF]
    drawn = Bootstrap.draw(values, np.random.default_rng(0), 20_000)
    assert (drawn.counts.sum(axis=1) == 4).all()
    assert drawn.counts.mean(axis=0) == pytest.approx(np.ones(4), abs=0.03)
    assert drawn.counts.var(axis=0) == pytest.approx(np.full(4, 3 / 4), abs=0.03)  # binomial: n p (1 - p)
    assert drawn.values.tolist() == [1, 2, 3, INF]


def test_the_medians_interval_of_three_seeds_is_their_range():
    assert Bootstrap.draw([0.3, 0.1, 0.2], np.random.default_rng(0), 2000).interval(np.median) == (0.1, 0.3)


def test_of_few_values_all_resamples_are_counted_so_that_intervals_do_not_depend_on_the_generator():
    a, b = [0.3, 0.1, 0.2, 0.7], [0.4, 0.6, 0.25]
    drawn = list(itertools.product(itertools.product(a, repeat=4), itertools.product(b, repeat=3)))
    won = [probability_of_improvement(*pair) for pair in drawn]
    medians = [np.median(values) for values in itertools.product(a, repeat=4)]
    for seed in (0, 1):
        rng = np.random.default_rng(seed)
        first, second = Bootstrap.draw(a, rng, 100), Bootstrap.draw(b, rng, 100)
        assert first.improvement_interval(second) == tuple(np.quantile(won, [0.025, 0.975], method="inverted_cdf"))
        assert first.interval(np.median) == tuple(np.quantile(medians, [0.025, 0.975], method="inverted_cdf"))


def test_nineteen_of_twenty_intervals_hold_the_true_value():
    rng, studies, n = np.random.default_rng(0), 300, 30
    held = np.zeros(3)
    for _ in range(studies):
        a, b = (Bootstrap.draw(rng.normal(size=n), rng, 400) for _ in range(2))
        intervals = a.interval(np.median), a.interval(trimmed_mean), a.improvement_interval(b)
        held += [low <= true <= high for (low, high), true in zip(intervals, (0, 0, 0.5), strict=True)]
    assert held / studies == pytest.approx(np.full(3, 0.94), abs=0.04)


def test_with_the_seeds_said_to_be_needed_most_studies_tell_the_arms_apart():
    rng, studies, shift = np.random.default_rng(0), 200, 1.0
    n = seeds_to_tell_apart(stats.norm.cdf(shift / math.sqrt(2)))
    clear = 0
    for _ in range(studies):
        better, worse = (Bootstrap.draw(rng.normal(size=n) + by, rng, 400) for by in (0, shift))
        clear += better.improvement_interval(worse)[0] > 0.5
    assert 0.72 <= clear / studies <= 0.92


def test_seeds_to_tell_apart_follow_noethers_formula():
    assert seeds_to_tell_apart(0.7) == seeds_to_tell_apart(0.3) == math.ceil((1.95996 + 0.84162) ** 2 / (6 * 0.2**2))
    assert seeds_to_tell_apart(0.5) is None


# Order


def test_the_original_study_is_ranked_by_best_val_loss_with_the_failed_arm_last():
    ranked = rank_arms(ORIGINAL, np.random.default_rng(0))
    assert order(ranked) == ["control", "agc", "stable"]
    assert [row["best_val_loss"] for row in ranked.table] == [0.0138, 0.0243, None]
    assert ranked.decision.label == "undecided"
    assert ranked.decision.winner == "control"
    assert ranked.decision.seeds_needed is None
    assert "one seed" in ranked.decision.text


def test_one_seed_has_no_interval_but_that_of_its_failure_rate():
    row = rank_arms(ORIGINAL, 0).table[0]
    assert [row[f"{name}_best_val_loss_{end}"] for name in ("median", "iqm") for end in ("low", "high")] == [None] * 4
    assert (row["failure_rate_low"], row["failure_rate_high"]) == wilson_interval(0, 1)
    assert {(pair.low, pair.high) for pair in rank_arms(ORIGINAL, 0).pairs} == {(None, None)}


def test_a_failed_run_counts_as_infinite_whatever_number_it_has():
    runs = [run("a", seed, loss) for seed, loss in enumerate([0.3, 0.4, 0.5])]
    runs += [run("b", 0, 0.1), run("b", 1, 0.1, "diverged"), run("b", 2, sys.float_info.max, "collapsed")]
    ranked = rank_arms(runs, 0)
    assert order(ranked) == ["a", "b"]
    assert row_of(ranked, "b")["median_best_val_loss"] == INF
    assert row_of(ranked, "b")["best_val_loss"] == 0.1
    assert row_of(ranked, "b")["failures"] == 2


@pytest.mark.parametrize("verdict", ["stagnated", "collapsed", "diverged", "non_finite", "out_of_memory"])
def test_every_verdict_of_a_failure_counts_as_one(verdict):
    ranked = rank_arms([run("a", 0, 0.1), run("a", 1, None, verdict)], 0)
    assert ranked.table[0]["failures"] == 1
    assert ranked.table[0]["failure_rate"] == 0.5
    assert ranked.missing == {}


def test_order_is_by_median_then_failure_rate_then_interquartile_mean_then_name():
    ranked = rank_arms(
        study(
            named_b=[0.2, 0.35, 0.35, 0.5],
            named_a=[0.2, 0.35, 0.35, 0.5],
            fails=[0.1, 0.2, 0.35, 0.4, None],  # of their median, and of a lower interquartile mean
            never=[None] * 4,
            often=[0.01, None, None, None],
            z_smaller_mean=[0.1, 0.2, 0.35, 0.4, 0.4],
            best=[0.34] * 4,
        ),
        0,
    )
    assert order(ranked) == ["best", "z_smaller_mean", "named_a", "named_b", "fails", "often", "never"]


@settings(max_examples=25, deadline=None)
@given(st.lists(LOSSES, min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_the_order_of_the_runs_changes_nothing(arms, shuffler: random.Random):
    runs = study(**{f"arm{i}": [None if math.isinf(v) else v for v in values] for i, values in enumerate(arms)})
    shuffled = runs.copy()
    shuffler.shuffle(shuffled)
    assert rank_arms(runs, 3, resamples=200) == rank_arms(shuffled, 3, resamples=200)


@settings(max_examples=25, deadline=None)
@given(LOSSES, LOSSES)
def test_both_directions_of_a_pair_mirror_each_other(a, b):
    ranked = rank_arms(
        study(**{n: [None if math.isinf(v) else v for v in vs] for n, vs in (("a", a), ("b", b))}), 0, 200
    )
    there, back = pair_of(ranked, "a", "b"), pair_of(ranked, "b", "a")
    assert there.probability == pytest.approx(probability_of_improvement(a, b))
    assert there.probability + back.probability == pytest.approx(1)
    assert there.is_open == back.is_open
    if there.low is not None:
        assert (there.low + back.high, there.high + back.low) == pytest.approx((1, 1))


def test_the_same_seed_gives_the_same_intervals_and_another_seed_others():
    runs = study(a=np.random.default_rng(0).random(30).tolist(), b=np.random.default_rng(1).random(30).tolist())
    assert rank_arms(runs, np.random.default_rng(5)) == rank_arms(runs, 5)
    assert rank_arms(runs, 5).table != rank_arms(runs, 6).table


def test_arms_are_resampled_independently_though_they_share_seeds():
    losses = np.linspace(0.1, 0.2, 12)
    pair = pair_of(rank_arms(study(a=losses, b=losses + 1e-6), 0), "a", "b")
    assert pair.low < 0.4  # paired by seed, a would win every time
    assert pair.high > 0.6


# Table


def test_quality_is_the_median_of_converged_runs_and_nothing_if_none_is_known():
    runs = [
        run("a", 0, 0.1, amp_ssim=0.9, phase_ssim=math.nan, amp_mae=None),
        run("a", 1, 0.1, amp_ssim=0.7, phase_ssim=math.nan, amp_mae=0.04),
        run("a", 2, 0.1, "collapsed", amp_ssim=0.1, phase_ssim=1.0, amp_mae=0.5),
    ]
    row = rank_arms(runs, 0).table[0]
    assert [row[name] for name in ("amp_ssim", "phase_ssim", "amp_mae", "phase_mae")] == [0.8, None, 0.04, None]


def test_gradient_norms_and_plateau_are_of_all_runs_that_have_them():
    runs = [
        run("a", 0, 0.1, grad_norm_median=1.0, grad_norm_max=7.0, plateau_left_epoch=2),
        run("a", 1, 0.1, grad_norm_median=2.0, grad_norm_max=9.0, plateau_left_epoch=4),
        run("a", 2, 0.1, "stagnated", grad_norm_median=9.0, grad_norm_max=8.0, plateau_left_epoch=None),
    ]
    row = rank_arms(runs, 0).table[0]
    assert (row["grad_norm_median"], row["grad_norm_max"], row["epochs_to_leave_plateau"]) == (2, 9, 3)


def test_a_row_names_its_arch_seeds_and_best_run():
    runs = [run("a", 8, 0.2, arch="fno", run_id="x"), run("a", 3, 0.1, arch="fno", run_id="y")]
    row = rank_arms(runs, 0).table[0]
    assert (row["arch"], row["seeds"], row["best_run_id"], row["runs"]) == ("fno", [3, 8], "y", 2)


def test_json_rows_are_strict_json_with_nulls_for_the_failed_arm_last():
    infinite = {"grad_norm_max": sys.float_info.max, "arch": "stable_hybrid"}  # as MLflow gives infinity back
    runs = [run("stable", seed, None, "non_finite", **infinite) for seed in (0, 1)]
    rows = json.loads(json.dumps(rank_arms(runs + study(control=[0.1, 0.2]), 0).to_json_rows(), allow_nan=False))
    assert [row["arm"] for row in rows] == ["control", "stable"]
    first = ["arm", "arch", "best_val_loss", "amp_ssim", "phase_ssim", "amp_mae", "phase_mae"]
    assert list(rows[0])[:11] == [*first, "grad_norm_median", "grad_norm_max", "runs", "failures"]
    assert rows[1]["arch"] == "stable_hybrid"
    assert rows[1]["runs"] == rows[1]["failures"] == 2
    nulls = ("best_val_loss", "grad_norm_max", "median_best_val_loss", "median_best_val_loss_high", "amp_ssim")
    assert [rows[1][name] for name in nulls] == [None] * len(nulls)


def test_the_table_itself_keeps_infinities():
    row = rank_arms([run("a", seed, None, "non_finite", grad_norm_max=sys.float_info.max) for seed in (0, 1)], 0).table[
        0
    ]
    assert row["median_best_val_loss"] == row["iqm_best_val_loss_low"] == row["grad_norm_max"] == INF


# Input


def test_rows_columns_and_a_data_frame_are_ranked_alike():
    pandas = pytest.importorskip("pandas")
    columns = {name: [entry.get(name) for entry in ORIGINAL] for name in ORIGINAL[0]}
    expected = rank_arms(ORIGINAL, 0)
    assert rank_arms(iter(ORIGINAL), 0) == expected
    assert rank_arms(columns, 0) == expected
    assert rank_arms({name: np.array(values) for name, values in columns.items()}, 0) == expected
    assert rank_arms(pandas.DataFrame(ORIGINAL), 0) == expected


def test_a_seed_may_be_the_text_of_a_tag():
    assert rank_arms([run("a", "20260128", 0.1)], 0).table[0]["seeds"] == [20260128]


@pytest.mark.parametrize("verdict", ["interrupted", "pruned", "unknown"])
def test_a_run_without_a_result_is_missing_and_no_failure(verdict):
    ranked = rank_arms([run("a", 0, 0.1), run("a", 1, 0.2, verdict)], 0)
    assert ranked.missing == {("a", 1): verdict}
    assert (ranked.table[0]["runs"], ranked.table[0]["failures"]) == (1, 0)


def test_interrupted_and_absent_runs_are_missing_and_no_failures():
    runs = [run("a", 0, 0.1), run("a", 1, 0.2, "interrupted"), run("b", 0, 0.3), run("b", 2, 0.3)]
    ranked = rank_arms(runs, 0)
    assert ranked.missing == {("a", 1): "interrupted", ("a", 2): "no run", ("b", 1): "no run"}
    assert (row_of(ranked, "a")["runs"], row_of(ranked, "a")["failures"]) == (1, 0)


@pytest.mark.parametrize("loss", [math.nan, None, INF, sys.float_info.max])
def test_a_converged_run_without_a_finite_number_is_missing(loss):
    ranked = rank_arms([run("a", 0, 0.1), run("a", 1, loss)], 0)
    assert ranked.missing == {("a", 1): "converged, but without a finite best_val_loss"}
    assert ranked.table[0]["seeds"] == [0]


def test_an_arm_whose_runs_are_all_missing_is_not_in_the_table():
    ranked = rank_arms([run("a", 0, 0.1), run("b", 0, 0.1, "interrupted")], 0)
    assert order(ranked) == ["a"]
    assert ranked.missing == {("b", 0): "interrupted"}


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ([], r"`runs` \(of length 0\) must hold at least one run"),
        ({"arm": [], "seed": [], "best_val_loss": [], "verdict": []}, "must hold at least one run"),
        ([run("a", 0, 0.1, "interrupted")], r"`runs` \(of length 1\) must hold at least one run with a result"),
        ([run("a", 0, 0.1), run("a", "0", 0.2)], "once, not arm a, seed 0 again"),
        ([run("a", 0, 0.1, "fine")], r"`verdict` \(=fine\) of arm a, seed 0 must be one of converged, stagnated"),
        ([run("a", 0, 0.1, None)], r"`verdict` \(=None\)"),
        ([{"arm": "a", "seed": 0, "verdict": "converged"}], "must have the columns .* lacks best_val_loss"),
        ({"arm": ["a"], "seed": [0], "verdict": []}, "equally long"),
        ([run(math.nan, 0, 0.1)], r"`arm` \(=nan\) must be a name"),
        ([run("a", 0.5, 0.1)], r"`seed` \(=0.5\) of arm a must be a whole number"),
        ([run("a", math.nan, 0.1)], r"`seed` \(=nan\)"),
        ([run("a", "x", 0.1)], r"`seed` \(=x\)"),
        ([run("a", 0, "low")], r"`best_val_loss` \(=low\) must be a number"),
        ([run("a", 0, 0.1, arch="fno"), run("a", 1, 0.1, arch="cnn")], "`arch` of arm a must be one, not cnn and fno"),
    ],
)
def test_bad_tables_are_refused_in_one_line(runs, message):
    with pytest.raises(ValueError, match=message) as refused:
        rank_arms(runs, 0)
    assert "\n" not in str(refused.value)


def test_too_few_resamples_are_refused():
    with pytest.raises(ValueError, match=r"`resamples` \(=10\) must be 0 or >= 100"):
        rank_arms(ORIGINAL, 0, resamples=10)


def test_without_resamples_there_are_no_intervals_and_the_decision_is_the_same():
    runs = study(
        control=[0.5, 0.6, 0.7, 0.8, None], agc=[0.1, 0.11, 0.12, 0.13, 0.14], other=[0.51, 0.61, 0.71, 0.81, 1]
    )
    ranked, with_intervals = rank_arms(runs, 0, resamples=0), rank_arms(runs, 0)
    assert ranked.decision == with_intervals.decision
    assert ranked.decision.label == "best"
    assert [(pair.p_corrected, pair.better) for pair in ranked.pairs] == [
        (pair.p_corrected, pair.better) for pair in with_intervals.pairs
    ]
    assert {end for pair in ranked.pairs for end in (pair.low, pair.high)} == {None}
    assert {row["median_best_val_loss_low"] for row in ranked.table} == {None}


# Decision


CONTROL = [0.10, 0.11, 0.12, 0.13, 0.14]
WORSE = [0.20, 0.21, 0.22, 0.23, 0.24]
BETTER = [0.05, 0.06, 0.07, 0.08, 0.09]
MIXED = [0.095, 0.105, 0.115, 0.125, 0.15]


def test_gold_when_the_stable_arm_beats_control_and_fails_no_more():
    decision = rank_arms(study(control=CONTROL, agc=WORSE, stable=BETTER), 0).decision
    assert (decision.label, decision.winner, decision.seeds_needed) == ("gold", "stable", None)
    assert decision.text.startswith("Gold: probability of improvement of stable over control 1.00 (p = 0.032)")


def test_gold_is_not_for_a_stable_arm_that_fails_more():
    runs = study(control=[0.1] * 15, agc=[0.01] * 15, stable=[*[0.05] * 14, None])
    decision = rank_arms(runs, 0).decision
    assert (decision.label, decision.winner) == ("best", "agc")


def test_the_stable_arm_is_known_by_its_arch_or_without_one_by_its_name():
    named = study(control=CONTROL, agc=WORSE, slim=BETTER)
    assert rank_arms(named, 0).decision.label == "best"
    by_arch = [entry | {"arch": "stable_hybrid" if entry["arm"] == "slim" else "hybrid"} for entry in named]
    assert rank_arms(by_arch, 0).decision.label == "gold"
    other = [entry | {"arch": "fno"} for entry in study(control=CONTROL, agc=WORSE, stable=BETTER)]
    assert rank_arms(other, 0).decision.label == "best"


def test_control_is_never_compared_with_itself():
    runs = [entry | {"arch": "stable_hybrid"} for entry in study(control=CONTROL, agc=WORSE, stable=BETTER)]
    assert rank_arms(runs, 0).decision.label == "gold"


def test_silver_when_agc_clearly_fails_less_and_loses_at_most_a_tenth_of_the_median():
    fails = [*[0.10] * 6, *[None] * 5]
    decision = rank_arms(study(control=fails, agc=[0.1099] * 11, stable=[None] * 11), 0).decision
    assert (decision.label, decision.winner, decision.seeds_needed) == ("silver", "control", None)
    assert "agc fails less often (p = 0.0" in decision.text
    assert rank_arms(study(control=fails, agc=[0.1101] * 11, stable=[None] * 11), 0).decision.label != "silver"


def test_one_failure_more_is_not_clear_and_no_silver():
    runs = study(control=[0.10, 0.10, 0.10, 0.10, None], agc=[0.1] * 5, stable=WORSE)
    assert rank_arms(runs, 0).decision.label == "undecided"


def test_silver_needs_a_finite_median_and_more_than_one_seed():
    mostly = study(control=[None] * 30, agc=[0.1] * 14 + [None] * 16)
    assert rank_arms(mostly, 0).decision.label == "best"
    assert rank_arms(study(control=[None], agc=[0.1], stable=[None]), 0).decision.label == "undecided"


def test_control_when_it_beats_both():
    decision = rank_arms(study(control=CONTROL, agc=WORSE, stable=[0.3, 0.3, 0.3, None, None]), 0).decision
    assert (decision.label, decision.winner, decision.seeds_needed) == ("control", "control", None)
    one_open = rank_arms(study(control=CONTROL, agc=MIXED, stable=WORSE), 0).decision
    assert one_open.label == "undecided"


def test_best_is_an_arm_that_beats_every_other_one():
    decision = rank_arms(study(control=[0.05 + loss for loss in CONTROL], wide=BETTER, agc=WORSE), 0).decision
    assert (decision.label, decision.winner) == ("best", "wide")
    runs = study(control=CONTROL, stable=[0.3 + loss for loss in CONTROL], agc=WORSE, pre=BETTER)
    many = [entry | {"seed": entry["seed"] + 5 * copy} for copy in range(2) for entry in runs]
    assert rank_arms(many, 0).decision.label == "best"  # control beats stable and agc, and is not the best


def test_a_claim_that_the_reconstruction_clearly_contradicts_is_none():
    arms = {"control": (CONTROL, BETTER), "agc": (WORSE, WORSE), "stable": (BETTER, CONTROL)}
    runs = [
        run(arm, seed, loss, r_stitched=stitched)
        for arm, columns in arms.items()
        for seed, (loss, stitched) in enumerate(zip(*columns, strict=True))
    ]
    decision = rank_arms(runs, 0).decision
    assert (decision.label, decision.winner, decision.disagrees) == ("undecided", "stable", True)
    assert "by stitched R-factor the opposite is clear (control over stable 1.00 (p = 0.032))" in decision.text
    agreeing = [entry | {"r_stitched": entry["best_val_loss"]} for entry in runs]
    assert rank_arms(agreeing, 0).decision.label == "gold"


def test_arms_can_be_ranked_by_the_reconstruction():
    runs = [run(arm, s, x, r_stitched=1 - x) for arm, of in (("a", CONTROL), ("b", WORSE)) for s, x in enumerate(of)]
    assert order(rank_arms(runs, 0)) == ["a", "b"]
    ranked = rank_arms(runs, 0, by="r_stitched")
    assert order(ranked) == ["b", "a"]
    assert (ranked.by, ranked.other) == ("r_stitched", "best_val_loss")
    assert ranked.table[0]["median_r_stitched"] == pytest.approx(0.78)
    with pytest.raises(
        ValueError, match=r"`by` \(=amp_ssim\) must be best_val_loss or r_stitched, or a column of your own"
    ):
        rank_arms(runs, 0, by="amp_ssim")
    with pytest.raises(ValueError, match=r"`by` \(=r_stitched\) must be known of every converged run"):
        rank_arms([*runs, run("c", 0, 0.1)], 0, by="r_stitched")


def test_arms_can_be_ranked_by_a_column_of_the_users_own_and_failed_runs_are_last_in_it():
    runs = [
        run(arm, seed, loss, rough=100 - loss)
        for arm, of in (("a", CONTROL), ("b", WORSE))
        for seed, loss in enumerate(of)
    ]
    ranked = rank_arms(runs, 0, by="rough")
    assert order(ranked) == ["b", "a"]
    assert (ranked.by, ranked.other) == ("rough", "best_val_loss")
    first = ranked.table[0]
    assert first["rough"] == 100 - max(WORSE)
    assert first["median_rough"] == pytest.approx(100 - np.median(WORSE))
    assert first["median_rough_low"] <= first["median_rough"] <= first["median_rough_high"]
    assert ranked.pairs[0].p == rank_arms(runs, 0).pairs[0].p
    assert "by rough" in ranked.decision.text or ranked.decision.disagrees
    failed = [entry | {"verdict": "diverged"} if entry["arm"] == "b" and entry["seed"] < 3 else entry for entry in runs]
    assert order(rank_arms(failed, 0, by="rough")) == ["a", "b"]
    with pytest.raises(ValueError, match=r"`by` \(=rough\) must be known of every converged run"):
        rank_arms([*runs, run("c", 0, 0.1)], 0, by="rough")


def test_undecided_says_how_many_seeds_would_decide():
    ranked = rank_arms(study(control=CONTROL, agc=MIXED, stable=WORSE), 0)
    needed = seeds_to_tell_apart(pair_of(ranked, "control", "agc").probability, comparisons=4)
    assert ranked.decision.seeds_needed == needed > 5
    assert f"between agc and control would take about {needed} seeds an arm" in ranked.decision.text


def test_more_seeds_than_the_most_are_said_to_be_more():
    losses = np.linspace(0.1, 0.2, 60)
    shifted = np.append(losses[:-1], 0.05)  # the probability is barely above 0.5
    decision = rank_arms(study(control=losses, agc=losses + 0.5, stable=shifted), 0).decision
    assert decision.seeds_needed == MOST_SEEDS
    assert f"more than {MOST_SEEDS} seeds" in decision.text


def test_equal_arms_need_no_number_of_seeds():
    decision = rank_arms(study(control=CONTROL, agc=CONTROL, stable=CONTROL), 0).decision
    assert (decision.label, decision.seeds_needed, decision.winner) == ("undecided", None, "agc")
    assert "0.5" in decision.text


def test_a_study_of_one_arm_compares_nothing():
    decision = rank_arms(study(wide=CONTROL), 0).decision
    assert (decision.label, decision.seeds_needed) == ("undecided", None)
    assert "there is no other arm than wide" in decision.text


def test_gold_needs_no_agc_and_silver_no_stable():
    assert rank_arms(study(control=CONTROL, stable=BETTER), 0).decision.label == "gold"
    runs = study(control=[*[0.1] * 8, *[None] * 6], agc=[0.1] * 14)
    assert rank_arms(runs, 0).decision.label == "silver"


def test_no_arm_wins_where_every_run_failed():
    ranked = rank_arms(study(stable=[None] * 3, control=[None] * 3, agc=[None] * 3), 0)
    assert order(ranked) == ["agc", "control", "stable"]
    assert (ranked.decision.label, ranked.decision.winner) == ("undecided", None)
    assert "No arm goes to Stage B: every run failed" in ranked.decision.text


def test_the_text_says_what_goes_to_stage_b_and_how_little_three_seeds_say():
    text = rank_arms(study(control=CONTROL[:3], agc=WORSE[:3], stable=WORSE[:3]), 0).decision.text
    assert "Stage B takes control, the first in rank" in text
    assert "With 3 seeds an arm without a failure may still fail in up to 56 % of runs" in text
    assert "at most 0.05 is clear, which 3 seeds an arm can never be; 5 can" in text
