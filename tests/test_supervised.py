"""Supervised runs: the true training patches, the loss on them, and training and resuming like any other run."""

from types import SimpleNamespace

import lightning
import numpy as np
import pytest
import torch
from small_runs import Sink, fit, new_module

from fnostab import metrics
from fnostab.config import ConfigError, resolve_config
from fnostab.dataset import load_or_build, simulated, training_objects
from fnostab.health.history import History
from fnostab.optics import far_field_amplitude
from fnostab.training.batches import EpochOrder
from fnostab.training.callbacks import SeriesRecorder
from fnostab.training.supervised import Truth, constant_object_loss

#: 24 patches of two objects, 6 steps.
_TINY = {
    "preset": "smoke",
    "arch": "cnn",
    "train.mode": "supervised",
    "data.nimgs_train": 2,
    "data.object_size": 64,
    "data.max_train_patches": 24,
    "data.max_val_patches": 8,
    "model.width": 4,
    "optim.schedule": "constant",
    "train.epochs": 2,
    "train.batch_size": 8,
}


def _config(**overrides):
    return resolve_config({key.replace("__", "."): value for key, value in overrides.items()}, base=_TINY)


def _distances(patches, truth, probe):
    """The formula, written out in NumPy: mean |p exp(i phi) - t| in the lit region, of each patch."""
    lit = metrics.lit_region(probe)
    light = np.abs(probe[lit]) ** 2
    found = []
    for p, t in zip(patches.astype(complex), truth.astype(complex), strict=True):
        phase = np.exp(1j * np.angle(np.sum(light * p[lit].conj() * t[lit])))
        found.append(np.mean(np.abs(p[lit] * phase - t[lit])))
    return np.array(found)


def _mean_truth(dataset, split, objects):
    return np.abs(split.patches_of(objects))[:, metrics.lit_region(dataset.probe)].mean()


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"data__max_train_patches": None},
        {"data__objects": "grf"},
        {"data__object_mean": 0.17, "data__val": "test", "data__probe": "defocused"},
    ],
)
def test_the_far_field_of_the_true_training_patches_explains_the_counts_down_to_photon_noise(overrides):
    dataset = load_or_build(_config(data__nphotons=1e6, **overrides).data)
    patches = torch.from_numpy(dataset.train.patches_of(training_objects(dataset)))
    model = far_field_amplitude(patches, torch.from_numpy(dataset.probe)).numpy()
    noise = metrics.photon_noise_r_factor((dataset.scale * model) ** 2)
    assert metrics.r_factor(model, np.sqrt(dataset.train.counts) / dataset.scale) == pytest.approx(noise, rel=0.01)


def test_objects_that_another_version_of_a_library_draws_are_refused(monkeypatch):
    dataset = load_or_build(_config().data)
    draw = simulated.synthetic_object
    monkeypatch.setattr(simulated, "synthetic_object", lambda *given: draw(*given)[::-1].copy())
    with pytest.raises(ConfigError, match=rf"^`data.seed` \(=20260128\) must draw .* dataset {dataset.config_sha256}"):
        training_objects(dataset)


def test_the_distance_is_the_formula_and_no_global_phase_touches_it():
    dataset = load_or_build(_config().data)
    objects = training_objects(dataset)
    truth, split = Truth(objects, dataset.train, dataset.probe), dataset.train
    expected = torch.from_numpy(split.patches_of(objects))
    found = truth.patches(torch.from_numpy(split.positions_px), torch.from_numpy(split.object_index))
    assert torch.equal(found, expected)
    rng = np.random.default_rng(0)
    patches = (expected.numpy() + rng.normal(size=(24, 32, 32, 2)) @ [0.3, 0.3j]).astype(np.complex64)
    mean = _mean_truth(dataset, split, objects)
    distance = truth.distance(torch.from_numpy(patches), expected).numpy()
    np.testing.assert_allclose(distance, _distances(patches, expected.numpy(), dataset.probe) / mean, rtol=1e-4)
    turned = patches * np.exp(1j * rng.uniform(0, 7, (24, 1, 1))).astype(np.complex64)
    np.testing.assert_allclose(truth.distance(torch.from_numpy(turned), expected).numpy(), distance, rtol=1e-4)
    assert truth.distance(expected * 1j, expected).max() < 1e-5
    assert truth.distance(torch.zeros_like(expected), expected).mean() == pytest.approx(1, rel=1e-5)


