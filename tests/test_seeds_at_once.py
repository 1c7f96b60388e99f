"""Studies that train the seeds of an arm as one network: each run is what it would be, told, kept and resumed alone."""

import signal
import subprocess
import sys

import mlflow
import numpy as np
import pytest

from fnostab.cli import main
from fnostab.config import resolve_config
from fnostab.launch import Job, LaunchConfig
from fnostab.study.plan import plan_file
from fnostab.tracking.artifacts import read_run
from fnostab.training import together
from fnostab.training.launches import Launch
from fnostab.workflows import child
from fnostab.workflows.child import train_job, train_together
from fnostab.workflows.runs import trains_alone
from fnostab.workflows.study import run_study

_TABLE = """
study: several
preset: smoke
seeds: [1, 2, 3]
data: {max_train_patches: 96}
train: {epochs: 3, picture_every_epochs: 2, checkpoint_every_s: 0.3}
arms:
  - {name: control, arch: hybrid, clip_algo: norm}
"""

_NETWORK = """
import torch

class Net(torch.nn.Module):
    def __init__(self, C=1):
        super().__init__()
        self.conv = torch.nn.Conv2d(C, 2 * C, 3, padding=1)

    def forward(self, x):
        return self.conv(x).unflatten(1, (x.shape[1], 2)).permute(0, 3, 4, 1, 2)
"""


class _Lines:
    def __init__(self):
        self.lines = []

    def begin(self, runs, finished):
        self.finished = dict(finished)

    def update(self, place, update):
        self.lines.append((place, update.state, update.text))

    def look(self, text):
        self.lines.append((-1, "look", text))


@pytest.fixture
def table(tmp_path, fresh_store):
    path = tmp_path / "several.yaml"
    path.write_text(_TABLE)
    return path


def _runs(study="several"):
    found = mlflow.MlflowClient().search_runs(["0"], f"tags.study = '{study}'")
    return sorted((run for run in found if "arm" in run.data.tags), key=lambda run: int(run.data.tags["seed"]))


def _series(run, key):
    return [(one.step, one.value) for one in mlflow.MlflowClient().get_metric_history(run.info.run_id, key)]


def _assert_whole(runs, study_run_id):
    """Each run has its verdict, its series from the first step on, each step once, and its files."""
    client = mlflow.MlflowClient()
    assert [run.data.tags["seed"] for run in runs] == ["1", "2", "3"]
    for run in runs:
        assert run.info.status == "FINISHED"
        assert run.data.tags["mlflow.parentRunId"] == study_run_id
        assert run.data.tags["verdict"] in ("converged", "stagnated")
        assert [step for step, _ in _series(run, "train/loss")] == list(range(18))
        assert [step for step, _ in _series(run, "val/loss")] == [5, 11, 17]
        assert [step for step, _ in _series(run, "health/update_std/encoder.0")] in ([], [0, 6, 12, 18])
        assert {each.path for each in client.list_artifacts(run.info.run_id, "checkpoints")} == {
            "checkpoints/best.ckpt",
            "checkpoints/last.ckpt",
        }
        assert read_run(run.info.run_id)[1]["val_loss"] == [value for _, value in _series(run, "val/loss")]


def test_a_study_of_three_seeds_at_once_has_the_runs_of_one_that_trains_them_one_by_one(table):
    view = _Lines()
    outcome = run_study(plan_file(table, {}), LaunchConfig("inline", seeds_at_once=3), view)
    assert outcome.without_result == []
    runs = _runs()
    _assert_whole(runs, outcome.run_id)
    assert {run.data.tags["seeds_at_once"] for run in runs} == {"3"}
    models = mlflow.MlflowClient().search_logged_models(["0"])
    assert {model.source_run_id for model in models} == {run.info.run_id for run in runs}
    assert not list(table.parent.glob("runs/*/"))  # nothing is left to go on with
    alone = run_study(plan_file(table, {"study": "alone"}), LaunchConfig("inline"), _Lines())
    assert alone.without_result == []
    for one, other in zip(runs, _runs("alone"), strict=True):
        ours, theirs = ({name for name in run.data.metrics if not name.startswith("system/")} for run in (one, other))
        assert ours == theirs
        assert "seeds_at_once" not in other.data.tags
        losses, expected = (np.array(_series(run, "train/loss"))[:, 1] for run in (one, other))
        np.testing.assert_allclose(losses, expected, rtol=1e-2)


def test_in_processes_the_runs_are_trained_by_one_and_finished_by_several(table):
    view = _Lines()
    outcome = run_study(plan_file(table, {}), LaunchConfig("processes", workers=2, seeds_at_once=3), view)
    assert outcome.without_result == []
    _assert_whole(_runs(), outcome.run_id)
    assert [place for place, _, text in view.lines if text == "starting, 3 seeds at once"] == [0, 1, 2]


