import json
import math
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, strategies as st

from fnostab.health import FAILED, NO_RESULT, HealthConfig, Spike, VerdictLabel, judge, measure_stability, spikes
from fnostab.health.history import History

_NAN, _INF = math.nan, math.inf


def _history(*val_loss, **others):
    """A run whose progress is 1 - val_loss: the constant object has 1, photon noise alone 0."""
    return {"val_loss": list(val_loss), "val_loss_constant": 1.0, "val_loss_floor": 0.0, **others}


def _noisy(steps, spread, seed=0):
    """A falling loss with lognormal batch noise."""
    noise = np.random.default_rng(seed).normal(0.0, spread, steps)
    return np.exp(noise) / (1 + np.arange(steps) / 300)


def _decide(*val_loss, **others):
    return judge(_history(*val_loss, **others)).label


# Events


@pytest.mark.parametrize("label", ["out_of_memory", "non_finite", "interrupted", "pruned"])
def test_an_event_decides_whatever_was_learnt(label):
    assert _decide(0.5, 0.1, events={label: True}) == label


def test_events_are_ranked():
    events = {"pruned": True, "interrupted": True, "non_finite": {"step": 17}, "out_of_memory": True}
    found = []
    while events:
        found.append(_decide(0.1, events=events))
        del events[found[-1]]
    assert found == ["out_of_memory", "non_finite", "interrupted", "pruned"]


@pytest.mark.parametrize("events", [None, {}, {"interrupted": False, "non_finite": None, "out_of_memory": False}])
def test_what_is_false_or_null_did_not_happen(events):
    assert _decide(0.1, events=events) == "converged"


def test_non_finite_reason_names_step_and_layer():
    event = {"step": 17, "layer": "encoder.0.0.local"}
    history = {"loss_step": [1.0] * 17 + [_NAN], "grad_norm_preclip": [1.0] * 17 + [_NAN]}
    assert judge({**history, "events": {"non_finite": event}}).reason == (
        "the loss or gradient was not finite at step 17, first in `encoder.0.0.local`; that update was not applied"
    )


def test_non_finite_reason_does_without_a_layer():
    reason = judge({"events": {"non_finite": {"step": 17}}}).reason
    assert reason == "the loss or gradient was not finite at step 17; that update was not applied"


def test_non_finite_validation_is_told_from_a_step_that_was_not_applied():
    history = {"loss_step": [1.0, 1.0], "grad_norm_preclip": [1.0, 1.0], "events": {"non_finite": {"step": 1}}}
    assert judge(history).reason == "the validation after step 1 was not finite"


def test_out_of_memory_reason_names_step_peak_and_device():
    event = {"step": 12, "peak_bytes": 3 * 2**30, "device": "cuda:0"}
    reason = judge({"events": {"out_of_memory": event}}).reason
    assert reason == "cuda:0 ran out of memory at step 12, with at most 3 GiB in use"


def test_out_of_memory_reason_does_without_details():
    assert judge({"events": {"out_of_memory": True}}).reason == "the device ran out of memory"


def test_interrupted_reason_says_how_far_the_run_came():
    verdict = judge({"loss_step": [1.0] * 30, "val_loss": [0.5], "events": {"interrupted": True}})
    assert verdict.reason == "the run was interrupted (steps done: 30, epochs finished: 1)"


def test_pruned_reason_says_when():
    assert judge({"events": {"pruned": {"epoch": 2, "epochs": 8}}}).reason == "the run was pruned after epoch 2 of 8"
    assert judge({"events": {"pruned": True}}).reason == "the run was pruned"


# Given up


@pytest.mark.parametrize(
    ("event", "end"),
    [
        ({"epoch": 2, "epochs": 4}, "; given up after epoch 2 of 4"),
        ({"epoch": 2}, "; given up after epoch 2"),
        ({"epochs": 4}, "; given up"),
        (True, "; given up"),
    ],
)
def test_a_run_that_was_given_up_is_judged_by_its_course_and_the_reason_says_so(event, end):
    verdict, by_itself = judge(_history(1.1, 1.0, events={"given_up": event})), judge(_history(1.1, 1.0))
    assert (verdict.label, verdict.reason) == ("stagnated", by_itself.reason + end)
    assert verdict.evidence == by_itself.evidence
    assert _decide(1.1, 2.3, events={"given_up": event}) == "diverged"


