"""Runs that something else than `fnostab train` made are ranked by what docs/tracking-contract.md asks of them."""

import json
import re
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path

import mlflow
import numpy as np
import pytest
from test_compare import record_run

from fnostab.cli import main
from fnostab.config import ConfigError
from fnostab.health import VERDICT_VERSION, History
from fnostab.ranking.arms import NUMBER_COLUMNS, RANKED_BY, VERDICTS
from fnostab.study import curves
from fnostab.study.names import METRIC
from fnostab.study.stored_run import NO_DATASET
from fnostab.tracking import store
from fnostab.workflows import study_result
from fnostab.workflows.compare import compare_study

_PAGE = Path(__file__).resolve().parents[1] / "docs" / "tracking-contract.md"
#: Of ptychography, these words stand in no report on runs that know nothing of it.
_OURS = ("ssim", "r-factor", "r_stitched", "stitched", "twin", "patch", "photon", "picture", "probe", "object", "nan")


_IDENTITY = """
import mlflow

class Identity(mlflow.pyfunc.PythonModel):
    def predict(self, model_input: list[float]) -> list[float]:
        return model_input

mlflow.models.set_model(Identity())
"""


def foreign_run(arm, seed, verdict="converged", params=(), history=None, loss=None, **tags):
    """Leave in the store what a loop of one's own leaves, by plain MLflow; gives the run's ID."""
    tags = {"study": "darcy", "arm": arm, "seed": str(seed), "verdict": verdict} | tags
    with mlflow.start_run(tags={key: value for key, value in tags.items() if value}) as run:
        mlflow.log_params(dict(params))
        mlflow.log_metric("best_val_loss", 0.1 + 0.01 * seed if loss is None else loss)
        if history:
            mlflow.log_text(json.dumps(history), "history.json")
    return run.info.run_id


def log_identity():
    """Log a model as the active run's `model`."""
    (Path.cwd() / "identity.py").write_text(_IDENTITY)
    mlflow.pyfunc.log_model(name="model", python_model="identity.py")


def _two_arms(**history):
    rng = np.random.default_rng(0)
    for arm, level in (("our FNO", 0.05), ("U-Net (theirs)", 0.09)):
        for seed in range(5):
            loss = level * (1 + 0.1 * seed)
            series = {"val_loss": [4 * loss, loss], "grad_norm_preclip": rng.lognormal(0, 1, 40).tolist(), **history}
            verdict = "diverged" if (arm, seed) == ("U-Net (theirs)", 4) else "converged"
            foreign_run(arm, seed, verdict, loss=loss, history=series if history else None)


@pytest.mark.parametrize("history", [{}, {"val_loss_constant": 0.4}], ids=["numbers alone", "with histories"])
def test_two_arms_of_plain_mlflow_runs_are_ranked_reported_and_not_registered(history, fresh_store, capsys):
    _two_arms(**history)
    assert main(["compare", "--study", "darcy", "--out", "out"]) == 0
    said = capsys.readouterr().out
    assert "our FNO beats every other arm" in said
    assert "The first in rank is our FNO." in said
    assert "Nothing registered: of the best run," in said
    assert "mlflow.pytorch.log_model" in said
    first, second = json.loads((fresh_store / "out" / "darcy_metrics.json").read_text())
    assert (first["arm"], first["runs"], first["failures"], first["best_val_loss"]) == ("our FNO", 5, 0, 0.05)
    assert (second["arm"], second["runs"], second["failures"]) == ("U-Net (theirs)", 5, 1)
    drawn = {path.stem.removeprefix("darcy_") for path in (fresh_store / "out" / "figures").iterdir()}
    assert drawn == {"best_val_loss", "failure_rates"} | ({"learning_curves", "gradient_norms"} if history else set())


@pytest.mark.parametrize("name", ["darcy_report.html", "darcy_summary.md"])
def test_a_report_on_runs_of_others_has_no_word_of_ptychography(name, fresh_store):
    _two_arms(val_loss_constant=0.4)
    compare_study("darcy", register=False, out=fresh_store / "out")
    text = (fresh_store / "out" / name).read_text()
    text = re.sub(r"<style>.*?</style>|<meta[^>]*>|data:image/png;base64,[^\"]*", "", text, flags=re.DOTALL).lower()
    assert [word for word in _OURS if re.search(rf"\b{word}", text)] == []
    assert "–" not in text  # no cell of a value that nobody has
    assert "stage b" not in text


