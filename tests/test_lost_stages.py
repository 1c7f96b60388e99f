"""Stages whose output no longer depends on the pattern, while the network goes on around them."""

import json

import lightning
import pytest
import torch
from small_runs import fit
from test_verdicts import LEARNS

from fnostab.config import resolve_config
from fnostab.health import HealthConfig, judge, measure_stability, stage_losses
from fnostab.health.parts import lost_stages
from fnostab.health.stability import stability_series
from fnostab.models.hybrid import HybridUNOGenerator
from fnostab.models.network_stages import pattern_shares, stage_statistics


def _history(**shares):
    """A run that had learnt from its first epoch on, and the shares of its stages before it and after each epoch."""
    epochs = max(len(values) for values in shares.values()) - 1
    health = {f"pattern_share/{name}": values for name, values in shares.items()}
    losses = {"val_loss": [0.1] * epochs, "val_loss_constant": 1.0, "val_loss_floor": 0.0}
    return losses | {"health": health}


def _watched(**shares):
    """What of a history was watched every ten steps: outputs with a deviation of 2."""
    steps = [10.0 * place for place in range(max(len(values) for values in shares.values()))]
    watched = {"step": steps}
    for name, values in shares.items():
        watched |= {f"act_std/{name}": [2.0] * len(values), f"middle_std/{name}": [2 * value for value in values]}
    return {"watched": watched}


def test_a_stage_is_lost_under_a_tenth_of_what_it_had_before_the_first_step():
    found = measure_stability(_history(a=[0.2, 0.019], b=[0.2, 0.021], c=[0.001, 0.0002], d=[0.2, 0.0]))
    assert (found.label, found.lost_stages) == ("partly_dead", ["a", "d"])
    assert found.numbers["lost_stages"] == 2
    assert found.reason.startswith("the output of 2 stages hardly depends on the pattern any more: a, d; val_loss")
    evidence = judge(_history(a=[0.2, 0.019])).evidence
    assert evidence["lost_stages"] == ["a"]


def test_a_stage_that_never_depended_on_the_pattern_is_not_lost():
    assert measure_stability(_history(positions=[0.0, 0.0], a=[0.1, 0.1])).lost_stages == []


def test_a_stage_that_came_back_is_not_lost_and_the_epochs_tell_when_it_was():
    history = _history(a=[0.1, 0.001, 0.1, 0.2], b=[0.1, 0.1, 0.1, 0.001])
    assert stability_series(history)["lost_stages"] == [1, 0, 1]
    assert measure_stability(history).lost_stages == ["b"]


@pytest.mark.parametrize("shares", [["NaN", "NaN"], ["NaN", 0.1], [0.1, "NaN"], []])
def test_where_no_number_tells_it_is_not_known(shares):
    history = _history(a=[0.1, 0.1]) | {"health": {"pattern_share/a": shares}}
    found = measure_stability(history)
    assert (found.label, found.lost_stages) == ("steady", None)
    assert "lost_stages" not in found.numbers | judge(history).evidence


def test_the_threshold_is_that_of_the_config():
    health = _history(a=[0.1, 0.04])["health"]
    assert lost_stages(health, -1) == []
    assert lost_stages(health, -1, HealthConfig(lost_stage=0.5)) == ["a"]


def test_a_watched_run_tells_since_which_step_and_its_stages_come_in_that_order():
    history = _watched(late=[0.1, 0.1, 0.1, 0.001], early=[0.1, 0.001, 0, 0], back=[0.1, 0.001, 0.001, 0.1])
    assert stage_losses(history) == {"early": 10, "late": 30}
    assert judge(history).evidence["lost_since_step"] == {"early": 10, "late": 30}
    assert stage_losses({}) == {}


def test_a_watched_stage_that_works_for_a_moment_is_lost_all_the_same_and_one_that_is_lost_for_a_moment_is_not():
    lost, works = 0.001, 0.1
    history = _watched(
        passing=[works, *[lost] * 3, *[works] * 16],
        back=[works, lost, *[works] * 3, *[lost] * 10, works, *[lost] * 4],
        at_the_end=[*[works] * 19, lost],
    )
    assert stage_losses(history) == {"back": 50}