@pytest.mark.parametrize("at_once", ["1", "3"])
def test_a_study_that_was_stopped_goes_on_with_any_number_of_seeds_at_once(table, tmp_path, at_once):
    command = [sys.executable, "-m", "fnostab", "study", "--arms", str(table), "--launcher", "inline"]
    with subprocess.Popen([*command, "--seeds_at_once", "3"], stdout=subprocess.PIPE, text=True) as study:
        for line in study.stdout:
            if "epoch 1/3" in line:
                study.send_signal(signal.SIGTERM)
                break
        said = study.stdout.read()
    assert study.returncode == 128 + signal.SIGTERM
    assert said.count("interrupted: stopped by SIGTERM") == 3
    stopped = _runs()
    assert [run.info.status for run in stopped] == ["KILLED"] * 3
    assert {run.data.tags["verdict"] for run in stopped} == {"interrupted"}
    assert main([*command[3:], "--seeds_at_once", at_once]) == 0
    runs = _runs()
    assert [run.info.run_id for run in runs] == [run.info.run_id for run in stopped]
    _assert_whole(runs, runs[0].data.tags["mlflow.parentRunId"])


def test_a_seed_that_blows_up_and_one_that_is_pruned_leave_the_group_and_the_others_go_on(table):
    def fused(steps):
        losses = losses_with_gradients(steps)
        for step in steps:
            if step.module.config.seed == 2 and step.module.trainer.global_step == 8:
                next(step.module.generator.parameters()).grad.fill_(float("nan"))
        sizes.append(len(steps))
        return losses

    def watch(news, done):
        watched(news, done)
        return done.epoch == 1 and news._send.args == (2,)  # the place of seed 3

    sizes, updates, ends = [], [], []
    losses_with_gradients, watched = together.losses_with_gradients, child.News.watch
    jobs = [Job(run.name, run.config.model_dump(mode="json"), {}) for run in plan_file(table, {}, "1,2,3,4").runs]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(together, "losses_with_gradients", fused)
        patched.setattr(child.News, "watch", watch)
        train_together(jobs, lambda place, update: updates.append((place, update)))
    assert {update.state for _, update in updates} == {"running"}
    assert [run.info.status for run in _runs()] == ["SCHEDULED"] * 4
    assert sizes == [4] * 6 + [3] * 3 + [2] * 9
    for job in jobs:
        train_job(job, ends.append)
    runs = _runs()
    verdicts = [run.data.tags["verdict"] for run in runs]
    assert verdicts[1:3] == ["non_finite", "pruned"]
    assert [end.verdict for end in ends if end.state == "done"] == verdicts
    assert {verdicts[0], verdicts[3]} <= {"converged", "stagnated"}
    assert [len(_series(run, "train/loss")) for run in runs] == [18, 9, 6, 18]


def test_runs_whose_steps_are_replayed_together_are_whole_too(table, monkeypatch):
    def run(launch):
        launches.append(len(launch.records))
        replayed(launch)

    launches, replayed = [], Launch.run
    monkeypatch.setattr(Launch, "run", run)
    monkeypatch.setattr("fnostab.training.replay.STEPS_A_LAUNCH", 3)
    monkeypatch.setattr("fnostab.training.module.replays_on", lambda device: True)
    outcome = run_study(plan_file(table, {}), LaunchConfig("inline", seeds_at_once=3), _Lines())
    assert outcome.without_result == []
    _assert_whole(_runs(), outcome.run_id)
    assert set(launches) == {3}


def test_networks_of_ones_own_are_trained_one_by_one_and_the_study_says_so(table, tmp_path):
    (tmp_path / "net.py").write_text(_NETWORK)
    table.write_text(table.read_text().replace("arch: hybrid", "arch: ./net.py:Net").replace("epochs: 3", "epochs: 1"))
    view = _Lines()
    outcome = run_study(plan_file(table, {}, "2"), LaunchConfig("inline", seeds_at_once=2), view)
    assert outcome.without_result == []
    (said,) = [text for _, state, text in view.lines if state == "look"]
    assert said.startswith("the seeds of control are trained one by one: model.arch=")
    assert said.endswith("net.py:Net is a network of your own")
    assert not any("seeds at once" in text for _, _, text in view.lines)


def test_several_devices_a_run_are_trained_alone():
    assert trains_alone(resolve_config({"preset": "smoke"})) is None
    assert "several devices" in trains_alone(resolve_config({"preset": "smoke", "devices": 2, "strategy": "ddp"}))


@pytest.mark.parametrize("value", ["0", "-1", "many", "1.5"])
def test_bad_numbers_of_seeds_at_once_are_refused_in_one_line(value, fresh_store, capsys):
    assert main(["study", "--preset", "smoke", "--seeds_at_once", value]) == 2
    said = capsys.readouterr().err.strip()
    assert f"`seeds_at_once` (={value}) must be a whole number >= 1" in said
    assert "\n" not in said
    assert [path.name for path in fresh_store.iterdir() if path.name != "mlflow.db"] == []


def test_one_seed_at_a_time_makes_no_groups(table, monkeypatch):
    monkeypatch.setattr(child, "train_along", pytest.fail)
    outcome = run_study(plan_file(table, {"train.epochs": 1}), LaunchConfig("inline", seeds_at_once=1), _Lines())
    assert outcome.without_result == []
