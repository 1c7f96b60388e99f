"""How a study ends, and what its parent run says then; nothing is trained here."""

import json
import signal
from pathlib import Path

import mlflow
import pytest

from fnostab.cli import main
from fnostab.config import resolve_config
from fnostab.io.endings import Interrupted
from fnostab.io.locks import LockTimeout
from fnostab.launch import Job, LaunchConfig, Update
from fnostab.study.plan import plan_table
from fnostab.study.stored_run import StoredRun
from fnostab.tracking.errors import StoreUnavailable
from fnostab.tracking.studies import StudyFolder, find_parents, find_runs, planned_runs
from fnostab.workflows import runs, study as workflow
from fnostab.workflows.child import train_job
from fnostab.workflows.study import run_study

_COMMAND = ["study", "--preset", "smoke", "--seeds", "1", "--launcher", "inline"]


class _NoDisplay:
    def begin(self, runs, finished):
        pass

    def update(self, place, update):
        pass


@pytest.fixture(scope="module", autouse=True)
def _one_store(tmp_path_factory):
    """A store for all studies of this file, and a dataset that is built once."""
    folder = tmp_path_factory.mktemp("endings")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
        monkeypatch.chdir(folder)
        monkeypatch.setattr(workflow, "cache_folder", lambda: folder)
        dataset = workflow.build_dataset(_plan("any").common.data)
        monkeypatch.setattr(workflow, "build_dataset", lambda config, progress=None: dataset)
        yield


@pytest.fixture
def runs_end(monkeypatch):
    """Let every run end with the update that the test gives."""

    def end_with(update):
        monkeypatch.setattr(runs, "train_job", lambda job, send: send(update))

    return end_with


def _plan(study, arms="a", seeds="1,"):
    return plan_table([{"name": arm} for arm in arms], {}, {"preset": "smoke", "study": study}, {}, seeds)


def _run(plan):
    return run_study(plan, LaunchConfig("inline"), _NoDisplay())


def _parent(study):
    (parent,) = find_parents(study)
    return parent


def test_a_study_with_all_results_is_finished(runs_end):
    runs_end(Update("done", "it learnt", verdict="converged"))
    assert main([*_COMMAND, "--study", "s1"]) == 0
    assert _parent("s1").status == "FINISHED"
    assert _parent("s1").tags["results"] == "3 of 3 runs have a result"


def test_a_study_without_results_has_failed_and_says_how_many_there_are(runs_end, capsys):
    runs_end(Update("failed", "ValueError: no"))
    assert main([*_COMMAND, "--study", "s2"]) == 1
    assert _parent("s2").status == "FAILED"
    assert _parent("s2").tags["results"] == "0 of 3 runs have a result"
    assert "0 of 3 runs have a result" in capsys.readouterr().out


def test_an_inline_study_that_a_signal_stops_is_killed_with_its_exit_code(runs_end, capsys):
    runs_end(Update("interrupted", "stopped by SIGINT", signum=signal.SIGINT))
    assert main([*_COMMAND, "--study", "s3"]) == 128 + signal.SIGINT
    assert _parent("s3").status == "KILLED"
    assert capsys.readouterr().err.endswith("fnostab: error: stopped by SIGINT\n")


def test_a_signal_while_the_parent_run_is_made_begins_no_run_and_leaves_it_killed(runs_end, monkeypatch):
    set_tags = StudyFolder.set_tags

    def interrupt(*arguments):
        signal.raise_signal(signal.SIGTERM)
        set_tags(*arguments)

    monkeypatch.setattr(StudyFolder, "set_tags", interrupt)
    monkeypatch.setattr(runs, "train_job", pytest.fail)
    assert main([*_COMMAND, "--study", "s4"]) == 128 + signal.SIGTERM
    assert _parent("s4").status == "KILLED"


def test_a_study_whose_output_nobody_reads_is_killed(runs_end, monkeypatch):
    said = []

    def say(line):
        said.append(line)
        if len(said) > 1:
            raise BrokenPipeError

    runs_end(Update("done", "it learnt", verdict="converged"))
    monkeypatch.setattr("fnostab.cli.study.say", say)
    assert main([*_COMMAND, "--study", "s5"]) == 128 + signal.SIGPIPE
    assert len(said) == 2
    assert _parent("s5").status == "KILLED"


def test_a_study_whose_artifacts_cannot_be_written_has_failed(runs_end, monkeypatch):
    def refuse(*_):
        raise PermissionError("no such luck")

    monkeypatch.setattr(mlflow.MlflowClient, "log_text", refuse)
    with pytest.raises(StoreUnavailable):
        _run(_plan("s6"))
    assert _parent("s6").status == "FAILED"


def test_no_run_of_a_study_that_is_over_stays_running(monkeypatch):
    def die(job, send):
        tags = {"study": "dead", "arm": "a", "seed": str(job.config["seed"]), "dataset_sha256": "d", **job.tags}
        mlflow.MlflowClient().create_run("0", tags=tags)
        send(ends[job.config["seed"]])

    # The second one says itself that it failed: another process trains it.
    ends = {1: Update("failed", died=True), 2: Update("failed"), 3: Update("interrupted")}
    monkeypatch.setattr(runs, "train_job", die)
    with pytest.raises(Interrupted):
        _run(_plan("dead", seeds="1,2,3"))
    assert {run.seed: run.status for run in find_runs("dead")} == {1: "FAILED", 2: "RUNNING", 3: "KILLED"}


def test_the_plans_of_one_parent_add_up_as_pairs_of_arm_and_seed(runs_end):
    runs_end(Update("done", "it learnt", verdict="converged"))
    _run(_plan("pairs", "a", "1,"))
    _run(_plan("pairs", "ba", "2,3"))
    assert planned_runs(_parent("pairs")) == [("a", 1), ("b", 2), ("a", 2), ("b", 3), ("a", 3)]


def test_a_plan_of_an_earlier_version_is_each_arm_with_each_seed(monkeypatch):
    plan = json.dumps({"study": "s", "arms": ["a", "b"], "seeds": [1, 2]}).encode()
    monkeypatch.setattr("fnostab.tracking.studies.read_artifact", lambda run_id, path: plan)
    parent = StoredRun("r", "0", "FINISHED", 0, {})
    assert planned_runs(parent) == [("a", 1), ("a", 2), ("b", 1), ("b", 2)]


def test_a_lock_that_a_study_waits_for_in_vain_is_not_another_process_that_runs_it(runs_end, monkeypatch):
    def wait_in_vain(*_, **__):
        raise LockTimeout(workflow.cache_folder() / "other.lock", "77", 1.0)

    monkeypatch.setattr(workflow, "find_runs", wait_in_vain)
    with pytest.raises(LockTimeout, match=r"another process \(pid 77\) still holds the lock .*other.lock"):
        _run(_plan("s10"))


def test_a_lock_that_is_never_free_ends_a_run_in_one_line(monkeypatch):
    def wait_in_vain(*_, **__):
        raise LockTimeout(Path("mlflow.db.lock"), "12", 120)

    told = []
    monkeypatch.setattr("fnostab.workflows.child.train_arm", wait_in_vain)
    train_job(Job("x", resolve_config({"preset": "smoke"}).model_dump(mode="json")), told.append)
    assert told[-1].text == "another process (pid 12) still holds the lock mlflow.db.lock after 120 s"
    assert not told[-1].details