def test_a_watched_run_from_before_the_shares_were_recorded_is_measured_by_what_was_watched():
    history = {**_history(a=[0.1, 0.1]), **_watched(a=[0.1, 0.001]), "health": {}}
    assert measure_stability(history).lost_stages == ["a"]


@pytest.mark.parametrize(
    "watched",
    [
        {},
        {"step": []},
        {"step": [0.0], "middle_std/a": [0.0]},
        {"step": [0.0, "NaN"], "middle_std/a": [1.0, 0.0], "act_std/a": [1.0, 1.0]},
        {"step": [0.0, 1.0], "middle_std/a": [None, 0.0], "act_std/a": [1.0, 1.0]},
    ],
)
def test_what_is_incomplete_loses_no_stage(watched):
    assert stage_losses({"watched": watched}) == {}


def test_a_stage_that_gives_the_same_for_every_pattern_has_no_share_and_the_others_theirs():
    torch.manual_seed(0)
    network = HybridUNOGenerator(hidden_channels=4, n_blocks=3, modes=4, N=16, min_resolution=4)
    patterns = torch.rand(3, 1, 16, 16)
    found = pattern_shares(network, lambda: network(patterns))
    known = stage_statistics(network, lambda: network(patterns))
    assert list(found) == [f"pattern_share/{stage}" for stage in _stages(known)]
    for stage in _stages(known):
        expected = known[f"middle_std/{stage}"] / known[f"act_std/{stage}"]
        assert found[f"pattern_share/{stage}"] == pytest.approx(expected.item(), rel=1e-6)
    _silence(network.ups[0])
    found = pattern_shares(network, lambda: network(patterns))
    assert found["pattern_share/ups.0"] == 0
    assert found["pattern_share/out"] > 1e-3


def test_one_pattern_alone_tells_nothing():
    network = HybridUNOGenerator(hidden_channels=4, n_blocks=2, modes=4, N=16)
    found = pattern_shares(network, lambda: network(torch.rand(1, 1, 16, 16)))
    assert all(share != share for share in found.values())  # NaN


@pytest.mark.parametrize("arch", ["hybrid", "stable_hybrid", "hybrid_original", "fno", "cnn"])
def test_a_network_that_learns_has_lost_nothing(tmp_path, arch):
    _, history, _ = fit(resolve_config(LEARNS | {"arch": arch, "epochs": 4}), tmp_path)
    shares = {name: values for name, values in history.health.items() if name.startswith("pattern_share/")}
    assert shares
    assert all(len(values) == 5 for values in shares.values())
    assert lost_stages(json.loads(history.to_json())["health"], -1) == []


def test_a_decoder_stage_that_dies_in_a_run_that_goes_on_is_found(tmp_path):
    class Silence(lightning.Callback):
        def on_train_epoch_start(self, trainer, module):
            if trainer.current_epoch == 4:
                _silence(module.generator.ups[0])

    _, history, _ = fit(resolve_config(LEARNS | {"fno_blocks": 3}), tmp_path, extra=[Silence()])
    mapping = json.loads(history.to_json())
    assert judge(mapping).label == "converged"
    found = measure_stability(mapping)
    assert (found.label, found.lost_stages) == ("partly_dead", ["ups.0"])
    assert stability_series(mapping)["lost_stages"][3:] == [0, 1, 1, 1, 1]


def _stages(known):
    return [name.removeprefix("act_std/") for name in known if name.startswith("act_std/")]


@torch.no_grad()
def _silence(stage):
    """Push the inputs of the stage's last GELU so far below 0 that it gives nothing."""
    last = [layer for layer in stage.modules() if isinstance(layer, torch.nn.Conv2d)][-1]
    last.bias.fill_(-1e3)
