"""The model registry: one version a run, one champion, and the way back."""

import json
import shutil
import subprocess
import sys
import time
from dataclasses import replace

import mlflow
import numpy as np
import pytest
import torch
from mlflow.entities import LoggedModelStatus
from mlflow.exceptions import MlflowException

from fnostab.cli import registry as command
from fnostab.cli.common import Parser
from fnostab.config import ConfigError, resolve_config
from fnostab.io.locks import LockTimeout
from fnostab.study.champion import Candidate
from fnostab.tracking import model_registry
from fnostab.tracking.errors import StoreUnavailable
from fnostab.tracking.exports import log_model
from fnostab.tracking.model_registry import model_name, read_registry, register_winner, rollback
from fnostab.tracking.run import open_run

_NAME = "fnostab-stage-a"
_HASH = "a1b2c3d4e5f6" + 52 * "0"
_OTHER_HASH = "0f1e2d3c4b5a" + 52 * "0"


@pytest.fixture
def store(empty_store, fresh_store) -> mlflow.MlflowClient:
    shutil.copy(empty_store, fresh_store / "mlflow.db")
    return mlflow.MlflowClient()


def _run(client, status=LoggedModelStatus.READY) -> str:
    """A run with a logged model that has no files: the registry does not read them."""
    run_id = client.create_run("0").info.run_id
    logged = client.create_logged_model("0", name="model", source_run_id=run_id)
    client.finalize_logged_model(logged.model_id, status)
    return run_id


def _candidate(run_id, loss=0.05, sha256=_HASH) -> Candidate:
    return Candidate("stage_a", "stable", 3, run_id, loss, sha256)


def _register(client, loss=0.05, sha256=_HASH, *, promote=False):
    return register_winner(_candidate(_run(client), loss, sha256), "summary", promote=promote)


def _aliases(client, name=_NAME):
    return client.get_registered_model(name).aliases


def _versions(client, name=_NAME):
    return {int(found.version): found for found in client.search_model_versions(f"name = '{name}'")}


@pytest.mark.parametrize(
    ("study", "name"),
    [("stage_a", "fnostab-stage-a"), ("stage_a_quick", "fnostab-stage-a-quick"), ("a/b:c@d", "fnostab-a-b-c-d")],
)
def test_a_study_has_a_model_name_that_a_uri_can_hold(study, name):
    assert model_name(study) == name


def test_the_first_run_of_a_study_becomes_version_1_and_champion_with_tags_and_summary(store):
    run_id = _run(store)
    done = register_winner(_candidate(run_id, 0.1 + 0.2), "the summary")
    assert (done.model, done.version, done.is_new, done.is_champion) == (_NAME, 1, True, True)
    assert done.text == (
        f"run {run_id} (stable, seed 3) is registered as {_NAME} version 1; it is the champion now: no version was"
    )
    version = store.get_model_version_by_alias(_NAME, "champion")
    assert version.description == "the summary"
    assert version.run_id == run_id
    assert version.tags == {
        "study": "stage_a",
        "arm": "stable",
        "seed": "3",
        "run": run_id,
        "val_loss": "0.30000000000000004",
        "dataset_sha256": _HASH,
    }
    assert store.get_registered_model(_NAME).description == "The best runs of the fnostab study stage_a."
    assert _aliases(store).keys() == {"champion"}


def _by_r_stitched(client, loss, stitched):
    candidate = replace(_candidate(_run(client), loss), r_stitched=stitched, by="r_stitched")
    return register_winner(candidate, "summary")


def test_a_study_ranked_by_its_objects_has_the_champion_with_the_better_object(store):
    assert _by_r_stitched(store, 0.05, 0.08).is_champion
    assert store.get_model_version_by_alias(_NAME, "champion").tags["r_stitched"] == "0.08"
    done = _by_r_stitched(store, 0.06, 0.07)
    assert done.text.endswith("its r_stitched 0.07 is below 0.08 of version 1; version 1 is `previous`")
    done = _by_r_stitched(store, 0.01, 0.09)
    assert done.text.endswith("the champion, version 2, has r_stitched 0.07, against 0.09; it stays")


