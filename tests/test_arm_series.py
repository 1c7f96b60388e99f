"""The series of a study's arms: what they say, and that a parent run has each point once, however it came there."""

import json
import math
import re
from pathlib import Path

import mlflow
import numpy as np
import pytest
from mlflow.utils.validation import _validate_metric_name
from recorded_studies import ARMS, build_dataset, record_run

from fnostab.cli import main
from fnostab.config import ArmConfig
from fnostab.launch import Update
from fnostab.study.arm_series import FinishedRun, Point, metric_part, series_by_epoch, series_by_run
from fnostab.study.curves import Curves
from fnostab.study.names import ARM_SERIES
from fnostab.tracking.arm_series import ArmSeriesWriter
from fnostab.tracking.studies import find_parents
from fnostab.workflows import runs, study
from fnostab.workflows.compare import compare_study

_DOCS = Path(__file__).resolve().parents[1] / "docs"
_ARMS = ("control", "agc", "U-Net (theirs)", "a/b", "a_b", "ünet", "...", "x" * 300)


def _run(arm, seed, *, val_loss=(), r_stitched=(), loss=0.1, failed=False, ended_ms=None):
    curves = Curves.of({"val_loss": list(val_loss), "r_stitched": list(r_stitched)})
    return FinishedRun(f"{arm}{seed}", arm, failed, seed if ended_ms is None else ended_ms, loss, curves)


def _values(points):
    return [(point.step, pytest.approx(point.value)) for point in points]


def test_by_finished_run_an_arm_has_a_point_wherever_a_run_of_its_own_ended():
    found = series_by_run(
        [
            _run("a", 1, loss=0.3, ended_ms=10),
            _run("b", 1, loss=0.2, ended_ms=30),
            _run("a", 2, loss=math.inf, failed=True, ended_ms=20),
            _run("a", 3, loss=0.1, ended_ms=40),
        ]
    )
    assert _values(found["runs_done/a"]) == [(1, 1), (2, 2), (4, 3)]
    assert _values(found["failure_rate/a"]) == [(1, 0), (2, 0.5), (4, 1 / 3)]
    assert _values(found["best_val_loss_median/a"]) == [(1, 0.3), (4, 0.3)]  # of one failure in two it is infinite
    assert _values(found["runs_done/b"]) == [(3, 1)]
    assert [point.time_ms for point in found["runs_done/a"]] == [10, 20, 40]


def test_by_epoch_a_run_that_ended_counts_as_infinite():
    found = series_by_epoch([_run("a", 1, val_loss=[0.4, 0.2]), _run("a", 2, val_loss=[0.3], failed=True)])
    assert _values(found["val_loss_median_of_2/a"]) == [(1, 0.35)]
    three = series_by_epoch([_run("a", seed, val_loss=[0.1 * seed, "NaN", 0.2][: 1 + seed]) for seed in (1, 2, 3)])
    assert _values(three["val_loss_median_of_3/a"]) == [(1, 0.2), (3, 0.2)]
    assert _values(three["val_loss_low_quartile_of_3/a"])[0] == (1, 0.1)
    assert _values(three["val_loss_high_quartile_of_3/a"]) == [(1, 0.3)]  # at epoch 3, one of three has ended
    assert {point.time_ms for points in three.values() for point in points} == {3}


def test_a_stitched_r_factor_has_points_at_the_epochs_at_which_it_was_taken():
    taken = [_run("a", seed, val_loss=[1, 1, 1, 1], r_stitched=["NaN", 0.1, "NaN", 0.1 * seed]) for seed in (1, 2, 3)]
    assert _values(series_by_epoch(taken)["r_stitched_median_of_3/a"]) == [(2, 0.1), (4, 0.2)]
    assert not [name for name in series_by_epoch([_run("a", 1, val_loss=[1])]) if name.startswith("r_stitched")]


