"""`fnostab compare` on runs that are only recorded, not trained: what it says where something is missing or broken."""

import json

import mlflow
import pytest
from mlflow.entities import Param

from fnostab.cli import main
from fnostab.config import ConfigError, resolve_config
from fnostab.health import VERDICT_VERSION
from fnostab.report import figures
from fnostab.workflows.compare import compare_study

_HISTORY = {"val_loss": [0.1, 0.05], "grad_norm_preclip": [1.0, 2.0], "val_loss_constant": 0.16}


def record_run(study, arm, seed=1, blocks=2, parent=None, metrics=None, **judged):
    """Leave what a finished run of this arm would have left in the store; gives its ID."""
    config = resolve_config({"preset": "smoke", "study": study, "arm": arm, "seed": seed, "fno_blocks": blocks})
    client = mlflow.MlflowClient()
    tags = {"study": study, "arm": arm, "seed": str(seed), "arch": "hybrid", "dataset_sha256": "5f" * 32}
    tags |= {"verdict": "converged", "verdict_reason": "told", "verdict_version": str(VERDICT_VERSION), **judged}
    tags |= {"mlflow.parentRunId": parent} if parent else {}
    run_id = client.create_run("0", tags=tags).info.run_id
    client.log_batch(run_id, params=[Param(key, str(value)) for key, value in config.flat().items()])
    for name, value in {"best_val_loss": 0.05 + 0.01 * seed, **(metrics or {})}.items():
        client.log_metric(run_id, name, value)
    client.log_text(run_id, json.dumps(_HISTORY), "history.json")
    client.set_terminated(run_id)
    return run_id


def record_parent(study, **tags):
    client = mlflow.MlflowClient()
    tags = {"study": study, "study_role": "parent", "dataset_sha256": "5f" * 32, **tags}
    run_id = client.create_run("0", tags=tags).info.run_id
    client.set_terminated(run_id)
    return run_id


def _artifacts(run_id):
    return {entry.path for entry in mlflow.MlflowClient().list_artifacts(run_id)}


def test_each_arm_of_a_stage_b_is_compared_with_its_own_stage_a_and_the_rest_is_noted(fresh_store):
    for arm in ("control", "agc"):
        record_run("first", arm)
    parent = record_parent("second", stage_a="first")
    for arm in ("control", "agc", "stable"):
        record_run("second", arm, blocks=4, parent=parent)
    found = compare_study("second", register=False)
    assert [(depth.arm, depth.depths) for depth in found.result.depths] == [("agc", (2, 4)), ("control", (2, 4))]
    assert "stable is not compared with Stage A: study first has no result of it." in found.result.notes
    assert "figures/second_depth.png" in found.files


def test_a_stage_b_whose_stage_a_is_gone_or_no_shallower_is_ranked_all_the_same(fresh_store):
    parent = record_parent("second", stage_a="gone")
    record_run("second", "control", blocks=4, parent=parent)
    found = compare_study("second", register=False)
    assert found.result.depths == []
    assert found.result.notes[-1].startswith("There is no comparison with Stage A: `study` (=gone) must be the tag of")
    record_run("gone", "control", blocks=4)
    found = compare_study("second", register=False)
    assert found.result.notes[-1].startswith("control is not compared with Stage A: `depth_b` (=4) must be > ")


def test_runs_that_were_judged_by_other_rules_are_counted(fresh_store):
    record_run("ruled", "control")
    record_run("ruled", "control", seed=2, verdict_version="1")
    assert compare_study("ruled", register=False).result.notes == [
        "1 of 2 runs were judged by other rules than today's (tag verdict_version): "
        "`fnostab inspect --judge RUN_ID` decides anew."
    ]


def test_a_run_whose_verdict_is_unknown_is_missing_and_a_study_of_such_runs_cannot_be_ranked(fresh_store):
    record_run("foreign", "control", verdict="unknown")
    rule = r"^`study` \(=foreign\) must have runs that can be ranked: .* at least one run with a result"
    with pytest.raises(ConfigError, match=rule):
        compare_study("foreign", register=False)
    record_run("foreign", "agc")
    assert compare_study("foreign", register=False).result.missing == [("control", "unknown", [1])]


def test_a_winner_without_a_logged_model_is_said_before_anything_is_written_and_the_rest_is_done(fresh_store, capsys):
    run_id = record_run("bare", "control")
    assert main(["compare", "--study", "bare", "--out", "out"]) == 0
    said = f"Nothing registered: of the best run, {run_id}, there is no logged model named `model` that is whole"
    assert said in capsys.readouterr().out
    assert (fresh_store / "out" / "bare_report.html").exists()
    assert mlflow.MlflowClient().search_registered_models() == []


