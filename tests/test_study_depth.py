import math

import pytest

from fnostab.ranking import rank_arms
from fnostab.report.templates import words
from fnostab.study.depth import LOSS_GROWTH, PEAK_GROWTH, WORTHWHILE_GAIN, compare_depth


def ranking(losses, arm="control", arch="hybrid", peak=20.0, middle=2.0):
    """A ranking of one arm; None is a failed run."""
    return rank_arms(
        [
            {
                **{"arm": arm, "arch": arch, "seed": seed, "grad_norm_median": middle, "grad_norm_max": peak},
                **{"best_val_loss": 0.2 if loss is None else loss, "amp_ssim": 0.9, "amp_mae": 0.05},
                "verdict": "diverged" if loss is None else "converged",
            }
            for seed, loss in enumerate(losses)
        ],
        0,
    )


def compared(a, b, **b_changes):
    shallow, deep = ranking(a), ranking(b, **b_changes)
    return compare_depth(shallow.table[0], deep.table[0], depth_a=4, depth_b=8)


def advice(found):
    return " ".join(words().advice(found).split())


def evidence(found):
    return " ".join(words().evidence(found).split())


FIVE = [0.020, 0.021, 0.022, 0.023, 0.024]


def test_a_better_loss_without_failures_says_take_the_deeper():
    found = compared(FIVE, [0.9 * loss for loss in FIVE])
    assert not found.emerged
    assert advice(found).startswith("Take 8 blocks: the median val_loss is 10 % lower")
    assert found["median_best_val_loss"].change == pytest.approx(0.9)


def test_an_equal_loss_says_keep_the_shallower():
    found = compared(FIVE, [(1 - WORTHWHILE_GAIN / 2) * loss for loss in FIVE])
    assert not found.emerged
    assert advice(found).startswith("Keep 4 blocks")


def test_more_failures_are_instability_and_overlapping_intervals_are_said():
    found = compared(FIVE, [0.01, 0.01, 0.01, None, None])
    assert found.emerged
    assert evidence(found).startswith("More runs failed: 0 of 5 runs failed in Stage A, 2 of 5 in Stage B. The")
    assert "failure rates overlap, [0, 43 %] and [12, 77 %]: the difference may be chance." in evidence(found)
    assert "clip_algo=agc" in advice(found)
    assert "arch=stable_hybrid" in advice(found)


def test_failure_rates_whose_intervals_do_not_overlap_are_not_said_to_be_chance():
    found = compared(FIVE, [None] * 5)
    assert found.emerged
    assert "chance" not in evidence(found)
    assert found["median_best_val_loss"].change == math.inf


def test_a_higher_rate_of_as_many_failures_is_no_sign():
    found = compared([None, *FIVE], [None, *FIVE[:3]])
    assert found["failure_rate"].change > 0
    assert not found.emerged


@pytest.mark.parametrize(("growth", "emerged"), [(0.99, False), (1.0, True)])
def test_a_higher_peak_of_the_gradient_norm_is_instability(growth, emerged):
    found = compared(FIVE, FIVE, peak=20.0 * PEAK_GROWTH * growth)
    assert found.emerged is emerged
    assert ("grew from 10 to 50" in evidence(found)) is emerged


def test_a_gradient_norm_that_is_larger_throughout_is_no_sign():
    assert not compared(FIVE, FIVE, peak=2000.0, middle=200.0).emerged


@pytest.mark.parametrize(("growth", "emerged"), [(LOSS_GROWTH - 0.01, False), (LOSS_GROWTH + 0.01, True)])
def test_a_much_worse_median_is_instability_but_may_be_slow_training(growth, emerged):
    found = compared(FIVE, [(1 + growth) * loss for loss in FIVE])
    assert found.emerged is emerged
    assert ("slower training" in evidence(found)) is emerged


def test_one_seed_is_a_hint_and_nothing_more():
    found = compared([0.02], [None])
    assert found.emerged
    assert "One seed has no spread" in evidence(found)


def test_an_arm_that_failed_at_either_depth_did_not_become_unstable_with_depth():
    found = compared([None] * 3, [None] * 3)
    assert not found.emerged
    assert advice(found) == "Find an arm that trains at 4 blocks before going deeper."
    assert found["best_val_loss"].change is None
    assert found["amp_ssim"].a.value is None


def test_depth_that_cures_failures_is_taken():
    found = compared([None, None, None], FIVE)
    assert not found.emerged
    assert advice(found).startswith("Take 8 blocks: at 4 half of the runs or more failed")


def test_what_json_has_no_numbers_for_is_infinite_again():
    a, b = ranking(FIVE), ranking([0.02, None, None])
    from_json = compare_depth(a.to_json_rows()[0], b.to_json_rows()[0], depth_a=4, depth_b=8)
    assert from_json == compare_depth(a.table[0], b.table[0], depth_a=4, depth_b=8)
    assert from_json["median_best_val_loss"].b.high == math.inf


def test_missing_gradient_norms_decide_nothing():
    found = compared(FIVE, FIVE, peak=None, middle=None)
    assert not found.emerged
    assert found["grad_norm_max"].change is None


def test_an_arm_is_not_told_to_try_what_it_has():
    shallow, deep = (ranking(losses, "agc", "stable_hybrid") for losses in (FIVE, [None] * 5))
    told = advice(compare_depth(shallow.table[0], deep.table[0], depth_a=4, depth_b=8))
    assert "another clip_val" in told
    assert "clip_algo=agc" not in told
    assert "arch=" not in told


def test_impossible_comparisons_are_refused():
    row = ranking(FIVE).table[0]
    with pytest.raises(ValueError, match=r"`depth_b` \(=4\) must be > `depth_a` \(=8\)"):
        compare_depth(row, row, depth_a=8, depth_b=4)
    with pytest.raises(ValueError, match="must be of arm control"):
        compare_depth(row, ranking(FIVE, "agc").table[0], depth_a=4, depth_b=8)
