"""Training on tiny real datasets: the physics loss, the probe, clipping, determinism and resuming."""

from types import SimpleNamespace

import lightning
import numpy as np
import pytest
import torch
from small_runs import KillAfter, fit, new_module, write_small_scan

from fnostab.config import ConfigError, resolve_config
from fnostab.dataset import load_or_build
from fnostab.evaluation import evaluate, stitch_patches
from fnostab.health.history import STEP_SERIES
from fnostab.optics import far_field_amplitude
from fnostab.scan import reassemble, stitched_r_factor
from fnostab.training.batches import resident
from fnostab.training.checks import check_network
from fnostab.training.memory import is_out_of_memory
from fnostab.training.module import PtychoModule
from fnostab.training.shipped_model import CountsToObject
from fnostab.training.stitching import stitched_amplitude, stitched_amplitude_ssim
from fnostab.training.trainer import _default_threads
from fnostab.training.validation import epochs_between_stitchings, object_std

_TINY = {
    "preset": "smoke",
    "data.N": 32,
    "data.object_size": 64,
    "data.max_train_patches": 24,
    "data.max_val_patches": 8,
    "model.fno_blocks": 2,
    "model.width": 4,
    "optim.lr": 1e-3,
    "train.epochs": 2,
    "train.batch_size": 8,
    "train.overlap_weight": 0.0,
    "optim.schedule": "constant",
    "data.probe_radius_px": 8,
}


def _config(**overrides):
    return resolve_config({key.replace("__", "."): value for key, value in overrides.items()}, base=_TINY)


def _values(sink):
    return {(key, step): value for key, value, step, _ in sink.rows}


def _states_equal(first, second):
    return all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )


def test_same_seed_same_loss_curve_and_weights_another_seed_another(tmp_path):
    first, history, _ = fit(_config(), tmp_path)
    again, repeated, _ = fit(_config(), tmp_path)
    other, _, _ = fit(_config(seed=1), tmp_path)
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
    whole, history, sink = fit(config, tmp_path / "atomic_write")
    with pytest.raises(SystemError, match="killed"):
        fit(config, tmp_path / "killed", checkpoint_every_s=checkpoint_every_s, extra=[KillAfter(killed_at)])
    other_start = new_module(_config(seed=7, **overrides))
    resumed, continued, sink_after = fit(config, tmp_path / "killed", other_start, resume=True)
    assert continued.to_json() == history.to_json()
    assert _values(sink_after) == _values(sink)  # also those from before: an outage may have kept them from the store
    assert _states_equal(whole, resumed)


def test_every_optimizer_step_is_recorded(tmp_path):
    _, history, sink = fit(_config(), tmp_path)
    assert [len(getattr(history, name)) for name in STEP_SERIES] == [6] * 4
    steps = [step for key, _, step, _ in sink.rows if key == "grad/norm_preclip"]
    assert steps == list(range(6))
    assert [value for key, value, *_ in sink.rows if key == "val/loss"] == history.val_loss


def test_gradient_norms_of_every_parameter_are_recorded_at_an_interval(tmp_path):
    module, history, sink = fit(_config(train__layer_norms_every_steps=4), tmp_path)
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
    _, history, _ = fit(_config(clip_algo=algo, clip_val=limit), tmp_path)
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
@pytest.mark.parametrize("name", ["adam", "adamw", "sgd", "stable_adamw"])
def test_each_loss_falls_with_each_optimizer(tmp_path, loss, name):
    config = _config(loss=loss, optim__name=name, lr=0.03 if name == "sgd" else 3e-3, epochs=6)
    _, history, _ = fit(config, tmp_path)
    assert history.train_loss[-1] < history.train_loss[0]
    assert history.val_loss[-1] < history.val_loss[0]