@pytest.mark.parametrize("other", ["out_of_memory", "non_finite", "interrupted", "pruned"])
def test_what_else_happened_to_a_run_that_was_given_up_comes_first(other):
    verdict = judge(_history(1.1, events={"given_up": {"epoch": 1}, other: True}))
    assert verdict.label == other
    assert "given up" not in verdict.reason


# Dead


@pytest.mark.parametrize("val_loss", [[0.9, 0.9], [0.9, 5.0], [0.1, 1.0], [0.9, 0.1], [0.9, _NAN], []])
def test_a_constant_object_is_dead_whatever_was_learnt(val_loss):
    verdict = judge(_history(*val_loss, object_std_ratio=[1.0, 0.9e-6]))
    assert verdict.label == "collapsed"
    assert "its object is constant (object_std_ratio ended at 9e-07)" in verdict.reason


def test_parameters_that_no_longer_move_are_dead():
    verdict = judge(_history(0.9, 0.1, parameters_moved=[1.0, 0.0]))
    assert (verdict.label, verdict.evidence["last_parameters_moved"]) == ("collapsed", 0.0)
    assert "no parameter of its blocks changed in the last epoch" in verdict.reason
    assert _decide(0.9, 0.1, parameters_moved=[0.0, 0.01]) == "converged"
    assert _decide(0.9, 0.1, parameters_moved=[0.0, "NaN"]) == "converged"


def test_the_reason_of_a_dead_run_says_what_was_before():
    dead = {"object_std_ratio": [1.0, 0.0], "grad_norm_preclip": [1.0, 5e5]}
    assert judge(_history(0.9, 0.9, **dead)).reason.endswith("it had never learnt; its largest gradient norm was 5e+05")
    assert "; before, progress (0: constant object, 1: photon noise alone) reached 0.9 at epoch 1" in (
        judge(_history(0.1, 1.0, **dead)).reason
    )
    assert "learnt" not in judge({"val_loss": [0.9, 0.9], **dead}).reason


@pytest.mark.parametrize("last", [1e-6, 0.02])
def test_a_flat_image_that_is_not_constant_is_not_dead(last):
    assert _decide(0.9, 0.9, object_std_ratio=[1.0, last]) == "stagnated"


# Without the constant's loss


@pytest.mark.parametrize("constant", [None, "NaN", "Infinity"])
def test_without_the_constant_the_verdict_is_unknown_and_the_reason_says_why(constant):
    verdict = judge(_history(0.9, 0.01, val_loss_constant=constant))
    assert (verdict.label, verdict.failed) == ("unknown", False)
    assert "the val_loss of a constant object is not known" in verdict.reason


@pytest.mark.parametrize(("last", "label"), [(0.2, "unknown"), (0.21, "diverged"), ("NaN", "diverged")])
def test_without_the_constant_a_val_loss_that_more_than_doubled_diverged(last, label):
    assert judge({"val_loss": [0.3, 0.1, last]}).label == label


def test_a_loss_that_is_not_positive_has_no_ratio_to_diverge_by():
    assert judge({"val_loss": [-3.0, -2.0]}).label == "unknown"
    assert judge({"val_loss": [0.0, 1.0]}).label == "unknown"


# Never learnt


def test_progress_just_under_the_limit_is_stagnated():
    assert _decide(0.9, 0.7501) == "stagnated"


def test_progress_at_the_limit_is_learnt():
    assert _decide(0.9, 0.75) == "converged"


def test_one_epoch_above_the_limit_is_learnt():
    assert _decide(0.9, 0.4, 0.65, 0.6) == "converged"


@pytest.mark.parametrize(("last", "label"), [(1.8, "stagnated"), (1.81, "diverged")])
def test_an_unlearnt_run_diverged_if_val_loss_more_than_doubled(last, label):
    assert _decide(0.9, last) == label


@pytest.mark.parametrize(("last", "label"), [(10.0, "stagnated"), (10.1, "diverged")])
def test_an_unlearnt_run_diverged_if_it_is_far_worse_than_a_constant_object(last, label):
    assert _decide(2e16, last) == label
    assert ("over 10 times a constant object's, 1" in judge(_history(2e16, last)).reason) == (label == "diverged")


def test_no_finished_epoch_is_stagnated():
    verdict = judge(_history())
    assert (verdict.label, verdict.reason) == ("stagnated", "no epoch was finished")
    assert (judge({}).label, judge({}).reason) == ("unknown", "no epoch was finished")


