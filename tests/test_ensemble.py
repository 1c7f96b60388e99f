"""All converged runs of a study's best arm as one registered model."""

import re
import shutil
import subprocess
import sys
from dataclasses import replace

import h5py
import mlflow
import numpy as np
import pytest
import torch
from small_runs import write_small_scan
from test_compare import record_run
from test_serving import _post, _serving

from fnostab import metrics
from fnostab.cli import main
from fnostab.config import ConfigError, resolve_config
from fnostab.dataset import load_or_build
from fnostab.evaluation import stitch_patches
from fnostab.export.onnx_model import OnnxModel
from fnostab.report.run import reconstruction_figure as drawn
from fnostab.scan import reassemble
from fnostab.study.members import choose_members
from fnostab.study.stored_run import StoredRun
from fnostab.tracking.models import load_model
from fnostab.workflows import ensemble, scan_object
from fnostab.workflows.ensemble import register_ensemble
from fnostab.workflows.export_model import export_model
from fnostab.workflows.reconstruct import reconstruct_scan
from fnostab.workflows.train import train_arm

STUDY, NAME = "together", "fnostab-together-ensemble"
KEYS = {"preset": "smoke", "study": STUDY, "arm": "control", "epochs": 4}


# Which runs are members.


def _stored(seed, verdict="converged", dataset="d" * 64, arm="control", **more):
    loss = {"best_val_loss": 0.05, "val/r_stitched": 0.05, "val/r_stitched_mean_pattern": 0.13}
    tags = {"arm": arm, "seed": str(seed), "verdict": verdict, "dataset_sha256": dataset}
    return StoredRun(f"run{seed}", "0", "FINISHED", 0, tags, {}, loss | more)


def test_the_converged_runs_of_the_arm_that_make_an_object_are_the_members_by_seed():
    runs = [
        _stored(3),
        _stored(1),
        _stored(2, "collapsed"),
        _stored(4, arm="agc"),
        _stored(5, **{"val/r_stitched": 0.14}),
    ]
    members, left_out = choose_members("s", "control", runs)
    assert [run.seed for run in members] == [1, 3]
    assert left_out == [
        "run run5, because its stitched object is no better than one mean pattern everywhere "
        "(val/r_stitched 0.14 against 0.13)"
    ]


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ([_stored(3), _stored(1, "stagnated")], "it has 1 (seed 3)"),
        ([_stored(1, "stagnated")], "it has 0"),
        (
            [_stored(1), _stored(2, **{"val/r_stitched": 0.2})],
            "it has 1 (seed 1); run run2, because its stitched object is no better than one mean pattern everywhere "
            "(val/r_stitched 0.2 against 0.13)",
        ),
    ],
)
def test_fewer_than_two_members_are_refused_in_one_line(runs, message):
    rule = f"`study` (=s) must have at least 2 converged runs of control, its first arm, for an ensemble: {message}"
    with pytest.raises(ConfigError, match=f"^{re.escape(rule)}$"):
        choose_members("s", "control", runs)


def test_members_of_different_datasets_are_refused_with_their_hashes():
    rule = f"must have members of one dataset for an ensemble: {12 * 'd'} of seed 1 and {12 * 'e'} of seed 2 differ"
    with pytest.raises(ConfigError, match=re.escape(rule)):
        choose_members("s", "control", [_stored(1), _stored(2, dataset="e" * 64)])


# With networks of real runs.


@pytest.fixture(scope="module")
def runs():
    """Two runs of one arm that learnt."""
    trained = [train_arm(resolve_config(KEYS | {"seed": seed}), lambda line: None) for seed in (1, 2)]
    assert [one.verdict.label for one in trained] == ["converged"] * 2
    return [one.run_id for one in trained]


