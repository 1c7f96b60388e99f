"""The whole way as a user goes it: `mlflow run`, the store, the exported model, an interrupt and its continuation."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch

from fnostab.cli import main
from fnostab.config import resolve_config
from fnostab.dataset import load_or_build
from fnostab.health.history import STEP_SERIES
from fnostab.tracking.errors import StoreUnavailable
from fnostab.training.module import PtychoModule
from fnostab.workflows.train import train_arm

_ROOT = Path(__file__).resolve().parents[1]
_SCAN = _ROOT.parent / "shared" / "data" / "siemens-star-small.npz.bz2"
_EPOCHS = 8
_STEPS = _EPOCHS * 24  # smoke: 384 patches in batches of 16


def _environment(folder: Path, **extra: str):
    """The environment of a process whose store and cache lie in `folder`; `python` is this interpreter."""
    return os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}",
        "FNOSTAB_CACHE": str(folder / "cache"),
        **extra,
    }


def _mlflow_run(folder: Path, *parameters: str, timeout_s: float = 300):
    pairs = [word for parameter in parameters for word in ("-P", parameter)]
    command = [sys.executable, "-m", "mlflow", "run", str(_ROOT), "--env-manager", "local", *pairs]
    return subprocess.run(
        command, cwd=folder, env=_environment(folder), capture_output=True, text=True, timeout=timeout_s, check=False
    )


def _only_run(folder: Path):
    client = mlflow.MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    (run,) = client.search_runs(["0"])
    return client, run


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """(folder, client, run, printed) of one `mlflow run . -P preset=smoke` with the arm of the README."""
    folder = tmp_path_factory.mktemp("smoke")
    (folder / "own.yaml").write_text("model.gamma_init: 1\n")  # where the user stands, not in the project's folder
    own = ("model.modes=8", "config=own.yaml")
    answer = _mlflow_run(folder, "arch=stable_hybrid", "clip_algo=agc", "preset=smoke", *own)
    assert answer.returncode == 0, answer.stderr
    return folder, *_only_run(folder), answer.stdout


def _model_folder(client, run):
    """Where the run's model lies."""
    (model,) = client.search_logged_models(["0"], f"source_run_id = '{run.info.run_id}'")
    return model.artifact_location


def _artifacts(client, run_id, folder=None):
    paths = []
    for entry in client.list_artifacts(run_id, folder):
        paths += _artifacts(client, run_id, entry.path) if entry.is_dir else [entry.path]
    return paths


def test_the_last_lines_say_how_it_went_what_was_learnt_where_and_how_to_look(smoke):
    _, _, run, printed = smoke
    *_, verdict, stability, learnt, last = printed.strip().splitlines()
    assert verdict == f"verdict: {run.data.tags['verdict']}: {run.data.tags['verdict_reason']}"
    assert stability.startswith(f"stability: {run.data.tags['stability']}: val_loss rose to at most ")
    assert learnt.startswith("R-factor: ")
    assert last.startswith(f"run {run.info.run_id}; to see it: ")
    assert "mlflow ui --backend-store-uri sqlite:///" in last
    assert f"/#/experiments/0/runs/{run.info.run_id}" in last


def test_the_run_has_the_tags_of_its_arm(smoke):
    _, _, run, _ = smoke
    tags = run.data.tags
    expected = {
        "study": "stage_a_smoke",
        "arm": "stable_hybrid-agc",
        "arch": "stable_hybrid",
        "clip_algo": "agc",
        "seed": "20260128",
        "device": "cpu" if not torch.cuda.is_available() else tags["device"],
    }
    assert run.info.status == "FINISHED"
    assert {key: tags[key] for key in expected} == expected
    assert len(tags["dataset_sha256"]) == len(tags["probe_sha256"]) == 64
    assert {"fnostab_version", "git_commit"} <= set(tags)


def test_an_override_by_dotted_key_reaches_the_network_and_the_parameters(smoke):
    _, _, run, _ = smoke
    assert run.data.params["model.modes"] == "8"
    assert run.data.params["model.width"] == "8"
    assert run.data.params["arch"] == "stable_hybrid"  # what `mlflow run` logged itself