def test_an_unknown_floor_counts_as_zero():
    assert _decide(0.74, val_loss_floor="NaN") == "converged"
    assert _decide(0.76, val_loss_floor=None) == "stagnated"


def test_the_reason_says_what_full_progress_is():
    assert "1: photon noise alone" in judge(_history(0.5)).reason
    assert "1: a perfect fit" in judge(_history(0.5, val_loss_floor=None)).reason


def test_the_floor_counts():
    assert _decide(0.88, val_loss_floor=0.6) == "converged"  # 0.12 of 0.4
    assert _decide(0.91, val_loss_floor=0.6) == "stagnated"


@pytest.mark.parametrize("floor", [1.0, 1.1])
def test_with_a_constant_not_above_the_floor_nothing_was_learnt_and_the_reason_says_why(floor):
    verdict = judge(_history(0.9, 0.01, val_loss_floor=floor))
    assert verdict.label == "stagnated"
    assert "is not above photon noise alone" in verdict.reason


def test_stagnated_reason_names_the_norm_weights_largest_magnitude():
    verdict = judge(_history(0.99, 0.98, health={"norm_weight_absmax": [0.0, 0.004, 0.002]}))
    assert "norm weights never exceeded 0.004 in magnitude" in verdict.reason
    assert verdict.evidence["norm_weight_absmax"] == 0.004
    assert verdict.evidence["norm_weight_absmax_last"] == 0.002


def test_stagnated_reason_is_silent_on_norm_weights_that_the_network_lacks():
    verdict = judge(_history(0.99, 0.98))
    assert "norm weights" not in verdict.reason
    assert not {"norm_weight_absmax", "norm_weight_absmax_last", "activation_drift"} & verdict.evidence.keys()


# Learnt, then lost


@pytest.mark.parametrize(("last", "label"), [(0.1, "diverged"), (0.099, "collapsed")])
def test_a_lost_run_whose_object_went_flat_is_collapsed(last, label):
    assert _decide(0.1, 0.5, object_std_ratio=[0.8, last]) == label


@pytest.mark.parametrize(("last", "label"), [(0.4, "diverged"), (0.39, "collapsed")])
def test_flat_is_also_a_tenth_of_the_best(last, label):
    assert _decide(0.1, 0.5, object_std_ratio=[4.0, last]) == label


@pytest.mark.parametrize("ratios", [[], ["NaN"], [1.0, None], [1.0, "-Infinity"]])
def test_an_unknown_last_ratio_is_not_flat(ratios):
    assert _decide(0.1, 0.5, object_std_ratio=ratios) == "diverged"


def test_a_flat_object_alone_is_no_loss():
    assert _decide(0.5, 0.1, object_std_ratio=[40.0, 0.9]) == "converged"


@pytest.mark.parametrize(("last", "label"), [(0.75, "converged"), (0.751, "diverged")])
def test_a_learnt_run_diverged_if_it_lost_half_of_its_best_progress(last, label):
    assert _decide(0.9, 0.5, last) == label


@pytest.mark.parametrize(("last", "label"), [(0.024, "converged"), (0.025, "diverged"), (0.044, "diverged")])
def test_a_learnt_run_diverged_if_it_ended_over_twice_its_best_val_loss(last, label):
    verdict = judge(_history(0.9, 0.012, 0.165, last))
    assert verdict.label == label
    assert ("over 2 times its best, 0.012" in verdict.reason) == (label == "diverged")


# Patches that make no object


@pytest.mark.parametrize(
    ("last", "constant", "pattern", "label"),
    [
        (0.129, 0.2, 0.13, "converged"),
        (0.13, 0.2, 0.13, "inconsistent"),
        (0.13, 0.13, 0.2, "inconsistent"),
        (0.13, None, 0.13, "inconsistent"),
        (0.13, 0.13, "NaN", "inconsistent"),
        (0.13, None, 0.2, "converged"),
        (0.13, None, None, "converged"),
    ],
)
def test_an_object_that_is_no_better_than_knowing_nothing_is_inconsistent(last, constant, pattern, label):
    known = {"r_stitched_constant": constant, "r_stitched_mean_pattern": pattern}
    verdict = judge(_history(0.9, 0.1, r_stitched=[0.2, last], **known))
    assert verdict.label == label
    assert ("is not under that of" in verdict.reason) == (label == "inconsistent")


