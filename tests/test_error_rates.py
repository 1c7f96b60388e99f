"""Equal arms are called different in at most 5 % of studies, and docs/statistics.md says what the simulations gave."""

import math

import numpy as np
import pytest
from scipy import stats

from benchmarks import error_rates, error_rates_page
from benchmarks.error_rates import (
    LOOKS,
    VARIANTS,
    Case,
    Effect,
    concluded,
    drawn_arms,
    earlier_claims,
    equal_arms,
    false_claims,
    stage_a_arms,
    until_decided,
)
from fnostab.ranking.claims import ALPHA, Design
from fnostab.ranking.intervals import wilson_interval
from results.tables import with_tables

SEED = 20260128


@pytest.mark.parametrize(
    "case",
    [
        Case(stage_a_arms(2), 10, "failures and ties"),
        Case(stage_a_arms(3), 10, "failures and ties"),
        Case(stage_a_arms(3), 5, "plain", earlier=True),
        Case(stage_a_arms(6), 10, "plain"),
        Case(VARIANTS, 10, "plain"),
        Case(stage_a_arms(3), 20, "plain", LOOKS[:4]),
        Case(VARIANTS, 10, "failures and ties", LOOKS[:2]),
    ],
    ids=lambda case: f"{len(case.arms)} arms, {case.kind}, {len(case.looks)} looks",
)
def test_equal_arms_are_called_different_in_at_most_five_percent_of_studies(case):
    studies = 300
    found = false_claims(case, studies, SEED)
    limit = stats.binom.ppf(0.999, studies, ALPHA)
    assert 0 < found["claims"] <= limit
    assert found["headlines"] <= found["claims"]
    if case.earlier:
        assert found["earlier_claims"] > 2 * limit


def test_failures_and_ties_of_equal_arms_are_as_frequent_as_said():
    losses = np.array(list(equal_arms(Case(("a", "b"), 2000, "failures and ties"), np.random.default_rng(0)).values()))
    assert np.isinf(losses).mean() == pytest.approx(error_rates.FAILURE_RATE, abs=0.03)
    tied = losses == 1 - error_rates.TIED_SHARE
    assert tied.mean() == pytest.approx(error_rates.TIED_SHARE * (1 - error_rates.FAILURE_RATE), abs=0.03)


def test_where_all_seeds_decide_nothing_a_study_until_decided_trains_all_of_them_and_decides_nothing():
    rng, design, shortened = np.random.default_rng(SEED), Design(looks=(5, 10, 15)), 0
    for _ in range(30):
        losses = {arm: (rng.random(15) + 0.3 * (arm == "agc")).tolist() for arm in stage_a_arms(3)}
        ranking = until_decided(losses, design)
        if concluded(losses, design) is None:
            assert all(pair.is_open for pair in ranking.pairs)
            assert [row["runs"] for row in ranking.table] == [15] * 3
            shortened += 1
        else:
            assert concluded(losses, design) == ranking
    assert 0 < shortened < 30


def test_until_decided_an_arm_that_lies_clearly_behind_the_leader_gets_no_more_seeds():
    near = np.arange(15) / 100
    losses = {"control": near.tolist(), "stable": (near + 0.001).tolist(), "agc": (near + 9).tolist()}
    ranking = until_decided(losses, Design(looks=(5, 10, 15)))
    assert {row["arm"]: row["runs"] for row in ranking.table} == {"control": 15, "stable": 15, "agc": 10}


def test_the_earlier_rule_called_two_seeds_wholly_apart_clear():
    rng = np.random.default_rng(0)
    assert earlier_claims({"a": [1, 2], "b": [3, 4]}, rng) == (True, True)
    assert earlier_claims({"a": [1, 3], "b": [2, 4]}, rng) == (False, False)


def test_unequal_arms_have_the_losses_of_shipped_runs_and_failed_ones_are_infinite():
    arms = ("pre-scheduleconstant", "control-scheduleconstant")
    losses = drawn_arms(Effect("q6_overlap", arms), 200, np.random.default_rng(0))
    assert set(losses) == set(arms)
    assert any(map(math.isinf, losses["pre-scheduleconstant"]))
    assert not any(map(math.isinf, losses["control-scheduleconstant"]))
    assert len({*losses["control-scheduleconstant"]}) == 10


def test_the_same_seed_gives_the_same_counts():
    case = Case(stage_a_arms(2), 3, earlier=True)
    assert false_claims(case, 100, SEED) == false_claims(case, 100, SEED)
    assert false_claims(case, 100, SEED) != false_claims(case, 100, SEED + 1)


def test_the_page_says_what_the_stored_simulations_gave():
    text = error_rates_page.PAGE.read_text(encoding="utf-8")
    assert all(f"<!-- table {name}: begin -->" in text for name in error_rates_page.TABLES)
    assert with_tables(text, error_rates_page.TABLES) == text


def test_no_row_of_the_stored_simulations_claims_more_than_alpha_but_for_its_monte_carlo_error():
    rows = [row for row in error_rates_page.results()["equal"] if row["kind"] != "unequal spread"]
    families = {len(row["arms"]) for row in rows}
    assert families == {2, 3, 6, 7, 12}
    assert min(row["studies"] for row in rows) >= 2000
    assert [row for row in rows if wilson_interval(row["claims"], row["studies"])[0] > ALPHA] == []
