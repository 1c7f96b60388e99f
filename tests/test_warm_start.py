"""Runs that start from the weights of another one."""

import json

import mlflow
import pytest

from fnostab.cli import main
from fnostab.config import ConfigError, resolve_config
from fnostab.workflows.runfolder import unfinished_runs
from fnostab.workflows.train import train_arm

_TINY = {"preset": "smoke", "epochs": 1, "width": 4, "fno_blocks": 2, "model.modes": 4}
#: No step of this moves a weight.
_STILL = {"lr": 1e-30, "study": "still", "train.artifacts": "numbers"}


def _train(**overrides):
    result = train_arm(resolve_config(_TINY | overrides), lambda line: None)
    return mlflow.MlflowClient().get_run(result.run_id)


@pytest.fixture(scope="module")
def source():
    """A finished run, and a registered model of it under an alias."""
    run = _train(epochs=2)
    client = mlflow.MlflowClient()
    client.create_registered_model("warm")
    version = client.create_model_version("warm", source=run.info.artifact_uri, run_id=run.info.run_id)
    client.set_registered_model_alias("warm", "champion", version.version)
    return run


@pytest.mark.parametrize("form", ["{}", "runs:/{}", "runs:/{}/model", "models:/warm@champion", "models:/warm/1"])
def test_a_run_starts_from_the_best_weights_of_another_and_says_which(source, form):
    run = _train(seed=7, **_STILL, **{"init_from": form.format(source.info.run_id)})
    assert run.data.metrics["best_val_loss"] == source.data.metrics["best_val_loss"]
    assert run.data.params["train.init_from"] == f"runs:/{source.info.run_id}"
    assert len(run.data.tags["init_sha256"]) == 64


def test_without_it_the_seed_decides_and_nothing_is_said(source):
    run = _train(seed=7, **_STILL)
    assert run.data.metrics["best_val_loss"] != source.data.metrics["best_val_loss"]
    assert "init_sha256" not in run.data.tags


def test_an_alias_that_moves_on_makes_another_run(source):
    client = mlflow.MlflowClient()
    other = _train(seed=8)
    moved = client.create_model_version("warm", source=other.info.artifact_uri, run_id=other.info.run_id)
    client.set_registered_model_alias("warm", "moving", 1)
    first = _train(seed=9, **_STILL, init_from="models:/warm@moving")
    client.set_registered_model_alias("warm", "moving", moved.version)
    second = _train(seed=9, **_STILL, init_from="models:/warm@moving")
    hashes = [{run.data.tags[key] for run in (first, second)} for key in ("config_sha256", "init_sha256")]
    assert [len(found) for found in hashes] == [2, 2]