def test_a_champion_without_the_number_to_compare_by_stays(store):
    _register(store, 0.05)
    done = _by_r_stitched(store, 0.04, 0.07)
    assert "version 1, has no tags r_stitched and dataset_sha256 to compare by; it stays" in done.text
    _register(store, 0.03)
    assert _aliases(store)["champion"] == 3
    assert not _by_r_stitched(store, 0.01, 0.02).is_champion


def test_a_run_without_the_number_that_the_champion_is_compared_by_does_not_become_champion(store):
    _by_r_stitched(store, 0.05, 0.08)
    done = _by_r_stitched(store, 0.01, None)
    assert "version 1, has the tag r_stitched, and this run has no such number; it stays" in done.text


class _Doubler(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor(2.0))

    def forward(self, counts):
        return torch.stack([counts * self.factor, counts], dim=-1)


def test_the_champion_loads_by_its_alias_from_the_runs_store_and_from_a_registry_of_its_own(
    store, fresh_store, monkeypatch
):
    counts = np.arange(32, dtype=np.float32).reshape(2, 4, 4)
    with open_run(resolve_config({"preset": "smoke"}), fresh_store) as tracker:
        log_model(tracker, _Doubler().eval(), counts)
    for name in ("mlflow.db", "registry.db"):
        assert not (fresh_store / "registry.db").exists()
        monkeypatch.setenv("MLFLOW_REGISTRY_URI", f"sqlite:///{fresh_store / name}")
        register_winner(_candidate(tracker.run_id), "summary")
        loaded = mlflow.pyfunc.load_model(f"models:/{_NAME}@champion")
        np.testing.assert_array_equal(loaded.predict(counts), np.stack([2 * counts, counts], axis=-1))
        assert [version.run_id for version in read_registry()] == [tracker.run_id]
    assert (fresh_store / "registry.db").exists()


def test_the_logged_model_leads_to_its_version(store):
    run_id = _run(store)
    register_winner(_candidate(run_id), "summary")
    (logged,) = store.search_logged_models(["0"], f"source_run_id = '{run_id}'")
    assert json.loads(logged.tags["mlflow.modelVersions"]) == [{"name": _NAME, "version": 1}]


def test_the_same_run_is_never_registered_twice_and_its_summary_is_refreshed(store):
    run_id = _run(store)
    register_winner(_candidate(run_id), "old summary")
    again = register_winner(_candidate(run_id), "new summary")
    assert (again.version, again.is_new, again.is_champion) == (1, False, True)
    assert again.text.endswith(f"was registered already as {_NAME} version 1; it is the champion still")
    assert [version.description for version in _versions(store).values()] == ["new summary"]
    assert _aliases(store) == {"champion": 1}


def test_a_run_that_was_registered_by_hand_gets_the_tags_and_no_second_version(store):
    run_id = _run(store)
    mlflow.register_model(f"runs:/{run_id}/model", _NAME)
    done = register_winner(_candidate(run_id), "summary")
    assert (done.version, done.is_new, done.is_champion) == (1, False, True)
    assert {number: version.tags["val_loss"] for number, version in _versions(store).items()} == {1: "0.05"}


def test_of_a_model_that_was_logged_twice_the_newest_whole_one_is_registered(store):
    run_id = _run(store)
    time.sleep(0.01)
    newest = store.create_logged_model("0", name="model", source_run_id=run_id)
    store.finalize_logged_model(newest.model_id, LoggedModelStatus.READY)
    time.sleep(0.01)
    store.create_logged_model("0", name="model", source_run_id=run_id)  # never finished
    register_winner(_candidate(run_id), "summary")
    assert _versions(store)[1].source == f"models:/{newest.model_id}"