def test_runs_without_a_history_have_no_curves_and_are_not_counted():
    assert series_by_epoch([_run("a", 1)]) == {}
    assert series_by_epoch([_run("a", 1), _run("a", 2, val_loss=[0.5])]).keys() == {"val_loss_median_of_1/a"}


def test_a_store_takes_the_series_of_any_arm_and_tells_arms_apart():
    parts = [metric_part(arm) for arm in _ARMS]
    assert len(set(parts)) == len(_ARMS)
    assert parts[:2] == ["control", "agc"]
    found = series_by_run([_run(arm, seed) for arm in _ARMS for seed in (1, 2)])
    for name in found:
        _validate_metric_name(name)
        assert len(name) < 200
    assert {name.rpartition("/")[0] for name in found} & set(found) == set()


def test_the_table_of_names_has_every_series_and_the_guide_tells_it():
    all_runs = [_run("arm", seed, val_loss=[0.1], r_stitched=[0.1]) for seed in (1, 2, 3)]
    names = {*series_by_run(all_runs), *series_by_epoch(all_runs)}
    known = {name.replace("<arm>", "arm").replace("<n>", "3") for name in ARM_SERIES}
    assert names == known
    told = set(re.findall(r"`([a-z_]+(?:_of_<n>)?/<arm>)`", (_DOCS / "studies.md").read_text()))
    assert told == ARM_SERIES.keys()


def _history(run_id, key):
    return sorted((m.step, m.value) for m in mlflow.MlflowClient().get_metric_history(run_id, key))


@pytest.fixture
def store(fresh_store, empty_store):
    (fresh_store / "mlflow.db").write_bytes(empty_store.read_bytes())
    return fresh_store


def test_written_again_nothing_is_there_twice_and_a_longer_series_is_continued(store):
    run_id = mlflow.MlflowClient().create_run("0").info.run_id
    points = [Point(1, 0.5, 10), Point(2, 0.25, 20)]
    for _ in range(2):
        ArmSeriesWriter(run_id).write({"failure_rate/a": points})
    writer = ArmSeriesWriter(run_id)
    writer.write({"failure_rate/a": [*points, Point(4, 0.75, 30)]})
    writer.write({"failure_rate/a": [*points, Point(4, 0.75, 30)]})
    assert _history(run_id, "failure_rate/a") == [(1, 0.5), (2, 0.25), (4, 0.75)]
    assert mlflow.MlflowClient().get_run(run_id).data.metrics == {"failure_rate/a": 0.75}


def test_a_series_that_is_another_now_is_written_beside_the_one_that_is_there(store):
    run_id = mlflow.MlflowClient().create_run("0").info.run_id
    ArmSeriesWriter(run_id).write({"failure_rate/a": [Point(1, 0.0, 10), Point(2, 0.5, 20)]})
    for _ in range(2):
        ArmSeriesWriter(run_id).write({"failure_rate/a": [Point(1, 0.0, 10), Point(2, 0.0, 30)]})
        ArmSeriesWriter(run_id).write({"failure_rate/a": [Point(1, 0.0, 10)]})
    assert _history(run_id, "failure_rate/a") == [(1, 0.0), (2, 0.5)]
    assert _history(run_id, "failure_rate.2/a") == [(1, 0.0), (2, 0.0)]
    assert _history(run_id, "failure_rate.3/a") == [(1, 0.0)]


@pytest.fixture(scope="module")
def dataset():
    return build_dataset()


