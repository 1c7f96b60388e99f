"""Several probe modes and a mask of the detector: the physics, training, what is shipped, and a scan that has them."""

from pathlib import Path
from types import SimpleNamespace

import mlflow
import numpy as np
import pytest
import torch
from small_runs import KillAfter, fit, new_module

from fnostab.config import ConfigError, resolve_config
from fnostab.dataset import describe, import_scan, load_or_build, r_by_orientation
from fnostab.difference_map import difference_map
from fnostab.evaluation import baselines, evaluate, stitch_patches
from fnostab.formats.own import write_scan
from fnostab.optics import Beam, far_field_amplitude, measured_scale
from fnostab.tracking.models import load_model
from fnostab.training.batches import resident
from fnostab.training.stitching import stitched_amplitude
from fnostab.workflows.reconstruct import reconstruct_scan
from fnostab.workflows.scan_of_model import probe_difference
from fnostab.workflows.train import train_arm

N = 32
#: A third of the pixels at random, and a third in one band beside the middle.
MASKS = {"random": np.random.default_rng(0).random((N, N)) > 1 / 3, "band": np.ones((N, N), bool)}
MASKS["band"][N // 2 + 2 : N // 2 + 2 + N // 3] = False


def _random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.complex64, generator=torch.Generator().manual_seed(seed))


def _three(probe):
    """Modes of a beam that shakes: 75, 19 and 7 % of the light."""
    return np.stack([probe, 0.5 * np.roll(probe, 4, axis=0), 0.3 * np.roll(probe, -4, axis=1)])


def _config(path, **overrides):
    keys = {"preset": "smoke", "data.path": str(path), "data.N": N, "data.gridsize": 1, "train.batch_size": 16}
    keys |= {"model.width": 4, "model.fno_blocks": 2, "optim.lr": 1e-3, "train.epochs": 2}
    return resolve_config(keys | overrides)


def _source(**data):
    keys = {"preset": "smoke", "data.N": N, "data.objects": "grf", "data.max_train_patches": 8, "data.nimgs_test": 1}
    return load_or_build(resolve_config(keys | {f"data.{key}": value for key, value in data.items()}).data)


@pytest.fixture(scope="module")
def source():
    """Simulated data whose test object is scanned."""
    return _source(object_size=64, stride_test_px=4)


def _write(path, source, modes=None, mask=None, n=None):
    """Write the scan as it would be measured with `modes` and `mask`, and give its path."""
    modes = (source.modes if modes is None else modes) * np.float32(source.scale)
    patches = torch.from_numpy(source.test.patches_of(source.test_objects)[:n])
    rates = np.square(Beam.of(modes, mask).amplitude(patches).numpy(), dtype=np.float64)
    counts = np.random.default_rng(0).poisson(rates).astype(np.float32)
    write_scan(path, counts, source.test.positions_px[:n], probe=modes, mask=mask)
    return path


@pytest.fixture
def write(source, tmp_path):
    """Give `_write` into a folder of the test's own."""
    return lambda name, *arguments, **options: _write(tmp_path / name, source, *arguments, **options)


# The physics.


def test_modes_add_up_in_intensity_at_every_good_pixel():
    patches, modes, mask = _random(5, N, N), _random(3, N, N, seed=1), torch.from_numpy(MASKS["random"])
    fields = torch.fft.fftshift(torch.fft.fft2(modes[:, None] * patches, norm="ortho"), dim=(-2, -1))
    expected = fields.abs().square().sum(0).sqrt()
    torch.testing.assert_close(Beam.of(modes).amplitude(patches), expected)
    torch.testing.assert_close(Beam.of(modes, mask.numpy()).amplitude(patches), expected * mask)


def test_one_mode_before_a_whole_detector_is_the_far_field_bit_for_bit():
    patches, probe = _random(5, N, N), _random(N, N, seed=1)
    assert torch.equal(Beam.of(probe).amplitude(patches), far_field_amplitude(patches, probe))


