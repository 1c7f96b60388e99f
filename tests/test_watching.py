"""Runs that are watched every few steps: what is recorded, when, and that the training does not notice."""

import math
from types import SimpleNamespace

import lightning
import mlflow
import numpy as np
import pytest
import torch
from small_runs import KillAfter, Sink, fit, new_module
from test_replay import BadPattern, states_equal, tiny_config
from torch import nn

from fnostab.config import resolve_config
from fnostab.health import History, death, judge
from fnostab.models.cnn import CNNGenerator
from fnostab.models.fno import CascadedFNOGenerator
from fnostab.models.hybrid import HybridUNOGenerator
from fnostab.models.network_stages import find_stages, stage_grad_norms, stage_statistics
from fnostab.training.fixed_batch import watch_fixed_batch
from fnostab.training.validation import object_std
from fnostab.training.watched_series import WatchedSeries
from fnostab.workflows.sync import _upload

#: Epochs of six steps, three of them.
_WATCHED = {"train__watch_every_steps": 4}
_STEPS = [0, 4, 8, 12, 16, 18]
_STAGES = ["lifter", "encoder.0", "downs.0", "encoder.1", "bottleneck", "ups.0", "out"]
_KINDS = ("act_std", "pattern_std", "middle_std", "dead_channels", "weight_norm", "grad_norm")


@pytest.fixture
def several(monkeypatch):
    """Launches of three steps, on CPUs too."""
    monkeypatch.setattr("fnostab.training.replay.STEPS_A_LAUNCH", 3)
    monkeypatch.setattr("fnostab.training.module.replays_on", lambda device: True)


def _rows(sink):
    return {(key, step): value for key, value, step, _ in sink.rows}


@pytest.mark.parametrize("keys", [{}, {"train__cuda_graph": False}], ids=["replayed", "ordinary"])
def test_a_watched_training_has_the_weights_of_one_that_is_not(several, tmp_path, keys):
    # Batches of one size, and a learning rate that single precision has.
    keys = keys | {"train__epochs": 9, "data__max_train_patches": 30, "optim__lr": 2**-10}
    module, history, _ = fit(tiny_config(**keys, train__watch_every_steps=5), tmp_path / "watched")
    random = torch.get_rng_state()
    other, expected, _ = fit(tiny_config(**keys), tmp_path / "unwatched")
    assert history.steps == 54
    assert torch.equal(random, torch.get_rng_state())
    assert states_equal(module, other)
    assert history.loss_step == expected.loss_step
    assert expected.watched == {}
    assert "watched" not in expected.to_mapping()


def test_every_stage_is_watched_at_step_0_at_the_interval_and_after_the_last_step(tmp_path):
    _, history, sink = fit(tiny_config(**_WATCHED), tmp_path)
    watched = history.watched
    assert watched["step"] == _STEPS
    assert {*watched} - {"step", "loss", "object_std_ratio"} == {f"{kind}/{s}" for kind in _KINDS for s in _STAGES}
    assert [name.partition("/")[2] for name in watched if name.startswith("act_std/")] == _STAGES  # as they ran
    assert {len(values) for values in watched.values()} == {len(_STEPS)}
    for name, values in watched.items():
        known = [(at, value) for at, value in zip(_STEPS, values, strict=True) if not math.isnan(value)]
        assert len(known) == len(_STEPS) - name.startswith("grad_norm/")
        if name != "step":
            assert [(at, value) for (key, at), value in _rows(sink).items() if key == f"watch/{name}"] == known


def test_the_gradients_of_the_stages_are_those_of_the_step_before_clipping(tmp_path):
    module, history, sink = fit(tiny_config(**_WATCHED, train__layer_norms_every_steps=3), tmp_path)
    for place, step in enumerate(_STEPS[:-1]):
        norms = [history.watched[f"grad_norm/{stage}"][place] for stage in _STAGES]
        assert np.linalg.norm(norms) == pytest.approx(history.grad_norm_preclip[step], rel=1e-5)
    weights = [history.watched[f"weight_norm/{stage}"][-1] for stage in _STAGES]
    expected = torch.cat([parameter.detach().flatten() for parameter in module.generator.parameters()]).norm()
    assert np.linalg.norm(weights) == pytest.approx(float(expected), rel=1e-5)
    # The norms of parameters go to the store as often as they did.
    assert {step for key, step in _rows(sink) if key.startswith("weight_grad_norm/")} == {0, 3, 6, 9, 12, 15}


