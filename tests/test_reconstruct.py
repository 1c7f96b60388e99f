"""A whole scan reconstructed with a trained network from the store; what is warned of, and what is refused."""

import os
import pickle
import re
import shutil
import socket
import subprocess
import sys
import time
import warnings
import zipfile
from pathlib import Path

import h5py
import mlflow
import numpy as np
import pytest
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec
from PIL import Image

from fnostab.config import ConfigError, ReadingConfig, resolve_config
from fnostab.dataset import import_scan, load_or_build
from fnostab.formats.own import write_scan
from fnostab.tracking.models import load_model
from fnostab.workflows.reconstruct import reconstruct_scan
from fnostab.workflows.scan_of_model import probe_difference
from fnostab.workflows.train import train_arm

_ROOT = Path(__file__).resolve().parents[1]
_SIEMENS_STAR = _ROOT.parent / "shared" / "data" / "siemens-star-small.npz.bz2"


@pytest.fixture(scope="module")
def config():
    return resolve_config({"preset": "smoke", "epochs": 2})


@pytest.fixture(scope="module")
def run(config):
    """The run of a network that was trained for this module."""
    result = train_arm(config, lambda line: None)
    return mlflow.MlflowClient().get_run(result.run_id)


@pytest.fixture(scope="module")
def model(run):
    return f"runs:/{run.info.run_id}/model"


@pytest.fixture(scope="module")
def dataset(config):
    return load_or_build(config.data)


@pytest.fixture
def write(dataset, tmp_path):
    """Write the run's test scan or the first `n` patterns of it, changed by the keywords, and give its path."""

    def to_file(n=None, **changes):
        test = dataset.test
        arrays = {"counts": test.counts[:n], "positions_px": test.positions_px[:n], "probe": dataset.probe} | changes
        write_scan(tmp_path / "scan.npz", **arrays)
        return tmp_path / "scan.npz"

    return to_file


@pytest.fixture
def folder_of(model, tmp_path):
    """Give a copy of the model's files, in a folder of the test's own."""
    return Path(mlflow.artifacts.download_artifacts(artifact_uri=model, dst_path=str(tmp_path / "copy")))


def _reconstruct(model, scan, **options):
    """Reconstruct into `recon.npz` beside the scan; the result and the lines for people."""
    lines: list[str] = []
    return reconstruct_scan(model, scan, scan.with_name("recon.npz"), print_line=lines.append, **options), lines


def _warnings(lines):
    return [line for line in lines if line.startswith("warning: ")]


def test_the_scan_that_the_network_was_tested_on_gives_the_runs_r_factor_and_object(run, model, write):
    result, lines = _reconstruct(model, write())
    assert result.r_factor == pytest.approx(run.data.metrics["test/r_factor"], rel=1e-4)
    assert result.stitched.consistency == pytest.approx(run.data.metrics["test/overlap_consistency"], rel=1e-3)
    assert result.r_factor_mean_pattern > 0
    assert _warnings(lines) == []
    logged = mlflow.artifacts.download_artifacts(f"{run.info.artifact_uri}/recon/object_0.npz")
    with np.load(result.npz) as written, np.load(logged) as expected:
        for key in ("object", "light", "probe"):
            scale = np.abs(expected[key]).max()
            np.testing.assert_allclose(written[key], expected[key], rtol=0, atol=1e-3 * scale, err_msg=key)


def test_npz_and_png_are_whole_and_nothing_else_is_left(model, write):
    scan = write()
    result, _ = _reconstruct(model, scan)
    assert sorted(path.name for path in scan.parent.iterdir()) == ["recon.npz", "recon.png", "scan.npz"]
    with np.load(result.npz, allow_pickle=False) as written:
        keys = {"object", "light", "origin_px", "probe", "positions_px", "pixel_size_m", "r_factor", "consistency"}
        assert set(written) == keys | {"frc_halves_one_seventh", "frc_halves_half_bit", "model"}
        assert np.isnan(written["pixel_size_m"])
        assert 0 <= written["frc_halves_half_bit"] == result.frc_halves_half_bit <= 0.5
        assert written["object"].shape == written["light"].shape
        assert written["r_factor"] == result.r_factor
        assert str(written["model"]) == model
        last = written["positions_px"].max(axis=0) - written["origin_px"] + len(written["probe"])
        assert tuple(last) == written["object"].shape
    with Image.open(result.png) as picture:
        picture.load()
        assert picture.size > (500, 500)