@pytest.mark.parametrize("loss", ["mae", "poisson"])
def test_the_true_object_has_almost_no_loss_and_an_empty_one_much(loss, monkeypatch):
    config = _config(loss=loss)
    dataset = load_or_build(config.data)
    module = new_module(config)
    monkeypatch.setattr(PtychoModule, "trainer", SimpleNamespace(world_size=1))
    truth = torch.from_numpy(dataset.val.patches_of(dataset.val_objects))

    def at(patches):
        module.forward = lambda sqrt_counts: patches
        return float(module.training_step(resident(dataset.val), 0).detach())

    assert at(truth) < 0.1 * at(torch.ones_like(truth)) < at(torch.zeros_like(truth))


@pytest.mark.parametrize("loss", ["mae", "poisson"])
def test_a_batchs_loss_may_be_divided_by_its_own_mean_pattern(loss, monkeypatch):
    both = [new_module(_config(loss=loss, train__loss_scale=scale)) for scale in ("dataset", "batch")]
    monkeypatch.setattr(PtychoModule, "trainer", SimpleNamespace(world_size=1))
    dataset = load_or_build(_config().data)
    bright = resident(dataset.train.part(dataset.train.counts.sum(axis=(1, 2)).argsort()[-4:]))
    over_all, over_batch = (float(module.training_step(bright, 0).detach()) for module in both)
    amplitudes, counts = np.sqrt(dataset.train.counts), dataset.train.counts
    whole, batch = (amplitudes, bright.sqrt_counts) if loss == "mae" else (counts, bright.sqrt_counts**2)
    assert over_batch / over_all == pytest.approx(whole.sum() / len(whole) / (float(batch.sum()) / 4), rel=1e-5)
    assert over_batch < over_all
    if loss == "mae":
        predicted = far_field_amplitude(both[1](bright.sqrt_counts), both[1].probe).detach()
        measured = bright.sqrt_counts / dataset.scale
        assert over_batch == pytest.approx(float((predicted - measured).abs().sum() / measured.sum()), rel=1e-5)


def test_val_loss_is_the_r_factor_whatever_the_training_loss(tmp_path):
    config = _config(loss="poisson", epochs=1)
    module, history, _ = fit(config, tmp_path)
    dataset = load_or_build(config.data)
    patches = torch.from_numpy(module.reconstruct(dataset.val))
    measured = torch.from_numpy(np.sqrt(dataset.val.counts)) / dataset.scale
    predicted = far_field_amplitude(patches, module.probe.detach())
    expected = (predicted - measured).abs().sum() / measured.sum()
    assert history.val_loss[-1] == pytest.approx(float(expected), rel=1e-5)


def test_r_stitched_is_that_of_the_one_object_of_the_validation_patches_each_counted_by_its_light(tmp_path):
    config = _config(epochs=1, data__nimgs_val=2, data__max_val_patches=13)
    module, history, sink = fit(config, tmp_path)
    val = load_or_build(config.data).val
    patches, scale = module.reconstruct(val), load_or_build(config.data).scale
    values, light, consistencies = [], [], []
    for index in (0, 1):
        part = val.part(np.flatnonzero(val.object_index == index))
        stitched = reassemble(patches[val.object_index == index], part.positions_px, module.probe_array)
        amplitudes = np.sqrt(part.counts) / scale
        values.append(stitched_r_factor(stitched, part.positions_px, module.probe_array, amplitudes))
        light.append(amplitudes.sum())
        consistencies.append(stitched.consistency)
    assert history.r_stitched == [pytest.approx(np.average(values, weights=light), rel=1e-5)]
    assert [value for key, value, *_ in sink.rows if key == "val/r_stitched"] == history.r_stitched
    assert values[0] != pytest.approx(values[1], rel=1e-3)
    assert history.patch_consistency == [pytest.approx(np.mean(consistencies), rel=1e-4)]
    assert 0.01 < history.shared_light[0] < 1