def test_the_amplitude_has_a_gradient_where_there_is_no_light_and_none_of_masked_pixels():
    modes = _random(2, N, N).requires_grad_()
    Beam.of(modes).amplitude(torch.zeros(1, N, N, dtype=torch.complex64)).sum().backward()
    assert modes.grad.abs().max() == 0
    patches = _random(1, N, N, seed=1).requires_grad_()
    mask = np.zeros((N, N), bool)
    Beam.of(modes, mask).amplitude(patches).sum().backward()
    assert patches.grad.abs().max() == 0


@pytest.mark.parametrize("mask", [None, MASKS["band"]])
def test_the_scale_compares_the_light_of_all_modes_in_good_pixels(source, mask):
    beam = Beam.of(_three(source.probe), mask)
    counts = np.square(7 * beam.alone().numpy())[None].repeat(3, axis=0)
    assert measured_scale(counts, beam) == pytest.approx(7, rel=1e-5)


# A dataset, and what is measured of it.


def test_a_scan_with_modes_and_a_mask_is_a_dataset_with_them(source, write):
    modes, mask = _three(source.probe), MASKS["random"]
    dataset = load_or_build(_config(write("scan.npz", modes, mask)).data)
    np.testing.assert_allclose(dataset.modes, modes * np.float32(source.scale), rtol=1e-5)
    np.testing.assert_array_equal(dataset.probe, dataset.modes[0])
    np.testing.assert_array_equal(dataset.mask, mask)
    told = describe(dataset)
    assert (told["probe_modes"], told["masked_pixels"]) == (3, (~mask).sum())
    whole = load_or_build(_config(write("whole.npz")).data)
    assert whole.mask is None
    assert whole.modes.shape == (1, N, N)
    good = np.array(dataset.train.counts)[:, mask] * dataset.input_scale**2
    assert good.mean() == pytest.approx(1, rel=1e-5)


def test_one_mode_and_a_mask_of_good_pixels_leave_a_dataset_as_it_was(write):
    marked, plain = (
        load_or_build(_config(write(name, mask=mask)).data)
        for name, mask in (("marked.npz", np.ones((N, N), bool)), ("plain.npz", None))
    )
    assert marked.sha256 == plain.sha256
    assert marked.mask is None


def test_the_first_mode_alone_can_be_chosen(source, write):
    path = write("scan.npz", _three(source.probe))
    assert len(load_or_build(_config(path).data).modes) == 3
    assert load_or_build(_config(path, **{"data.modes": 1}).data).modes.shape == (1, N, N)


@pytest.mark.parametrize("gap", [np.nan, -1.0, float(2**32 - 1)])
def test_whatever_a_file_holds_in_gaps_the_dataset_of_good_pixels_is_the_same(write, tmp_path, gap):
    path = write("zeros.npz", mask=MASKS["random"])
    arrays = dict(np.load(path))
    arrays["counts"][:, ~arrays.pop("mask")] = gap
    np.savez(tmp_path / "gaps.npz", **arrays)
    found = load_or_build(_config(tmp_path / "gaps.npz", **{"data.bad_pixels": "mask"}).data)
    assert found.sha256 == load_or_build(_config(path).data).sha256  # so are loss, R-factors and the network's input


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_the_true_object_leaves_photon_noise_in_good_pixels_whatever_they_are(source, write, mask):
    modes = _three(source.probe)
    dataset = load_or_build(_config(write("scan.npz", modes, mask)).data)
    patches = source.test.patches_of(source.test_objects) / np.float32(dataset.scale)
    found = evaluate(patches, dataset, dataset.beam, False).metrics
    floor = baselines(dataset, False)["val_loss_floor"]
    assert found["r_factor_patch"] == pytest.approx(floor, rel=0.3)
    assert found["r_factor"] < 0.05 * found["r_factor_mean_pattern"]
    stitched = stitch_patches(torch.from_numpy(patches), dataset.test, dataset.scale, dataset.beam)
    assert stitched.r == pytest.approx(found["r_factor"], rel=1e-4)
    # Neither the first mode alone nor a detector that saw nothing in the gaps explains the patterns so well.
    for worse in (Beam.of(dataset.probe, mask), Beam.of(dataset.modes)):
        assert evaluate(patches, dataset, worse, False).metrics["r_factor_patch"] > 5 * floor