def test_runs_that_do_not_say_their_dataset_are_of_one_and_a_note_says_so(fresh_store):
    for arm in ("a", "b"):
        foreign_run(arm, 1)
    found = compare_study("darcy", register=False)
    assert found.result.dataset_sha256 == NO_DATASET
    assert found.result.notes == [
        "The verdicts of 2 of 2 runs were not decided by fnostab (no tag verdict_version).",
        "The runs do not say which data they saw (tag dataset_sha256): that it was the same is not checked.",
    ]
    assert "dataset_sha256" not in mlflow.MlflowClient().get_run(found.run_id).data.tags


def test_runs_with_and_without_a_dataset_are_ranked_together_only_where_it_is_chosen(fresh_store, capsys):
    foreign_run("a", 1)
    foreign_run("b", 1, dataset_sha256="5f" * 32)
    assert main(["compare", "--study", "darcy", "--out", "out"]) == 2
    assert f"has 2: {'5f' * 32} of b (seed 1); {NO_DATASET} of a (seed 1)" in capsys.readouterr().err
    assert not (fresh_store / "out").exists()
    for dataset, arm in (("5f5f", "b"), (NO_DATASET, "a")):
        assert [run.arm for run in compare_study("darcy", dataset=dataset, register=False).result.runs] == [arm]


def test_params_of_others_may_differ_and_a_note_names_those_that_differ_within_an_arm(fresh_store):
    for seed in (1, 2):
        foreign_run("a", seed, params={"train.epochs": 10, "rng": seed, "lr": 1e-3})
        foreign_run("b", seed, params={"train.epochs": 20, "rng": seed, "lr": 1e-3 * seed})
    result = compare_study("darcy", register=False).result
    assert "The runs of arm b differ in more than their seed, in the params lr." in result.notes
    assert not [note for note in result.notes if "arm a" in note]
    assert result.facts["params that differ"] == "lr, train.epochs"


def test_an_unknown_verdict_is_missing_and_the_report_says_how_to_give_a_baseline(fresh_store, capsys):
    foreign_run("a", 1, "unknown", verdict_version=str(VERDICT_VERSION))
    hint = "give the monitor a baseline, the val_loss of the best constant prediction, or set the tag verdict by hand"
    with pytest.raises(ConfigError, match=f"every verdict is unknown: {hint}$"):
        compare_study("darcy", register=False)
    foreign_run("b", 1)
    assert main(["compare", "--study", "darcy"]) == 0
    said = capsys.readouterr().out
    assert "- a, seed 1: unknown." in said
    assert f"Whether 1 of 2 runs learnt is unknown, so they count nowhere: {hint}." in said


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ({"verdict": "splendid"}, "`verdict` (=splendid) of arm a, seed 1 must be one of converged, stagnated"),
        ({"verdict": ""}, "must have a finished run: its 1 are FINISHED without the tag verdict"),
        ({"seed": "one"}, "`study` (=darcy) must be the tag of runs in the tracking store: there is none"),
        ({"arm": ""}, "`study` (=darcy) must be the tag of runs in the tracking store: there is none"),
    ],
)
def test_tags_that_break_the_contract_are_refused_in_one_line(tags, message, fresh_store, capsys):
    tags = {"arm": "a", "seed": "1"} | tags
    foreign_run(**tags, loss=0.1)
    capsys.readouterr()
    assert main(["compare", "--study", "darcy", "--out", "out"]) == 2
    (said,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("fnostab: error")]
    assert message in said
    assert not (fresh_store / "out").exists()


def test_a_model_of_another_loop_is_registered_with_a_card_that_claims_no_ptychography(fresh_store, capsys):
    run_id = foreign_run("a", 1, dataset_sha256="5f" * 32)
    with mlflow.start_run(run_id):
        log_identity()
    assert main(["compare", "--study", "darcy"]) == 0
    (version,) = mlflow.MlflowClient().search_model_versions("name = 'fnostab-darcy'")
    assert version.run_id == run_id
    assert "something else than `fnostab train` trained" in version.description
    assert "diffraction" not in version.description