def test_what_is_watched_is_the_fixed_batch_by_the_weights_of_that_moment(tmp_path):
    config = tiny_config(**_WATCHED)
    module, history, _ = fit(config, tmp_path)
    for place, of in ((0, new_module(config)), (-1, module)):
        with torch.no_grad():
            patches = of(of.watched)
            measured = of.watched / of.scale
            r = (of.beam.amplitude(patches) - measured).abs().sum() / measured.sum()
            lifted = of.generator.lifter(of.to_groups(of.watched))
        ratio = float(object_std(patches, of.lit).mean()) / of.truth_std
        assert history.watched["object_std_ratio"][place] == pytest.approx(ratio, rel=1e-5)
        assert history.watched["loss"][place] == pytest.approx(float(r), rel=1e-5)
        of_patterns = float(lifted.std(0, correction=0).mean())
        assert history.watched["pattern_std/lifter"][place] == pytest.approx(of_patterns, rel=1e-5)
        middle = float(lifted.std(0, correction=0)[:, 8:24, 8:24].mean())
        assert history.watched["middle_std/lifter"][place] == pytest.approx(middle, rel=1e-5)
        assert history.watched["act_std/lifter"][place] == pytest.approx(float(lifted.std(correction=0)), rel=1e-5)


@pytest.mark.parametrize("several_steps_a_launch", [True, False])
@pytest.mark.parametrize("killed_at", [4, 5, 8, 9, 13])
def test_a_killed_run_goes_on_with_the_watched_series_of_an_unbroken_one(
    request, tmp_path, killed_at, several_steps_a_launch
):
    if several_steps_a_launch:
        request.getfixturevalue("several")
    config = tiny_config(**_WATCHED)
    whole, history, sink = fit(config, tmp_path / "whole")
    with pytest.raises(SystemError, match="killed"):
        fit(config, tmp_path / "killed", checkpoint_every_s=0.0, extra=[KillAfter(killed_at)])
    resumed, continued, sink_after = fit(
        config, tmp_path / "killed", new_module(tiny_config(**_WATCHED, seed=7)), resume=True
    )
    assert continued.to_json() == history.to_json()
    assert _rows(sink_after) == _rows(sink)  # the store may have missed what was offered before the kill
    assert states_equal(whole, resumed)


def test_what_a_killed_run_was_watched_for_is_uploaded_from_its_checkpoint(fresh_store):
    config, folder = tiny_config(**_WATCHED), fresh_store / "killed"
    with pytest.raises(SystemError, match="killed"):
        fit(config, folder, checkpoint_every_s=0.0, extra=[KillAfter(9)])
    with mlflow.start_run() as run:
        is_over, _ = _upload(SimpleNamespace(run_id=run.info.run_id), config, folder, print)
    assert not is_over
    found = mlflow.MlflowClient().get_metric_history(run.info.run_id, "watch/pattern_std/bottleneck")
    # Of the second epoch, the checkpoint holds steps that are not known to be finite.
    assert [metric.step for metric in found] == [0, 4]


def test_a_run_that_is_over_is_not_watched_again_when_it_is_resumed(tmp_path):
    config = tiny_config(**_WATCHED)
    _, history, sink = fit(config, tmp_path)
    _, again, sink_again = fit(config, tmp_path, resume=True)
    assert again.to_json() == history.to_json()
    assert _rows(sink_again) == _rows(sink)


def test_replayed_steps_are_watched_as_the_ordinary_ones(several, tmp_path):
    module, history, _ = fit(tiny_config(**_WATCHED), tmp_path / "replayed")
    _, expected, _ = fit(tiny_config(**_WATCHED, train__cuda_graph=False), tmp_path / "ordinary")
    assert history.watched.keys() == expected.watched.keys()
    for name, values in history.watched.items():
        np.testing.assert_allclose(values, expected.watched[name], rtol=0.01, atol=1e-6, err_msg=name)