def test_the_last_stitched_r_factor_that_was_taken_counts():
    known = {"r_stitched_constant": 0.2, "r_stitched_mean_pattern": 0.1}
    assert _decide(0.9, 0.1, 0.1, r_stitched=[0.3, 0.05, "NaN"], **known) == "converged"
    assert _decide(0.9, 0.1, 0.1, r_stitched=[0.05, 0.3, "NaN"], **known) == "inconsistent"


@pytest.mark.parametrize(
    ("consistency", "shared", "label", "told"),
    [
        (0.7, 0.6, "converged", "ended at"),
        (-0.13, 0.6, "inconsistent", "where they share light their consistency is -0.13, under 0.1"),
        (0.05, None, "inconsistent", "their consistency is 0.05, under 0.1"),
        ("NaN", 0.0, "inconsistent", "they share 0 % of their light, under 1 %"),
        ("NaN", 0.6, "converged", "ended at"),
    ],
)
def test_patches_that_share_no_light_or_do_not_agree_make_no_object_though_its_r_factor_is_somewhat_low(
    consistency, shared, label, told
):
    known = {"r_stitched_constant": 0.2, "r_stitched_mean_pattern": 0.3, "r_stitched": [0.16, "NaN"]}
    agreement = {"patch_consistency": [consistency, "NaN"], "shared_light": [shared, "NaN"]}
    verdict = judge(_history(0.9, 0.1, **known, **agreement))
    assert verdict.label == label
    assert told in verdict.reason


def test_an_object_that_explains_its_patterns_well_is_one_though_its_patches_differ():
    known = {
        "r_stitched_constant": 0.2,
        "r_stitched_mean_pattern": 0.3,
        "patch_consistency": [0.02],
        "shared_light": [1],
    }
    assert _decide(0.1, **known, r_stitched=[0.149]) == "converged"
    assert _decide(0.1, **known, r_stitched=[0.151]) == "inconsistent"


@pytest.mark.parametrize(
    ("flipped", "given", "label"),
    [
        (0.03, 0.1, "inconsistent"),
        (0.079, 0.1, "inconsistent"),
        (0.081, 0.1, "converged"),
        (0.1, 0.03, "converged"),
        (0.9, 2.0, "converged"),
        ("NaN", 0.1, "converged"),
        (0.03, None, "converged"),
    ],
)
def test_a_scan_that_fits_another_orientation_of_its_positions_is_inconsistent_however_well_it_trained(
    flipped, given, label
):
    known = {"r_stitched_constant": 0.2, "r_stitched_mean_pattern": 0.2, "r_stitched": [0.05]}
    verdict = judge(_history(0.1, **known, r_by_orientation={"as_given": given, "flip_rows": flipped}))
    assert verdict.label == label
    assert ("turned by flip_rows, and" in verdict.reason) == (label == "inconsistent")


def test_a_run_that_never_learnt_says_which_orientation_would_fit():
    verdict = judge(_history(0.9, r_by_orientation={"as_given": 0.1, "swap": 0.02}))
    assert verdict.label == "stagnated"
    assert "may be wrong: a conventional reconstruction has an R-factor of 0.02 turned by swap" in verdict.reason


def test_what_was_lost_or_never_learnt_is_not_inconsistent():
    nothing = {"r_stitched": [2.0], "r_stitched_constant": 0.2, "r_stitched_mean_pattern": 0.1}
    assert _decide(0.1, 0.9, **nothing) == "diverged"
    assert _decide(0.9, 0.9, **nothing) == "stagnated"


def test_without_the_stitched_r_factor_the_evidence_says_that_the_rule_was_left_out():
    known = {"r_stitched_constant": 0.2, "r_stitched_mean_pattern": 0.1}
    assert judge(_history(0.1, **known)).evidence["rules_left_out"] == ["inconsistent"]
    assert judge(_history(0.1, r_stitched=[0.3])).evidence["rules_left_out"] == ["inconsistent"]
    evidence = judge(_history(0.1, r_stitched=[0.05], **known)).evidence
    assert (evidence["rules_left_out"], evidence["last_r_stitched"]) == ([], 0.05)


# Values that are not finite


@pytest.mark.parametrize("bad", [_NAN, None, "NaN", "Infinity", "-Infinity", _INF])
def test_one_bad_val_loss_in_the_middle_does_no_harm(bad):
    verdict = judge(_history(0.9, bad, 0.1))
    assert verdict.label == "converged"
    assert verdict.evidence["best_epoch"] == 3


