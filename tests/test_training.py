"""Training on tiny real datasets: the physics loss, the probe, clipping, determinism and resuming."""

from types import SimpleNamespace

import lightning
import numpy as np
import pytest
import torch

from fnostab.callbacks import Checkpoints, SeriesRecorder
from fnostab.config import resolve_config
from fnostab.datamodule import PtychoDataModule, resident
from fnostab.dataset import load_or_build
from fnostab.history import STEP_SERIES, History
from fnostab.optics import far_field_amplitude
from fnostab.training import CountsToObject, PtychoModule, make_trainer, object_std, stitched_amplitude, true_patches

_TINY = {
    "preset": "smoke",
    "data.N": 32,
    "data.object_size": 64,
    "data.max_train_patches": 24,
    "data.max_val_patches": 8,
    "model.fno_blocks": 2,
    "train.batch_size": 8,
    "data.probe_radius_px": 8,
}


class _Sink:
    def __init__(self):
        self.rows = []

    def log_series(self, rows):
        self.rows += rows

    def flush(self):
        return True


class _KillAfter(lightning.Callback):
    def __init__(self, steps):
        self.steps = steps

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.steps:
            raise SystemError("killed")


def _config(**overrides):
    return resolve_config(_TINY | {key.replace("__", "."): value for key, value in overrides.items()})


def _module(config):
    torch.manual_seed(config.seed)
    return PtychoModule(config, load_or_build(config.data))


def _fit(config, folder, module=None, *, resume=False, checkpoint_every_s=60.0, extra=()):
    module = module or _module(config)
    history, sink = History(), _Sink()
    checkpoints = Checkpoints(folder, checkpoint_every_s)
    trainer = make_trainer(config, [SeriesRecorder(history, sink), checkpoints, *extra], folder)
    data = PtychoDataModule(load_or_build(config.data), config)
    trainer.fit(module, datamodule=data, ckpt_path=checkpoints.last if resume else None, weights_only=True)
    return module, history, sink


def _values(sink):
    return {(key, step): value for key, value, step, _ in sink.rows if not key.startswith("weight_grad_norm/")}


def _states_equal(first, second):
    return all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )


def test_same_seed_same_loss_curve_and_weights_another_seed_another(tmp_path):
    first, history, _ = _fit(_config(), tmp_path)
    again, repeated, _ = _fit(_config(), tmp_path)
    other, _, _ = _fit(_config(seed=1), tmp_path)
    assert repeated.to_json() == history.to_json()
    assert _states_equal(first, again)
    assert not _states_equal(first, other)


@pytest.mark.parametrize("checkpoint_every_s", [0.0, 1000.0])
@pytest.mark.parametrize("killed_at", [2, 3, 4, 5, 7])
def test_a_killed_run_resumes_to_the_same_numbers_bit_for_bit(tmp_path, killed_at, checkpoint_every_s):
    if killed_at < 4 and checkpoint_every_s:
        killed_at += 6  # the first checkpoint is that of the first epoch
    overrides = {"train__epochs": 3, "optim__schedule": "cosine", "train__learn_probe": True}
    config = _config(**overrides)
    whole, history, sink = _fit(config, tmp_path / "whole")
    with pytest.raises(SystemError, match="killed"):
        _fit(config, tmp_path / "killed", checkpoint_every_s=checkpoint_every_s, extra=[_KillAfter(killed_at)])
    other_start = _module(_config(seed=7, **overrides))
    resumed, continued, sink_after = _fit(config, tmp_path / "killed", other_start, resume=True)
    assert continued.to_json() == history.to_json()
    assert _values(sink_after) == _values(sink)  # also those from before: an outage may have kept them from the store
    assert _states_equal(whole, resumed)


def test_every_optimizer_step_is_recorded(tmp_path):
    _, history, sink = _fit(_config(), tmp_path)
    assert [len(getattr(history, name)) for name in STEP_SERIES] == [6] * 4
    steps = [step for key, _, step, _ in sink.rows if key == "grad/norm_preclip"]
    assert steps == list(range(6))
    assert [value for key, value, *_ in sink.rows if key == "val/loss"] == history.val_loss


def test_gradient_norms_of_every_parameter_are_recorded_at_an_interval(tmp_path):
    module, history, sink = _fit(_config(train__layer_norms_every_steps=4), tmp_path)
    names = {f"weight_grad_norm/{name}" for name, _ in module.generator.named_parameters()}
    for step in (0, 4):
        norms = {key: value for key, value, at, _ in sink.rows if at == step and key.startswith("weight_grad_norm/")}
        assert set(norms) == names
        assert np.linalg.norm(list(norms.values())) == pytest.approx(history.grad_norm_preclip[step], rel=1e-5)
    assert {step for key, _, step, _ in sink.rows if key.startswith("weight_grad_norm/")} == {0, 4}


@pytest.mark.parametrize(
    ("algo", "limit", "expected"),
    [("none", 0.0, "unchanged"), ("norm", 1e-4, "norm"), ("value", 1e-7, "smaller"), ("agc", 1e-5, "smaller")],
)
def test_each_rule_clips_while_training(tmp_path, algo, limit, expected):
    _, history, _ = _fit(_config(clip_algo=algo, clip_val=limit), tmp_path)
    before, after = np.array(history.grad_norm_preclip), np.array(history.grad_norm_postclip)
    if expected == "unchanged":
        assert (before == after).all()
        assert set(history.clipped_fraction) == {0.0}
    else:
        assert (after < before).all()
        assert min(history.clipped_fraction) > 0
    if expected == "norm":
        np.testing.assert_allclose(after, limit, rtol=0.02)