@pytest.fixture(scope="module")
def made(runs):
    """(What the command printed, the version that it registered)."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        lines = []
        monkeypatch.setattr("fnostab.cli.registry.say", lines.append)
        assert main(["registry", "ensemble", "--study", STUDY]) == 0
    return "\n".join(lines), mlflow.MlflowClient().get_model_version_by_alias(NAME, "champion")


@pytest.fixture(scope="module")
def dataset():
    return load_or_build(resolve_config(KEYS).data)


def _ensemble_runs():
    return mlflow.MlflowClient().search_runs(["0"], f"tags.study_role = 'ensemble' and tags.study = '{STUDY}'")


def test_the_version_says_what_it_is_made_of_and_what_its_mean_is_worth(made, runs, dataset):
    said, version = made
    assert f"run {version.run_id} (control, 2 members) is registered as {NAME} version 1; it is the champion" in said
    tags = version.tags
    assert (tags["study"], tags["arm"], tags["members"], tags["runs"]) == (STUDY, "control", "2", ",".join(runs))
    assert tags["dataset_sha256"] == dataset.sha256
    assert "seed" not in tags
    # Measured here once more, from what the model gives.
    parts = mlflow.pyfunc.load_model(f"models:/{NAME}@champion").predict(np.array(dataset.val.counts))
    patches = parts[..., 0] + 1j * parts[..., 1]
    amplitudes = np.sqrt(dataset.val.counts) / dataset.scale
    loss = metrics.r_factor(dataset.beam.amplitude(torch.from_numpy(patches)).numpy(), amplitudes)
    assert float(tags["val_loss"]) == pytest.approx(loss, rel=1e-4)
    stitched = stitch_patches(torch.from_numpy(patches), dataset.val, dataset.scale, dataset.beam).r
    assert float(tags["r_stitched"]) == pytest.approx(stitched, rel=1e-3)
    client = mlflow.MlflowClient()
    assert loss < max(client.get_run(run).data.metrics["best_val_loss"] for run in runs)
    run = client.get_run(version.run_id)
    truth, lit = dataset.val.patches_of(dataset.val_objects), metrics.lit_region(dataset.probe)
    errors = metrics.patch_errors(patches, truth, np.abs(dataset.probe) ** 2)[:, lit]
    factor = metrics.error_over_deviation(errors, parts[..., 2][:, lit])
    assert run.data.metrics["val/error_over_deviation"] == pytest.approx(factor, rel=1e-3)
    assert run.data.metrics["test/amp_ssim"] > 0
    assert f"The error is {factor:.3g} times as large there" in version.description


def test_the_same_members_are_registered_once_and_other_members_once_more(made, runs, capsys):
    _, version = made
    assert main(["registry", "ensemble", "--study", STUDY]) == 0
    said = capsys.readouterr().out
    assert f"was registered already as {NAME} version 1; it is the champion still" in said
    assert "measuring" not in said
    assert len(_ensemble_runs()) == 1
    assert len(mlflow.MlflowClient().search_model_versions(f"name = '{NAME}'")) == 1


def test_compare_registers_the_winner_and_the_ensemble_and_its_run_is_no_run_of_the_study(made, runs, capsys):
    assert main(["compare", "--study", STUDY, "--ensemble"]) == 0
    said = capsys.readouterr().out
    assert re.search(rf"is registered as fnostab-{STUDY} version 1; it is the champion", said)
    assert f"was registered already as {NAME} version 1" in said
    assert "control alone: 0 of 2 runs failed" in said
    assert main(["registry", "show", NAME]) == 0
    assert "2 members" in capsys.readouterr().out


def test_the_mean_and_the_deviation_are_those_of_the_members(made, runs, dataset):
    counts = np.array(dataset.test.counts[:5])
    mean, deviation = load_model(f"models:/{NAME}@champion").predict_with_deviation(counts)
    assert (mean.shape, mean.dtype, deviation.dtype) == (counts.shape, np.complex64, np.float32)
    one, two = (load_model(f"runs:/{run}/model").predict(counts) for run in runs)
    light = np.abs(dataset.probe) ** 2
    two = two * np.exp(-1j * np.angle((light * two * one.conj()).sum((1, 2), keepdims=True)))
    scale = np.abs(one).max()
    np.testing.assert_allclose(mean, (one + two) / 2, atol=1e-4 * scale)
    np.testing.assert_allclose(deviation, np.abs(one - two) / 2, atol=1e-4 * scale)


def test_it_loads_where_fnostab_is_not_installed(made, dataset, tmp_path):
    counts = np.array(dataset.test.counts[:3])
    uri = f"models:/{NAME}@champion"
    np.savez(tmp_path / "in.npz", counts=counts, expected=mlflow.pyfunc.load_model(uri).predict(counts))
    code = f"""
import sys
sys.modules["fnostab"] = None
import mlflow
import numpy as np
with np.load({str(tmp_path / "in.npz")!r}) as given:
    parts = mlflow.pyfunc.load_model({uri!r}).predict(given["counts"])
    assert np.array_equal(parts, given["expected"])