def test_with_the_experiments_geometry_the_object_goes_to_cxi_and_a_picture_beside_it(model, write):
    scan = write(n=40)
    reading = ReadingConfig(energy_keV=8, distance_m=2, detector_pixel_m=1e-4)
    result = reconstruct_scan(model, scan, scan.with_name("recon.cxi"), reading=reading)
    assert sorted(path.name for path in scan.parent.iterdir()) == ["recon.cxi", "recon.png", "scan.npz"]
    pixel_m = 1.2398419843320026e-6 / 8000 * 2 / (32 * 1e-4)
    with h5py.File(result.npz) as written:
        np.testing.assert_array_equal(written["entry_1/object/data"], result.stitched.object)
        height, width = result.stitched.object.shape
        np.testing.assert_allclose(written["entry_1/object/image_size"], [width * pixel_m, height * pixel_m, 0])
        assert written["entry_1/instrument_1/source_1/energy"][()] == pytest.approx(8000 * 1.602176634e-19)
        assert written["entry_1/instrument_1/detector_1/distance"][()] == 2
        assert written["entry_1/fnostab/r_factor"][()] == result.r_factor


def test_an_object_that_cannot_be_drawn_is_written_all_the_same_and_this_is_said(model, write, monkeypatch):
    def broken_figure(*arguments):
        raise ValueError("Unknown symbol")

    monkeypatch.setattr("fnostab.workflows.scan_object.reconstruction_figure", broken_figure)
    scan = write(n=30)
    result, lines = _reconstruct(model, scan)
    assert result.png is None
    assert "warning: the object could not be drawn, so there is no picture: ValueError: Unknown symbol" in lines
    assert sorted(path.name for path in scan.parent.iterdir()) == ["recon.npz", "scan.npz"]


def test_a_scan_with_dollars_in_its_name_is_drawn_as_any_other(model, write):
    scan = write(n=30)
    result, lines = _reconstruct(model, scan.rename(scan.with_name("a$_b$^{.npz")))
    assert result.png.exists()
    assert not any("drawn" in line for line in lines)


def test_patterns_go_in_batches_that_are_told_and_change_nothing(run, model, write, dataset):
    told = []
    result, _ = _reconstruct(model, write(), batch_size=50, on_patterns=lambda done, total: told.append((done, total)))
    n = len(dataset.test.counts)
    assert told == [(min(done, n), n) for done in range(50, n + 50, 50)]
    assert result.r_factor == pytest.approx(run.data.metrics["test/r_factor"], rel=1e-4)


def test_an_alias_is_recorded_as_the_version_that_it_stood_for(run, write):
    client = mlflow.MlflowClient()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        version = mlflow.register_model(f"runs:/{run.info.run_id}/model", "fnostab-here").version
    client.set_registered_model_alias("fnostab-here", "champion", version)
    result, _ = _reconstruct("models:/fnostab-here@champion", write())
    assert result.source == f"models:/fnostab-here/{version}"
    assert load_model("models:/fnostab-here@champion").run_id == run.info.run_id


def test_the_model_says_what_it_was_trained_with(model, run, dataset):
    loaded = load_model(model)
    assert (loaded.N, loaded.gridsize) == (dataset.config.N, 1)
    assert loaded.run_id == run.info.run_id
    assert loaded.scale == dataset.scale
    assert loaded.mean_counts == pytest.approx(dataset.train.counts.sum(dtype=float) / len(dataset.train.counts))
    np.testing.assert_array_equal(loaded.probe, dataset.probe)