def test_a_scan_is_stitched_as_a_whole_every_few_epochs_and_after_the_last(tmp_path):
    write_small_scan(tmp_path / "scan.npz")
    keys = {"preset": "scan", "data": str(tmp_path / "scan.npz"), "N": 32, "model.width": 4, "epochs": 14}
    config = resolve_config(keys)
    module, history, sink = fit(config, tmp_path)
    dataset = load_or_build(config.data)
    assert epochs_between_stitchings(dataset) == 12  # 10 times 49 patterns over the 44 that train
    taken = [epoch for epoch, value in enumerate(history.r_stitched, start=1) if not np.isnan(value)]
    assert taken == [12, 14]
    assert [value for key, value, *_ in sink.rows if key == "val/r_stitched"] == [
        history.r_stitched[11],
        history.r_stitched[13],
    ]
    found = evaluate(module.reconstruct(dataset.test), dataset, module.probe_array, True).metrics
    assert history.r_stitched[-1] == pytest.approx(found["r_factor"], rel=1e-5)
    assert history.r_stitched_mean_pattern == found["r_factor_mean_pattern"]


def test_a_scan_resumes_bit_for_bit_from_before_and_after_it_was_stitched(tmp_path, monkeypatch):
    monkeypatch.setattr("fnostab.training.validation.epochs_between_stitchings", lambda dataset: 2)
    write_small_scan(tmp_path / "scan.npz")
    keys = {"preset": "scan", "data": str(tmp_path / "scan.npz"), "N": 32, "model.width": 4, "epochs": 5}
    config = resolve_config(keys)
    whole, history, sink = fit(config, tmp_path / "whole")
    assert np.isnan(history.r_stitched).tolist() == [True, False, True, False, False]
    for killed_at in (9, 14):  # an epoch has 6 steps
        folder = tmp_path / str(killed_at)
        with pytest.raises(SystemError, match="killed"):
            fit(config, folder, checkpoint_every_s=0.0, extra=[KillAfter(killed_at)])
        resumed, continued, sink_after = fit(config, folder, resume=True)
        assert continued.to_json() == history.to_json()
        assert _values(sink_after) == _values(sink)
        assert _states_equal(whole, resumed)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e20, 0.0])
def test_an_object_of_numbers_that_blew_up_has_no_r_factor_and_one_of_zeros_that_of_darkness(value):
    dataset = load_or_build(_config().data)
    probe = torch.from_numpy(np.array(dataset.probe))
    patches = torch.full((8, 32, 32), value, dtype=torch.complex64)
    found = stitch_patches(patches, dataset.val, dataset.scale, probe).r
    assert found == 1 if value == 0 else np.isnan(found)
    truth = torch.from_numpy(dataset.val.patches_of(dataset.val_objects))
    assert stitch_patches(truth, dataset.val, dataset.scale, probe).r < 0.05
    assert np.isnan(stitch_patches(truth, dataset.val, dataset.scale, probe * value).r) or value == 0


def test_the_share_of_the_blocks_tensors_that_moved_is_recorded(tmp_path):
    _, history, sink = fit(_config(), tmp_path / "alive")
    assert history.parameters_moved == [1, 1]
    assert history.health["moved/bottleneck"][1:] == [1, 1]
    assert np.isnan(history.health["moved/bottleneck"][0])
    assert [step for key, _, step, _ in sink.rows if key == "health/moved/bottleneck"] == [3, 6]
    _, history, _ = fit(_config(optim__name="sgd", lr=1e-30), tmp_path / "dead")
    assert history.parameters_moved == [0, 0]
    assert history.val_loss[0] == history.val_loss[1]


