"""How runs end, in the store: final metrics, verdicts of runs that failed, nothing claimed that means nothing."""

import json
import math
import os
import subprocess
import sys

import mlflow
import pytest
import torch

from fnostab.cli import main
from fnostab.config import resolve_config
from fnostab.health import VERDICT_VERSION
from fnostab.training.module import PtychoModule
from fnostab.workflows.compare import compare_study
from fnostab.workflows.train import train_arm

#: The names that every run on simulated data has in the store.
_FINAL = {
    *("test/amp_ssim", "test/phase_ssim", "test/amp_mae", "test/phase_mae", "test/amp_psnr", "test/phase_psnr"),
    *("test/frc50", "test/frc_one_seventh", "test/r_factor", "test/r_factor_patch", "test/overlap_consistency"),
    *("val/loss_constant", "val/loss_floor", "val/loss_mean_pattern", "best_val_loss", "samples_per_s"),
}
_HOPELESS = {"lr": 1e-9, "epochs": 4, "train.give_up_after": 0.5}
_EPOCH = {"val/loss", "val/amp_ssim", "val/progress", "lr", "health/object_std_ratio", "health/act_mean/bottleneck"}


def _train(**overrides):
    """Train `smoke` and give the result and the run in the store."""
    lines: list[str] = []
    result = train_arm(resolve_config({"preset": "smoke"} | overrides), lines.append)
    return result, mlflow.MlflowClient().get_run(result.run_id)


def _json(run, name):
    return mlflow.artifacts.load_dict(f"{run.info.artifact_uri}/{name}")


@pytest.fixture(scope="module")
def phaseless():
    return _train(arch="stable_hybrid", clip_algo="none", **{"data.phase": "none"})


def test_all_final_and_epoch_metrics_are_in_the_store(phaseless):
    _, run = phaseless
    assert set(run.data.metrics) >= _FINAL | _EPOCH | {"health/norm_weight_absmax"}
    points = mlflow.MlflowClient().get_metric_history(run.info.run_id, "health/norm_weight_absmax")
    assert [point.step for point in points] == list(range(0, 193, 24))  # before the first step, and after each epoch


def test_on_objects_without_phase_the_store_claims_no_phase(phaseless):
    _, run = phaseless
    assert {"phase_mae", "phase_psnr", "phase_ssim"} <= set(run.data.tags["vacuous"].split(","))
    assert all(math.isnan(run.data.metrics[f"test/phase_{name}"]) for name in ("ssim", "mae", "psnr"))
    assert _json(run, "metrics.json")["ssim"][1] == "NaN"


def test_test_patches_that_share_no_light_claim_no_agreement_and_the_end_of_training_says_so():
    lines: list[str] = []
    config = resolve_config({"preset": "smoke", "epochs": 1, "data.stride_test_px": 16})
    result = train_arm(config, lines.append)
    run = mlflow.MlflowClient().get_run(result.run_id)
    assert math.isnan(run.data.metrics["test/overlap_consistency"])
    assert "overlap_consistency" in run.data.tags["vacuous"].split(",")
    assert any(line.startswith("warning: the patches share 0.0 % of their light, under 1 %") for line in lines)


def test_metrics_json_has_pairs_verdict_and_evidence(phaseless):
    result, run = phaseless
    found = _json(run, "metrics.json")
    assert found["ssim"][0] == run.data.metrics["test/amp_ssim"]
    assert found["mae"][0] == found["amp_mae"]
    assert found["verdict"] == run.data.tags["verdict"] == result.verdict.label
    assert found["evidence"]["norm_weight_absmax"] > 0
    assert found["stability"] == (result.stability.to_mapping() if result.stability else None)
    assert len(found["frc"][0]["correlation"]) == len(found["frc"][0]["frequency"])


def test_an_absurd_learning_rate_ends_as_a_result_and_not_as_an_error(fresh_store):
    result, run = _train(lr=10.0, epochs=4)
    assert run.info.status == "FINISHED"
    assert run.data.tags["verdict"] == result.verdict.label
    assert result.verdict.label in ("diverged", "non_finite", "collapsed")
    assert run.data.tags["verdict_version"] == str(VERDICT_VERSION)
    assert _json(run, "history.json")["loss_step"]