@pytest.mark.parametrize("share", [0.04, 0.2, 0.7])
def test_another_probe_is_warned_of_with_the_per_cent_that_it_differs_by(share, model, write, dataset):
    probe = dataset.probe.astype(complex)
    other = np.where(np.arange(probe.size).reshape(probe.shape) % 2, probe, -1.1j * probe)
    other -= probe * np.vdot(probe, other) / np.vdot(probe, probe)
    other *= np.linalg.norm(probe) / np.linalg.norm(other)
    mixed = np.sqrt(1 - share**2) * probe + share * other
    result, lines = _reconstruct(model, write(n=30, probe=(7 - 3j) * mixed))
    about_probe = [warning for warning in _warnings(lines) if "probe" in warning]
    if share < 0.05:
        assert about_probe == []
    else:
        (warning,) = about_probe
        assert f"the scan's probe differs from the model's by {100 * share:.1f} %" in warning
    with np.load(result.npz) as written:
        np.testing.assert_array_equal(written["probe"], dataset.probe)


def test_a_shifted_probe_is_another_probe(dataset):
    assert probe_difference(np.roll(dataset.probe, 2, axis=0), dataset.probe) > 0.1
    assert probe_difference(1j * dataset.probe, dataset.probe) < 1e-6


def test_a_probe_that_is_given_stands_in_for_the_scans_own(model, write, dataset, tmp_path):
    np.savez(tmp_path / "probe.npz", probe=np.roll(dataset.probe, 2, axis=0))
    _, lines = _reconstruct(model, write(n=30), probe=str(tmp_path / "probe.npz"))
    assert "the scan's probe differs from the model's by" in _warnings(lines)[0]


def test_a_scan_without_a_probe_is_stitched_with_the_models(run, model, write):
    result, lines = _reconstruct(model, write(probe=None))
    assert result.r_factor == pytest.approx(run.data.metrics["test/r_factor"], rel=1e-4)
    assert "the scan brings no probe: the model's is used" in lines


def test_a_model_without_a_probe_takes_the_scans_and_says_what_that_means(folder_of, write, dataset):
    shutil.rmtree(folder_of / "extra_files")
    result, lines = _reconstruct(str(folder_of), write(n=30))
    assert "the model brings no probe" in _warnings(lines)[0]
    assert "does not say its scale" in _warnings(lines)[1]
    with np.load(result.npz) as written:
        np.testing.assert_array_equal(written["probe"], dataset.probe)
        assert str(written["model"]) == str(folder_of.resolve())


def test_neither_probe_is_refused(folder_of, write):
    shutil.rmtree(folder_of / "extra_files")
    with pytest.raises(ConfigError, match=r"`data.probe` \(=auto\) must name a probe"):
        _reconstruct(str(folder_of), write(probe=None))


@pytest.mark.parametrize(("factor", "told"), [(3, "3"), (0.25, "0.25"), (0.92, None), (1.09, None)])
def test_more_or_fewer_counts_than_in_training_are_warned_of(factor, told, model, write, dataset):
    trained = dataset.train.counts.sum(dtype=float) / len(dataset.train.counts)
    counts = dataset.test.counts[:30]
    _, lines = _reconstruct(model, write(n=30, counts=counts * (factor * trained * len(counts) / counts.sum())))
    if told is None:
        assert _warnings(lines) == []
    else:
        (warning,) = _warnings(lines)
        assert f"the scan's mean pattern holds {told} times the counts that the model was trained with" in warning


# What is refused: in one line, with nothing written.


@pytest.fixture
def refused(write, tmp_path):
    """Check that a call is refused with a message of one line and leaves the folder as it was."""

    def check(match, model, scan=None, **options):
        scan = scan or write()
        before = sorted(tmp_path.rglob("*"))
        options = {"out": tmp_path / "recon.npz"} | options
        start = time.monotonic()
        with pytest.raises(ConfigError, match=match) as caught:
            reconstruct_scan(model, scan, **options)
        assert time.monotonic() - start < 20
        assert "\n" not in str(caught.value)
        assert sorted(tmp_path.rglob("*")) == before

    return check


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"out": "nowhere/recon.npz"}, r"`out` \(=nowhere/recon.npz\) must be a file in a folder that exists"),
        ({"out": "recon.txt"}, r"`out` \(=recon.txt\) must end in .npz, .cxi, .h5 or .hdf5"),
        ({"out": "recon.npz", "layout": "cxi"}, r"`out` \(=recon.npz\) must end in .cxi, .h5 or .hdf5 for the layout"),
        ({"layout": "nexus"}, r"`layout` \(=nexus\) must be one of auto, fnostab, cxi, ptychodus"),
        ({"quantity": "photons"}, r"`quantity` \(=photons\) must be one of auto, counts, amplitude"),
        ({"batch_size": 0}, r"`batch_size` \(=0\) must be >= 1"),
        ({"refine": -1}, r"`refine` \(=-1\) must be >= 0"),
        ({"backend": "tensorrt"}, r"`backend` \(=tensorrt\) must be one of auto, torch, onnx"),
        ({"precision": "fp8"}, r"`precision` \(=fp8\) must be one of auto, 32-true, bf16-mixed"),
        ({"backend": "onnx", "precision": "bf16-mixed"}, r"`precision` \(=bf16-mixed\) must be 32-true with the back"),
        ({"probe": "missing.npz"}, r"`data.probe` \(=missing.npz\) must be a readable file"),
    ],
)
def test_bad_arguments_are_refused(options, match, model, refused):
    refused(match, model, **options)