def test_the_orientation_of_a_scan_with_modes_and_gaps_is_found(source, write):
    dataset = load_or_build(_config(write("scan.npz", _three(source.probe), MASKS["random"], n=45)).data)
    found = r_by_orientation(dataset)
    others = [r for name, r in found.items() if name != "as_given"]
    assert found["as_given"] < 0.6 * min(others)


def test_the_difference_map_fits_modes_better_than_the_first_alone_and_leaves_gaps_open(source, write):
    dataset = load_or_build(_config(write("scan.npz", _three(source.probe), MASKS["random"], n=45)).data)
    amplitudes = np.sqrt(dataset.test.counts) / dataset.scale
    r = {
        name: difference_map(amplitudes, dataset.test.positions_px, beam, 100).r_factor
        for name, beam in {
            "all": dataset.beam,
            "first": Beam.of(dataset.probe, dataset.mask),
            "unmasked": Beam.of(dataset.modes),
        }.items()
    }
    assert r["all"] < 0.5 * r["first"]
    assert r["all"] < 0.5 * r["unmasked"]


# Training.

#: A training that learns something, within half a minute on a free core.
_LEARNING = {"train.epochs": 24, "optim.lr": 3e-3, "optim.schedule": "cosine", "model.width": 8, "model.modes": 8}


@pytest.fixture(scope="module")
def dense():
    """As `source`, with 289 patterns."""
    return _source(object_size=80, stride_test_px=3)


@pytest.fixture(scope="module")
def whole(dense, tmp_path_factory):
    """A network that was trained on a whole detector, its dataset and the loss of a constant object."""
    folder = tmp_path_factory.mktemp("whole")
    config = _config(_write(folder / "scan.npz", dense), **_LEARNING)
    module, history, _ = fit(config, folder)
    return module, load_or_build(config.data), history.val_loss_constant


def _r_of_good_pixels(module, dataset, mask):
    """R-factor of the patches of the whole scan, at the pixels of `mask`."""
    patches = torch.from_numpy(module.reconstruct(dataset.test))
    measured = torch.from_numpy(np.sqrt(dataset.test.counts)) / dataset.scale
    difference = (module.beam.amplitude(patches) - measured).abs().detach()
    good = torch.from_numpy(mask)
    return float(difference[:, good].sum() / measured[:, good].sum())


@pytest.mark.slow
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_without_a_third_of_the_detector_training_fits_the_rest_as_well(whole, dense, tmp_path, mask):
    module, dataset, constant = whole
    expected = _r_of_good_pixels(module, dataset, mask)
    assert expected < 0.5 * constant  # it learnt
    config = _config(_write(tmp_path / "masked.npz", dense, mask=mask), **_LEARNING)
    masked, _, _ = fit(config, tmp_path)
    assert _r_of_good_pixels(masked, load_or_build(config.data), mask) < 1.1 * expected


@pytest.mark.slow
def test_a_scan_of_three_modes_gives_a_better_object_with_all_of_them_than_with_the_first(tmp_path):
    data = _source(object_size=64, stride_test_px=3)
    # Beams that converge, diverge and do neither: no object explains their sum by one of them. (Beams side by side are
    # nearly explained by one and a blurred object.)
    modes = np.stack([data.probe, 0.9 * data.probe.conj(), 0.8 * np.abs(data.probe)]).astype(np.complex64)
    path, found = _write(tmp_path / "scan.npz", data, modes), []
    for limit in (None, 1):
        config = _config(path, **_LEARNING, **{"data.modes": limit, "train.overlap_weight": 1.0})
        found.append(fit(config, tmp_path / str(limit))[1].r_stitched[-1])
    assert found[0] < 0.8 * found[1]