def test_a_better_run_on_the_same_dataset_becomes_champion_and_previous_remembers_the_last(store):
    for loss in (0.05, 0.04):
        _register(store, loss)
    done = _register(store, 0.03)
    assert done.is_champion
    assert done.text.endswith(
        "it is the champion now: its val_loss 0.03 is below 0.04 of version 2; version 2 is `previous`"
    )
    assert _aliases(store) == {"champion": 3, "previous": 2}


@pytest.mark.parametrize(
    ("loss", "reason"),
    [
        (0.06, "the champion, version 1, has val_loss 0.05, against 0.06; it stays"),
        (0.05, "the champion, version 1, has val_loss 0.05, the same; it stays"),
        (0.05000001, "the champion, version 1, has val_loss 0.05, against 0.05000001; it stays"),
    ],
)
def test_a_run_that_is_not_better_is_registered_and_the_champion_stays(store, loss, reason):
    _register(store, 0.05)
    done = _register(store, loss)
    assert (done.version, done.is_new, done.is_champion) == (2, True, False)
    assert done.text.endswith(f"version 2; {reason}")
    assert _aliases(store) == {"champion": 1}


def test_a_champion_of_another_dataset_stays_unless_promote_is_given(store):
    _register(store, 0.05)
    better = _candidate(_run(store), 0.01, _OTHER_HASH)
    done = register_winner(better, "summary")
    other = "trained on another dataset (a1b2c3d4e5f6 against 0f1e2d3c4b5a)"
    assert not done.is_champion
    assert done.text.endswith(f"the champion, version 1, was {other}; it stays: give --promote to move it")
    assert _aliases(store) == {"champion": 1}

    done = register_winner(better, "summary", promote=True)
    assert done.is_champion
    assert done.text.endswith(f"it is the champion now, as --promote asks: version 1, now `previous`, was {other}")
    assert _aliases(store) == {"champion": 2, "previous": 1}


def test_promote_does_not_move_the_champion_to_a_worse_run_on_the_same_dataset(store):
    _register(store, 0.05)
    done = _register(store, 0.06, promote=True)
    assert not done.is_champion
    assert done.text.endswith("has val_loss 0.05, against 0.06; it stays: --promote is for another dataset")
    assert _aliases(store) == {"champion": 1}


@pytest.mark.parametrize("tags", [{}, {"val_loss": "0.5"}, {"val_loss": "nan", "dataset_sha256": _HASH}])
def test_a_champion_without_the_tags_to_compare_by_stays_unless_promote_is_given(store, tags):
    store.create_registered_model(_NAME)
    store.create_model_version(_NAME, "s3://somewhere/model", tags=tags)
    store.set_registered_model_alias(_NAME, "champion", 1)
    candidate = _candidate(_run(store))
    done = register_winner(candidate, "summary")
    assert done.text.endswith(
        "the champion, version 1, has no tags val_loss and dataset_sha256 to compare by; "
        "it stays: give --promote to move it"
    )
    assert _aliases(store) == {"champion": 1}
    assert register_winner(candidate, "summary", promote=True).is_champion
    assert _aliases(store) == {"champion": 2, "previous": 1}


def test_after_the_champions_version_was_deleted_the_next_run_becomes_champion(store):
    _register(store, 0.05)
    store.delete_model_version(_NAME, 1)
    done = _register(store, 0.06)
    assert (done.version, done.is_champion) == (2, True)
    assert done.text.endswith("it is the champion now: no version was")
    assert _aliases(store) == {"champion": 2}


def test_an_alias_that_names_a_deleted_version_is_told_and_moves(store, monkeypatch):
    _register(store, 0.05)
    _keep_aliases_of_deleted_versions(monkeypatch, {"champion": 1})
    store.delete_model_version(_NAME, 1)
    done = _register(store, 0.06)
    assert done.is_champion
    assert done.text.endswith("it is the champion now: version 1, which was, is deleted")


