"""Which run of the first arm is registered: converged, and with an object that is better than one mean pattern."""

import mlflow
import pytest
from mlflow.entities import LoggedModelStatus
from test_compare import record_run

from fnostab.study.champion import why_not_eligible
from fnostab.study.stored_run import StoredRun
from fnostab.workflows.compare import compare_study

NO_OBJECT = {"val/r_stitched": 0.132, "val/r_stitched_mean_pattern": 0.130}
OBJECT = {"val/r_stitched": 0.05, "val/r_stitched_mean_pattern": 0.130}


def stored(verdict="converged", **metrics):
    return StoredRun("r", "0", "FINISHED", 0, {"verdict": verdict}, {}, metrics)


@pytest.mark.parametrize(
    ("metrics", "numbers"),
    [
        (NO_OBJECT, "val/r_stitched 0.132 against 0.13"),
        ({"val/r_stitched": 0.13, "val/r_stitched_mean_pattern": 0.13}, "val/r_stitched 0.13 against 0.13"),
        (
            {**OBJECT, "test/r_factor": 1.186, "test/r_factor_mean_pattern": 1.1859},
            "test/r_factor 1.186 against 1.1859",
        ),
    ],
)
def test_a_run_whose_object_is_no_better_than_one_mean_pattern_may_not_be_registered(metrics, numbers):
    fault = f"its stitched object is no better than one mean pattern everywhere ({numbers})"
    assert why_not_eligible(stored(**metrics)) == fault


@pytest.mark.parametrize("metrics", [OBJECT, {}, {"val/r_stitched": 0.2}, {"test/r_factor": 0.2}])
def test_a_converged_run_with_an_object_or_without_the_numbers_to_tell_may_be_registered(metrics):
    assert why_not_eligible(stored(**metrics)) is None


@pytest.mark.parametrize("verdict", ["inconsistent", "collapsed", "unknown"])
def test_only_a_converged_run_may_be_registered(verdict):
    assert why_not_eligible(stored(verdict, **OBJECT)) == f"its verdict is {verdict}"


def with_model(study, arm, seed, **metrics):
    run_id = record_run(study, arm, seed=seed, metrics=metrics)
    client = mlflow.MlflowClient()
    logged = client.create_logged_model("0", name="model", source_run_id=run_id)
    client.finalize_logged_model(logged.model_id, LoggedModelStatus.READY)
    return run_id


def test_the_best_run_that_makes_an_object_is_registered_and_the_better_one_is_named(fresh_store):
    best = with_model("sewn", "control", 1, **NO_OBJECT)
    second = with_model("sewn", "control", 2, **OBJECT)
    found = compare_study("sewn")
    assert found.registry.startswith(f"run {second} (control, seed 2) is registered as fnostab-sewn version 1")
    assert f"\nBetter, but not registered: run {best}, because its stitched object is no better than" in found.registry
    version = mlflow.MlflowClient().get_model_version_by_alias("fnostab-sewn", "champion")
    assert (version.run_id, version.tags["r_stitched"]) == (second, "0.05")
    card, _, summary = version.description.partition("\n\n# Study sewn\n")
    assert "0.05 of the one object that these patches make together (one mean pattern everywhere: 0.13)" in card
    assert f"**{'control alone: 0 of 2 runs failed'}.**" in summary


def test_where_no_run_of_the_first_arm_makes_an_object_nothing_is_registered_and_each_is_named(fresh_store):
    runs = [with_model("flat", "control", seed, **NO_OBJECT) for seed in (1, 2)]
    found = compare_study("flat")
    assert found.registry.startswith("Nothing registered: no run of control, the first arm, may be: ")
    assert all(f"run {run}, because its stitched object is no better than" in found.registry for run in runs)
    assert mlflow.MlflowClient().search_registered_models() == []


def test_by_r_stitched_the_run_with_the_best_object_is_registered(fresh_store):
    with_model("sewn", "control", 1, **OBJECT)
    better = with_model("sewn", "control", 2, **(OBJECT | {"val/r_stitched": 0.04}))
    assert f"run {better} (control, seed 2) is registered" in compare_study("sewn", by="r_stitched").registry