def test_there_are_as_many_points_of_each_step_series_as_optimizer_steps(smoke):
    _, client, run, _ = smoke
    for key in ("train/loss", "grad/norm_preclip", "grad/norm_postclip", "grad/clipped_fraction"):
        steps = sorted(metric.step for metric in client.get_metric_history(run.info.run_id, key))
        assert steps == list(range(_STEPS)), key
    for key in ("val/loss", "lr"):
        assert len(client.get_metric_history(run.info.run_id, key)) == _EPOCHS, key


def test_history_json_equals_the_store(smoke):
    _, client, run, _ = smoke
    history = mlflow.artifacts.load_dict(f"{run.info.artifact_uri}/history.json")
    stored = sorted(client.get_metric_history(run.info.run_id, "grad/norm_preclip"), key=lambda metric: metric.step)
    assert history["grad_norm_preclip"] == [metric.value for metric in stored]
    assert all(len(history[name]) == _STEPS for name in STEP_SERIES)
    assert history["val_loss_constant"] == run.data.metrics["val/loss_constant"]


def test_artifacts_dataset_and_system_metrics_are_there(smoke):
    _, client, run, _ = smoke
    paths = set(_artifacts(client, run.info.run_id))
    wanted = {"config.yaml", "history.json", "metrics.json", "checkpoints/best.ckpt", "checkpoints/last.ckpt"}
    wanted |= {"recon/object_0.png", "recon/object_0.npz", "figures/frc.png", "figures/training.png"}
    assert wanted <= paths
    (dataset,) = run.inputs.dataset_inputs
    assert dataset.dataset.digest == run.data.tags["dataset_sha256"][:32]
    config = mlflow.artifacts.load_text(f"{run.info.artifact_uri}/config.yaml")
    assert "gamma_init: 1.0" in config


def test_the_model_gives_without_fnostab_what_training_computed(smoke, monkeypatch):
    folder, client, run, _ = smoke
    monkeypatch.setenv("FNOSTAB_CACHE", str(folder / "cache"))
    overrides = {
        "preset": "smoke",
        "arch": "stable_hybrid",
        "clip_algo": "agc",
        "model.modes": 8,
        "model.gamma_init": 1,
    }
    config = resolve_config(overrides)
    dataset = load_or_build(config.data)
    module = PtychoModule(config, dataset)
    checkpoint = client.download_artifacts(run.info.run_id, "checkpoints/best.ckpt", str(folder))
    module.load_state_dict(torch.load(checkpoint, weights_only=True)["state_dict"])
    expected = module.reconstruct(dataset.test)
    np.save(folder / "counts.npy", dataset.test.counts)
    code = """
import sys
sys.modules["fnostab"] = None  # importing it fails, as where it is not installed
import mlflow, numpy as np
counts = np.load("counts.npy")
model = mlflow.pyfunc.load_model(sys.argv[1])
np.savez("answers.npz", **{f"b{size}": model.predict(counts[:size]) for size in (1, 2, 7, 49)})
"""
    command = [sys.executable, "-c", code, f"runs:/{run.info.run_id}/model"]
    subprocess.run(command, cwd=folder, env=_environment(folder), check=True, timeout=300)
    with np.load(folder / "answers.npz") as answers:
        for size in (1, 2, 7, 49):
            answer = answers[f"b{size}"]
            assert answer.dtype == np.float32
            assert answer.shape == (size, 32, 32, 2)
            scale = np.abs(expected).max()
            np.testing.assert_allclose(
                answer[..., 0] + 1j * answer[..., 1], expected[:size], rtol=1e-4, atol=1e-4 * scale
            )


def test_the_model_loads_on_a_machine_with_a_gpu(smoke, monkeypatch):
    _, client, run, _ = smoke
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # MLflow would move the network there
    model = mlflow.pyfunc.load_model(_model_folder(client, run))
    assert model.predict(np.ones((1, 32, 32), np.float32)).shape == (1, 32, 32, 2)


def test_bad_input_under_mlflow_run_leaves_one_failed_run_with_the_line_and_no_artifact(tmp_path):
    answer = _mlflow_run(tmp_path, "arch=hybrid", "preset=smoke", "model.modes=40; touch injected")
    client, run = _only_run(tmp_path)
    assert answer.returncode == 1
    assert run.info.status == "FAILED"
    assert run.data.tags["verdict_reason"].startswith("`model.modes` (=40; touch injected) must be a valid integer")
    assert _artifacts(client, run.info.run_id) == []
    assert not list(tmp_path.rglob("injected"))
    assert not (_ROOT / "injected").exists()