def _keep_aliases_of_deleted_versions(monkeypatch, aliases):
    """As stores other than MLflow's own may do."""
    read = mlflow.MlflowClient.get_registered_model

    def reader(self, name):
        model = read(self, name)
        model._aliases = aliases | model._aliases
        return model

    monkeypatch.setattr(mlflow.MlflowClient, "get_registered_model", reader)


def test_a_description_longer_than_databases_hold_is_cut(store):
    register_winner(_candidate(_run(store)), 6000 * "x")
    assert _versions(store)[1].description == 4999 * "x" + "…"


@pytest.mark.parametrize("status", [None, LoggedModelStatus.FAILED])
def test_a_run_without_a_whole_logged_model_is_refused_and_nothing_is_registered(store, status):
    run_id = _run(store, status) if status else store.create_run("0").info.run_id
    with pytest.raises(ConfigError, match=rf"^`run` \(={run_id}\) must have a logged model named `model`"):
        register_winner(_candidate(run_id), "summary")
    assert store.search_registered_models() == []


def test_an_unknown_run_is_refused_in_one_line(store):
    with pytest.raises(ConfigError, match=r"^`run` \(=0123\) must be a run in the tracking store sqlite:.*$"):
        register_winner(_candidate("0123"), "summary")
    assert store.search_registered_models() == []


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_run_without_a_finite_loss_is_refused(store, loss):
    with pytest.raises(ConfigError, match=rf"`best_val_loss` \(={loss}\) of run \w+ must be finite"):
        _register(store, loss)
    assert store.search_registered_models() == []


def test_a_version_that_another_machine_made_meanwhile_is_used_and_the_own_one_deleted(store, monkeypatch):
    create = mlflow.MlflowClient.create_model_version

    def after_another_machine(self, *arguments, **options):
        create(self, *arguments, **options)
        return create(self, *arguments, **options)

    monkeypatch.setattr(mlflow.MlflowClient, "create_model_version", after_another_machine)
    done = _register(store)
    assert (done.version, done.is_new, done.is_champion) == (1, False, True)
    assert list(_versions(store)) == [1]
    assert _aliases(store) == {"champion": 1}


@pytest.mark.parametrize(("loss", "champion"), [(0.04, 2), (0.06, 1)])
def test_who_moved_the_champion_looks_again_for_another_machine_that_did_so_at_the_same_moment(
    store, monkeypatch, loss, champion
):
    """The other machine decided while there was no champion, and wrote a moment later."""
    store.create_registered_model(_NAME)
    store.create_model_version(_NAME, "s3://somewhere/model", tags={"val_loss": "0.05", "dataset_sha256": _HASH})
    aliases = []

    def another_machine_writes(_):
        aliases.append(_aliases(store))
        if len(aliases) == 1:
            store.set_registered_model_alias(_NAME, "champion", 1)

    monkeypatch.setattr(model_registry, "_is_sqlite", lambda: False)
    monkeypatch.setattr(model_registry.time, "sleep", another_machine_writes)
    done = _register(store, loss)
    assert (done.version, done.is_champion) == (2, champion == 2)
    assert ("is below 0.05 of version 1" if done.is_champion else "against 0.06; it stays") in done.text
    assert _aliases(store)["champion"] == champion
    assert aliases[0] == {"champion": 2}


def test_an_alias_that_two_machines_add_at_once_is_added(store, monkeypatch):
    set_alias, calls = mlflow.MlflowClient.set_registered_model_alias, []

    def refused_at_first(self, *arguments):
        calls.append(arguments)
        if len(calls) == 1:
            raise MlflowException("UNIQUE constraint failed")
        set_alias(self, *arguments)

    monkeypatch.setattr(mlflow.MlflowClient, "set_registered_model_alias", refused_at_first)
    assert _register(store).is_champion
    assert _aliases(store) == {"champion": 1}