def test_a_run_goes_on_from_a_checkpoint_that_lacks_what_later_versions_record(tmp_path):
    config = _config(epochs=3)
    _, history, _ = fit(config, tmp_path)
    with pytest.raises(SystemError, match="killed"):
        fit(config, tmp_path, checkpoint_every_s=0.0, extra=[KillAfter(4)])
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    recorded, best = (checkpoint["callbacks"][name] for name in ("SeriesRecorder", "Checkpoints"))
    del recorded["fingerprints"], best["best"]
    of_then = recorded["history"]
    of_then["health"] = {name: values for name, values in of_then["health"].items() if name.startswith("act_")}
    of_then["r_stitched"], of_then["parameters_moved"] = [], []
    torch.save(checkpoint, tmp_path / "last.ckpt")
    _, resumed, sink = fit(config, tmp_path, resume=True)
    assert resumed.val_loss == history.val_loss
    assert np.isnan(resumed.r_stitched).tolist() == [True, False, False]
    assert resumed.r_stitched[1:] == history.r_stitched[1:]
    assert resumed.parameters_moved[1:] == [1, 1]
    assert all(len(values) == 4 for values in resumed.health.values())
    assert not any(np.isnan(value) for _, value, *_ in sink.rows)


def _results(val_loss, r_stitched):
    agreement = {"patch_consistency": 0.5, "shared_light": 0.5}
    return {"val_loss": val_loss, "object_std": 1.0, "r_stitched": r_stitched, **agreement}


def test_the_best_weights_are_those_of_the_lowest_value_that_they_are_selected_by(tmp_path, monkeypatch):
    losses = iter([0.3, 0.1, 0.2, 0.4])
    stitched = iter([float("nan"), 0.9, 0.7, 0.8])
    monkeypatch.setattr(
        "fnostab.training.validation.Validation.results",
        lambda self, module: _results(next(losses), next(stitched)),
    )
    fit(_config(epochs=4, train__select_by="r_stitched"), tmp_path)
    best = torch.load(tmp_path / "best.ckpt", weights_only=True)
    assert best["epoch"] == 2
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["callbacks"]["Checkpoints"]["best_val_loss"] == (
        pytest.approx(0.1)
    )
    losses, stitched = iter([0.3, 0.1, 0.2, 0.4]), iter([float("nan"), 0.9, 0.7, 0.8])
    fit(_config(epochs=4), tmp_path)
    assert torch.load(tmp_path / "best.ckpt", weights_only=True)["epoch"] == 1


@pytest.mark.parametrize("killed_in", [None, 2, 3, 7])
def test_the_checkpoint_before_the_last_rise_of_the_loss_is_kept_also_by_a_killed_run(killed_in, tmp_path, monkeypatch):
    losses = iter([0.4, 0.2, 0.35, 0.5, 0.2, 0.19, 0.3, 0.15])  # rises begin with the epochs 3 and 7
    monkeypatch.setattr(
        "fnostab.training.validation.Validation.results", lambda self, module: _results(next(losses), float("nan"))
    )
    config = _config(epochs=8)
    if killed_in is not None:
        with pytest.raises(SystemError):
            fit(config, tmp_path, extra=[KillAfter(3 * killed_in - 1)])
    fit(config, tmp_path, resume=killed_in is not None)
    assert torch.load(tmp_path / "before_accident.ckpt", weights_only=True)["epoch"] == 5
    last = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert last["callbacks"]["Checkpoints"]["accident_epoch"] == 7


def test_an_epoch_that_was_not_stitched_is_the_best_only_until_one_was(tmp_path, monkeypatch):
    values = iter([(0.1, float("nan")), (0.4, 0.9), (0.05, float("nan"))])

    def results(self, module):
        val_loss, r_stitched = next(values)
        best = tmp_path / "best.ckpt"
        seen.append(torch.load(best, weights_only=True)["epoch"] if best.exists() else None)
        return _results(val_loss, r_stitched)

    seen = []
    monkeypatch.setattr("fnostab.training.validation.Validation.results", results)
    fit(_config(epochs=3, train__select_by="r_stitched"), tmp_path)
    assert seen == [None, 0, 1]
    assert torch.load(tmp_path / "best.ckpt", weights_only=True)["epoch"] == 1