@pytest.mark.gpu
def test_captured_steps_are_watched_as_the_ordinary_ones_and_trained_as_if_they_were_not(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    keys = {"accelerator": "gpu", "train__batch_size": 2, "data__max_train_patches": 30, "train__watch_every_steps": 5}
    module, history, _ = fit(tiny_config(**keys), tmp_path / "captured")
    _, expected, _ = fit(tiny_config(**keys, train__cuda_graph=False), tmp_path / "ordinary")
    _, unwatched, _ = fit(tiny_config(**keys | {"train__watch_every_steps": None}), tmp_path / "unwatched")
    assert history.watched["step"] == expected.watched["step"]
    for name, values in history.watched.items():
        np.testing.assert_allclose(values, expected.watched[name], rtol=0.05, atol=1e-5, err_msg=name)
    np.testing.assert_allclose(history.loss_step, unwatched.loss_step, rtol=1e-3)
    assert all(value.isfinite().all() for value in module.state_dict().values())


def test_a_run_goes_on_with_another_interval_and_keeps_what_was_watched_before(tmp_path):
    _, expected, _ = fit(tiny_config(**_WATCHED), tmp_path / "whole")
    with pytest.raises(SystemError, match="killed"):
        fit(tiny_config(**_WATCHED), tmp_path / "killed", extra=[KillAfter(7)])
    _, history, _ = fit(tiny_config(train__watch_every_steps=9), tmp_path / "killed", resume=True)
    assert history.watched["step"] == [0, 4, 9, 18]
    for name, values in history.watched.items():
        if not name.startswith("grad_norm/"):
            whole = expected.watched[name]
            assert [values[place] for place in (0, 1, -1)] == [whole[place] for place in (0, 1, -1)]


def test_nothing_is_kept_of_what_was_watched_after_a_step_that_is_not_finite(several, tmp_path):
    keys = {"train__watch_every_steps": 1}
    _, history, sink = fit(tiny_config(**keys), tmp_path, extra=[BadPattern(1, 2)])
    assert history.events["non_finite"]["step"] == 8
    assert history.watched["step"] == [*range(9), 9]
    assert max(step for key, step in _rows(sink) if key.startswith("watch/")) == 9


class _Stop(lightning.Callback):
    """Ends a training with an epoch, as a pruned one ends."""

    def on_train_epoch_end(self, trainer, module):
        trainer.should_stop = trainer.current_epoch == 0


def test_a_training_that_ends_early_is_watched_at_its_end(tmp_path, monkeypatch):
    from fnostab.training.callbacks import StageRecorder

    # What ends a training with an epoch comes before the recorder, as `Pruning` does.
    end = StageRecorder.on_train_epoch_end
    stop = _Stop()
    monkeypatch.setattr(
        StageRecorder,
        "on_train_epoch_end",
        lambda self, trainer, module: (stop.on_train_epoch_end(trainer, module), end(self, trainer, module))[1],
    )
    _, history, _ = fit(tiny_config(**_WATCHED), tmp_path)
    assert history.watched["step"] == [0, 4, 6]


def test_without_a_truth_the_deviation_is_over_the_largest_so_far():
    history = History()
    series = WatchedSeries(history, Sink())
    for step, deviation in enumerate((0.1, 0.4, 0.2)):
        series.add(step, {"object_std": torch.tensor(deviation)}, None)
    assert history.watched["object_std_ratio"] == pytest.approx([1, 1, 0.5])
    again = WatchedSeries(history, Sink())
    again.load_state_dict(series.state_dict())
    again.add(3, {"object_std": torch.tensor(0.1)}, None)
    assert history.watched["object_std_ratio"][-1] == pytest.approx(0.25)


def test_a_stage_that_runs_later_begins_with_nothing():
    history = History()
    history.add_watched({"step": 0, "loss": 1.0})
    history.add_watched({"step": 5, "act_std/late": 2.0})
    assert math.isnan(history.watched["act_std/late"][0])
    assert math.isnan(history.watched["loss"][1])


class _Own(nn.Module):
    """A user's network that draws random numbers, and keeps a running mean, while it trains."""

    def __init__(self, N=32):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4))
        self.drop = nn.Dropout(0.5)
        self.pairs = nn.ModuleList([nn.Conv2d(4, 4, 1), nn.GELU()])
        self.unused = nn.Linear(3, 3)
        self.out = nn.Conv2d(4, 2, 1)
        self.unused.eval()

    def forward(self, x):
        x = self.drop(self.first(x))
        for layer in reversed(self.pairs):
            x = layer(x) + 0 * torch.rand(())
        return self.out(x).permute(0, 2, 3, 1).unsqueeze(3)


