"""In somebody's MLflow: where runs go, what they are called and said to be, and the registered model's name."""

import mlflow
import pytest
from test_compare import record_parent, record_run
from test_tracking_contract import log_identity

from fnostab.cli import main

_TINY = ["--preset", "smoke", "--epochs", "1", "--train.artifacts", "numbers"]


def _runs(*experiments):
    client = mlflow.MlflowClient()
    ids = [client.get_experiment_by_name(name).experiment_id for name in experiments]
    return {run.info.run_name: run for run in client.search_runs(ids)}


def _refused(capsys, *arguments):
    capsys.readouterr()
    assert main([str(word) for word in arguments]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("fnostab: error")]
    return line


def test_a_run_has_the_experiment_the_name_and_the_description_that_it_is_given(fresh_store, monkeypatch):
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "of the shell")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "0")
    words = ["--experiment", "of the beamline", "--run_name", "first light", "--description", "Is it alive?\nIt is."]
    assert main(["train", *_TINY, *words]) == 0
    runs = _runs("of the beamline", "Default")
    assert runs.keys() == {"first light"}
    assert runs["first light"].data.tags["mlflow.note.content"].startswith("Is it alive?\nIt is.\n\n**Verdict: ")
    assert mlflow.MlflowClient().get_experiment_by_name("of the shell") is None


def test_the_experiment_of_a_command_is_not_that_of_the_next_in_the_same_process(fresh_store):
    assert main(["train", *_TINY, "--experiment", "of the beamline"]) == 0
    assert main(["train", *_TINY]) == 0
    assert [len(_runs(name)) for name in ("of the beamline", "Default")] == [1, 1]


def test_name_and_description_are_no_part_of_a_runs_identity(fresh_store, capsys):
    assert main(["train", *_TINY, "--run_name", "a", "--description", "b"]) == 0
    assert main(["train", *_TINY]) == 0
    named, other = _runs("Default").values()
    assert named.data.tags["config_sha256"] == other.data.tags["config_sha256"]
    assert named.data.params == other.data.params


def test_a_deleted_experiment_is_refused_in_mlflows_terms_before_anything_is_built(fresh_store, capsys):
    client = mlflow.MlflowClient()
    client.delete_experiment(client.create_experiment("gone"))
    line = _refused(capsys, "train", *_TINY, "--experiment", "gone")
    assert "(=gone) must be an experiment that is not deleted: `mlflow experiments restore -x 1` brings it back" in line
    assert not (fresh_store / "cache").exists()


def test_an_experiment_for_a_run_that_mlflow_has_made_is_refused(fresh_store, capsys, monkeypatch):
    monkeypatch.setenv("MLFLOW_RUN_ID", mlflow.MlflowClient().create_run("0").info.run_id)
    line = _refused(capsys, "train", *_TINY, "--experiment", "other")
    assert "`experiment` (=other) must be given to MLflow, which has made this run already" in line
    assert mlflow.MlflowClient().get_experiment_by_name("other") is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "--experiment", "a\nb"], "`experiment` (=a\\nb) must be text on one line of at most 256 characters"),
        (["train", "--run_name", "n" * 251], "must be text on one line of at most 250 characters"),
        (["study", "--description", " "], "`description` (= ) must be text of at most 8000 characters"),
        (["study", "--model_name", "a/b"], "`model_name` (=a/b) must be a name without quotes"),
        (["compare", "--model_name", "a@b"], "`model_name` (=a@b) must be at most 256 characters, and no @ among them"),
    ],
)
def test_names_that_mlflow_does_not_take_are_refused_in_one_line(words, message, fresh_store, capsys):
    assert message in _refused(capsys, *words)
    assert list(fresh_store.iterdir()) == []


def test_a_study_names_its_parent_and_keeps_what_was_said_of_it_above_its_result(fresh_store, capsys):
    arms = fresh_store / "arms.yaml"
    arms.write_text("study: two\narms: [{name: a}, {name: b, clip_algo: agc}]\n")
    words = ["--experiment", "here", "--run_name", "our study", "--description", "Why.", "--model_name", "Our model"]
    study = ["study", "--arms", str(arms), *_TINY, "--seeds", "1", "--launcher", "inline"]
    assert main([*study, *words]) == 0
    runs = _runs("here")
    first = runs["our study"].info.run_id
    assert runs.keys() == {"our study", *(f"{arm}-seed20260128" for arm in "ab")}
    assert runs["our study"].data.tags["mlflow.note.content"] == "Why."
    assert runs["our study"].data.tags["model_name"] == "Our model"
    assert main(study) == 0  # what is not said again stays
    assert main(["compare", "--study", "two"]) == 0
    parent = mlflow.MlflowClient().get_run(first)
    assert parent.info.run_name == "our study"
    assert parent.data.tags["mlflow.note.content"].startswith("Why.\n\n**Study two: ")


@pytest.mark.parametrize(
    ("words", "of_parent", "name"),
    [
        ([], {}, "fnostab-small"),
        (["--model_name", "Our model"], {}, "Our model"),
        ([], {"model_name": "Theirs"}, "Theirs"),
        (["--model_name", "Ours"], {"model_name": "Theirs"}, "Ours"),
    ],
)
def test_the_winner_becomes_a_version_of_the_model_that_is_named(words, of_parent, name, fresh_store, capsys):
    run_id = record_run("small", "control", parent=record_parent("small", **of_parent))
    with mlflow.start_run(run_id):
        log_identity()
    assert main(["compare", "--study", "small", *words]) == 0
    assert f"is registered as {name} version 1" in capsys.readouterr().out
    (version,) = mlflow.MlflowClient().search_model_versions("")
    assert (version.name, version.run_id) == (name, run_id)
    assert f"models:/{name}@champion" in version.description
