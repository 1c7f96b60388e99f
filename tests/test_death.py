"""When and where a watched network died, from the mapping of its history alone."""

import math

import pytest

from fnostab.health import HealthConfig, History, death, judge


def _history(ratio, stages, **series):
    """A history that was watched every ten steps; `stages` are the deviations over patterns, of outputs around 1."""
    steps = [10.0 * place for place in range(len(ratio))]
    watched = {"step": steps, "object_std_ratio": ratio, "loss": [0.5 + place for place in range(len(ratio))]}
    for name, values in stages.items():
        watched |= {f"act_std/{name}": [1.0] * len(values), f"middle_std/{name}": values}
    return {"watched": watched, **series}


def test_the_death_is_the_first_watched_step_of_those_that_last_to_the_end():
    norms = [1.0] * 20 + [3.0, 90.0] + [2.0] * 30
    found = death(_history([1, 0, 0.5, 1e-9, 0, 0], {"a": [1, 1, 1, 1, 1, 1]}, grad_norm_preclip=norms))
    assert (found.step, found.last_alive_step, found.stage) == (30, 20, None)
    assert (found.loss_before, found.loss_at_death) == (2.5, 3.5)
    assert (found.grad_norm_max, found.grad_norm_ratio) == (90, 90)


def test_the_stage_that_died_first_is_the_first_in_time_and_then_in_order():
    dead = 1e-8
    stages = {"late": [1, 1, 1, dead], "passing": [dead, 1, 1, 1], "first": [1, 1, dead, 0], "second": [1, 1, 0, 0]}
    assert death(_history([1, 1, 0, 0], {"late": stages["late"]})).stage is None  # the network was dead before it
    assert death(_history([1, 1, 0, 0], stages)).stage == "first"
    assert death(_history([1, 1, 0, 0], {**stages, "earlier": [1, 0, 0, 0]})).stage == "earlier"


def test_where_all_stages_came_back_the_stage_is_one_that_was_dead_when_the_network_died():
    stages = {"alive": [1, 1, 1, 1, 1], "back": [1, 0, 0, 0, 1], "earlier": [0, 1, 1, 1, 1]}
    assert death(_history([1, 1, 0, 0, 0], stages)).stage == "back"


def test_the_thresholds_are_those_of_the_config():
    history = _history([1, 1e-4, 1e-4], {"a": [1, 1e-3, 1e-3]})
    assert death(history) is None
    found = death(history, HealthConfig(dead_ratio=1e-3, dead_stage=1e-2))
    assert (found.step, found.stage) == (10, "a")


def test_a_network_that_never_lived_died_at_the_first_watched_step_and_nothing_is_known_of_before():
    found = death(_history([0, 0], {"a": [0, 0]}, grad_norm_preclip=[1.0] * 10))
    assert (found.step, found.stage, found.last_alive_step) == (0, "a", None)
    assert math.isnan(found.loss_before)
    assert math.isnan(found.grad_norm_max)


@pytest.mark.parametrize(
    "history",
    [
        {},
        {"watched": None},
        {"watched": {}},
        {"watched": {"step": [], "object_std_ratio": []}},
        {"watched": {"object_std_ratio": [0, 0]}},
        {"watched": {"step": [0, 10], "object_std_ratio": [0, "NaN"]}},
        {"watched": {"step": ["NaN", "x"], "object_std_ratio": [0, 0]}},
        {"watched": {"step": [0, 10], "object_std_ratio": [0, 1]}},
        {"watched": {"step": [0, 10], "object_std_ratio": "dead"}},
    ],
)
def test_what_is_not_known_to_have_died_has_not(history):
    assert death(history) is None
    judge(history)


def test_damaged_series_do_no_harm():
    history = _history([1, 0, 0], {"short": [0], "a": [1, None, "NaN"], "b": [1, 0, 0]}, grad_norm_preclip=["NaN"])
    found = death(history)
    assert (found.step, found.stage) == (10, "b")
    assert math.isnan(found.grad_norm_ratio)


def test_only_the_reason_of_a_dead_network_tells_of_its_death():
    watched = _history([1, 0, 0], {"out": [1, 0, 0]})
    epochs = {"val_loss": [0.3, 0.3], "val_loss_constant": 0.2, "object_std_ratio": [1.0, 0.0]}
    assert "; dead from step 10 on, first in `out`; it had never learnt" in judge(watched | epochs).reason
    alive = judge(watched | epochs | {"object_std_ratio": [1.0, 1.0]})
    assert "dead" not in alive.reason
    assert alive.evidence["died_at_step"] == 10
    assert "died_at_step" not in judge(epochs).evidence


def test_an_old_history_without_watched_series_is_read_and_one_with_them_comes_back_as_it_was():
    history = History()
    history.load({"val_loss": [0.5]})
    assert history.watched == {}
    history.add_watched({"step": 0, "object_std_ratio": math.inf, "act_std/out": math.nan})
    again = History()
    again.load(history.to_mapping())
    assert again.to_json() == history.to_json()
    assert again.watched["object_std_ratio"] == [math.inf]
