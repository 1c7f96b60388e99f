"""How monitored runs begin and end: errors, signals, MLflow runs inside of others, outages, what is refused."""

import json
import logging
import os
import subprocess
import sys
import textwrap

import mlflow
import pytest
import torch
from mlflow.exceptions import MlflowException
from monitored import PLACE, Toy, gradients, points, stored, toy, train
from torch import nn

from fnostab import monitor
from fnostab.io.endings import ConfigError
from fnostab.monitor.network import Network
from fnostab.tracking.checkout import folder_commit


def _raise_after_a_step(error, **settings):
    model, optimizer = toy()
    run = monitor.run(model, optimizer, **PLACE | settings)

    def loop():
        with run:
            run.step(gradients(model))
            raise error

    with pytest.raises(type(error)):
        loop()
    return run


def test_an_error_goes_on_and_leaves_a_failed_run_with_what_was_recorded():
    run = _raise_after_a_step(KeyError("x\ny"))
    assert stored(run).info.status == "FAILED"
    assert stored(run).data.tags["verdict_reason"] == r"KeyError: 'x\ny'"
    assert "verdict" not in stored(run).data.tags
    assert len(points(run, "train/loss")) == 1
    assert run.verdict is None
    assert mlflow.active_run() is None


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(1)])
def test_what_ends_the_process_interrupts_the_run(error):
    run = _raise_after_a_step(error, baseline=1.0)
    assert stored(run).info.status == "KILLED"
    assert run.verdict.label == stored(run).data.tags["verdict"] == "interrupted"


class TrialPruned(Exception):
    """Named as Optuna's, which the monitor does not import."""


def test_a_pruned_trial_is_missing_and_no_failure():
    run = _raise_after_a_step(TrialPruned(), baseline=1.0)
    assert stored(run).info.status == "FINISHED"
    assert (run.verdict.label, run.verdict.failed) == ("pruned", False)
    assert stored(run).data.tags["verdict_reason"] == "the run was pruned after epoch 0"


def test_a_loop_may_prune_its_run():
    model, optimizer = toy()
    with monitor.run(model, optimizer, **PLACE, baseline=1.0) as run:
        while not run.should_stop:
            run.step(gradients(model))
            run.epoch(val_loss=0.9)
            run.prune()
    assert stored(run).data.tags["verdict"] == "pruned"


def test_a_run_out_of_memory_is_a_failure_of_the_arm():
    run = _raise_after_a_step(torch.OutOfMemoryError("CUDA out of memory"), baseline=1.0)
    assert stored(run).info.status == "FINISHED"
    assert (run.verdict.label, run.verdict.failed) == ("out_of_memory", True)


