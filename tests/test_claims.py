"""What may be claimed: exact tests, their correction for many comparisons, and for several looks."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy import stats

from fnostab.ranking.claims import Design, correct, holm
from fnostab.ranking.exact_tests import failure_rate_test, fewest_seeds, rank_test, smallest_p
from fnostab.ranking.pairs import compare_arms

INF = math.inf
TIED = st.lists(st.sampled_from([0.1, 0.2, 0.3, INF]), min_size=1, max_size=5)


@settings(deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_without_ties_the_rank_test_is_scipys_exact_mann_whitney_test(n, m, seed):
    values = np.random.default_rng(seed).permutation(n + m)
    expected = stats.mannwhitneyu(values[:n], values[n:], method="exact").pvalue
    assert rank_test(values[:n], values[n:]) == pytest.approx(expected, rel=1e-9)


@settings(deadline=None)
@given(TIED, TIED)
def test_with_ties_and_failures_the_rank_test_counts_all_permutations(a, b):
    ranks = stats.rankdata([*a, *b])
    away = abs(ranks[: len(a)].sum() - len(a) * (len(ranks) + 1) / 2)
    sums = [sum(chosen) for chosen in itertools.combinations(ranks, len(a))]
    as_far = [abs(total - len(a) * (len(ranks) + 1) / 2) >= away - 1e-9 for total in sums]
    assert rank_test(a, b) == pytest.approx(np.mean(as_far))


def test_the_rank_test_of_very_many_runs_is_scipys_normal_one():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=150), rng.normal(0.3, size=150)
    assert rank_test(a, b) == pytest.approx(stats.mannwhitneyu(a, b, method="asymptotic").pvalue)
    assert rank_test([INF] * 150, [INF] * 150) == 1


def test_the_counted_distribution_meets_the_normal_one_where_both_are_good():
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=100), rng.normal(0.3, size=100)
    assert rank_test(a, b) == pytest.approx(stats.mannwhitneyu(a, b, method="asymptotic").pvalue, rel=0.02)


@pytest.mark.parametrize("values", [[], [0.1, math.nan]])
def test_the_rank_test_refuses_nothing_and_nan(values):
    with pytest.raises(ValueError, match="`b` must"):
        rank_test([0.1], values)


@pytest.mark.parametrize(("seeds", "p"), [(2, 1 / 3), (3, 0.1), (4, 2 / 70), (5, 2 / 252)])
def test_arms_wholly_apart_have_the_least_p_value_there_is(seeds, p):
    assert smallest_p(seeds) == rank_test(range(seeds), range(seeds, 2 * seeds)) == pytest.approx(p)


def test_three_seeds_can_never_be_clear_and_the_fewest_that_can_are_known():
    assert fewest_seeds(1, 0.05) == 4
    assert fewest_seeds(4, 0.05) == 5
    assert fewest_seeds(66, 0.05) == 7


def test_the_failure_rate_test_is_boschloos():
    table = [[7, 1], [3, 9]]
    assert failure_rate_test(7, 10, 1, 10) == pytest.approx(stats.boschloo_exact(table).pvalue)
    assert failure_rate_test(0, 10, 0, 10) == failure_rate_test(5, 5, 4, 4) == 1


def test_holms_adjusted_p_values_of_a_worked_example():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_one_look_is_holms_procedure(p_values):
    found = correct([dict(enumerate(p_values))], [0.05], 0.05)
    assert [found[key].p for key in range(len(p_values))] == pytest.approx(holm(p_values))
    assert [found[key].look == 0 for key in range(len(p_values))] == [p <= 0.05 for p in holm(p_values)]


def test_what_a_look_decided_stays_and_leaves_its_share_to_the_others():
    looks = [{"x": 0.001, "y": 0.02}, {"x": 0.9, "y": 0.02}]
    found = correct(looks, [0.025, 0.025], 0.05)
    assert (found["x"].look, found["y"].look) == (0, 0)  # stepped down: 0.001 of two, then 0.02 of one
    found = correct([{"x": 0.001, "y": 0.03}, {"x": 0.9, "y": 0.024}], [0.025, 0.025], 0.05)
    assert (found["x"].look, found["y"].look) == (0, 1)
    assert found["y"].p == pytest.approx(0.048)


def test_looks_that_could_decide_nothing_take_no_share():
    assert Design(looks=(3, 6, 9)).levels(3) == pytest.approx([0, 0.025, 0.025])
    assert Design(looks=(2, 3)).levels(3) == [0, 0]
    assert Design().levels(66) == [0.05]
    assert sum(Design(0.1, (5, 10, 15, 20, 25, 30)).levels(4)) == pytest.approx(0.1)


@pytest.mark.parametrize("alpha", [0, -0.1, 0.51, math.nan])
def test_an_alpha_that_is_none_is_refused(alpha):
    with pytest.raises(ValueError, match=r"`alpha` \(=.*\) must be above 0 and at most 0.5"):
        Design(alpha)


def _study(**arms):
    values = {arm: dict(enumerate(losses)) for arm, losses in arms.items()}
    return values, {arm: {seed: value == INF for seed, value in of.items()} for arm, of in values.items()}


def test_a_look_counts_only_where_both_arms_have_all_of_its_seeds():
    low, high = list(np.arange(10) / 100), list(0.5 + np.arange(10) / 100)
    design = Design(looks=(5, 10))
    whole = compare_arms(*_study(a=low, b=high), design)
    assert (whole.pairs["a", "b"].better, whole.pairs["b", "a"].better, whole.pairs["a", "b"].seeds) == ("a", "a", 5)
    stopped = compare_arms(*_study(a=low, b=[0.005, *high[1:5]], c=low), design)
    assert stopped.pairs["a", "b"].is_open  # no look at 5 decided it, and b has no later seeds
    incomplete = compare_arms(*_study(a=low[:9], b=high[:9]), Design(looks=(4, 10)))
    assert incomplete.pairs["a", "b"].is_open