def test_where_the_probe_is_dark_a_prediction_is_free():
    dataset = load_or_build(_config().data)
    truth = Truth(dataset.val_objects, dataset.val, dataset.probe)
    expected = torch.from_numpy(dataset.val.patches_of(dataset.val_objects))
    elsewhere = torch.where(torch.from_numpy(metrics.lit_region(dataset.probe)), expected, 1e3)
    assert truth.distance(elsewhere, expected).max() < 1e-5


def test_the_gradient_is_finite_where_prediction_and_truth_have_nothing_in_common():
    dataset = load_or_build(_config().data)
    truth = Truth(dataset.val_objects, dataset.val, dataset.probe)
    expected = torch.from_numpy(dataset.val.patches_of(dataset.val_objects))
    dark = torch.zeros_like(expected, requires_grad=True)
    truth.distance(dark, expected).sum().backward()
    assert torch.isfinite(torch.view_as_real(dark.grad)).all()


def test_the_best_constant_object_is_no_worse_than_any_other():
    dataset = load_or_build(_config().data)
    truth = dataset.val.patches_of(dataset.val_objects)
    mean = _mean_truth(dataset, dataset.val, dataset.val_objects)
    others = [_distances(np.full_like(truth, c), truth, dataset.probe).mean() / mean for c in np.linspace(0, 2, 1001)]
    best = constant_object_loss(dataset)
    assert min(others) - 1e-3 < best <= min(others) + 1e-6


def test_a_run_trains_on_true_patches_and_is_validated_by_them_and_by_the_r_factor(tmp_path):
    config = _config(clip_val=1e-3)
    dataset, start = load_or_build(config.data), new_module(config)
    first = start.reconstruct(dataset.train)
    module, history, _ = fit(config, tmp_path, new_module(config))
    objects = training_objects(dataset)
    truth, mean = dataset.train.patches_of(objects), _mean_truth(dataset, dataset.train, objects)
    order = np.random.default_rng([config.seed, 0]).permutation(24)[:8]
    expected = _distances(first[order], truth[order], dataset.probe).mean() / mean
    assert history.loss_step[0] == pytest.approx(expected, rel=1e-4)
    assert history.grad_norm_postclip[0] == pytest.approx(1e-3, rel=1e-4)
    assert all(norm > 1e-3 for norm in history.grad_norm_preclip)
    last, val_truth = module.reconstruct(dataset.val), dataset.val.patches_of(dataset.val_objects)
    own = _distances(last, val_truth, dataset.probe).mean() / _mean_truth(dataset, dataset.val, dataset.val_objects)
    assert history.supervised_loss[-1] == pytest.approx(own, rel=1e-4)
    model = far_field_amplitude(torch.from_numpy(last), torch.from_numpy(dataset.probe)).numpy()
    assert history.val_loss[-1] == pytest.approx(
        metrics.r_factor(model, np.sqrt(dataset.val.counts) / dataset.scale), rel=1e-4
    )