@pytest.mark.parametrize("loss", ["mae", "poisson"])
def test_what_the_network_makes_of_masked_pixels_is_no_loss(source, write, monkeypatch, loss):
    config = _config(write("scan.npz", _three(source.probe), MASKS["random"]), **{"train.loss": loss})
    config = resolve_config({"train.overlap_weight": 0}, base=config.flat())
    module, dataset = new_module(config), load_or_build(config.data)
    monkeypatch.setattr(type(module), "trainer", SimpleNamespace(world_size=1))
    patches, good = _random(8, N, N), torch.from_numpy(dataset.mask)
    batch = resident(dataset.train).take(slice(0, 8))._replace(global_size=8)
    module.forward = lambda sqrt_counts: patches
    found = float(module.training_step(batch, 0).detach())
    predicted, measured = (each[:, good] for each in (module.beam.amplitude(patches), batch.sqrt_counts))
    if loss == "mae":
        expected = (predicted - measured / dataset.scale).abs().sum() / 8 / module.mean_amplitude_sum
    else:
        floor = 1e-3 * module.mean_counts / int(good.sum())
        rate, counts = (predicted * dataset.scale).square() + floor, measured.square() + floor
        expected = (rate - counts + counts * (counts / rate).log()).sum() / 8 / module.mean_counts
    assert found == pytest.approx(float(expected.detach()), rel=1e-4)


def test_the_object_of_a_batch_is_seen_through_all_modes_and_the_mask(source):
    split, beam = source.test, Beam.of(_three(source.probe), MASKS["random"])
    near = np.argsort(((split.positions_px - 12) ** 2).sum(1))[:8]
    patches = torch.from_numpy(split.part(near).patches_of(source.test_objects))
    positions = torch.from_numpy(split.positions_px[near].astype(np.float32))
    extent = tuple(np.ptp(positions.numpy(), axis=0).astype(int).tolist())
    found, expected = stitched_amplitude(patches, beam, positions, extent), beam.amplitude(patches)
    assert (found - expected).abs().sum() < 0.02 * expected.sum()
    assert found[:, ~beam.mask].abs().max() == 0


@pytest.mark.parametrize("killed_at", [3, 5])
def test_a_killed_run_that_learns_all_modes_resumes_bit_for_bit(source, write, tmp_path, killed_at):
    path = write("scan.npz", _three(source.probe), MASKS["band"], n=40)
    config = _config(path, **{"train.learn_probe": True, "optim.schedule": "cosine"})
    whole, history, _ = fit(config, tmp_path / "whole")
    with pytest.raises(SystemError, match="killed"):
        fit(config, tmp_path / "killed", checkpoint_every_s=0.0, extra=[KillAfter(killed_at)])
    resumed, continued, _ = fit(config, tmp_path / "killed", resume=True)
    assert continued.to_json() == history.to_json()
    states = zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True)
    assert all(torch.equal(value, again) for (_, value), again in states)
    start = load_or_build(config.data).beam
    for mode, before in zip(whole.beam.modes, start.modes, strict=True):
        assert not torch.equal(mode.detach(), before)  # all are learnt


def test_the_weights_of_a_run_with_one_mode_are_named_as_they_were(write):
    names = new_module(_config(write("scan.npz"))).state_dict()
    assert [name for name in names if not name.startswith("generator.")] == ["probe_parameter"]


# What is shipped, and a scan that is reconstructed with it.

_GAPS = (np.nan, np.inf, -1.0, float(2**32 - 1))