@pytest.mark.parametrize("loss", ["mae", "poisson"])
@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_each_loss_falls_with_each_optimizer(tmp_path, loss, name):
    config = _config(loss=loss, optim__name=name, lr=0.03 if name == "sgd" else 3e-3, epochs=6)
    _, history, _ = _fit(config, tmp_path)
    assert history.train_loss[-1] < history.train_loss[0]
    assert history.val_loss[-1] < history.val_loss[0]


@pytest.mark.parametrize("loss", ["mae", "poisson"])
def test_the_true_object_has_almost_no_loss_and_an_empty_one_much(loss, monkeypatch):
    config = _config(loss=loss)
    dataset = load_or_build(config.data)
    module = _module(config)
    monkeypatch.setattr(PtychoModule, "trainer", SimpleNamespace(world_size=1))
    truth = torch.from_numpy(true_patches(dataset.val, dataset.val_objects, 32))

    def at(patches):
        module.forward = lambda sqrt_counts: patches
        return float(module.training_step(resident(dataset.val), 0).detach())

    assert at(truth) < 0.1 * at(torch.ones_like(truth)) < at(torch.zeros_like(truth))


def test_val_loss_is_the_r_factor_whatever_the_training_loss(tmp_path):
    config = _config(loss="poisson", epochs=1)
    module, history, _ = _fit(config, tmp_path)
    dataset = load_or_build(config.data)
    patches = torch.from_numpy(module.reconstruct(dataset.val))
    measured = torch.from_numpy(np.sqrt(dataset.val.counts)) / dataset.scale
    predicted = far_field_amplitude(patches, module.probe.detach())
    expected = (predicted - measured).abs().sum() / measured.sum()
    assert history.val_loss[-1] == pytest.approx(float(expected), rel=1e-5)


def test_a_fixed_probe_stays_and_a_learnt_one_moves(tmp_path):
    for learn in (False, True):
        config = _config(train__learn_probe=learn)
        probe = torch.from_numpy(np.array(load_or_build(config.data).probe))
        module, _, _ = _fit(config, tmp_path)
        assert torch.equal(module.probe.detach(), probe) is not learn


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize("step", [0, 2])
def test_a_non_finite_gradient_never_reaches_the_weights(tmp_path, name, step):
    class Poison(lightning.Callback):
        def on_after_backward(self, trainer, module):
            if trainer.global_step == step:
                next(module.generator.parameters()).grad.fill_(float("nan"))
                self.before = {name: value.clone() for name, value in module.state_dict().items()}

        def on_train_batch_end(self, trainer, module, *_):
            if trainer.global_step == step + 1 and not hasattr(self, "same"):
                self.same = all(torch.equal(self.before[name], value) for name, value in module.state_dict().items())

    poison = Poison()
    module, history, _ = _fit(_config(optim__name=name), tmp_path, extra=[poison])
    assert poison.same
    assert history.events == {"non_finite": {"step": step}}
    assert max(value.abs().max() for value in module.state_dict().values()) < 100
    assert len(history.val_loss) == 1  # the run stopped


def test_stitching_true_patches_predicts_their_patterns_whatever_their_phases():
    config = _config()
    dataset = load_or_build(config.data)
    near = np.argsort(((dataset.train.positions_px - 10) ** 2).sum(1))[:8]
    positions = torch.from_numpy(dataset.train.positions_px[near].astype(np.float32))
    truth = torch.randn(64, 64, dtype=torch.complex64, generator=torch.Generator().manual_seed(0)) + 2
    corners = positions.long().tolist()
    patches = torch.stack([truth[r : r + 32, c : c + 32] for r, c in corners])
    probe = torch.from_numpy(np.array(dataset.probe))
    phases = torch.exp(1j * torch.linspace(0, 1, 8))[:, None, None]
    extent = tuple(np.ptp(positions.numpy(), axis=0).astype(int).tolist())
    stitched = stitched_amplitude(phases * patches, probe, positions, extent)
    expected = far_field_amplitude(patches, probe)
    assert (stitched - expected).abs().sum() < 0.02 * expected.sum()
    disagreeing = patches * (1 + 0.5 * torch.randn(8, 32, 32, generator=torch.Generator().manual_seed(1)))
    own = far_field_amplitude(disagreeing, probe)
    assert (stitched_amplitude(disagreeing, probe, positions, extent) - own).abs().sum() > 0.1 * own.sum()


def test_the_shipped_model_gives_what_training_computed(tmp_path):
    config = _config(epochs=1)
    module, _, _ = _fit(config, tmp_path)
    dataset = load_or_build(config.data)
    shipped = CountsToObject(module.generator, module.input_scale).eval()
    with torch.no_grad():
        output = shipped(torch.from_numpy(np.array(dataset.val.counts)))
    assert output.shape == (8, 32, 32, 2)
    np.testing.assert_allclose(
        torch.view_as_complex(output).numpy(), module.reconstruct(dataset.val), rtol=1e-5, atol=1e-6
    )


def test_object_std_is_that_of_the_lit_pixels():
    patches = torch.randn(3, 8, 8, dtype=torch.complex64)
    lit = torch.zeros(8, 8, dtype=torch.bool)
    lit[2:5, 3:7] = True
    expected = [np.std(patch[lit].numpy()) for patch in patches]
    np.testing.assert_allclose(object_std(patches, lit).numpy(), expected, rtol=1e-5)
    assert torch.equal(object_std(torch.ones(1, 8, 8, dtype=torch.complex64), lit), torch.zeros(1))


def test_resident_patches_are_square_roots_of_counts():
    split = load_or_build(_config().data).val
    np.testing.assert_allclose(resident(split).sqrt_counts.numpy() ** 2, split.counts, rtol=1e-5)