@pytest.mark.parametrize("bad", [_NAN, None, "NaN", "Infinity", "-Infinity"])
def test_a_bad_val_loss_at_the_end_is_diverged(bad):
    assert _decide(0.9, 0.1, bad) == "diverged"
    assert _decide(0.9, 0.9, bad) == "diverged"
    assert _decide(bad, 0.9, bad) == "diverged"


def test_val_losses_that_are_all_bad_are_diverged():
    assert _decide(_NAN, _NAN) == "diverged"
    verdict = judge({"val_loss": ["Infinity"]})
    assert (verdict.label, verdict.reason) == ("diverged", "val_loss was not finite at any epoch")


def test_steps_that_are_not_finite_are_counted_once_and_left_out_of_the_norms():
    verdict = judge({"loss_step": [1.0, "NaN", 1.0, 1.0], "grad_norm_preclip": [1.0, "Infinity", "NaN", 3.0, 5.0]})
    assert verdict.evidence["non_finite_steps"] == 2
    assert verdict.evidence["grad_norm_median"] == 3.0
    assert verdict.evidence["grad_norm_max"] == 5.0


# Evidence


def test_evidence_of_a_run():
    evidence = judge(
        _history(
            0.8,
            0.6,
            0.2,
            0.3,
            object_std_ratio=[0.1, 0.5, 0.9, 0.8],
            loss_step=[1.0] * 101,
            grad_norm_preclip=[float(value) for value in range(101)],
            clipped_fraction=[0.0, 1.0],
            health={
                "act_mean/decoder.1": [0.0, 5.0, 1.0],
                "act_std/decoder.1": [1.0, 9.0, 2.0],
                "act_mean/body.0": [3.0, "NaN"],
                "layerscale_absmax": [0.3, 0.1],
                "layerscale_absmean": [0.2, None],
                "something_new": [1.0],
            },
            something_new="ignored",
        )
    ).evidence
    expected = {
        "epochs": 4,
        "steps": 101,
        "first_val_loss": 0.8,
        "last_val_loss": 0.3,
        "best_val_loss": 0.2,
        "best_epoch": 3,
        "best_progress": 0.8,
        "last_progress": 0.7,
        "plateau_left_epoch": 2,
        "last_object_std_ratio": 0.8,
        "best_object_std_ratio": 0.9,
        "grad_norm_median": 50.0,
        "grad_norm_p99": 99.0,
        "grad_norm_max": 100.0,
        "clipped_fraction_mean": 0.5,
        "non_finite_steps": 0,
        "layerscale_absmax": 0.3,
        "layerscale_absmax_last": 0.1,
        "layerscale_absmean_last": None,
        "loss_spikes": {"count": 0, "per_1000_steps": 0.0, "largest": None, "step": None},
    }
    assert {name: evidence[name] for name in expected} == expected
    assert list(evidence["activation_drift"].items()) == [
        ("decoder.1", {"first_mean": 0.0, "last_mean": 1.0, "first_std": 1.0, "last_std": 2.0}),
        ("body.0", {"first_mean": 3.0, "last_mean": None, "first_std": None, "last_std": None}),
    ]


def test_evidence_of_an_empty_history_says_that_nothing_is_known():
    evidence = judge({}).evidence
    assert (evidence["epochs"], evidence["steps"], evidence["non_finite_steps"]) == (0, 0, 0)
    assert evidence["best_val_loss"] is evidence["best_epoch"] is evidence["plateau_left_epoch"] is None
    assert evidence["grad_norm_p99"] is evidence["last_progress"] is evidence["last_object_std_ratio"] is None


def test_evidence_names_the_largest_spike_and_its_step():
    loss = _noisy(600, 0.05)
    loss[200] *= 4
    loss[400] *= 8
    found = judge({"loss_step": loss.tolist()}).evidence["loss_spikes"]
    assert (found["count"], found["step"]) == (2, 400)
    assert found["per_1000_steps"] == pytest.approx(2000 / 600)
    assert found["largest"] == pytest.approx(8, rel=0.2)


def test_a_spike_alone_does_not_spoil_a_run():
    loss = _noisy(600, 0.05)
    loss[400] *= 100
    assert _decide(0.9, 0.1, loss_step=loss.tolist()) == "converged"