@pytest.mark.parametrize(("name", "layout"), [("recon.cxi", "auto"), ("recon.npz", "ptychodus")])
def test_a_file_in_metres_is_refused_for_a_scan_that_tells_no_pixel_size(name, layout, model, refused, tmp_path):
    options = {"out": tmp_path / name, "layout": layout}
    refused(r"`object_pixel_m` \(=null\) must be given for a file of the layout (cxi|ptychodus)", model, **options)


def test_the_scan_itself_is_not_overwritten(model, write, refused):
    scan = write()
    refused(r"`out` .* must be another file than the scan", model, scan, out=scan)


def test_a_scan_that_is_not_there_or_no_scan_is_refused(model, refused, tmp_path):
    refused(r"`data` \(=.*missing.npz\) must be a scan, a file that exists", model, tmp_path / "missing.npz")
    (tmp_path / "text.npz").write_text("no scan")
    refused(r"text.npz\) must be an NPZ file", model, tmp_path / "text.npz")


def test_patterns_smaller_than_the_models_are_refused(model, write, dataset, refused):
    scan = write(counts=dataset.test.counts[:, 8:24, 8:24], probe=dataset.probe[8:24, 8:24])
    refused(r"`data.N` \(=32\) must be <= 16, the size of the patterns, in .*; N is the model's", model, scan)


@pytest.mark.parametrize(
    ("uri", "match"),
    [
        ("models:/nobody@champion", "must be a model in the tracking store: Registered Model with name=nobody not"),
        ("models:/nobody/3", "must be an MLflow model that can be read: .*nobody"),
        ("models:/", "must be an MLflow model that can be read"),
        ("runs:/0123/model", "must be an MLflow model that can be read: Run with id=0123 not found"),
        ("no-such-folder", "must be models:/NAME@ALIAS, .* or a folder that exists"),
    ],
)
def test_a_model_that_is_not_there_is_refused(uri, match, model, refused):
    refused(rf"`model` \(={uri}\) {match}", uri)


def test_a_store_that_is_not_there_or_does_not_answer_is_refused_and_not_made(refused, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'none.db'}")
    refused("must name a tracking store: there is none yet", "models:/any@champion")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound but not listening: nothing answers
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{taken.getsockname()[1]}")
        refused("must name a tracking server that answers", "models:/any@champion")


class _Touch:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def _foreign(inside):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow's advice on type hints

        class Foreign(mlflow.pyfunc.PythonModel):
            def __init__(self):
                self.inside = inside

            def predict(self, context, model_input, params=None):
                return model_input

    return Foreign()