def test_a_fixed_probe_stays_and_a_learnt_one_moves(tmp_path):
    for learn in (False, True):
        config = _config(train__learn_probe=learn)
        probe = torch.from_numpy(np.array(load_or_build(config.data).probe))
        module, _, _ = fit(config, tmp_path)
        assert torch.equal(module.probe.detach(), probe) is not learn


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd", "stable_adamw"])
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
    module, history, _ = fit(_config(optim__name=name), tmp_path, extra=[poison])
    assert poison.same
    assert history.events == {"non_finite": {"step": step}}
    assert max(value.abs().max() for value in module.state_dict().values()) < 100
    assert len(history.val_loss) == 1  # the run stopped


class _Overflow(lightning.Callback):
    """Lets the weights of one layer overflow before one step; remembers the weights that the step met."""

    def __init__(self, layer, step):
        self.layer, self.step = layer, step

    def on_train_batch_start(self, trainer, module, *_):
        if trainer.global_step == self.step:
            with torch.no_grad():
                module.generator.get_submodule(self.layer).weight.mul_(float("inf"))
            self.met = {name: value.clone() for name, value in module.state_dict().items()}


@pytest.mark.parametrize("free", [True, False])
def test_the_layer_that_overflows_is_named_and_nothing_changes_any_more(tmp_path, monkeypatch, free):
    # Reading is not free on a GPU: there the step is found only when its chunk, or the epoch, ends.
    monkeypatch.setattr("fnostab.training.series.reading_is_free", lambda record: free)
    overflow = _Overflow("encoder.1.0.local", 4)
    module, history, sink = fit(_config(epochs=3), tmp_path, extra=[overflow])
    assert history.events == {"non_finite": {"step": 4, "layer": "encoder.1.0.local"}}
    assert all(torch.equal(value, overflow.met[name]) for name, value in module.state_dict().items())
    assert history.steps == 5
    assert len(history.val_loss) == 2
    assert max(step for key, _, step, _ in sink.rows if not key.startswith("health/")) == 4


def test_a_validation_that_is_not_finite_stops_the_run_and_names_the_layer(tmp_path):
    class Overflow(lightning.Callback):
        def on_validation_start(self, trainer, module):
            with torch.no_grad():
                module.generator.lifter[2].weight.fill_(float("inf"))

    _, history, _ = fit(_config(epochs=3), tmp_path, extra=[Overflow()])
    assert history.events == {"non_finite": {"step": 2, "layer": "lifter.2"}}
    assert len(history.val_loss) == 1


@pytest.mark.parametrize("step", [4, 5])
def test_a_run_that_had_to_stop_stops_again_when_it_is_resumed(tmp_path, step):
    config = _config(epochs=4)
    _, history, sink = fit(config, tmp_path, extra=[_Overflow("encoder.1.0.local", step)], checkpoint_every_s=0.0)
    _, resumed, sink_after = fit(config, tmp_path, new_module(config), resume=True)
    assert resumed.to_json() == history.to_json()
    # repr tells NaN from numbers, == does not.
    assert repr(sorted(_values(sink_after).items())) == repr(sorted(_values(sink).items()))


def test_a_run_that_was_given_up_is_given_up_again_when_it_is_resumed(tmp_path):
    overrides = {"lr": 1e-9, "epochs": 4, "train__give_up_after": 0.5}
    config = _config(**overrides)
    whole, history, sink = fit(config, tmp_path / "atomic_write")
    assert history.events == {"given_up": {"epoch": 2, "epochs": 4}}
    assert len(history.val_loss) == 2
    with pytest.raises(SystemError, match="killed"):  # in the second epoch, after a checkpoint
        fit(config, tmp_path / "killed", checkpoint_every_s=0.0, extra=[KillAfter(5)])
    for folder in ("atomic_write", "killed"):
        resumed, continued, sink_after = fit(
            config, tmp_path / folder, new_module(_config(seed=7, **overrides)), resume=True
        )
        assert continued.to_json() == history.to_json()
        assert _values(sink_after) == _values(sink)
        assert _states_equal(whole, resumed)