def test_sigterm_ends_the_loop_with_the_verdict_interrupted(fresh_store):
    code = """
        import os, signal, torch
        from fnostab import monitor
        model = torch.nn.Linear(2, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with monitor.run(model, optimizer, study="s", arm="a", seed=0) as run:
            loss = model(torch.ones(1, 2)).sum()
            loss.backward()
            run.step(loss)
            print(run.run_id, flush=True)
            os.kill(os.getpid(), signal.SIGTERM)
            while True:
                pass
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 143, done.stderr
    run = mlflow.MlflowClient().get_run(done.stdout.strip())
    assert (run.info.status, run.data.tags["verdict"]) == ("KILLED", "interrupted")


# The MLflow run.


def test_inside_a_run_of_the_user_it_is_a_child_and_active():
    with mlflow.start_run() as outer:
        model, optimizer = toy()
        with monitor.run(model, optimizer, **PLACE) as run:
            run.step(gradients(model))
            mlflow.log_metric("mine", 2.0)
        assert mlflow.active_run().info.run_id == outer.info.run_id
    assert stored(run).data.tags["mlflow.parentRunId"] == outer.info.run_id
    assert stored(run).data.metrics["mine"] == 2.0
    assert "verdict" not in mlflow.MlflowClient().get_run(outer.info.run_id).data.tags


def test_the_run_that_mlflow_run_made_is_used_once(monkeypatch):
    made = mlflow.MlflowClient().create_run("0", run_name="mine").info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", made)
    first = train(*toy(), epochs=1)
    assert (first.run_id, stored(first).info.run_name) == (made, "mine")
    monkeypatch.setenv("MLFLOW_RUN_ID", made)
    second = train(*toy(), epochs=1)
    assert second.run_id != made
    assert stored(second).data.tags["mlflow.parentRunId"] == made


def test_the_experiment_that_mlflow_would_take_is_taken(monkeypatch, fresh_store):
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "darcy")
    run = train(*toy(), epochs=1)
    experiment = mlflow.MlflowClient().get_experiment(stored(run).info.experiment_id)
    assert experiment.name == "darcy"


def test_a_run_that_goes_on_from_a_state_has_the_series_of_an_unbroken_one():
    whole = train(*toy(), epochs=4, baseline=2.0, blocks=["layers.*"])
    model, optimizer = toy()
    first = monitor.run(model, optimizer, **PLACE, baseline=2.0, blocks=["layers.*"])
    with first:
        _epochs(first, model, optimizer, range(2))
        saved = json.loads(json.dumps(first.state_dict()))  # plain data
    second = monitor.run(model, optimizer, **PLACE, baseline=2.0, blocks=["layers.*"], state=saved)
    with second:
        _epochs(second, model, optimizer, range(2, 4))
    assert second.run_id == first.run_id
    assert second.history.to_mapping() == whole.history.to_mapping()
    assert points(second, "train/loss") == points(whole, "train/loss")
    assert stored(second).data.tags["verdict"] == whole.verdict.label


def _epochs(run, model, optimizer, epochs):
    from monitored import data

    for epoch in epochs:
        for step in range(4):
            optimizer.zero_grad()
            run.step(gradients(model, epoch * 4 + step))
        x, y = data(99)
        run.epoch(val_loss=(model(x) - y).square().mean())


def test_a_store_that_goes_away_costs_the_training_nothing(monkeypatch, fresh_store, caplog):
    model, optimizer = toy()

    def away(*_, **__):
        raise MlflowException("the disk is gone")

    with caplog.at_level(logging.WARNING), monitor.run(model, optimizer, **PLACE, baseline=1.0) as run:
        monkeypatch.setattr(mlflow.MlflowClient, "log_batch", away)
        monkeypatch.setattr(mlflow.MlflowClient, "log_text", away)
        run.step(gradients(model))
        run.epoch(val_loss=0.5)
    assert run.verdict.label == "converged"
    folder = fresh_store / "toy-wide-seed3-unsent"
    assert json.loads((folder / "history.json").read_text())["val_loss"] == [0.5]
    assert json.loads((folder / "metrics.json").read_text())["verdict"] == "converged"
    assert f"run {run.run_id} has no verdict there, and its files are in {folder}" in caplog.text


def test_the_code_that_the_commit_of_the_working_directory_lacks_is_an_artifact(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert folder_commit(tmp_path) == ("unknown", "")
    user = ["-c", "user.name=x", "-c", "user.email=x"]
    (tmp_path / "net.py").write_text("width = 8\n")
    for words in (["init", "-q"], ["add", "net.py"], [*user, "commit", "-qm", "x"]):
        subprocess.run(["git", *words], check=True, cwd=tmp_path)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=tmp_path).stdout.strip()
    run = train(*toy(), epochs=1)
    assert stored(run).data.tags["git_commit"] == commit
    (tmp_path / "net.py").write_text("width = 16\n")
    (tmp_path / "new.py").write_text("depth = 4\n")
    run = train(*toy(), epochs=1)
    assert stored(run).data.tags["git_commit"] == f"{commit}-dirty"
    code = mlflow.artifacts.load_text(f"{stored(run).info.artifact_uri}/code.diff")
    assert "+width = 16" in code
    assert "+depth = 4" in code


# Refusals, before anything is written.


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"study": "a/b"}, r"`study` \(=a/b\) must be a name without"),
        ({"arm": ""}, r"`arm` \(=\) must be a name without"),
        ({"arm": "x" * 101}, r"`arm` \(=x+\) must be a text of at most 100 characters"),
        ({"seed": -1}, r"`seed` \(=-1\) must be a whole number >= 0"),
        ({"seed": True}, r"`seed` \(=True\) must be a whole number >= 0"),
        ({"baseline": 0.0}, r"`baseline` \(=0.0\) must be a finite number > 0, the val_loss of a constant"),
        ({"baseline": float("nan")}, r"`baseline` \(=nan\) must be a finite number > 0"),
        ({"dataset": ""}, r"`dataset` \(=\) must be a name, or the SHA-256"),
        ({"clip": "agc"}, r'`clip` \(=agc\) must be a rule and its limit, such as \("agc", 0.01\)'),
        ({"clip": ("agc", "x")}, r"`clip` \(=\('agc', 'x'\)\) must be a rule and its limit"),
        ({"clip": {"algorithm": "agc"}}, r"`clip` \(=.*\) must have algorithm and value, and nothing but"),
        ({"clip": ("agd", 0.1)}, r"`algorithm` \(=agd\) must be one of"),
        ({"blocks": "layers.*"}, r"`blocks` \(=layers.\*\) must be a list of patterns"),
        ({"blocks": ["blocks.*"]}, r"`blocks` \(=blocks.\*\) must match a module's name, such as layers"),
        ({"layers_every_steps": 0}, r"`layers_every_steps` \(=0\) must be a whole number >= 1"),
        ({"params": {"clip.algo": "x"}}, r"`params` \(=clip.algo\) must not hold what the monitor logs itself"),
    ],
)
def test_bad_settings_are_refused_in_one_line(settings, message, fresh_store):
    model, optimizer = toy()
    with pytest.raises(ValueError, match=rf"^{message}[^\n]*$"):
        monitor.run(model, optimizer, **PLACE | settings)
    assert not (fresh_store / "mlflow.db").exists()


def _refuse(model, optimizer, message, folder):
    with (
        pytest.raises(ValueError, match=rf"^{message}[^\n]*$"),
        monitor.run(model, optimizer, **PLACE),
    ):
        pass
    assert not (folder / "mlflow.db").exists()


def test_what_is_no_optimizer_of_the_network_is_refused(fresh_store):
    model, optimizer = toy()
    _refuse(model, "Adam", r"`optimizer` \(=str\) must be a torch.optim.Optimizer", fresh_store)
    lbfgs = torch.optim.LBFGS(model.parameters())
    _refuse(model, lbfgs, r"`optimizer` \(=LBFGS\) must take one gradient a step", fresh_store)
    _refuse(Toy(), optimizer, r"`optimizer` \(=Adam\) must have parameters of `model` alone, and has 6", fresh_store)


def test_what_is_no_network_is_refused(fresh_store):
    _, optimizer = toy()
    _refuse(len, optimizer, r"`model` \(=builtin_function_or_method\) must be a torch.nn.Module", fresh_store)
    _refuse(nn.ReLU(), optimizer, r"`model` \(=ReLU\) must have parameters that require a gradient", fresh_store)
    lazy = nn.LazyLinear(2)
    _refuse(lazy, optimizer, r"`model` \(=LazyLinear\), parameter weight, must have its shape", fresh_store)


def test_a_closure_is_refused():
    model, optimizer = toy()
    with (
        monitor.run(model, optimizer, **PLACE),
        pytest.raises(ValueError, match=r"^`closure` \(=a function\) must not be"),
    ):
        optimizer.step(lambda: gradients(model))


def test_a_loss_that_is_no_number_is_refused():
    model, optimizer = toy()
    with monitor.run(model, optimizer, **PLACE) as run:
        gradients(model)
        with pytest.raises(ValueError, match=r"^`loss` \(=a torch.float32 of shape \(2,\)\) must be one real number$"):
            run.step(torch.zeros(2))


def test_a_sharded_parameter_is_refused_by_name():
    class DTensor(nn.Parameter):
        """Named as that of torch.distributed."""

    model = Toy()
    model.out.bias = DTensor(torch.zeros(1))
    with pytest.raises(ValueError, match=r"^`model` \(=Toy\), parameter out.bias, must be a whole tensor"):
        Network(model)


def test_a_store_that_cannot_be_written_to_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/nowhere/mlflow.db")
    model, optimizer = toy()
    with pytest.raises(ConfigError, match=r"^`MLFLOW_TRACKING_URI` \(=.*\) must lie in a folder that exists$"):
        monitor.run(model, optimizer, **PLACE).__enter__()
    assert os.listdir(tmp_path) == []