def test_a_network_of_groups_is_supervised_on_all_its_patches_and_those_that_fill_groups_count_once(tmp_path):
    config = _config(data__gridsize=2, data__max_train_patches=9, data__max_val_patches=7, train__batch_size=12)
    dataset, start = load_or_build(config.data), new_module(config)
    assert sorted(np.bincount(dataset.train.object_index) % 4) != [0, 0]
    order = EpochOrder(dataset.train, 12, config.seed, neighbours=False, gridsize=2).batches()[0]
    patches = start(torch.from_numpy(np.sqrt(dataset.train.counts[order]))).detach().numpy()
    module, history, _ = fit(config, tmp_path, new_module(config))
    objects = training_objects(dataset)
    truth, mean = dataset.train.patches_of(objects), _mean_truth(dataset, dataset.train, objects)
    expected = _distances(patches, truth[order], dataset.probe).mean() / mean
    assert history.loss_step[0] == pytest.approx(expected, rel=1e-4)
    last, val_truth = module.reconstruct(dataset.val), dataset.val.patches_of(dataset.val_objects)
    own = _distances(last, val_truth, dataset.probe).mean() / _mean_truth(dataset, dataset.val, dataset.val_objects)
    assert history.supervised_loss[-1] == pytest.approx(own, rel=1e-4)


def test_a_run_on_patterns_has_no_supervised_loss(tmp_path):
    _, history, sink = fit(_config(train__mode="physics", train__overlap_weight=0, epochs=1), tmp_path)
    assert history.supervised_loss == []
    assert not any("supervised" in row[0] for row in sink.rows)


def test_a_killed_supervised_run_resumes_bit_for_bit(tmp_path):
    class KillInTheSecondEpoch(lightning.Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == 5:
                raise SystemError("killed")

    config = _config()
    whole, history, _ = fit(config, tmp_path / "whole")
    with pytest.raises(SystemError, match="killed"):
        fit(config, tmp_path / "killed", checkpoint_every_s=0.0, extra=[KillInTheSecondEpoch()])
    resumed, continued, _ = fit(config, tmp_path / "killed", new_module(_config(seed=7)), resume=True)
    assert continued.to_json() == history.to_json()
    assert len(history.supervised_loss) == 2
    weights = zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in weights)


@pytest.mark.parametrize(("own", "given_up"), [([0.9, 0.99], False), ([1.1, 1.2], True)])
def test_a_supervised_run_is_given_up_only_if_its_own_loss_was_never_better_than_a_constants(own, given_up):
    history = History(val_loss=[1.5, 1.2], val_loss_constant=1, supervised_loss=own, supervised_loss_constant=1)
    trainer = SimpleNamespace(max_epochs=8, should_stop=False)
    SeriesRecorder(history, Sink(), 2)._give_up_if_hopeless(trainer, SimpleNamespace(device="cpu"))
    assert ("given_up" in history.events, trainer.should_stop) == (given_up, given_up)


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (
            {"preset": "scan", "data": "scan.npz"},
            "`train.mode` (=supervised) must be physics on a measured scan: it has no true patches",
        ),
        ({"train.learn_probe": "true"}, "`train.learn_probe` (=true) must be false with train.mode=supervised"),
        ({"train.overlap_weight": 0.5}, "`train.overlap_weight` (=0.5) must be 0 with train.mode=supervised"),
        ({"loss": "poisson"}, "`train.loss` (=poisson) must be mae with train.mode=supervised"),
    ],
)
def test_what_a_supervised_run_cannot_have_is_refused_in_one_line(overrides, line):
    with pytest.raises(ConfigError) as error:
        resolve_config({"preset": "smoke", "train.mode": "supervised", **overrides})
    assert str(error.value).startswith(line)
    assert "\n" not in str(error.value)


def test_a_supervised_run_leaves_out_the_overlap_term_of_its_preset_and_has_a_name_of_its_own(tmp_path):
    found = [resolve_config({"preset": "quick", "train.mode": "supervised", "arch": arch}) for arch in ("cnn", "fno")]
    assert [config.train.overlap_weight for config in found] == [0, 0]
    assert [config.arm for config in found] == ["baseline", "fno-supervised"]
    assert resolve_config({"preset": "quick", "arch": "cnn"}).arm == "cnn-norm"