@pytest.fixture(scope="module")
def trained(source, tmp_path_factory):
    """The model of a run that learnt three modes behind a mask, the scan, and what the run said."""
    folder, said = tmp_path_factory.mktemp("trained"), []
    path = _write(folder / "scan.npz", source, _three(source.probe), MASKS["band"])
    result = train_arm(_config(path, **{"train.learn_probe": True, "train.probe_lr": 0.1}), said.append)
    return f"runs:/{result.run_id}/model", path, said


@pytest.mark.parametrize("gap", _GAPS)
def test_whatever_stands_in_masked_pixels_the_shipped_model_gives_the_same(trained, gap):
    uri, path, _ = trained
    model, counts = load_model(uri), np.array(load_or_build(_config(path).data).test.counts[:3])
    expected = model.predict(counts)
    assert np.isfinite(expected).all()
    counts[:, ~MASKS["band"]] = gap
    np.testing.assert_array_equal(model.predict(counts), expected)
    served = mlflow.pyfunc.load_model(uri).predict(counts)
    np.testing.assert_allclose(served[..., 0] + 1j * served[..., 1], expected, atol=1e-5)


def test_the_model_brings_its_modes_mask_and_first_probe_and_the_run_says_which_it_exports(trained):
    uri, path, said = trained
    model, dataset = load_model(uri), load_or_build(_config(path).data)
    assert model.modes.shape == (3, N, N)
    np.testing.assert_array_equal(model.probe, model.modes[0])
    np.testing.assert_array_equal(model.start_probe, dataset.probe)
    np.testing.assert_array_equal(model.mask, MASKS["band"])
    assert not np.array_equal(model.probe, dataset.probe)
    assert "the model exports the first of 3 modes as its probe, and all as its modes" in said


def test_the_scan_of_the_training_gives_the_runs_r_factor_and_no_warning_of_its_probe(trained, tmp_path):
    uri, path, _ = trained
    lines = []
    found = reconstruct_scan(uri, path, tmp_path / "recon.npz", print_line=lines.append)
    run = mlflow.MlflowClient().get_run(uri.split("/")[1])
    assert found.r_factor == pytest.approx(run.data.metrics["test/r_factor"], rel=1e-4)
    assert probe_difference(import_scan(path, N).probe, load_model(uri).probe) > 0.05  # it was learnt
    assert not [line for line in lines if "probe differs" in line or "masks" in line]
    with np.load(found.npz) as written:
        assert written["modes"].shape == (3, N, N)


def test_another_mask_is_told_and_only_pixels_that_are_good_in_both_count(trained, source, tmp_path):
    uri, path, _ = trained
    other = MASKS["random"]
    scan, lines = _write(tmp_path / "other.npz", source, _three(source.probe), other), []
    found = reconstruct_scan(uri, scan, tmp_path / "recon.npz", print_line=lines.append)
    differing = int((MASKS["band"] != other).sum())
    assert any(f"the masks of the scan and of the model differ in {differing} pixels" in line for line in lines)
    both = _write(tmp_path / "both.npz", source, _three(source.probe), MASKS["band"] & other)
    assert found.r_factor == pytest.approx(reconstruct_scan(uri, both, tmp_path / "b.npz").r_factor, rel=0.05)


def test_a_model_with_a_mask_of_another_size_is_refused(trained, tmp_path):
    folder = Path(mlflow.artifacts.download_artifacts(artifact_uri=trained[0], dst_path=str(tmp_path / "copy")))
    beside = dict(np.load(folder / "extra_files" / "probe.npz"))
    for key, value in (("mask", np.ones((N, N + 1), bool)), ("modes", np.full((2, N, N), np.nan + 0j))):
        np.savez(folder / "extra_files" / "probe.npz", **beside | {key: value})
        name = "probe" if key == "modes" else key
        with pytest.raises(ConfigError, match=rf"a model whose {name} is finite and {N} x {N} as its patterns"):
            load_model(str(folder))