def test_a_network_of_ones_own_is_watched_without_a_trace():
    module = new_module(tiny_config(**_WATCHED))
    module.generator = network = _Own()
    module.train()
    network.unused.eval()
    before, random = {name: value.clone() for name, value in module.state_dict().items()}, torch.get_rng_state()
    found = watch_fixed_batch(module)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert network.drop.training
    assert not network.unused.training
    assert all(not value.requires_grad for value in found.values())
    stages = [name.removeprefix("act_std/") for name in found if name.startswith("act_std/")]
    assert stages == ["first.0", "first.1", "drop", "pairs.1", "pairs.0", "out"]  # as they ran
    assert math.isnan(found["weight_norm/pairs.1"])  # nothing to learn


def test_the_stages_of_the_built_in_networks_are_single_layers_blocks_and_levels():
    deep = HybridUNOGenerator(hidden_channels=4, n_blocks=4, modes=2, N=16)
    assert list(find_stages(deep)) == [
        *("lifter", "encoder.0", "encoder.1.0", "encoder.1.1", "encoder.1.2", "downs.0", "bottleneck", "ups.0", "out"),
    ]
    fno = CascadedFNOGenerator(hidden_channels=4, n_blocks=2, modes=2, N=16)
    assert list(find_stages(fno)) == [
        "lifter",
        "blocks.0",
        "blocks.1",
        "project",
        *(f"refine.{i}" for i in range(4)),
        "out",
    ]
    cnn = CNNGenerator(hidden_channels=4, n_blocks=2, N=16)
    assert list(find_stages(cnn)) == [
        *("lifter", "encoder.0", "encoder.1", "encoder.2", "encoder.3", "decoder.0", "decoder.1", "decoder.2", "out")
    ]

    class Wrapper(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = deep

    assert list(find_stages(Wrapper()))[:2] == ["network.lifter", "network.encoder.0"]


def test_a_dead_channel_is_one_that_is_constant_but_for_rounding_and_gradients_add_up():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 1), nn.Conv2d(4, 2, 1))
    with torch.no_grad():
        network[0].weight[:3] = torch.tensor([0.0, 1e-9, 1.0]).view(3, 1, 1, 1)
        network[0].bias[:] = 1
    x = torch.rand(5, 1, 8, 8)
    found = stage_statistics(network, lambda: network(x))
    assert found["dead_channels/0"] == 0.5
    alone = stage_statistics(network, lambda: network(x[:1]))
    assert alone["pattern_std/0"].isnan()
    assert stage_statistics(network, lambda: network(x[:1].expand(5, -1, -1, -1)))["pattern_std/0"] == 0
    norms = {"0.weight": torch.tensor(3.0), "0.bias": torch.tensor(4.0), "10.weight": torch.tensor(7.0)}
    assert stage_grad_norms(network, norms) == {"grad_norm/0": 5.0}


@pytest.mark.parametrize("arch", ["hybrid", "hybrid_original"])
def test_a_network_that_explodes_is_found_dead_with_step_and_stage(tmp_path, arch):
    keys = {"model__arch": arch, "clip_algo": "none", "optim__lr": 0.3, "train__epochs": 8}
    _, history, _ = fit(tiny_config(**keys, train__watch_every_steps=2), tmp_path)
    mapping = history.to_mapping()
    found, watched = death(mapping), history.watched
    assert found is not None
    place = watched["step"].index(found.step)
    assert all(ratio < 1e-6 for ratio in watched["object_std_ratio"][place:])
    assert watched["object_std_ratio"][place - 1] >= 1e-6
    assert watched[f"middle_std/{found.stage}"][place] <= 1e-6 * watched[f"act_std/{found.stage}"][place]
    assert found.grad_norm_max == max(history.grad_norm_preclip[found.last_alive_step : found.step])
    verdict = judge(mapping)
    assert verdict.label == "collapsed"
    assert f"dead from step {found.step} on, first in `{found.stage}`" in verdict.reason
    assert (verdict.evidence["died_at_step"], verdict.evidence["died_in"]) == (found.step, found.stage)


def test_a_healthy_network_has_no_death(tmp_path):
    _, history, _ = fit(tiny_config(**_WATCHED), tmp_path)
    assert death(history.to_mapping()) is None
    evidence = judge(history.to_mapping()).evidence
    assert evidence["died_at_step"] is evidence["died_in"] is None


def test_how_often_a_run_is_watched_is_no_part_of_its_identity():
    assert resolve_config({"train.watch_every_steps": 10}).sha256() == resolve_config({}).sha256()


def test_groups_of_patterns_are_watched_too(tmp_path):
    _, history, _ = fit(tiny_config(**_WATCHED, data__gridsize=2, train__batch_size=8), tmp_path)
    assert all(0 < value < math.inf for value in history.watched["pattern_std/out"])
