import json
import re
from pathlib import Path

import mlflow
import pytest

from fnostab.cli import main
from fnostab.config import ConfigError
from fnostab.health import VERDICT_VERSION
from fnostab.health.history import History
from fnostab.workflows.inspect import as_table, inspect_run


@pytest.fixture
def run_id(fresh_store):
    """A run with a history, as one that was trained leaves behind."""
    history = History(val_loss=[0.2, 0.002, 0.02], val_loss_constant=0.2, val_loss_floor=0.001, loss_step=[1.0, 0.5])
    history.add_health({"act_mean/bottleneck": 0.25, "act_std/bottleneck": 1.0})
    with mlflow.start_run() as run:
        mlflow.set_tags({"study": "s", "arm": "control", "seed": "7", "vacuous": "phase_mae,phase_ssim"})
        mlflow.set_tags({"verdict": "converged", "verdict_reason": "it learnt"})
        mlflow.log_metrics({"test/amp_ssim": 0.5, "weight_grad_norm/out.bias": 1.0, "test/phase_ssim": float("nan")})
        mlflow.log_text(history.to_json(), "history.json")
    return run.info.run_id


def test_a_run_is_told_with_verdict_evidence_and_metrics(run_id):
    found = inspect_run(run_id)
    assert (found["verdict"], found["verdict_reason"], found["seed"]) == ("converged", "it learnt", "7")
    assert found["evidence"]["plateau_left_epoch"] == 2
    assert found["metrics"]["test/amp_ssim"] == 0.5
    assert found["vacuous"] == ["phase_mae", "phase_ssim"]


def test_the_command_prints_a_table_or_json(run_id, capsys):
    assert main(["inspect", run_id]) == 0
    table = capsys.readouterr().out
    assert "verdict" in table
    assert "first_mean 0.25, last_mean 0.25" in table
    assert "test/amp_ssim" in table
    assert "weight_grad_norm" not in table  # too many: --json has them
    assert main(["inspect", run_id, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["metrics"]["weight_grad_norm/out.bias"] == 1
    assert found["metrics"]["test/phase_ssim"] == "NaN"


def test_a_run_is_judged_anew_and_old_and_new_are_told_but_not_stored(run_id, capsys):
    assert main(["inspect", "--judge", run_id, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    anew = found["judged_anew"]
    assert (found["verdict"], found["verdict_version"]) == ("converged", None)
    assert (anew["verdict"], anew["changed"], anew["verdict_version"]) == ("diverged", True, str(VERDICT_VERSION))
    assert "over 2 times its best, 0.002" in anew["verdict_reason"]
    assert anew["stability"]["label"] == "relapsed"
    assert anew["stability"]["max_drawdown"] == pytest.approx(10)
    assert main(["inspect", run_id, "--judge"]) == 0
    table = capsys.readouterr().out
    assert re.search(r"^verdict +converged$", table, flags=re.MULTILINE)
    assert re.search(r"^judged_anew\n +verdict +diverged\n +changed +yes$", table, flags=re.MULTILINE)
    assert mlflow.get_run(run_id).data.tags["verdict"] == "converged"


def test_a_run_without_a_history_cannot_be_judged(fresh_store, capsys):
    with mlflow.start_run() as run:
        pass
    assert main(["inspect", "--judge", run.info.run_id]) == 2
    said = f"`run` (={run.info.run_id}) must have the artifact history.json to be judged by\n"
    assert capsys.readouterr().err.endswith(f"fnostab: error: {said}")


def test_a_run_without_a_verdict_yet_has_no_evidence(fresh_store):
    with mlflow.start_run() as run:
        found = inspect_run(run.info.run_id)
    assert found["verdict"] is found["evidence"] is None
    assert "verdict" in as_table(found)


def test_an_unknown_run_is_refused_in_one_line(run_id, capsys):
    assert main(["inspect", "0123"]) == 2
    assert capsys.readouterr().err.startswith(
        "fnostab: error: `run` (=0123) must be a run in the tracking store sqlite"
    )


def test_looking_into_a_store_that_is_not_there_does_not_make_one(fresh_store):
    with pytest.raises(ConfigError, match="must name a tracking store: there is none yet"):
        inspect_run("0123")
    assert not list(fresh_store.iterdir())


@pytest.mark.parametrize(
    ("content", "fault"), [(None, "is not there (looked for in "), ("[1", "is damaged: "), ("[1]", "is damaged: ")]
)
def test_a_history_that_must_be_there_and_cannot_be_read_is_said(run_id, capsys, content, fault):
    mlflow.MlflowClient().set_tag(run_id, "fnostab_version", "1.0")
    (path,) = Path("mlruns").rglob("history.json")
    path.unlink() if content is None else path.write_text(content)
    assert main(["inspect", run_id]) == 2
    said = capsys.readouterr().err
    assert f"history.json of run {run_id} {fault}" in said
    assert said.count("\n") == 1
