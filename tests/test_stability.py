"""How steadily a run trained once it had learnt."""

import math

import pytest

from fnostab.health import HealthConfig, measure_stability
from fnostab.health.stability import stability_series


def _history(*val_loss, **others):
    """A run whose progress is 1 - val_loss: the constant object has 1, photon noise alone 0."""
    return {"val_loss": list(val_loss), "val_loss_constant": 1.0, "val_loss_floor": 0.0, **others}


def _blocks(**moved):
    return {"health": {f"moved/{name}": ["NaN", *values] for name, values in moved.items()}}


@pytest.mark.parametrize("history", [{}, _history(), _history(0.9, 0.8), {"val_loss": [0.1, 0.2]}])
def test_a_run_that_never_learnt_has_no_stability(history):
    assert measure_stability(history) is None
    assert stability_series(history) == {}


def test_a_run_that_never_rose_is_steady():
    found = measure_stability(_history(0.9, 0.5, 0.4, 0.3))
    assert (found.label, found.max_drawdown, found.mean_excess, found.relapses) == ("steady", 1.0, 0.0, 0)
    assert found.reason == "val_loss rose to at most 1 times its lowest (0 relapses)"


def test_drawdown_is_the_ratio_to_the_lowest_before():
    found = measure_stability(_history(0.5, 0.2, 0.25, 0.1, 0.14, 0.12))
    assert found.label == "steady"
    assert found.max_drawdown == pytest.approx(1.4)
    assert found.mean_excess == pytest.approx((0.25 + 0.4 + 0.2) / 6)


def test_what_was_before_the_run_learnt_does_not_count():
    found = measure_stability(_history(0.8, 1.9, 0.9, 0.7, 0.6, loss_step=[1.0] * 50))
    assert (found.label, found.max_drawdown, found.relapses) == ("steady", 1.0, 0)


@pytest.mark.parametrize(("rise", "relapses"), [(0.15, 0), (0.151, 1)])
def test_a_relapse_is_a_rise_over_one_and_a_half_times_the_lowest(rise, relapses):
    found = measure_stability(_history(0.5, 0.1, rise, 0.1))
    assert (found.label, found.relapses) == ("relapsed" if relapses else "steady", relapses)


@pytest.mark.parametrize(
    ("val_loss", "relapses"),
    [
        ([0.1, 0.3, 0.4, 0.5], 1),  # one rise that goes on
        ([0.1, 0.5, 0.31, 0.5], 1),  # less than half of it was made good
        ([0.1, 0.5, 0.3, 0.5], 2),  # half of it was
        ([0.1, 0.5, 0.3, 0.4], 1),  # and what follows is no rise over 1.5 times that
        ([0.1, 0.5, 0.1, 0.2, 0.1, 0.2], 3),
        ([0.1, "Infinity", "NaN", 0.1, 0.1], 1),
    ],
)
def test_a_rise_ends_when_half_of_it_is_made_good(val_loss, relapses):
    assert measure_stability(_history(*val_loss)).relapses == relapses


def test_relapses_are_told_per_steps_since_the_run_had_learnt():
    found = measure_stability(_history(0.9, 0.1, 0.2, 0.1, 0.2, loss_step=[1.0] * 500))
    assert (found.relapses, found.relapses_per_1e5_steps) == (2, pytest.approx(1e5 * 2 / 300))
    assert measure_stability(_history(0.9, 0.1, 0.2)).relapses_per_1e5_steps is None
    assert measure_stability(_history(0.1, loss_step=[1.0] * 100)).relapses_per_1e5_steps is None


def test_a_block_whose_parameters_do_not_move_is_dead_and_named():
    found = measure_stability(_history(0.5, 0.1, **_blocks(a=[1.0, 0.0], b=[0.0, 0.5])))
    assert (found.label, found.dead_blocks) == ("partly_dead", ["a"])
    assert found.reason.startswith("1 block of the network died: a; ")
    assert found.numbers["dead_blocks"] == 1


@pytest.mark.parametrize(("update", "dead"), [(0.0, ["a"]), (1e-7, ["a"]), (1e-5, []), ("NaN", [])])
def test_a_block_whose_update_is_constant_but_for_rounding_is_dead(update, dead):
    health = {"act_mean/a": [0.0, 0.6], "act_std/a": [1.0, 0.8], "update_std/a": [1.0, update], "moved/a": ["NaN", 1.0]}
    assert measure_stability(_history(0.1, health=health)).dead_blocks == dead


def test_dead_blocks_come_before_relapses():
    found = measure_stability(_history(0.1, 0.9, 0.1, **_blocks(a=[1.0, 1.0, 0.0])))
    assert (found.label, found.relapses) == ("partly_dead", 1)


@pytest.mark.parametrize("health", [{}, {"act_mean/a": [0.0, 0.0], "act_std/a": [0.0, 0.0]}, {"moved/a": ["NaN"]}])
def test_without_a_series_that_tells_it_is_not_known_which_blocks_are_dead(health):
    found = measure_stability(_history(0.1, 0.1, health=health))
    assert (found.label, found.dead_blocks) == ("steady", None)
    assert "dead_blocks" not in found.numbers


def test_the_series_are_what_the_measures_of_a_run_that_ended_there_would_be():
    val_loss, steps = [0.9, 0.5, 0.1, 0.3, 0.1, 0.2, 0.19], 10
    moved = [1.0, 1.0, 0.0, 1.0, 1.0, 0.5, 0.0]
    whole = _history(*val_loss, loss_step=[1.0] * steps * 7, **_blocks(a=moved, b=[1.0] * 7))
    found = stability_series(whole)
    assert [math.isnan(value) for value in found["relapses"]] == [True] + 6 * [False]
    for epochs in range(2, 8):
        part = _history(*val_loss[:epochs], loss_step=[1.0] * steps * epochs)
        part |= _blocks(a=moved[:epochs], b=[1.0] * epochs)
        then = {name: values[epochs - 1] for name, values in found.items()}
        known = {name: value for name, value in then.items() if not math.isnan(value)}
        assert measure_stability(part).numbers == pytest.approx(known)


def test_the_thresholds_are_those_of_the_config():
    history = _history(0.9, 0.1, 0.14, health={"update_std/a": [1.0, 1.0, 1.0, 0.1], "act_std/a": [1.0] * 4})
    history["health"]["act_mean/a"] = [0.0] * 4
    assert measure_stability(history).label == "steady"
    assert measure_stability(history, HealthConfig(relapse_ratio=1.2)).label == "relapsed"
    assert measure_stability(history, HealthConfig(dead_update=0.1)).label == "partly_dead"
    assert measure_stability(history, HealthConfig(learnt_progress=0.95)) is None


@pytest.mark.parametrize("history", [None, [0.1]])
def test_what_is_no_mapping_is_refused(history):
    with pytest.raises(ValueError, match="`history` .* must be an object of series by name"):
        measure_stability(history)
