"""A scan reconstructed by torch, by onnxruntime and in bfloat16, and fitted further: the same object, and its files."""

import importlib.util
import shutil

import mlflow
import numpy as np
import pytest
import torch
from small_runs import save_untrained_model, save_untrained_model_of, write_small_scan

from fnostab.cli import main
from fnostab.export.onnx_model import OnnxModel
from fnostab.models.bfloat16 import with_bfloat16_convolutions
from fnostab.optics import Beam
from fnostab.tracking.models import load_model
from fnostab.workflows.export_model import export_model
from fnostab.workflows.reconstruct import reconstruct_scan


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("backends")


@pytest.fixture(scope="module")
def scan(folder):
    write_small_scan(folder / "scan.npz")
    return folder / "scan.npz"


@pytest.fixture(scope="module")
def model(folder, scan):
    return save_untrained_model_of(scan, folder / "model", width=8)


@pytest.fixture(scope="module")
def onnx_file(folder, model):
    export_model(str(model), folder / "model.onnx")
    return folder / "model.onnx"


@pytest.fixture(scope="module")
def by_torch(folder, model, scan):
    return reconstruct_scan(str(model), scan, folder / "torch.npz")


def _reconstruct(model, scan, tmp_path, **options):
    lines: list[str] = []
    return reconstruct_scan(str(model), scan, tmp_path / "recon.npz", print_line=lines.append, **options), lines


def _deviation(result, expected):
    return np.abs(result.stitched.object - expected.stitched.object).max() / np.abs(expected.stitched.object).max()


def test_an_onnx_file_gives_the_object_that_torch_gives_and_needs_no_store(
    onnx_file, by_torch, scan, tmp_path, monkeypatch
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'none.db'}")
    result, _ = _reconstruct(onnx_file, scan, tmp_path)
    assert _deviation(result, by_torch) < 1e-3
    assert result.r_factor == pytest.approx(by_torch.r_factor, rel=1e-4)
    assert result.source == str(onnx_file)
    with np.load(result.npz) as one, np.load(by_torch.npz) as other:
        np.testing.assert_array_equal(one["probe"], other["probe"])
    assert not (tmp_path / "none.db").exists()


def test_a_model_of_mlflow_is_run_by_onnxruntime_under_its_own_name(model, by_torch, scan, tmp_path, monkeypatch):
    calls = []
    predict = OnnxModel.predict_with_deviation
    monkeypatch.setattr(OnnxModel, "predict_with_deviation", lambda self, c: calls.append(len(c)) or predict(self, c))
    result, _ = _reconstruct(model, scan, tmp_path, backend="onnx", batch_size=20)
    assert calls == [20, 20, 9]
    assert result.source == by_torch.source
    assert _deviation(result, by_torch) < 1e-3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["recon.npz", "recon.png"]


def test_bfloat16_changes_the_patches_by_its_rounding_and_no_more(model, by_torch, scan, tmp_path):
    shipped = load_model(str(model))
    rounded = with_bfloat16_convolutions(shipped.network)
    counts = torch.from_numpy(np.random.default_rng(1).poisson(20, (5, 32, 32)).astype(np.float32))
    with torch.inference_mode():
        exact, low = shipped.network(counts), rounded(counts)
        again = shipped.network(counts)
    assert low.dtype == torch.float32
    assert torch.equal(exact, again)  # the network itself stays as it was
    deviation = float((low - exact).abs().max() / exact.abs().max())
    assert 1e-5 < deviation < 3e-2
    result, _ = _reconstruct(model, scan, tmp_path, precision="bf16-mixed")
    assert result.r_factor == pytest.approx(by_torch.r_factor, rel=0.05)
    assert result.r_factor != by_torch.r_factor


def test_a_machine_without_bfloat16_is_told_that_it_costs_time(model, scan, tmp_path, monkeypatch):
    monkeypatch.setattr("fnostab.workflows.backends.has_bf16", lambda kind: False)
    _, lines = _reconstruct(model, scan, tmp_path, precision="bf16-mixed")
    assert "warning: precision=bf16-mixed will be slower than 32-true: this cpu has no instructions for it" in lines


def test_a_network_without_convolutions_is_refused_in_bfloat16():
    class Root(torch.nn.Module):
        def forward(self, counts):
            return counts.sqrt()

    exported = torch.export.export(Root(), (torch.ones(2, 4, 4),)).module()
    with pytest.raises(ValueError, match="must have convolutions, and has none"):
        with_bfloat16_convolutions(exported)
    with pytest.raises(ValueError, match="must be a pt2 export, and is none"):
        with_bfloat16_convolutions(torch.nn.Conv2d(1, 1, 1))