print(parts.shape, parts.dtype)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "(3, 32, 32, 3) float32\n"


def test_mlflow_serves_it(made, dataset, tmp_path):
    counts, uri = np.array(dataset.test.counts[:3]), f"models:/{NAME}@champion"
    with _serving(uri, tmp_path / "log.txt") as address:
        answer = _post(f"{address}/invocations", {"inputs": counts.tolist()})
    parts = np.array(answer["predictions"], dtype=np.float32)
    expected = mlflow.pyfunc.load_model(uri).predict(counts)
    np.testing.assert_allclose(parts, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def test_it_becomes_an_onnx_file_with_all_that_a_model_brings_and_its_members(made, runs, dataset, tmp_path):
    _, version = made
    exported = export_model(f"models:/{NAME}@champion", tmp_path / "m.onnx", log=True)
    assert exported.versions == (f"{NAME}/1",)
    model, counts = OnnxModel.load(exported.path), np.array(dataset.test.counts[:4])
    mean, deviation = model.predict_with_deviation(counts)
    expected = mlflow.pyfunc.load_model(f"models:/{NAME}@champion").predict(counts)
    atol = 2e-5 * np.abs(expected).max()
    np.testing.assert_allclose(mean, expected[..., 0] + 1j * expected[..., 1], atol=2 * atol)
    np.testing.assert_allclose(deviation, expected[..., 2], atol=atol)
    said = model.description
    assert (said["members"], said["run"], said["arm"]) == (",".join(runs), version.run_id, "control")
    assert "float32 (batch, 32, 32, 3): real and imaginary part, and their standard deviation" in said["signature"]
    assert float(said["val_loss"]) == float(version.tags["val_loss"])
    np.testing.assert_array_equal(model.probe, dataset.probe)
    assert model.scale == pytest.approx(dataset.scale)
    with pytest.raises(ConfigError, match="and the network is an ensemble: export a member of it"):
        export_model(
            f"models:/{NAME}@champion", tmp_path / "h.onnx", layout="holoptycho", normalization=80.0, batch_size=2
        )


# What is refused: one line, exit code 2, nothing written.


def _refused(argv, capsys):
    client = mlflow.MlflowClient()
    before = ([run.info.run_id for run in client.search_runs(["0"])], client.search_model_versions())
    capsys.readouterr()
    assert main(argv) == 2
    after = ([run.info.run_id for run in client.search_runs(["0"])], client.search_model_versions())
    assert after == before
    said = capsys.readouterr().err
    assert said.startswith("fnostab: error: ")
    assert said.count("\n") == 1
    return said


def test_members_without_a_logged_model_are_refused(empty_store, fresh_store, capsys):
    shutil.copy(empty_store, fresh_store / "mlflow.db")
    for seed in (1, 2):
        record_run("bare", "control", seed=seed)
    for command in (["registry", "ensemble", "--study", "bare"], ["compare", "--study", "bare", "--ensemble"]):
        said = _refused(command, capsys)
        assert re.search(r"`study` \(=bare\) must have runs with a logged model for an ensemble, .*: run \w+ has", said)


def test_an_ensemble_that_is_not_to_be_registered_is_refused(fresh_store, capsys):
    argv = ["compare", "--study", "bare", "--ensemble", "--register", "false"]
    assert main(argv) == 2
    assert "`ensemble` (=true) must be false where `register` is false" in capsys.readouterr().err
    assert list(fresh_store.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"modes": 2 * np.ones((1, 32, 32), np.complex64)}, "one probe, for an ensemble"),
        (
            {"modes": 2 * np.ones((1, 32, 32), np.complex64), "start_probe": np.ones((32, 32), np.complex64)},
            "one probe, and each has learnt its own, for an ensemble",
        ),
        ({"modes": None}, "one probe, for an ensemble"),
        ({"mask": np.ones((32, 32), bool)}, "one detector mask, for an ensemble"),
        ({"scale": 3.0}, "one scale of their counts, for an ensemble"),
        ({"gridsize": 2}, "patterns of one size, and groups of one size, for an ensemble"),
    ],
)
def test_members_that_do_not_fit_together_are_refused_with_what_differs(
    changes, fault, made, runs, monkeypatch, capsys
):
    monkeypatch.setattr(ensemble, "find_ensemble", lambda study, members: None)
    monkeypatch.setattr(
        ensemble,
        "load_model",
        lambda uri: replace(load_model(uri), **changes) if runs[1] in uri else load_model(uri),
    )
    said = _refused(["registry", "ensemble", "--study", STUDY], capsys)
    who = f"runs {runs[0]} (seed 1) and {runs[1]} (seed 2) differ"
    assert said == f"fnostab: error: `study` (={STUDY}) must have members with {fault}: {who}\n"