def test_what_an_outage_kept_from_the_store_is_uploaded_by_sync_without_training_again(
    fresh_store, monkeypatch, capsys
):
    log_batch = mlflow.MlflowClient.log_batch

    def away(self, run_id, metrics=(), **others):
        if metrics:
            raise ConnectionError("gone")
        return log_batch(self, run_id, metrics, **others)

    config = resolve_config({"preset": "smoke"})
    lines: list[str] = []
    with monkeypatch.context() as outage:
        outage.setattr(mlflow.MlflowClient, "log_batch", away)
        with pytest.raises(StoreUnavailable, match="values wait; the same command, or `fnostab sync`, finishes"):
            train_arm(config, lines.append)
    client, run = _only_run(fresh_store)
    assert run.info.status == "FAILED"
    assert client.get_metric_history(run.info.run_id, "train/loss") == []

    assert main(["sync", "--list"]) == 0
    waiting = f"stage_a_smoke control-seed{config.seed}"
    assert capsys.readouterr().out == f"{waiting}: run {run.info.run_id} in sqlite:///{fresh_store}/mlflow.db\n"
    assert main(["sync"]) == 0
    said = capsys.readouterr().out
    client, run = _only_run(fresh_store)
    assert run.info.status == "FINISHED"
    verdict = f"{run.data.tags['verdict']}: {run.data.tags['verdict_reason']}"
    assert said.splitlines()[-1] == f"{waiting}: finished: verdict: {verdict}"
    assert not [line for line in said.splitlines() if line.startswith("epoch ")]
    assert main(["sync"]) == 0
    assert capsys.readouterr().out == "nothing waits\n"
    for key, points in (("train/loss", _STEPS), ("grad/norm_preclip", _STEPS), ("val/loss", _EPOCHS), ("lr", _EPOCHS)):
        assert len(client.get_metric_history(run.info.run_id, key)) == points, key
    history = mlflow.artifacts.load_dict(f"{run.info.artifact_uri}/history.json")
    assert run.data.metrics["best_val_loss"] == min(history["val_loss"])


@pytest.mark.skipif(not _SCAN.exists(), reason="the measured scan is not in ../shared/data")
@pytest.mark.slow
def test_a_measured_scan_trains_with_a_learnt_probe_below_what_no_information_gives(tmp_path):
    shutil.copy(_SCAN, tmp_path)  # where the user stands, which is not the project's folder
    answer = _mlflow_run(tmp_path, "arch=hybrid", f"data={_SCAN.name}", "preset=scan", "epochs=6", "width=8")
    assert answer.returncode == 0, answer.stderr
    _, run = _only_run(tmp_path)
    metrics = run.data.metrics
    assert metrics["test/r_factor"] < metrics["test/r_factor_mean_pattern"] == pytest.approx(0.195, abs=0.002)
    assert metrics["test/r_factor"] < 0.9 * metrics["test/r_factor_constant"]
    assert 0.15 < metrics["test/overlap_consistency"] <= 1  # unrelated patches: about 0
    assert not [name for name in metrics if "ssim" in name or "frc" in name]  # there is no truth to compare with
    assert run.data.tags["verdict"]


@pytest.mark.slow
def test_the_quick_preset_learns_the_object_and_not_its_twin(tmp_path):
    answer = _mlflow_run(tmp_path, "arch=hybrid", "clip_algo=norm", "preset=quick", timeout_s=1800)
    assert answer.returncode == 0, answer.stderr
    client, run = _only_run(tmp_path)
    metrics = run.data.metrics
    assert metrics["best_val_loss"] < 0.6 * metrics["val/loss_constant"]
    assert metrics["val/r_stitched"] < 0.6 * metrics["val/r_stitched_constant"]
    assert metrics["test/r_factor"] < 0.6 * metrics["val/loss_constant"]
    assert metrics["test/object_correlation"] > max(0.5, metrics["test/twin_correlation"] + 0.1)
    assert run.data.tags["twin"] == "false"
    assert run.data.tags["verdict"] == "converged"
    pictures = {path.split("+")[0] for path in _artifacts(client, run.info.run_id, "images")}
    assert pictures == {"images/reconstruction", "images/frc", "images/training"}