@pytest.mark.parametrize("uri", ["runs", "folder"])
def test_a_pickled_model_is_refused_and_not_unpickled(uri, refused, tmp_path):
    mark = tmp_path / "unpickled"
    float32 = np.dtype(np.float32)
    saved = {
        "python_model": _foreign(_Touch(mark)),
        "signature": ModelSignature(
            inputs=Schema([TensorSpec(float32, (-1, 32, 32))]), outputs=Schema([TensorSpec(float32, (-1, 32, 32, 2))])
        ),
        "pip_requirements": ["mlflow"],
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if uri == "runs":
            with mlflow.start_run() as foreign:
                mlflow.pyfunc.log_model(name="model", **saved)
            place = f"runs:/{foreign.info.run_id}/model"
        else:
            place = str(tmp_path / "foreign")
            mlflow.pyfunc.save_model(place, **saved)
        pickled = next(Path(mlflow.artifacts.download_artifacts(place)).glob("*.pkl"))
    refused("must be a network that this package exported .*: its flavors are python_function", place)
    assert not mark.exists()
    with pickled.open("rb") as file:
        pickle.load(file)
    assert mark.exists()  # the trap works


def test_a_pickle_inside_of_an_export_is_refused_and_not_unpickled(folder_of, refused, tmp_path):
    mark = tmp_path / "unpickled"
    archive = folder_of / "data" / "model.pt2"
    whole = archive.with_name("whole.pt2")
    archive.rename(whole)
    with zipfile.ZipFile(whole) as before, zipfile.ZipFile(archive, "w") as after:
        for name in before.namelist():
            content = pickle.dumps(_Touch(mark)) if "sample_inputs" in name else before.read(name)
            after.writestr(name, content)
    whole.unlink()
    refused("must be a whole model without pickles: .*not a pickle-free payload", str(folder_of))
    assert not mark.exists()


def test_a_pickle_beside_an_export_and_code_that_comes_with_it_are_refused(folder_of, refused):
    (folder_of / "data" / "model.pth").write_bytes(b"")
    refused("or a pickle besides", str(folder_of))
    (folder_of / "data" / "model.pth").unlink()
    description = (folder_of / "MLmodel").read_text()
    (folder_of / "MLmodel").write_text(description.replace("    code: null", "    code: code"))
    refused("it brings code of its own", str(folder_of))


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ("float32", "float64", "it takes float64"),
        ("32]", "16]", "it takes float32"),
        ("signature:", "other:", "an MLflow model that can be read|its signature is not one tensor to one tensor"),
        ("flavors:", "flavors: [", "must be an MLflow model that can be read"),
    ],
)
def test_another_signature_is_refused(old, new, match, folder_of, refused):
    description = (folder_of / "MLmodel").read_text().replace("32,\n    32", "32, 32")
    assert old in description
    (folder_of / "MLmodel").write_text(description.replace(old, new))
    refused(match, str(folder_of))