def test_a_closer_twin_is_said_of_a_converged_run():
    verdict = judge(_history(0.1, object_correlation=0.3, twin_correlation=0.9))
    assert verdict.label == "converged"
    assert verdict.evidence["twin"] is True
    assert "twin image is closer (correlation 0.9) than the object (0.3)" in verdict.reason


def test_a_closer_object_is_no_twin():
    verdict = judge(_history(0.1, object_correlation=0.9, twin_correlation=0.3))
    assert verdict.evidence["twin"] is False
    assert "twin" not in verdict.reason


@pytest.mark.parametrize("unknown", ["NaN", None])
def test_an_unknown_correlation_tells_no_twin(unknown):
    evidence = judge(_history(0.1, object_correlation=unknown, twin_correlation=0.3)).evidence
    assert evidence["twin_correlation"] == 0.3
    assert not {"object_correlation", "twin"} & evidence.keys()


def test_a_failed_run_has_no_twin_but_its_correlations():
    evidence = judge(_history(0.9, object_correlation=0.01, twin_correlation=0.02)).evidence
    assert (evidence["object_correlation"], evidence["twin_correlation"]) == (0.01, 0.02)
    assert "twin" not in evidence


def test_every_verdict_is_a_failure_or_no_result_but_converged():
    assert {*FAILED, *NO_RESULT, "converged"} == set(get_args(VerdictLabel))
    assert not {*FAILED} & {*NO_RESULT, "converged"}


def test_a_run_without_a_result_is_no_failure():
    assert not judge({"events": {"interrupted": True}}).failed
    assert not judge({"events": {"pruned": True}}).failed
    assert not judge(_history(0.1)).failed
    assert judge(_history(0.9)).failed


def test_thresholds_are_those_of_the_config():
    history = _history(0.9, 0.7, object_std_ratio=[0.5, 0.4])
    assert judge(history).label == "converged"
    assert judge(history, HealthConfig(learnt_progress=0.4)).label == "stagnated"
    assert judge(history, HealthConfig(learnt_progress=0.4, diverged_ratio=0.5)).label == "diverged"
    assert judge(history, HealthConfig(learnt_progress=0.4, diverged_constants=0.6)).label == "diverged"
    assert judge(history, HealthConfig(dead_ratio=0.5)).label == "collapsed"
    lost = _history(0.1, 0.7, object_std_ratio=[0.5, 0.4])
    assert judge(lost).label == "diverged"
    assert judge(lost, HealthConfig(flat_ratio=0.45)).label == "collapsed"
    assert judge(lost, HealthConfig(flat_share_of_best=0.9)).label == "collapsed"
    assert judge(_history(0.5, 0.7), HealthConfig(lost_share=0.7)).label == "diverged"
    assert judge(_history(0.5, 0.7), HealthConfig(lost_ratio=1.3)).label == "diverged"


# Any history


def test_a_history_and_its_json_have_the_same_verdict():
    history = History(val_loss_constant=1.0, events={"non_finite": {"step": 1, "layer": "lift"}})
    history.add_steps([[0.5, 1.0, 1.0, 0.0], [_NAN, _INF, _INF, 1.0]])
    history.add_epoch(train_loss=_NAN, val_loss=_INF, lr=1e-3, object_std_ratio=_NAN, val_amp_ssim=None)
    history.add_health({"norm_weight_absmax": _NAN, "act_mean/lift": 1.0, "act_std/lift": _INF})
    verdict = judge(json.loads(history.to_json()))
    assert verdict == judge(history.to_mapping())
    assert verdict.label == "non_finite"
    assert verdict.evidence["non_finite_steps"] == 1


def test_a_fresh_history_is_unknown():
    assert judge(json.loads(History().to_json())).label == "unknown"


def test_series_may_have_unequal_lengths():
    history = _history(0.9, 0.1, object_std_ratio=[0.5], loss_step=[1.0] * 40, grad_norm_preclip=[1.0] * 39)
    assert judge(history).label == "converged"


@pytest.mark.parametrize("huge", [1.7e308, 10**400, -1.7e308], ids=["large", "too large", "negative"])
def test_huge_numbers_pass_without_a_warning(huge):
    series = [huge] * 100
    names = ("val_loss", "object_std_ratio", "loss_step", "grad_norm_preclip", "clipped_fraction")
    verdict = judge(dict.fromkeys(names, series) | {"val_loss_constant": huge, "val_loss_floor": -1.7e308})
    json.dumps(verdict.evidence, allow_nan=False)
    assert spikes([1.7e308] * 100) == []