def test_without_a_dataset_the_champion_is_not_replaced_unasked(fresh_store, capsys):
    for seed, loss in ((1, 0.2), (2, 0.1)):
        run_id = foreign_run("a", seed, loss=loss)
        with mlflow.start_run(run_id):
            log_identity()
        assert main(["compare", "--study", "darcy"]) == 0
    assert "has no tags val_loss and dataset_sha256 to compare by; it stays: give --promote" in capsys.readouterr().out


def _tables():
    """The tables of the page: names in the first column, whether the second says yes, by the head of the first."""
    found = {}
    for table in re.findall(r"((?:^\|.*\n)+)", _PAGE.read_text(), flags=re.MULTILINE):
        head, _, *rows = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in table.splitlines()]
        found[head[0]] = {name: row[1] for row in rows for name in re.findall(r"`([^`]+)`", row[0])}
    return found


class _Noted(Mapping):
    """A mapping that notes which of its keys are asked for."""

    def __init__(self, content, asked):
        self._content = content
        self._asked = asked

    def __getitem__(self, key):
        self._asked.add(key)
        return self._content[key]

    def __contains__(self, key):
        self._asked.add(key)
        return key in self._content

    def __iter__(self):
        return iter(self._content)

    def __len__(self):
        return len(self._content)


def test_the_page_has_a_row_for_every_tag_metric_and_series_that_is_read_and_no_others(fresh_store, monkeypatch):
    tags, series = set(), set()
    stored_run, of = store.stored_run, curves.Curves.of

    def noting(run):
        found = stored_run(run)
        return replace(found, tags=_Noted(found.tags, tags))

    monkeypatch.setattr(store, "stored_run", noting)
    monkeypatch.setattr(study_result.Curves, "of", lambda content: of(_Noted(content, series)))
    record_run("darcy", "ours")
    foreign_run("a", 1, dataset_sha256="5f" * 32, arch="other", history={"val_loss": [0.1]})
    compare_study("darcy", parent=None)
    with pytest.raises(ConfigError):
        compare_study("darcy", parent="none")
    tables = _tables()
    assert tables["tag"].keys() - {"study"} == tags  # by which the store finds them
    assert tables["series"].keys() == series
    assert series <= {entry.name for entry in fields(History)}
    ranked = {METRIC[column] for column in {*RANKED_BY, *NUMBER_COLUMNS}} | {METRIC["r_factor"]}
    registered = {METRIC[f"{name}_mean_pattern"] for name in ("r_stitched", "r_factor")}
    assert tables["metric"].keys() == ranked | registered
    assert tables["artifact"].keys() == {"history.json", study_result._PICTURE, "model"}


def test_the_page_asks_for_no_more_than_a_comparison_needs(fresh_store):
    required = {name for of in _tables().values() for name, word in of.items() if word.startswith("yes")}
    assert required == {"study", "arm", "seed", "verdict", "best_val_loss"}
    foreign_run("a", 1)
    assert compare_study("darcy").result.ranking.table[0]["arm"] == "a"


def test_the_page_names_every_verdict():
    (row,) = re.findall(r"^\| `verdict` \|.*$", _PAGE.read_text(), flags=re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", row)) - {"verdict"} == set(VERDICTS)


def test_runs_of_others_travel_with_the_verdict_that_they_were_given(fresh_store, monkeypatch, capsys):
    for seed, verdict in ((1, "converged"), (2, "stagnated")):
        foreign_run("a", seed, verdict, history={"val_loss": [0.3, 0.2]}, fnostab_version="0.1.0")
    assert main(["export", "--study", "darcy"]) == 0
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{fresh_store / 'other.db'}")
    assert main(["import", "darcy.jsonl.gz"]) == 0
    assert "2 runs are new" in capsys.readouterr().out
    result = compare_study("darcy", register=False).result
    assert [run.verdict for run in result.runs] == ["converged", "stagnated"]


def test_a_run_of_another_loop_can_be_inspected(fresh_store, capsys):
    run_id = foreign_run("a", 1, history={"val_loss": [0.3, 0.2], "val_loss_constant": 0.9})
    assert main(["inspect", run_id, "--judge"]) == 0
    assert "converged" in capsys.readouterr().out