def _refused(capsys, source, **overrides):
    before = {run.info.run_id for run in mlflow.MlflowClient().search_runs(["0"])}
    capsys.readouterr()
    words = {**_TINY, "study": "refused", "init_from": source, **overrides}
    assert main(["train", *(f"--{key}={value}" for key, value in words.items())]) == 2
    assert {run.info.run_id for run in mlflow.MlflowClient().search_runs(["0"])} == before
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize(
    ("overrides", "first"),
    [
        ({"width": 8}, "`lifter.0.weight` is (4, 1, 3, 3) there, and (8, 1, 3, 3) here"),
        ({"arch": "stable_hybrid"}, "`encoder.0.0.norm.weight` is missing there, and (4,) here"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_the_first_of_them(source, overrides, first, capsys):
    line = _refused(capsys, source.info.run_id, **overrides)
    name = f"`train.init_from` (=runs:/{source.info.run_id}) must be the run of a network of the same shapes"
    assert line == f"fnostab: error: {name}: {first}"


@pytest.mark.parametrize(
    ("given", "rule"),
    [
        ("0" * 32, "must be a run in the tracking store, or a registered model: "),
        ("models:/warm@gone", "must be a run in the tracking store, or a registered model: "),
        ("models:/nobody/3", "must be a run in the tracking store, or a registered model: "),
        ("best.ckpt", "must be a run's ID (32 digits), runs:/RUN, models:/NAME@ALIAS or models:/NAME/VERSION"),
        ("models:/warm", "must be a run's ID (32 digits), runs:/RUN, models:/NAME@ALIAS or models:/NAME/VERSION"),
    ],
)
def test_what_is_no_run_is_refused_before_anything_is_written(source, given, rule, capsys):
    assert f"`train.init_from` (={given}) {rule}" in _refused(capsys, given)


def test_a_run_without_its_checkpoint_is_refused_by_name(source, capsys):
    bare = _train(seed=11, **_STILL).info.run_id
    assert (
        f"`train.init_from` (=runs:/{bare}) must be a run with the artifact checkpoints/best.ckpt; it was trained with "
        "train.artifacts=numbers"
    ) in _refused(capsys, bare)


def test_a_deleted_run_and_a_damaged_checkpoint_are_refused(source, capsys, tmp_path):
    client = mlflow.MlflowClient()
    run_id = client.create_run("0").info.run_id
    client.log_text(run_id, "no checkpoint", "checkpoints/best.ckpt")
    assert "must have a checkpoints/best.ckpt that can be read: " in _refused(capsys, run_id)
    client.delete_run(run_id)
    assert f"(={run_id}) must be a run that is not deleted" in _refused(capsys, run_id)


def test_a_new_store_has_no_run_to_start_from_and_none_is_made(fresh_store, capsys):
    words = [f"--{key}={value}" for key, value in {**_TINY, "init_from": "0" * 32}.items()]
    assert main(["train", *words]) == 2
    assert "must name a tracking store: there is none yet" in capsys.readouterr().err
    assert list(fresh_store.iterdir()) == []


def test_the_arms_of_a_study_may_start_from_weights_and_a_second_call_finds_them_trained(source, capsys, tmp_path):
    table = tmp_path / "arms.yaml"
    arms = [{"name": "cold"}, {"name": "warm", "init_from": "models:/warm@champion"}]
    table.write_text(json.dumps({"study": "warm", **{key: _TINY[key] for key in _TINY}, **_STILL, "arms": arms}))
    study = ["study", "--arms", str(table), "--study", "warm", "--seeds", "1", "--launcher", "inline"]
    for _ in range(2):
        assert main(study) == 0
    client = mlflow.MlflowClient()
    found = client.search_runs(["0"], "tags.study = 'warm' and tags.arm != ''")
    runs = {run.data.tags["arm"]: run for run in found}
    assert len(found) == 2
    assert runs["warm"].data.metrics["best_val_loss"] == source.data.metrics["best_val_loss"]
    assert runs["warm"].data.tags["varied"] == "train.init_from"
    assert main(["compare", "--study", "warm"]) == 0


def test_an_interrupted_warm_run_goes_on_from_its_own_checkpoint(source, monkeypatch):
    config = resolve_config(_TINY | {"epochs": 3, "study": "broken", "init_from": source.info.run_id})
    whole = train_arm(config.model_copy(update={"study": "whole"}), lambda line: None)

    def stop(summary):
        if summary.epoch == 2:
            raise SystemError("killed")

    with pytest.raises(SystemError, match="killed"):
        train_arm(config, lambda line: None, watch=stop)
    assert [run.config["train"]["init_from"] for run in unfinished_runs()] == [f"runs:/{source.info.run_id}"]
    assert train_arm(config, lambda line: None).history.val_loss == whole.history.val_loss


def test_the_source_is_in_the_identity_and_its_absence_is_not():
    assert resolve_config(_TINY | {"init_from": ""}).sha256() == resolve_config(_TINY).sha256()
    assert resolve_config(_TINY | {"init_from": "0" * 32}).sha256() != resolve_config(_TINY).sha256()
    with pytest.raises(ConfigError, match=r"^`train.init_from` \(=runs:/1\) must be a run's ID"):
        resolve_config({"init_from": "runs:/1"})