def _refusal(capsys, tmp_path, *arguments):
    before = sorted(tmp_path.iterdir())
    capsys.readouterr()
    assert main(["reconstruct", "--out", str(tmp_path / "recon.npz"), *map(str, arguments)]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert sorted(tmp_path.iterdir()) == before
    assert said.err.count("\n") == 1
    return said.err.removeprefix("fnostab: error: ").rstrip("\n")


def test_a_damaged_onnx_file_is_refused_in_one_line(onnx_file, scan, tmp_path, capsys):
    bad = tmp_path / "bad.onnx"
    content = bytearray(onnx_file.read_bytes())
    bad.write_bytes(content[: len(content) // 2])
    assert "must be a whole ONNX file" in _refusal(capsys, tmp_path, "--model", bad, "--data", scan)
    content[len(content) // 2] ^= 1
    bad.write_bytes(content)
    told = _refusal(capsys, tmp_path, "--model", bad, "--data", scan)
    assert told == f"`model` (={bad}) must be as `fnostab export-model` wrote it: its content does not fit its checksum"
    bad.unlink()
    told = _refusal(capsys, tmp_path, "--model", bad, "--data", scan)
    assert told == f"`model` (={bad}) must be a readable file: No such file or directory"


def test_an_onnx_file_of_larger_patterns_is_refused_in_one_line(onnx_file, scan, tmp_path, capsys):
    with np.load(scan) as arrays:
        half = {"counts": arrays["counts"][:, 8:24, 8:24], "positions_px": arrays["positions_px"]}
    np.savez(tmp_path / "half.npz", **half)
    told = _refusal(capsys, tmp_path, "--model", onnx_file, "--data", tmp_path / "half.npz")
    assert told.startswith("`data.N` (=32) must be <= 16, the size of the patterns")
    assert told.endswith("; N is the model's")


@pytest.mark.parametrize(("backend", "missing"), [("onnx", "onnxscript"), ("auto", "onnxruntime")])
def test_without_the_extra_it_is_named(backend, missing, model, onnx_file, scan, tmp_path, capsys, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else find(name))
    given = model if backend == "onnx" else onnx_file
    told = _refusal(capsys, tmp_path, "--model", given, "--data", scan, "--backend", backend)
    assert told == f"`backend` (=onnx) needs {missing}: pip install fnostab[onnx]"


def test_torch_cannot_run_an_onnx_file(onnx_file, scan, tmp_path, capsys):
    told = _refusal(capsys, tmp_path, "--model", onnx_file, "--data", scan, "--backend", "torch")
    assert told == f"`backend` (=torch) must be onnx or auto for {onnx_file}, an ONNX file"


def test_a_refined_object_is_written_with_the_networks_and_fits_better(model, by_torch, scan, tmp_path, capsys):
    arguments = ["--model", str(model), "--data", str(scan), "--out", str(tmp_path / "recon.npz")]
    assert main(["reconstruct", *arguments, "--refine", "60"]) == 0
    said = capsys.readouterr().out.splitlines()
    with np.load(tmp_path / "recon.npz") as written:
        after, before = float(written["r_factor"]), float(written["r_factor_network"])
        np.testing.assert_allclose(written["network_object"], by_torch.stitched.object, atol=1e-4)
        assert written["object"].shape == written["network_object"].shape
        assert not np.array_equal(written["object"], written["network_object"])
        probe = written["probe"]
    assert before == pytest.approx(by_torch.r_factor, rel=1e-4)
    assert after < 0.8 * before
    assert np.abs(probe - load_model(str(model)).probe).max() > 1e-4
    (line,) = [line for line in said if line.startswith("R-factor: ")]
    assert line.startswith(f"R-factor: {after:.4f} after 60 steps of refinement, {before:.4f} before (one mean pattern")
    assert any(line.startswith("patterns: read in") and ", refined in " in line for line in said)


def test_groups_and_a_mask_of_the_models_are_stitched_in_parts_as_well(folder, scan, tmp_path):
    """As before patterns were streamed: the patches of a group once each, pixels good in both masks."""
    from fnostab.dataset import import_scan
    from fnostab.dataset.groups import group_patterns
    from fnostab.scan import reassemble, stitched_r_factor

    mask = np.ones((32, 32), bool)
    mask[16, 15:18] = False
    imported = import_scan(scan)
    probe, scale = imported.probe / 100, 100.0
    model = save_untrained_model(folder / "groups", Beam.of(probe, mask), scale, 2000.0, gridsize=2)
    result, lines = _reconstruct(model, scan, tmp_path, batch_size=10)
    assert any("masks of the scan and of the model differ in 3 pixels" in line for line in lines)
    counts = imported.counts * mask
    positions = imported.positions_px - imported.positions_px.min(axis=0)
    groups = group_patterns(positions, np.zeros(len(counts), np.int64), 2)
    patches = groups.once(load_model(str(model)).predict(counts[groups.in_order]))
    expected = reassemble(patches, positions, probe)
    np.testing.assert_allclose(result.stitched.object, expected.object, atol=1e-4 * np.abs(expected.object).max())
    beam = Beam.of(probe, mask)
    assert result.r_factor == pytest.approx(
        stitched_r_factor(expected, positions, beam, np.sqrt(counts) / scale), rel=1e-4
    )


def test_a_file_that_is_read_as_a_whole_is_told(model, scan, tmp_path):
    import bz2

    packed = tmp_path / "scan.npz.bz2"
    packed.write_bytes(bz2.compress(scan.read_bytes()))
    _, lines = _reconstruct(model, packed, tmp_path)
    assert any("is in memory as a whole while it is read" in line for line in lines)
    shutil.copy(scan, tmp_path / "plain.npz")
    _, lines = _reconstruct(model, tmp_path / "plain.npz", tmp_path)
    assert not any("in memory" in line for line in lines)


def test_the_timing_tells_the_patterns_a_second(by_torch):
    timing = by_torch.timing
    assert timing.n == 49
    assert min(timing.reading_s, timing.predicting_s, timing.stitching_s) > 0
    assert timing.patterns_per_s == pytest.approx(49 / timing.predicting_s)
    assert timing.refining_s == 0


def test_the_model_that_tests_use_is_one_that_anybody_loads(model):
    loaded = mlflow.pyfunc.load_model(str(model))
    counts = np.random.default_rng(0).poisson(5, (3, 32, 32)).astype(np.float32)
    assert loaded.predict(counts).shape == (3, 32, 32, 2)