def test_a_figure_that_fails_costs_a_comparison_no_more_than_that_figure(fresh_store, monkeypatch):
    def broken_figure(result):
        raise ValueError("Unknown symbol")

    record_run("drawn", "control")
    monkeypatch.setitem(figures.FIGURES, "learning_curves", broken_figure)
    found = compare_study("drawn", register=False)
    assert {"drawn_report.html", "drawn_summary.md", "drawn_metrics.json", "figures"} <= _artifacts(found.run_id)
    assert not [name for name in found.files if "learning_curves" in name]
    note = "The figure learning_curves could not be drawn: ValueError: Unknown symbol."
    assert note in found.result.notes
    assert note in (mlflow.artifacts.load_text(f"runs:/{found.run_id}/drawn_summary.md"))


@pytest.mark.parametrize("arm", ["a$_b$^{", "$"])
def test_arms_with_dollars_in_their_names_are_compared(arm, fresh_store):
    record_run("money", arm)
    found = compare_study("money", register=False)
    assert found.result.notes == []
    assert len([name for name in found.files if name.startswith("figures/")]) == 4


def test_by_r_stitched_the_arm_with_the_better_objects_is_first(fresh_store, capsys):
    for arm, loss, stitched in (("control", 0.05, 0.09), ("agc", 0.06, 0.08)):
        record_run("sewn", arm, metrics={"best_val_loss": loss, "val/r_stitched": stitched})
    assert [row["arm"] for row in compare_study("sewn", register=False).result.ranking.table] == ["control", "agc"]
    assert main(["compare", "--study", "sewn", "--register", "false", "--by", "r_stitched"]) == 0
    said = capsys.readouterr().out
    assert "The first in rank is agc." in said
    assert "Stage B" not in said


def test_arms_are_ranked_by_a_metric_that_the_user_logged(fresh_store, capsys):
    for arm, loss, rough in (("control", 0.05, 0.9), ("agc", 0.06, 0.8)):
        record_run("rough", arm, metrics={"best_val_loss": loss, "test/roughness": rough})
    assert main(["compare", "--study", "rough", "--by", "test/roughness", "--out", "out"]) == 0
    said = capsys.readouterr().out
    assert "median test/roughness" in said
    assert "The first in rank is agc." in said
    rows = json.loads((fresh_store / "out" / "rough_metrics.json").read_text())
    assert [row["median_test/roughness"] for row in rows] == [0.8, 0.9]


@pytest.mark.parametrize(
    ("by", "message"),
    [
        (
            "psnr",
            "`by` (=psnr) must be best_val_loss or r_stitched, or a metric of yours that every converged run has: 0 of",
        ),
        ("test/amp_ssim", "`by` (=test/amp_ssim) must be best_val_loss or r_stitched, or a metric of yours"),
        ("r_stitched", "`by` (=r_stitched) must be known of every converged run, and is not"),
    ],
)
def test_a_column_that_arms_cannot_be_ranked_by_is_refused_before_anything_is_written(by, message, fresh_store, capsys):
    run_id = record_run("small", "control")
    capsys.readouterr()
    assert main(["compare", "--study", "small", "--by", by, "--out", "out"]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert message in said
    assert not (fresh_store / "out").exists()
    assert [run.info.run_id for run in mlflow.MlflowClient().search_runs(["0"])] == [run_id]


def test_a_comparison_writes_the_stitched_objects_and_the_stability_of_its_runs(fresh_store):
    unsteady = {"max_drawdown": 1.9, "mean_excess": 0.2, "relapses": 2, "relapses_per_1e5_steps": 40, "dead_blocks": 1}
    for arm, r_stitched in (("control", 0.08), ("agc", 0.09)):
        measures = {f"stability/{name}": value for name, value in unsteady.items()}
        record_run("told", arm, metrics={"val/r_stitched": r_stitched, **measures}, stability="partly_dead")
    found = compare_study("told", register=False)
    text = mlflow.artifacts.load_text(f"runs:/{found.run_id}/told_metrics.json")
    rows = {row["arm"]: row for row in json.loads(text)}
    assert rows["control"].items() >= (unsteady | {"r_stitched": 0.08, "median_r_stitched": 0.08}).items()
    assert {"median_r_stitched_low", "iqm_r_stitched", "iqm_r_stitched_high"} <= rows["agc"].keys()
    summary = mlflow.artifacts.load_text(f"runs:/{found.run_id}/told_summary.md")
    assert summary.count("| partly_dead |") == 2
    assert "figures/told_r_stitched.png" in found.files


@pytest.mark.parametrize("content", ["{", "3"])
def test_a_plan_that_cannot_be_read_is_said_in_one_line(content, fresh_store):
    parent = record_parent("planned")
    mlflow.MlflowClient().log_text(parent, content, "study.json")
    record_run("planned", "control", parent=parent)
    with pytest.raises(ConfigError, match=rf"^`parent` \(={parent}\) must have a study.json that can be read: "):
        compare_study("planned", register=False)