def test_a_damaged_model_is_refused(folder_of, refused):
    archive = folder_of / "data" / "model.pt2"
    content = archive.read_bytes()
    archive.write_bytes(content[: len(content) // 2])
    refused("must be a whole model: its end is missing", str(folder_of))
    archive.write_bytes(content)
    probe = folder_of / "extra_files" / "probe.npz"
    probe.write_bytes(probe.read_bytes()[:500])
    refused("must be a whole NPZ file", str(folder_of))


def test_a_network_that_gives_no_finite_patches_is_refused(model, refused, monkeypatch):
    from fnostab.tracking.models import ShippedModel

    def predict(self, counts):
        return np.full(counts.shape, np.nan, np.complex64), None

    monkeypatch.setattr(ShippedModel, "predict_with_deviation", predict)
    refused("must predict finite patches of this scan", model)


def test_what_was_there_stays_if_writing_fails(model, write, monkeypatch):
    def full(self, *arguments, **options):
        raise OSError(28, "No space left on device")

    scan = write()
    old = scan.with_name("recon.npz")
    old.write_text("older")
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        _reconstruct(model, scan)
    assert old.read_text() == "older"
    assert sorted(path.name for path in scan.parent.iterdir()) == ["recon.npz", "scan.npz"]


def test_positions_that_are_far_apart_give_no_consistency_and_this_is_said(model, write, dataset):
    result, lines = _reconstruct(model, write(n=30, positions_px=3 * dataset.test.positions_px[:30]))
    assert np.isnan(result.stitched.consistency)
    assert any(line.startswith("warning: the patches share 0.0 % of their light, under 1 %") for line in lines)


# As a user goes it.


def _environment():
    """The environment of a process in which `python` is this interpreter."""
    return os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def test_the_command_ends_with_what_was_reached_and_the_files(run, model, write):
    scan = write()
    command = [sys.executable, "-m", "fnostab", "reconstruct", "--model", model, "--data", str(scan)]
    command += ["--out", str(scan.with_name("mine.npz")), "--batch_size", "32"]
    done = subprocess.run(command, env=_environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    taken, reached, consistency, halves, files = done.stdout.strip().splitlines()[-5:]
    assert re.fullmatch(
        r"patterns: read in \d+\.\d\d s, predicted in \d+\.\d\d s \([\d.e+]+ a second\), stitched and measured in .* s",
        taken,
    )
    assert reached.startswith(f"R-factor: {run.data.metrics['test/r_factor']:.4f} for the stitched object (one mean")
    assert consistency.startswith(f"overlap consistency: {run.data.metrics['test/overlap_consistency']:.3f}")
    assert re.match(
        r"FRC of two half scans: falls under 1/7 at 0\.\d{3} cycles/px, under the half-bit curve at", halves
    )
    assert files == f"object: {scan.with_name('mine.npz')}; picture: {scan.with_name('mine.png')}"
    assert "Traceback" not in done.stderr
    command[command.index(model)] = "models:/nobody@champion"
    refused = subprocess.run(command, env=_environment(), capture_output=True, text=True, timeout=300)
    assert refused.returncode == 2
    assert refused.stderr.startswith("fnostab: error: `model` (=models:/nobody@champion) must be")
    assert len(refused.stderr.splitlines()) == 1


def test_under_mlflow_run_files_and_numbers_go_to_its_run(run, model, write):
    scan = write()
    out = scan.with_name("recon.npz")
    command = [sys.executable, "-m", "mlflow", "run", str(_ROOT), "-e", "reconstruct", "--env-manager", "local"]
    command += ["-P", f"model={model}", "-P", f"data={scan}", "-P", f"out={out}", "--experiment-name", "reconstruct"]
    done = subprocess.run(command, env=_environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    client = mlflow.MlflowClient()
    (logged,) = client.search_runs([client.get_experiment_by_name("reconstruct").experiment_id])
    assert logged.info.status == "FINISHED"
    assert {entry.path for entry in client.list_artifacts(logged.info.run_id)} == {"recon.npz", "recon.png"}
    assert logged.data.metrics["test/r_factor"] == pytest.approx(run.data.metrics["test/r_factor"], rel=1e-4)
    assert logged.data.metrics["test/overlap_consistency"] > 0
    assert 0 <= logged.data.metrics["test/frc_halves_one_seventh"] <= 0.5
    assert "vacuous" not in logged.data.tags
    assert logged.data.tags["model"] == model
    assert logged.data.tags["model_run"] == run.info.run_id
    assert logged.data.tags["scan"] == str(scan)


@pytest.mark.skipif(not _SIEMENS_STAR.exists(), reason="the measured scan is not in ../shared/data")
def test_a_measured_scan_with_a_learnt_probe_gives_the_runs_r_factor(tmp_path):
    star, path = import_scan(_SIEMENS_STAR), tmp_path / "star.npz.bz2"
    near = np.argsort(np.linalg.norm(star.positions_px - star.positions_px.mean(axis=0), axis=1))[:100]
    write_scan(path, star.counts[near], star.positions_px[near], star.probe)
    config = resolve_config({"preset": "scan", "data": str(path), "N": 32, "epochs": 1, "width": 4})
    result = train_arm(config, lambda line: None)
    model = f"runs:/{result.run_id}/model"
    lines: list[str] = []
    found = reconstruct_scan(model, path, tmp_path / "recon.npz", print_line=lines.append)
    assert found.r_factor == pytest.approx(result.metrics["test/r_factor"], rel=1e-3)
    assert found.r_factor_mean_pattern == pytest.approx(result.metrics["test/r_factor_mean_pattern"], rel=1e-3)
    assert found.stitched.consistency == pytest.approx(result.metrics["test/overlap_consistency"], rel=1e-2)
    assert [line for line in lines if "counts that the model" in line] == []
    learnt = load_model(model).probe
    with np.load(tmp_path / "recon.npz") as written:
        np.testing.assert_array_equal(written["probe"], learnt)
    assert 0 < probe_difference(import_scan(path, 32).probe, learnt) < 1