_numbers = st.one_of(st.floats(), st.none(), st.integers(), st.sampled_from(["NaN", "Infinity", "-Infinity"]))
_series = st.lists(_numbers, max_size=30)
_details = st.one_of(
    st.none(),
    st.booleans(),
    st.dictionaries(st.sampled_from(["step", "layer", "peak_bytes", "epoch", "epochs"]), _numbers),
)
_histories = st.fixed_dictionaries(
    {},
    optional={
        **{name: _series for name, value in vars(History()).items() if isinstance(value, list)},
        **{name: _numbers for name, value in vars(History()).items() if isinstance(value, float)},
        "health": st.dictionaries(
            st.sampled_from(
                ["norm_weight_absmax", "layerscale_absmean", "act_mean/a", "act_std/a", "act_std/b", "moved/a"]
                + ["moved/b", "update_std/a"]
            ),
            _series,
        ),
        "events": st.dictionaries(
            st.sampled_from(["non_finite", "out_of_memory", "interrupted", "pruned", "given_up"]), _details
        ),
    },
)


@given(_histories)
def test_any_history_has_a_known_verdict_and_evidence_for_strict_json(history):
    verdict = judge(history)
    assert verdict.label in get_args(VerdictLabel)
    assert verdict.reason
    assert json.loads(json.dumps(verdict.evidence, allow_nan=False)) == verdict.evidence
    if stability := measure_stability(history):
        json.dumps(stability.to_mapping(), allow_nan=False)
        assert stability.reason


# Spikes


@pytest.mark.parametrize(("spread", "factor"), [(0.1, 3.0), (0.2, 5.0)])
def test_a_jump_is_found_at_its_step(spread, factor):
    series = _noisy(2000, spread)
    places = list(range(100, 2000, 200))
    series[places] *= factor
    found = spikes(series)
    assert [spike.step for spike in found] == places
    assert [spike.value for spike in found] == series[places].tolist()
    assert np.mean([spike.ratio for spike in found]) == pytest.approx(factor, rel=0.2)


@pytest.mark.parametrize("spread", [0.1, 0.2, 0.3])
@pytest.mark.parametrize("kind", ["gamma", "lognormal"])
def test_ordinary_batch_noise_has_less_than_one_spike_in_10_000_steps(kind, spread):
    steps = 43_000
    noise = np.random.default_rng(0).gamma(spread**-2, spread**2, steps) if kind == "gamma" else 1.0
    series = _noisy(steps, spread if kind == "lognormal" else 0.0) * noise
    assert len(spikes(series)) <= 4


@pytest.mark.parametrize("growth", [-0.03, 0.001, 0.01])
def test_a_slow_drift_has_no_spike(growth):
    assert spikes(np.exp(growth * np.arange(2000))) == []


def test_a_spike_does_not_hide_the_next_one():
    series = np.ones(300)
    series[[100, 120, 140]] = 100.0
    assert spikes(series) == [Spike(step, 100.0, 100.0) for step in (100, 120, 140)]


def test_a_spikes_ratio_is_to_the_median_before():
    assert spikes([1.0, 3.0] * 16 + [100.0]) == [Spike(32, 100.0, 50.0)]


def test_close_steps_are_one_spike_and_distant_ones_are_two():
    series = np.ones(300)
    series[[100, 102, 112, 123]] = [3.0, 9.0, 5.0, 4.0]
    assert spikes(series) == [Spike(102, 9.0, 9.0), Spike(123, 4.0, 4.0)]


@pytest.mark.parametrize(("height", "count"), [(2.0, 0), (2.01, 1)])
def test_a_spike_of_a_quiet_series_more_than_doubles_it(height, count):
    assert len(spikes([1.0] * 100 + [height])) == count


def test_a_spike_stands_out_of_the_noise():
    noisy = [0.5, 1.5, 1.0] * 30
    assert spikes([*noisy, 1 + 8 * 1.4826 * 0.5 - 0.01]) == []
    assert [spike.step for spike in spikes([*noisy, 1 + 8 * 1.4826 * 0.5 + 0.01])] == [90]


def test_non_finite_values_are_neither_spikes_nor_neighbours():
    series = np.ones(200)
    series[40:140:2] = np.nan
    series[41:141:4] = np.inf
    series[150] = 5.0
    assert spikes(series) == [Spike(150, 5.0, 5.0)]