@pytest.fixture
def record(store, dataset, monkeypatch):
    """Record runs instead of training them; `lost` are not there when they are asked for. Gives what parents had."""
    (store / "s.yaml").write_text(f"study: s\n{ARMS}")
    monkeypatch.setattr(study, "build_dataset", lambda config, progress=None: dataset)
    seen, lost = [], set()

    def train(job, send):
        config = ArmConfig.model_validate(job.config)
        seen.append(dict(mlflow.MlflowClient().get_run(job.tags["mlflow.parentRunId"]).data.metrics))
        if (config.arm, config.seed) in lost:
            send(Update("failed", "ValueError: no"))
            return
        loss = 0.1 * config.seed

        def write(client, run_id):
            history = {"val_loss": [2 * loss, loss], "r_stitched": [0.5, 0.4]}
            client.log_text(run_id, json.dumps(history), "history.json")
            client.log_text(run_id, json.dumps(config.model_dump(mode="json")), "config.yaml")

        record_run(job, send, dataset, loss, write)

    monkeypatch.setattr(runs, "train_job", train)
    return seen, lost


def _study(*words):
    return main(["study", "--arms", "s.yaml", "--launcher", "inline", *words])


def _all_series(run_id):
    names = mlflow.MlflowClient().get_run(run_id).data.metrics
    return {name: _history(run_id, name) for name in names}


def test_a_study_that_runs_says_how_its_arms_stand_and_compare_adds_nothing(record):
    seen, _ = record
    assert _study("--seeds", "3") == 0
    (parent,) = find_parents("s")
    assert [found.get("runs_done/a", 0) for found in seen] == [0, 1, 1, 2, 2, 3]
    assert [found.get("runs_done/b", 0) for found in seen] == [0, 0, 1, 1, 2, 2]
    assert "val_loss_median_of_3/a" in seen[-1]  # before the last run, of the other arm, has ended
    series = _all_series(parent.run_id)
    assert series["runs_done/a"] == [(1, 1), (3, 2), (5, 3)]
    assert series["val_loss_median_of_3/b"] == [(1, pytest.approx(0.4)), (2, pytest.approx(0.2))]
    assert series["r_stitched_high_quartile_of_3/b"] == [(1, 0.5), (2, 0.4)]
    for _ in range(2):
        assert compare_study("s", register=False).run_id == parent.run_id
        assert _all_series(parent.run_id) == series


def test_a_study_that_goes_on_continues_its_series(record):
    _, lost = record
    lost |= {("a", 2)}
    assert _study("--seeds", "2") == 1
    (parent,) = find_parents("s")
    before = _all_series(parent.run_id)
    assert before["failure_rate/a"] == [(1, 0)]
    assert before["val_loss_median_of_1/a"] == [(1, 0.2), (2, 0.1)]  # of what there is at the end
    lost.clear()
    assert _study("--seeds", "3") == 0
    after = _all_series(parent.run_id)
    assert after["runs_done/a"] == [(1, 1), (4, 2), (5, 3)]
    assert {name: points for name, points in after.items() if name in before and "_of_" in name} == {
        name: points for name, points in before.items() if "_of_" in name
    }
    assert len(after["val_loss_median_of_3/a"]) == len(after["val_loss_median_of_3/b"]) == 2


def test_runs_that_were_imported_give_the_same_series_where_they_are_compared(record, store, monkeypatch, capsys):
    assert _study("--seeds", "3") == 0
    (parent,) = find_parents("s")
    series = _all_series(parent.run_id)
    assert main(["export", "--study", "s"]) == 0
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store / 'other.db'}")
    assert main(["import", "s.jsonl.gz"]) == 0
    found = _all_series(compare_study("s", register=False).run_id)
    assert found.keys() == series.keys()
    assert all(np.allclose(found[name], series[name]) for name in series)


def test_a_store_that_refuses_the_series_costs_the_study_nothing_and_is_told_once(record, monkeypatch, caplog):
    def refuse(self, series):
        raise OSError("no room")

    with monkeypatch.context() as patched:
        patched.setattr(ArmSeriesWriter, "write", refuse)
        assert _study("--seeds", "2") == 0
    assert [line for line in caplog.messages if "series" in line] == [
        "the series of the study's arms wait: no room; `fnostab compare` writes them"
    ]
    found = compare_study("s", register=False)
    assert _all_series(found.run_id)["runs_done/b"] == [(2, 1), (4, 2)]
