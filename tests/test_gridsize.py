"""Networks that take groups of four overlapping patterns: training, validation, export, reconstruction."""

from pathlib import Path
from types import SimpleNamespace

import mlflow
import numpy as np
import pytest
import torch
from small_runs import KillAfter, fit, new_module, write_small_scan
from torch import nn

from fnostab.config import ARCHITECTURES, ConfigError, resolve_config
from fnostab.dataset import import_scan, load_or_build, training_objects
from fnostab.formats.own import write_scan
from fnostab.launch import LaunchConfig
from fnostab.models import build_generator
from fnostab.models.registry import GENERATORS
from fnostab.optics import far_field_amplitude
from fnostab.study.plan import plan_file
from fnostab.tracking.models import load_model
from fnostab.training.batches import EpochOrder, PatchLoader, resident
from fnostab.training.checks import check_network
from fnostab.training.module import PtychoModule
from fnostab.training.shipped_model import CountsToObject
from fnostab.training.stitching import stitched_amplitude
from fnostab.training.supervised import Truth
from fnostab.workflows.compare import compare_study
from fnostab.workflows.reconstruct import reconstruct_scan
from fnostab.workflows.study import run_study
from fnostab.workflows.train import train_arm

_SIEMENS_STAR = Path(__file__).resolve().parents[2] / "shared" / "data" / "siemens-star-small.npz.bz2"
_TINY = {
    "preset": "smoke",
    "data.gridsize": 2,
    "data.object_size": 64,
    "data.max_train_patches": 26,
    "data.max_val_patches": 9,
    "model.width": 4,
    "optim.schedule": "constant",
    "train.epochs": 2,
    "train.batch_size": 8,
}


def _config(**overrides):
    return resolve_config({key.replace("__", "."): value for key, value in overrides.items()}, base=_TINY)


def _loader(config):
    """The training patches as `make_loaders` gives them to one process."""
    data, train = load_or_build(config.data), config.train
    order = EpochOrder(data.train, train.batch_size, config.seed, train.overlap_weight > 0, gridsize=2)
    return PatchLoader(resident(data.train)._replace(group_size=4), order)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_network_learns_from_groups(arch, tmp_path):
    _, history, _ = fit(_config(arch=arch, epochs=4, lr=3e-3), tmp_path)
    assert history.steps == 4 * 4  # 26 patterns are 7 groups, two a batch
    assert history.train_loss[-1] < history.train_loss[0]
    assert np.isfinite(history.val_loss).all()
    assert history.events == {}


@pytest.mark.parametrize("overlap_weight", [0.0, 0.25, 1.0])
def test_the_loss_is_that_of_all_four_patches_of_every_group(overlap_weight, monkeypatch):
    config = _config(train__overlap_weight=overlap_weight)
    dataset, module = load_or_build(config.data), new_module(config)
    monkeypatch.setattr(PtychoModule, "trainer", SimpleNamespace(world_size=1))
    for place in range(4):
        batch = _loader(config).batch(place)
        counts = batch.sqrt_counts.square()
        patches = []
        for group in counts.reshape(-1, 4, 32, 32):
            output = module.generator(group[None].sqrt() * dataset.input_scale)
            patches += [torch.view_as_complex(output[0, :, :, channel].contiguous()) for channel in range(4)]
        predicted = torch.stack(patches)
        measured = counts.sqrt() / dataset.scale
        norm = np.sqrt(dataset.train.counts).sum(dtype=float) / len(dataset.train.counts) / dataset.scale
        alone = (far_field_amplitude(predicted, module.probe) - measured).abs().sum() / len(counts) / norm
        object_of_batch = stitched_amplitude(predicted, module.beam, batch.positions_px, batch.extent_px)
        together = (object_of_batch - measured).abs().sum() / len(counts) / norm
        expected = (1 - overlap_weight) * alone + overlap_weight * together
        assert float(module.training_step(batch, 0).detach()) == pytest.approx(float(expected.detach()), rel=1e-5)