@pytest.mark.parametrize(
    "again",
    [["train", "--preset", "smoke", *(f"--{key}={value}" for key, value in _HOPELESS.items())], ["sync"]],
    ids=["train", "sync"],
)
def test_a_run_that_is_given_up_is_evaluated_and_trains_no_more_when_it_is_started_again(
    fresh_store, monkeypatch, capsys, again
):
    def killed(*_):
        raise SystemError("killed")

    with monkeypatch.context() as broken:
        broken.setattr("fnostab.workflows.arm_training.judge", killed)
        with pytest.raises(SystemError, match="killed"):
            _train(**_HOPELESS)
    assert main(again) == 0
    assert not [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch ")]
    client = mlflow.MlflowClient()
    (run,) = client.search_runs(["0"])
    assert run.info.status == "FINISHED"
    assert run.data.tags["verdict"] in ("stagnated", "diverged")
    assert run.data.tags["verdict_reason"].endswith("; given up after epoch 2 of 4")
    assert set(run.data.metrics) >= _FINAL - {"samples_per_s"}  # nothing was trained by this process
    assert "samples_per_s" not in run.data.metrics
    assert [len(client.get_metric_history(run.info.run_id, key)) for key in ("train/loss", "val/loss")] == [48, 2]


_PRUNED = {"preset": "smoke", "epochs": 4, "study": "pruned", "train.artifacts": "numbers"}


def _train_until(epoch, seed=1, **options):
    """Train with a `watch` that stops the run after `epoch`; gives the result and the epochs that it was told of."""
    told = []

    def watch(summary):
        told.append(summary.epoch)
        return summary.epoch == epoch

    result = train_arm(resolve_config(_PRUNED | {"seed": seed}), lambda line: None, watch=watch, **options)
    return result, told


def test_a_run_that_its_watch_stops_is_finished_and_pruned_and_a_comparison_names_it_missing(fresh_store):
    result, told = _train_until(2)
    assert (result.verdict.label, told) == ("pruned", [1, 2])
    assert result.verdict.reason == "the run was pruned after epoch 2 of 4"
    run = mlflow.MlflowClient().get_run(result.run_id)
    assert (run.info.status, run.data.tags["verdict"]) == ("FINISHED", "pruned")
    assert _json(run, "history.json")["events"] == {"pruned": {"epoch": 2, "epochs": 4}}
    whole, told = _train_until(4, seed=2)  # after the last epoch there is nothing to stop
    assert (whole.verdict.label != "pruned", told) == (True, [1, 2, 3, 4])
    assert compare_study("pruned", register=False).result.missing == [("control", "pruned", [1])]


def test_a_pruned_run_is_a_result_that_a_study_keeps_and_a_training_by_hand_replaces(fresh_store):
    first, _ = _train_until(1)
    kept, told = _train_until(0, again=False)
    assert (kept.run_id, kept.verdict.label, told) == (first.run_id, "pruned", [])
    anew, told = _train_until(0)
    assert anew.run_id != first.run_id
    assert told == [1, 2, 3, 4]
    assert compare_study("pruned", register=False).result.runs[0].run_id == anew.run_id


def test_a_pruned_run_that_was_killed_before_its_verdict_trains_no_more(fresh_store, monkeypatch):
    def killed(*_):
        raise SystemError("killed")

    with monkeypatch.context() as broken:
        broken.setattr("fnostab.workflows.arm_training.judge", killed)
        with pytest.raises(SystemError, match="killed"):
            _train_until(2)
    result, told = _train_until(0)
    assert (result.verdict.reason, told) == ("the run was pruned after epoch 2 of 4", [])


def test_a_run_without_a_finite_number_has_no_reconstruction_and_no_model(fresh_store, monkeypatch):
    build = PtychoModule.__init__

    def broken(self, config, dataset):
        build(self, config, dataset)
        with torch.no_grad():
            self.generator.out.weight.fill_(float("inf"))

    monkeypatch.setattr(PtychoModule, "__init__", broken)
    result, run = _train()
    assert result.verdict.label == "non_finite"
    assert "at step 0, first in `out`" in run.data.tags["verdict_reason"]
    assert run.info.status == "FINISHED"
    names = {entry.path for entry in mlflow.MlflowClient().list_artifacts(run.info.run_id)}
    assert {"metrics.json", "history.json", "figures"} <= names
    assert "recon" not in names
    assert not run.outputs.model_outputs


def test_an_exhausted_memory_is_a_verdict_with_the_peak(tmp_path):
    """A real one: the process may not have the memory that this network needs."""
    code = """
import resource, sys
from fnostab.cli import main
import fnostab.mlproject.train, mlflow.pytorch  # everything is loaded before the limit falls
with open("/proc/self/statm") as file:
    used = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, resource.RLIM_INFINITY))
sys.exit(main(["train", "--preset", "smoke", "--width", "256", "--batch_size", "64", "--train.threads", "1"]))
"""
    environment = os.environ | {
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path / 'mlflow.db'}",
        "FNOSTAB_CACHE": str(tmp_path / "cache"),
    }
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "verdict: out_of_memory: " in done.stdout
    (run,) = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}").search_runs(["0"])
    assert run.info.status == "FINISHED"
    assert run.data.tags["verdict"] == "out_of_memory"
    assert "cpu ran out of memory at step 0, with at most" in run.data.tags["verdict_reason"]
    event = json.loads((tmp_path / "mlruns/0" / run.info.run_id / "artifacts/history.json").read_text())["events"]
    assert event["out_of_memory"]["peak_bytes"] > 2**28
