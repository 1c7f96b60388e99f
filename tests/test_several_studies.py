"""`fnostab compare --study a,b`: the runs of several studies ranked together."""

import mlflow
import pytest
from test_compare import record_parent, record_run
from test_tracking_contract import foreign_run, log_identity

from fnostab.cli import main
from fnostab.workflows.compare import compare_study


def _refused(study, capsys, *words):
    before = mlflow.MlflowClient().search_runs(["0"])
    capsys.readouterr()
    assert main(["compare", "--study", study, *words]) == 2
    assert len(mlflow.MlflowClient().search_runs(["0"])) == len(before)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("fnostab: error")]
    return line


def test_arms_of_one_name_are_told_apart_and_others_keep_theirs(fresh_store, capsys):
    for study, arms in (("first", ("control", "agc")), ("second", ("control", "stable"))):
        for arm in arms:
            record_run(study, arm, parent=record_parent(study))
    assert main(["compare", "--study", "first, second", "--register", "false", "--out", "out"]) == 0
    assert (fresh_store / "out" / "first,second_report.html").exists()
    found = compare_study("first,second", register=False)
    arms = ["agc", "control (first)", "control (second)", "stable"]
    assert sorted(row["arm"] for row in found.result.ranking.table) == arms
    note = "The studies first, second are compared as one; which runs belong together was not planned before."
    assert note in found.result.notes
    assert "- " + note in capsys.readouterr().out
    tags = mlflow.MlflowClient().get_run(found.run_id).data.tags
    assert (tags["study"], tags["study_role"]) == ("first,second", "comparison")


def test_runs_of_different_versions_and_looks_of_their_own_are_noted(fresh_store):
    record_run("first", "a", parent=record_parent("first", looks="5,10", alpha="0.05"), fnostab_version="0.1.0")
    record_run("second", "b", fnostab_version="0.2.0")
    notes = compare_study("first,second", register=False).result.notes
    assert "Trained by several versions of fnostab: 0.1.0, 0.2.0." in notes
    assert "Study first looked at its runs several times: p-values here do not pay for that." in notes


def test_a_planned_run_without_a_result_is_missing_under_the_name_of_its_study(fresh_store):
    for study in ("first", "second"):
        parent = record_parent(study)
        mlflow.MlflowClient().log_dict(parent, {"runs": [["control", 1], ["control", 2]]}, "study.json")
        record_run(study, "control", parent=parent)
    notes = compare_study("first,second", register=False).result.notes
    assert [note for note in notes if "not begun" in note] == [
        "control (first), seed 2: planned, and not begun.",
        "control (second), seed 2: planned, and not begun.",
    ]


def test_studies_on_different_data_or_with_other_settings_are_refused_with_the_difference(fresh_store, capsys):
    record_run("first", "a")
    record_run("second", "b", dataset_sha256="a1" * 32)
    assert f"must have one dataset, and has 2: {'5f' * 32} of a (seed 1); {'a1' * 32} of b" in _refused(
        "first,second", capsys
    )
    record_run("third", "c", blocks=4)
    assert "`model.fno_blocks` of study first,third must be one in all arms" in _refused("first,third", capsys)


@pytest.mark.parametrize(
    ("study", "words", "message"),
    [
        ("first,nothing", [], "`study` (=nothing) must be the tag of runs in the tracking store: there is none"),
        ("first,first", [], "`study` (=first,first) must have each study once"),
        ("first,", [], "`study` (=) must be a name"),
        ("first,second", ["--parent", "x"], "`parent` (=x) is for one study, not for 2"),
    ],
)
def test_a_list_of_studies_that_cannot_be_is_refused_in_one_line(study, words, message, fresh_store, capsys):
    record_run("first", "a")
    record_run("second", "b")
    assert message in _refused(study, capsys, *words)


def test_a_study_whose_own_name_has_a_comma_goes_before_the_list(fresh_store):
    for study in ("first", "second", "first,second"):
        foreign_run(f"arm of {study}", 1, study=study)
    assert compare_study("first,second", register=False).result.arms == ["arm of first,second"]


def test_the_winner_of_several_studies_is_registered_once_under_the_name_of_all(fresh_store, capsys):
    record_run("first", "a")
    with mlflow.start_run(record_run("second", "b", metrics={"best_val_loss": 0.01})):
        log_identity()
    assert main(["compare", "--study", "first,second"]) == 0
    assert "(b, seed 1) is registered as fnostab-first-second version 1" in capsys.readouterr().out