class _EachAlone(nn.Module):
    """Looks at each pattern of a group by itself."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return torch.cat([self.network(x[:, channel : channel + 1]) for channel in range(x.shape[1])], dim=3)


def test_a_network_that_looks_at_each_pattern_alone_gives_what_it_gives_without_groups(tmp_path, monkeypatch):
    still = {"epochs": 1, "optim__name": "sgd", "lr": 1e-30, "data__nimgs_val": 2, "data__max_val_patches": 11}
    alone, expected, _ = fit(_config(data__gridsize=1, **still), tmp_path / "alone")
    monkeypatch.setattr(
        "fnostab.training.module.build_generator", lambda model, N, C: _EachAlone(build_generator(model, N))
    )
    config = _config(**still)
    module, history, _ = fit(config, tmp_path / "groups")
    for name in ("val_loss", "r_stitched", "val_amp_ssim", "object_std_ratio", "patch_consistency"):
        np.testing.assert_allclose(getattr(history, name), getattr(expected, name), rtol=1e-5, err_msg=name)
    for split in (load_or_build(config.data).test, load_or_build(config.data).val):
        np.testing.assert_allclose(module.reconstruct(split), alone.reconstruct(split), rtol=1e-4, atol=1e-5)


def test_each_pattern_is_predicted_with_its_neighbours_in_its_own_channel():
    config = _config()
    module, test = new_module(config).eval(), load_or_build(config.data).test
    members = test.groups(2).members[1]
    with torch.no_grad():
        inputs = torch.from_numpy(np.sqrt(test.counts[members]))[None] * module.input_scale
        output = torch.view_as_complex(module.generator(inputs))[0]
    for channel, member in enumerate(members):
        np.testing.assert_allclose(module.reconstruct(test)[member], output[..., channel].numpy(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("overlap_weight", [0.0, 0.5])
def test_a_killed_run_resumes_to_the_same_numbers_bit_for_bit(tmp_path, overlap_weight):
    config = _config(epochs=3, train__overlap_weight=overlap_weight)
    whole, history, _ = fit(config, tmp_path / "whole")
    for killed_at in (2, 6):  # an epoch has 4 steps
        folder = tmp_path / str(killed_at)
        with pytest.raises(SystemError, match="killed"):
            fit(config, folder, checkpoint_every_s=0.0, extra=[KillAfter(killed_at)])
        resumed, continued, _ = fit(config, folder, resume=True)
        assert continued.to_json() == history.to_json()
        states = zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True)
        assert all(torch.equal(one, other) for one, other in states)


def test_the_first_bad_layer_is_found_in_training_and_in_validation(monkeypatch):
    config = _config()
    module = new_module(config)
    monkeypatch.setattr(PtychoModule, "trainer", SimpleNamespace(world_size=1))
    batch = _loader(config).batch(0)
    assert module.first_bad_layer(batch) is None
    module.generator.bottleneck.local.weight.data.fill_(float("nan"))
    assert module.first_bad_layer(batch) == "bottleneck.local"
    assert module.first_bad_layer(batch, training=False) == "bottleneck.local"


@pytest.mark.gpu
def test_groups_are_trained_by_replay_to_the_same_losses(tmp_path):
    _, replayed, _ = fit(_config(accelerator="gpu"), tmp_path / "replayed")
    module, usual, _ = fit(_config(accelerator="gpu", train__cuda_graph=False), tmp_path / "usual")
    np.testing.assert_allclose(replayed.train_loss, usual.train_loss, rtol=1e-3)


def test_a_network_that_takes_one_pattern_is_refused(monkeypatch):
    monkeypatch.setitem(GENERATORS, "cnn", lambda hidden_channels: nn.Identity())
    assert isinstance(build_generator(_config(arch="cnn").model, 32), nn.Identity)
    with pytest.raises(ConfigError, match=r"^`data.gridsize` \(=2\) must be 1: `arch` cnn takes one pattern alone$"):
        check_network(_config(arch="cnn"))


class _NoView:
    def begin(self, runs, finished):
        pass

    def update(self, place, update):
        pass


_ARMS = """
study: sizes
preset: smoke
seeds: [1]
train: {epochs: 1, artifacts: numbers}
arms: [{name: plain, arch: cnn, clip_algo: none}]
grid: {data.gridsize: [1, 2]}
"""


def test_a_study_compares_networks_with_and_without_groups_on_one_dataset(fresh_store):
    (fresh_store / "sizes.yaml").write_text(_ARMS)
    plan = plan_file(fresh_store / "sizes.yaml", {})
    assert run_study(plan, LaunchConfig("inline"), _NoView()).without_result == []
    comparison = compare_study("sizes", register=False)
    assert {row["arm"] for row in comparison.result.ranking.table} == {"plain-gridsize1", "plain-gridsize2"}
    assert len(list((fresh_store / "cache").glob("*/meta.json"))) == 1


def test_a_study_with_an_arm_that_its_data_do_not_allow_is_refused_before_it_has_a_run(fresh_store):
    (fresh_store / "sizes.yaml").write_text(_ARMS + "data: {max_val_patches: 3}\n")
    plan = plan_file(fresh_store / "sizes.yaml", {})
    with pytest.raises(ConfigError, match=r"^`data.gridsize` \(=2\) must be 1: object 0 of split val has 3 patterns"):
        run_study(plan, LaunchConfig("inline"), _NoView())
    assert not (fresh_store / "mlflow.db").exists()


def test_a_supervised_network_learns_from_the_true_patches_of_groups(tmp_path):
    still = {"epochs": 1, "optim__name": "sgd", "lr": 1e-30}
    supervised = {"train__mode": "supervised", "train__overlap_weight": 0.0, "train__batch_size": 28}
    _, history, _ = fit(_config(epochs=4, lr=3e-3, **supervised | {"train__batch_size": 8}), tmp_path / "learns")
    assert history.train_loss[-1] < history.train_loss[0]
    config = _config(**still, **supervised, data__max_train_patches=28)
    module, history, _ = fit(config, tmp_path / "still")
    dataset = load_or_build(config.data)
    distances = {}
    for name, split, objects in (
        ("train", dataset.train, training_objects(dataset)),
        ("val", dataset.val, dataset.val_objects),
    ):
        truth = Truth(objects, split, dataset.probe)
        true = truth.patches(torch.from_numpy(split.positions_px), torch.from_numpy(split.object_index))
        distances[name] = float(truth.distance(torch.from_numpy(module.reconstruct(split)), true).mean())
    assert history.supervised_loss[0] == pytest.approx(distances["val"], rel=1e-4)
    # The groups of the epoch were others, which for a network that has learnt nothing makes little difference.
    assert history.train_loss[0] == pytest.approx(distances["train"], rel=0.02)


# What is shipped.


@pytest.fixture(scope="module")
def trained():
    """The config of a small network of groups, what its training came to, and its model."""
    config = resolve_config({"preset": "smoke", "epochs": 2, "data.gridsize": 2})
    result = train_arm(config, lambda line: None)
    return config, result, f"runs:/{result.run_id}/model"


def test_the_shipped_network_gives_what_training_gave():
    config = _config()
    module, val = new_module(config).eval(), load_or_build(config.data).val
    groups = val.groups(2)
    output = CountsToObject(module.generator, module.input_scale, 4)(torch.from_numpy(val.counts[groups.members]))
    assert output.shape == (3, 4, 32, 32, 2)
    patches = torch.view_as_complex(output.detach().contiguous()).numpy().reshape(-1, 32, 32)
    np.testing.assert_allclose(groups.once(patches), module.reconstruct(val), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_the_model_takes_any_number_of_groups_and_says_that_it_takes_groups(trained, n):
    config, _, uri = trained
    model = mlflow.pyfunc.load_model(uri)
    test = load_or_build(config.data).test
    counts = test.counts[test.groups(2).members[:n]]
    parts = model.predict(counts)
    assert parts.shape == (n, 4, 32, 32, 2)
    ours = load_model(uri)
    np.testing.assert_allclose(
        parts[..., 0] + 1j * parts[..., 1],
        ours.predict(counts.reshape(-1, 32, 32)).reshape(counts.shape),
        rtol=1e-4,
        atol=1e-6,
    )
    assert ours.gridsize == model.metadata.metadata["gridsize"] == 2
    assert model.metadata.signature.inputs.inputs[0].shape == (-1, 4, 32, 32)
    assert model.input_example.shape == (2, 4, 32, 32)


def test_the_scan_that_the_network_was_tested_on_gives_the_runs_r_factor(trained, tmp_path):
    config, result, uri = trained
    dataset = load_or_build(config.data)
    test = dataset.test
    assert len(test.counts) % 4  # so that a group is filled
    write_scan(tmp_path / "scan.npz", test.counts, test.positions_px, dataset.probe)
    told = []
    for batch_size in (64, 3):
        found = reconstruct_scan(
            uri,
            tmp_path / "scan.npz",
            tmp_path / "recon.npz",
            batch_size=batch_size,
            on_patterns=lambda done, total: told.append((done, total)),
        )
        assert found.r_factor == pytest.approx(result.metrics["test/r_factor"], rel=1e-4)
        assert found.stitched.consistency == pytest.approx(result.metrics["test/overlap_consistency"], rel=1e-3)
    n = len(test.counts)
    assert told == [(64, n), (128, n), (n, n), *((min(done, n), n) for done in range(4, n + 4, 4))]


@pytest.mark.skipif(not _SIEMENS_STAR.exists(), reason="the measured scan is not in ../shared/data")
def test_a_measured_scan_is_trained_on_and_reconstructed(tmp_path):
    star, path = import_scan(_SIEMENS_STAR), tmp_path / "star.npz.bz2"
    near = np.argsort(np.linalg.norm(star.positions_px - star.positions_px.mean(axis=0), axis=1))[:102]
    write_scan(path, star.counts[near], star.positions_px[near], star.probe)
    config = resolve_config({"preset": "scan", "data": str(path), "epochs": 1, "width": 4, "data.gridsize": 2})
    assert config.data.N == 64
    result = train_arm(config, lambda line: None)
    found = reconstruct_scan(f"runs:/{result.run_id}/model", path, tmp_path / "recon.npz")
    assert found.r_factor == pytest.approx(result.metrics["test/r_factor"], rel=1e-3)
    assert found.stitched.consistency == pytest.approx(result.metrics["test/overlap_consistency"], rel=1e-2)


def test_a_scan_too_small_to_hold_out_a_group_is_refused_before_anything_is_written(fresh_store):
    write_small_scan(fresh_store / "scan.npz")
    scan = import_scan(fresh_store / "scan.npz")
    write_scan(fresh_store / "few.npz", scan.counts[:12], scan.positions_px[:12], scan.probe)
    before = sorted(fresh_store.rglob("*"))
    config = resolve_config({"preset": "scan", "data": str(fresh_store / "few.npz"), "N": 32, "data.gridsize": 2})
    line = r"^`data.gridsize` \(=2\) must be 1: object 0 of split val has 1 patterns, fewer than a group of 4$"
    with pytest.raises(ConfigError, match=line):
        train_arm(config, lambda line: None)
    assert [path for path in sorted(fresh_store.rglob("*")) if path.is_file() and path not in before] == []