def test_a_bad_gradient_of_the_probe_alone_stops_the_run_too(tmp_path):
    class Poison(lightning.Callback):
        def on_after_backward(self, trainer, module):
            if trainer.global_step == 4:
                module.probe_parameter.grad.fill_(float("nan"))

    module, history, _ = fit(_config(epochs=3, train__learn_probe=True), tmp_path, extra=[Poison()])
    assert module.probe_parameter.isfinite().all()
    assert history.events["non_finite"]["step"] == 4


def test_blocks_are_observed_before_the_first_step_and_after_each_epoch(tmp_path):
    _, history, sink = fit(_config(arch="stable_hybrid"), tmp_path)
    assert history.health["norm_weight_absmax"][0] == 0
    assert all(len(values) == 3 for values in history.health.values())
    assert len(set(history.health["act_mean/bottleneck"])) == 3
    rows = [(step, value) for key, value, step, _ in sink.rows if key == "health/act_mean/bottleneck"]
    assert rows == list(zip([0, 3, 6], history.health["act_mean/bottleneck"], strict=True))


def test_the_validation_ssim_is_that_of_the_stitched_amplitude(tmp_path):
    config = _config(**{"data.max_val_patches": None, "data.stride_val_px": 4})
    dataset = load_or_build(config.data)
    probe = torch.from_numpy(np.array(dataset.probe))

    def ssim(amplitudes):
        return stitched_amplitude_ssim(amplitudes, probe, dataset.val, dataset.val_objects)

    truth = torch.from_numpy(dataset.val.patches_of(dataset.val_objects)).abs()
    assert ssim(truth) == pytest.approx(1, abs=1e-5)
    noisy = truth + 0.3 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(0))
    assert ssim(noisy) < 0.9
    _, history, _ = fit(config, tmp_path)
    assert len(history.val_amp_ssim) == len(history.val_loss)


def test_a_network_that_cannot_be_built_is_refused_without_building_it():
    config = _config(arch="stable_hybrid", width=1024, **{"model.layerscale_init": 0.0, "model.fno_blocks": 64})
    with pytest.raises(ConfigError, match=r"^`layerscale_init` \(=0\) must not be 0 where `gamma_init` is 0"):
        check_network(config)


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."), True),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
            True,
        ),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_an_exhausted_memory_is_told_from_other_errors(error, is_one):
    assert is_out_of_memory(error) is is_one


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
    stitched = stitched_amplitude(phases * patches, dataset.beam, positions, extent)
    expected = far_field_amplitude(patches, probe)
    assert (stitched - expected).abs().sum() < 0.02 * expected.sum()
    disagreeing = patches * (1 + 0.5 * torch.randn(8, 32, 32, generator=torch.Generator().manual_seed(1)))
    own = far_field_amplitude(disagreeing, probe)
    assert (stitched_amplitude(disagreeing, dataset.beam, positions, extent) - own).abs().sum() > 0.1 * own.sum()


def test_the_shipped_model_gives_what_training_computed(tmp_path):
    config = _config(epochs=1)
    module, _, _ = fit(config, tmp_path)
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


@pytest.mark.parametrize(
    ("environment", "threads"),
    [({"OMP_NUM_THREADS": "3"}, 3), ({"OMP_NUM_THREADS": "1", "TORCHELASTIC_RUN_ID": "none"}, 2), ({}, 2)],
    ids=["said", "said by torchrun", "not said"],
)
def test_the_threads_of_a_process_are_what_the_environment_says_or_its_share_of_the_cores(
    monkeypatch, environment, threads
):
    for name in ("OMP_NUM_THREADS", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1, 2, 3})
    assert _default_threads(2) == threads