_PROCESSES = """
import multiprocessing
import sys


def register(run_id, loss, start, answers):
    from fnostab.study.champion import Candidate
    from fnostab.tracking.model_registry import register_winner
    from fnostab.tracking.store import open_store

    open_store()
    start.wait(120)
    done = register_winner(Candidate("stage_a", "stable", 0, run_id, float(loss), 64 * "a"), "summary")
    answers.put(f"{done.version} {done.is_new}")


if __name__ == "__main__":
    candidates = [argument.split(":") for argument in sys.argv[1:]]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["fnostab.tracking"])  # imported once: that takes longer than all the rest
    start, answers = context.Barrier(len(candidates)), context.Queue()
    processes = [context.Process(target=register, args=(*each, start, answers)) for each in candidates]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert not any(process.exitcode for process in processes)
    for _ in processes:
        print(answers.get())
"""


def _register_at_once(folder, candidates):
    """Register the (run, loss) pairs, each in a process of its own; gives the versions and whether each was new."""
    script = folder / "at_once.py"
    script.write_text(_PROCESSES)
    arguments = [f"{run_id}:{loss}" for run_id, loss in candidates]
    done = subprocess.run([sys.executable, str(script), *arguments], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return sorted(done.stdout.splitlines())


def test_four_processes_that_register_the_same_run_at_once_leave_one_version_and_one_champion(store, fresh_store):
    run_id = _run(store)
    answers = _register_at_once(fresh_store, 4 * [(run_id, 0.05)])
    assert answers == ["1 False", "1 False", "1 False", "1 True"]
    assert list(_versions(store)) == [1]
    assert _aliases(store) == {"champion": 1}


def test_of_two_runs_registered_at_once_the_better_one_ends_as_champion(store, fresh_store):
    worse, better = _run(store), _run(store)
    answers = _register_at_once(fresh_store, [(better, 0.04), (worse, 0.05)])
    assert answers == ["1 True", "2 True"]
    assert store.get_model_version_by_alias(_NAME, "champion").run_id == better


def test_processes_on_a_server_wait_for_each_other_model_by_model(fresh_store, monkeypatch):
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", "http://registry.example")
    monkeypatch.setattr(model_registry, "LOCK_TIMEOUT_S", 0.05)
    with model_registry._locked_model("fnostab-a"):
        with model_registry._locked_model("fnostab-b"):
            pass
        with pytest.raises(LockTimeout), model_registry._locked_model("fnostab-a"):
            pass
    assert len(list((fresh_store / "cache" / "locks").iterdir())) == 2


def test_a_rollback_makes_the_previous_version_champion_and_a_second_one_undoes_it(store):
    for loss in (0.05, 0.04):
        _register(store, loss)
    back = rollback(_NAME)
    assert back == (
        f"the champion of {_NAME} is version 1 again, version 2 is `previous` and tagged rolled_back: "
        "only --promote or a second rollback makes it champion again"
    )
    assert _aliases(store) == {"champion": 1, "previous": 2}
    assert [version.is_rolled_back for version in read_registry(_NAME)] == [False, True]

    back = rollback(_NAME)
    assert back == (f"the champion of {_NAME} is version 2 again, version 1 is `previous`: the rollback is undone")
    assert _aliases(store) == {"champion": 2, "previous": 1}
    assert [version.is_rolled_back for version in read_registry(_NAME)] == [False, False]


def test_a_version_that_was_rolled_back_becomes_champion_again_only_with_promote(store):
    _register(store, 0.05)
    better = _candidate(_run(store), 0.04)
    register_winner(better, "summary")
    rollback(_NAME)
    done = register_winner(better, "summary")
    assert not done.is_champion
    assert done.text.endswith(
        "it does not become champion, though its val_loss 0.04 is below 0.05 of version 1, "
        "because it was rolled back: give --promote to undo that"
    )
    assert _aliases(store) == {"champion": 1, "previous": 2}

    assert register_winner(better, "summary", promote=True).is_champion
    assert _aliases(store) == {"champion": 2, "previous": 1}
    assert [version.is_rolled_back for version in read_registry(_NAME)] == [False, False]


def test_a_better_run_becomes_champion_after_a_rollback(store):
    for loss in (0.05, 0.04):
        _register(store, loss)
    rollback(_NAME)
    assert _register(store, 0.03).is_champion
    assert _aliases(store) == {"champion": 3, "previous": 1}


def test_a_rolled_back_version_does_not_fill_the_place_of_a_deleted_champion(store):
    _register(store, 0.05)
    better = _candidate(_run(store), 0.04)
    register_winner(better, "summary")
    rollback(_NAME)
    store.delete_model_version(_NAME, 1)
    done = register_winner(better, "summary")
    assert not done.is_champion
    assert done.text.endswith("though no version was, because it was rolled back: give --promote to undo that")
    assert _aliases(store) == {"previous": 2}


def test_a_rollback_after_the_champion_was_deleted_leaves_no_previous(store):
    for loss in (0.05, 0.04):
        _register(store, loss)
    store.delete_model_version(_NAME, 2)
    back = rollback(_NAME)
    assert back == f"the champion of {_NAME} is version 1 again; there was none before"
    assert _aliases(store) == {"champion": 1}


def test_a_rollback_with_nothing_to_go_back_to_is_refused(store, monkeypatch):
    _register(store, 0.05)
    to_go = rf"^`model` \(={_NAME}\) must have a version to go back to: "
    with pytest.raises(ConfigError, match=to_go + "none has the alias `previous`, or the one that had it was deleted"):
        rollback(_NAME)
    store.set_registered_model_alias(_NAME, "previous", 1)
    with pytest.raises(ConfigError, match=to_go + "version 1 is both `champion` and `previous`"):
        rollback(_NAME)
    _register(store, 0.04)
    store.delete_model_version(_NAME, 1)
    with pytest.raises(ConfigError, match=to_go + "none has the alias"):
        rollback(_NAME)
    _keep_aliases_of_deleted_versions(monkeypatch, {"previous": 1})
    with pytest.raises(ConfigError, match=to_go + "version 1, the `previous` one, was deleted"):
        rollback(_NAME)
    assert _aliases(store)["champion"] == 2
    assert not read_registry(_NAME)[0].is_rolled_back


@pytest.mark.parametrize("name", ["nope", "a/b", ""])
def test_an_unknown_model_is_refused_with_the_names_that_are_there(store, name):
    for there in ("none of this package", _NAME):
        for action in (read_registry, rollback):
            with pytest.raises(ConfigError, match=rf"^`model` \(={name}\) must be a model in .*: it has {there}$"):
                action(name)
        _register(store)


def test_without_a_name_the_models_of_this_package_are_read_all_of_them(store, monkeypatch):
    monkeypatch.setattr(model_registry, "_PAGE", 1)
    store.create_registered_model("somebody-elses")
    store.create_model_version("somebody-elses", "s3://somewhere/model")
    for study in ("stage_b", "stage_a"):
        for _ in range(2):
            register_winner(Candidate(study, "agc", 0, _run(store), 0.05, _HASH), "summary")
    found = [(version.model, version.version, version.aliases) for version in read_registry()]
    assert found == [
        (_NAME, 1, ("champion",)),
        (_NAME, 2, ()),
        ("fnostab-stage-b", 1, ("champion",)),
        ("fnostab-stage-b", 2, ()),
    ]
    assert [version.version for version in read_registry("somebody-elses")] == [1]


@pytest.mark.parametrize("setting", ["MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"])
def test_looking_into_a_store_that_is_not_there_does_not_make_one(store, fresh_store, monkeypatch, setting):
    monkeypatch.setenv(setting, f"sqlite:///{fresh_store}/nowhere.db")
    for action in (lambda: read_registry(), lambda: rollback(_NAME)):
        with pytest.raises(ConfigError, match=rf"`{setting}` .*nowhere.db\) must name a .*: there is none yet"):
            action()
    assert not list(fresh_store.glob("nowhere*"))


@pytest.mark.parametrize("error", [MlflowException("no answer\nat all"), ConnectionError("no answer")])
def test_a_registry_that_stops_answering_is_told_in_one_line(store, monkeypatch, error):
    def away(*_, **__):
        raise error

    candidate = _candidate(_run(store))
    monkeypatch.setattr(mlflow.MlflowClient, "search_model_versions", away)
    with pytest.raises(StoreUnavailable, match=r"the tracking store does not answer \(no answer\)"):
        register_winner(candidate, "summary")
    store.create_registered_model(_NAME)
    for action in (read_registry, rollback):
        with pytest.raises(StoreUnavailable, match=r"does not answer \(no answer\); give the same command again"):
            action(_NAME)


def _command(*argv):
    parser = Parser(prog="fnostab")
    command.add(parser.add_subparsers(required=True))
    arguments = parser.parse_args(["registry", *argv])
    return arguments.run(arguments)


def test_show_prints_a_table_of_the_versions(store, capsys):
    register_winner(replace(_candidate(_run(store)), r_stitched=0.0712345678), "summary")
    _register(store, 0.0423456789)
    rollback(_NAME)
    store.create_model_version(_NAME, "s3://somewhere/model")
    assert _command("show", _NAME) == 0
    title, header, first, second, foreign = capsys.readouterr().out.splitlines()
    run = [version.run_id for version in read_registry(_NAME)]
    assert title == _NAME
    assert header.split() == [
        "version",
        "aliases",
        "arm",
        "seed",
        "val_loss",
        "r_stitched",
        "dataset",
        "registered",
        "run",
    ]
    assert first.split()[:7] == ["1", "champion", "stable", "3", "0.05", "0.0712346", "a1b2c3d4e5f6"]
    assert second.split()[:9] == ["2", "previous,", "rolled", "back", "stable", "3", "0.0423457", "-", "a1b2c3d4e5f6"]
    assert (first.split()[-1], second.split()[-1]) == (run[0], run[1])
    assert foreign.split()[:7] == ["3", "-", "-", "-", "-", "-", "-"]


def test_show_finds_the_model_of_a_study_and_prints_json(store, capsys):
    _register(store, 0.05)
    register_winner(Candidate("stage_b", "agc", 0, _run(store), 0.05, _HASH), "summary")
    assert _command("show", "--study", "stage_b", "--json") == 0
    (version,) = json.loads(capsys.readouterr().out)
    assert (version["model"], version["version"], version["aliases"]) == ("fnostab-stage-b", 1, ["champion"])
    assert version["tags"]["arm"] == "agc"
    assert version["run_id"] == version["tags"]["run"]
    assert _command("show") == 0
    assert capsys.readouterr().out.count("fnostab-stage-") == 2


def test_show_says_that_nothing_is_registered(store, capsys):
    assert _command("show") == 0
    assert capsys.readouterr().out == "no model version is registered\n"
    assert _command("show", "--json") == 0
    assert json.loads(capsys.readouterr().out) == []


def test_show_takes_a_model_or_a_study(store):
    with pytest.raises(ConfigError, match=r"`study` \(=stage_a\) must not be given together with a model"):
        _command("show", _NAME, "--study", "stage_a")


def test_the_rollback_command_says_what_it_did(store, capsys):
    for loss in (0.05, 0.04):
        _register(store, loss)
    assert _command("rollback", _NAME) == 0
    assert capsys.readouterr().out.startswith(f"the champion of {_NAME} is version 1 again")
    assert _aliases(store) == {"champion": 1, "previous": 2}