def test_a_dataset_that_is_another_now_is_refused(made, runs, dataset, monkeypatch, capsys):
    monkeypatch.setattr(ensemble, "find_ensemble", lambda study, members: None)
    monkeypatch.setattr(ensemble, "build_dataset", lambda config: replace(dataset, sha256="0" * 64))
    said = _refused(["registry", "ensemble", "--study", STUDY], capsys)
    rule = "must have its dataset at hand, on which the ensemble is measured"
    assert f"{rule}: its config gives the dataset 000000000000, and run {runs[0]} saw {dataset.sha256[:12]}" in said


def test_a_mean_that_makes_no_object_is_not_registered(made, monkeypatch):
    monkeypatch.setattr(ensemble, "find_ensemble", lambda study, members: None)
    numbers = {"val/r_stitched": 0.2, "val/r_stitched_mean_pattern": 0.13}
    monkeypatch.setattr(ensemble, "measure", lambda model, dataset: numbers)
    said = register_ensemble(STUDY)
    assert said.startswith("No ensemble registered: its stitched object is no better than one mean pattern everywhere")
    assert len(_ensemble_runs()) == 1


# A whole scan.


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    """(A file of a small scan that looks like what the members were trained on, its dataset)."""
    path = tmp_path_factory.mktemp("scan") / "scan.npz"
    source = write_small_scan(path)
    return path, source


@pytest.mark.parametrize("backend", ["torch", "onnx"])
def test_reconstruct_writes_and_draws_the_deviation_with_the_weights_of_the_object(made, scan, backend, tmp_path):
    path, source = scan
    figures = []
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(scan_object, "reconstruction_figure", lambda *given: figures.append(given) or drawn(*given))
        found = reconstruct_scan(f"models:/{NAME}@champion", path, tmp_path / "r.npz", backend=backend, batch_size=10)
    with np.load(tmp_path / "r.npz") as file:
        deviation, obj = file["deviation"], file["object"]
    counts = np.array(source.test.counts)
    patches, deviations = load_model(f"models:/{NAME}@champion").predict_with_deviation(counts)
    expected = reassemble(deviations**2, source.test.positions_px, source.probe, n_sync=0).object.real
    atol = 1e-3 * deviation.max()
    np.testing.assert_allclose(deviation, np.sqrt(expected.clip(0)), atol=atol)
    assert (deviation.shape, deviation.dtype) == (obj.shape, np.float32)
    lit = found.stitched.light > metrics.LIT_SHARE * found.stitched.light.max()
    assert found.deviation == pytest.approx(np.sqrt((deviation[lit] ** 2).mean()), rel=1e-5)
    assert deviations[:, metrics.lit_region(source.probe)].min() < found.deviation < deviations.max()
    np.testing.assert_array_equal(figures[0][3], deviation)
    titles = [axes.get_title() for axes in drawn(*figures[0]).axes]
    assert {"deviation of the members", "deviation over amplitude"} <= set(titles)


def test_cxi_has_the_deviation_and_ptychodus_has_no_place_for_it(made, scan, tmp_path, capsys):
    path, _ = scan
    argv = ["reconstruct", "--model", f"models:/{NAME}@champion", "--data", str(path), "--object_pixel_m", "1e-8"]
    assert main([*argv, "--out", str(tmp_path / "r.cxi")]) == 0
    assert re.search(r"^deviation of the members: 0\.\d+ where the light is", capsys.readouterr().out, re.MULTILINE)
    with h5py.File(tmp_path / "r.cxi") as file:
        assert file["entry_1/fnostab/deviation"].shape == file["entry_1/image_2/data"].shape
    assert main([*argv, "--out", str(tmp_path / "p.npz"), "--layout", "ptychodus"]) == 0
    with np.load(tmp_path / "p.npz") as file:
        assert "deviation" not in file


def test_one_network_has_no_deviation(runs, scan, tmp_path):
    found = reconstruct_scan(f"runs:/{runs[0]}", scan[0], tmp_path / "r.npz")
    assert found.deviation is None
    with np.load(tmp_path / "r.npz") as file:
        assert "deviation" not in file