@pytest.mark.parametrize(("before", "count"), [(15, 0), (16, 1)])
def test_a_spike_needs_sixteen_values_before_it(before, count):
    assert len(spikes([1.0] * before + [10.0])) == count
    assert len(spikes([1.0] * before + [math.nan] * 40 + [10.0])) == count


@pytest.mark.parametrize("series", [[], [1.0], [math.nan] * 100, [0.0] * 100 + [1.0]])
def test_series_without_a_level_have_no_spikes(series):
    assert spikes(series) == []


def test_a_run_that_is_no_better_than_one_pattern_everywhere_says_so():
    assert "one mean pattern everywhere is no worse" in judge(_history(0.5, 0.4, val_loss_mean_pattern=0.4)).reason
    assert "mean pattern" not in judge(_history(0.5, 0.4, val_loss_mean_pattern=0.45)).reason
    assert "mean pattern" not in judge(_history(0.5, 0.4)).reason


# Supervised runs: their own loss, of which a constant object has 1, beside the R-factor.


def _supervised(val_loss, own, **others):
    return judge(_history(*val_loss, supervised_loss=own, supervised_loss_constant=1.0, **others))


@pytest.mark.parametrize(
    ("val_loss", "own", "label"),
    [
        ([0.9, 0.9], [0.9, 0.8], "stagnated"),
        ([0.9, 0.95], [0.5, 0.3], "converged"),  # learnt by its own loss alone
        ([0.9, 0.3], [0.9, 0.9], "converged"),  # by R alone
        ([0.3, 0.9], [0.5, 0.3], "converged"),  # R was lost, its own loss was not
        ([0.3, 0.2], [0.3, 0.9], "converged"),  # and the other way round
        ([0.3, 0.9], [0.3, 0.9], "diverged"),
        ([0.95, 0.9], [0.3, 0.9], "diverged"),  # R had never learnt, so it does not speak for the run
        ([0.3, 0.9], [0.9, 0.8], "diverged"),
        ([0.3, 0.2], [0.3, _INF], "converged"),
        ([0.3, _INF], [0.3, _INF], "diverged"),
    ],
)
def test_a_supervised_run_learns_by_either_loss_and_is_lost_by_all_that_had_learnt(val_loss, own, label):
    assert _supervised(val_loss, own).label == label


def test_the_reason_and_the_evidence_of_a_supervised_run_tell_its_own_loss():
    found = _supervised([0.9, 0.8, 0.85], [0.9, 0.3, 0.4])
    assert found.reason.startswith(
        "progress (0: constant object, 1: photon noise alone) reached 0.2 at epoch 2 (by its own loss 0.7) and"
    )
    assert {name: value for name, value in found.evidence.items() if "supervised" in name} == {
        **{"supervised_loss_constant": 1.0, "last_supervised_loss": 0.4, "best_supervised_loss": 0.3},
        **{"last_supervised_progress": pytest.approx(0.6), "best_supervised_progress": pytest.approx(0.7)},
    }
    assert found.evidence["plateau_left_epoch"] == 2
    lost = _supervised([0.3, 0.9], [0.4, 0.9]).reason
    assert "but val_loss ended at 0.9, over 2 times its best, 0.3, and supervised_loss ended at 0.9, over 2" in lost
    assert _supervised([0.9], [0.8]).reason.startswith(
        "never learnt: progress reached 0.1, under 0.25 (by its own loss 0.2); val_loss went"
    )
    assert not any("supervised" in name for name in judge(_history(0.1)).evidence)


def test_a_supervised_run_whose_patches_make_no_object_is_inconsistent_and_its_positions_are_not_blamed():
    stitched = {"r_stitched": [0.99], "r_stitched_constant": 0.9, "r_stitched_mean_pattern": 0.95}
    found = _supervised([0.5], [0.5], **stitched)
    assert found.label == "inconsistent"
    assert "positions" not in found.reason


def test_stability_of_a_supervised_run_counts_from_the_epoch_at_which_its_own_loss_had_learnt():
    history = _history(0.9, 0.8, 1.6, supervised_loss=[0.9, 0.5, 0.5], supervised_loss_constant=1.0)
    stability = measure_stability(history)
    assert (stability.relapses, stability.max_drawdown) == (1, 2.0)
    history["supervised_loss"] = [0.9, 0.9, 0.9, 0.1]  # longer than val_loss: that epoch is not known
    assert measure_stability(history) is None
