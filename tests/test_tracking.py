"""What reaches the MLflow store: batches, outages, resumed runs, refusals."""

import logging
import os
import signal
import socket
import time
from pathlib import Path

import mlflow
import numpy as np
import pytest
from mlflow.exceptions import MlflowException
from mlflow.tracking import fluent

from fnostab.config import ConfigError, resolve_config
from fnostab.io.endings import Interrupted
from fnostab.tracking import run as tracking, store as store_module
from fnostab.tracking.errors import StoreUnavailable, failure_text, redacted
from fnostab.tracking.models import log_to_projects_run
from fnostab.tracking.store import check_store, open_store

_CONFIG = resolve_config({"preset": "smoke"})


@pytest.fixture
def store(fresh_store):
    open_store()
    return mlflow.MlflowClient()


def _rows(key, steps, time_ms=1000):
    return [(key, float(step), step, time_ms + step) for step in steps]


def test_every_value_of_a_long_series_is_stored_once(store):
    with tracking.open_run(_CONFIG, Path()) as tracker:
        tracker.log_series(_rows("grad/norm_preclip", range(2500)))
    history = store.get_metric_history(tracker.run_id, "grad/norm_preclip")
    assert sorted(metric.step for metric in history) == list(range(2500))
    assert all(metric.value == metric.step for metric in history)


def test_a_resumed_run_stores_no_step_twice(store):
    with tracking.open_run(_CONFIG, Path()) as first:
        first.log_series(_rows("train/loss", range(7)))
    with tracking.open_run(_CONFIG, Path(), first_run_id=first.run_id) as again:
        # Another time makes another row: the store itself would not notice that the step is there.
        again.log_series(_rows("train/loss", range(4, 10), time_ms=9000))
        again.log_series(_rows("val/loss", [9]))
    assert again.run_id == first.run_id
    steps = [metric.step for metric in store.get_metric_history(first.run_id, "train/loss")]
    assert sorted(steps) == list(range(10))
    assert len(store.get_metric_history(first.run_id, "val/loss")) == 1


def test_a_run_made_by_mlflow_projects_is_written_to_and_its_parameters_are_not_logged_again(store, monkeypatch):
    projects_run = store.create_run("0")
    store.log_param(projects_run.info.run_id, "optim.lr", "1.0e-3")  # spelt otherwise: MLflow refuses a second value
    monkeypatch.setenv("MLFLOW_RUN_ID", projects_run.info.run_id)
    with tracking.open_run(_CONFIG, Path()) as tracker:
        tracker.log_config(_CONFIG)
    run = store.get_run(projects_run.info.run_id)
    assert tracker.run_id == projects_run.info.run_id
    assert run.data.params["optim.lr"] == "1.0e-3"
    assert run.data.params["model.width"] == "8"
    assert run.info.status == "FINISHED"
    assert run.info.run_name == f"control-seed{_CONFIG.seed}"


def test_the_projects_run_of_a_resumed_identity_points_to_the_first(store, monkeypatch):
    with tracking.open_run(_CONFIG, Path()) as first:
        pass
    projects_run = store.create_run("0")
    monkeypatch.setenv("MLFLOW_RUN_ID", projects_run.info.run_id)
    with tracking.open_run(_CONFIG, Path(), first_run_id=first.run_id) as tracker:
        tracker.set_tags({"study": "x"})
    tags = store.get_run(projects_run.info.run_id).data.tags
    assert tracker.run_id == first.run_id
    assert tags["resumed_into"] == first.run_id
    assert "study" not in tags


@pytest.mark.parametrize(
    "take_over", [lambda: tracking.resume_into(32 * "1"), lambda: tracking.fail_projects_run("the reason")]
)
def test_a_run_with_a_result_is_neither_tagged_as_resumed_nor_given_the_reason_of_a_failure(
    store, monkeypatch, take_over
):
    theirs = store.create_run("0", tags={"config_sha256": "0123", "verdict": "converged"})
    monkeypatch.setenv("MLFLOW_RUN_ID", theirs.info.run_id)
    before = store.get_run(theirs.info.run_id).to_dictionary()
    take_over()
    assert store.get_run(theirs.info.run_id).to_dictionary() == before


def test_an_empty_run_id_is_none_when_a_run_is_resumed(store, monkeypatch):
    monkeypatch.setenv("MLFLOW_RUN_ID", "")
    tracking.resume_into(store.create_run("0").info.run_id)


def test_a_locked_store_does_not_hide_the_reason_of_a_failure(store, monkeypatch):
    monkeypatch.setenv("MLFLOW_RUN_ID", store.create_run("0").info.run_id)
    monkeypatch.setattr(store_module, "LOCK_TIMEOUT_S", 0)
    with store_module.sqlite_lock(f"sqlite:///{Path('mlflow.db').absolute()}"):
        tracking.fail_projects_run("the reason")


def test_a_reconstruction_does_not_write_into_a_run_with_a_result(store, monkeypatch):
    theirs = store.create_run("0", tags={"verdict": "converged"})
    store.log_metric(theirs.info.run_id, "test/r_factor", 0.1)
    monkeypatch.setenv("MLFLOW_RUN_ID", theirs.info.run_id)
    made = store.get_run(log_to_projects_run([], {"test/r_factor": 0.5}, {"scan": "scan.npz"}))
    assert store.get_run(theirs.info.run_id).data.metrics["test/r_factor"] == 0.1
    assert made.data.metrics["test/r_factor"] == 0.5
    assert made.data.tags["mlflow.parentRunId"] == theirs.info.run_id
    assert made.info.status == "FINISHED"


@pytest.mark.parametrize("in_use", ["a result", "another training", "a study"])
def test_a_run_that_is_in_use_is_not_written_to_but_gets_a_child(store, monkeypatch, caplog, in_use):
    theirs = store.create_run(
        store.create_experiment("theirs"), tags={"study_role": "parent"} if "study" in in_use else {}
    )
    if in_use == "a result":
        store.set_terminated(theirs.info.run_id)
    if in_use == "another training":
        store.set_tag(theirs.info.run_id, "config_sha256", "0123")
    monkeypatch.setenv("MLFLOW_RUN_ID", theirs.info.run_id)
    before = store.get_run(theirs.info.run_id).to_dictionary()
    with tracking.open_run(_CONFIG, Path()) as tracker:
        tracker.log_config(_CONFIG)
    made = store.get_run(tracker.run_id)
    assert store.get_run(theirs.info.run_id).to_dictionary() == before
    assert made.data.tags["mlflow.parentRunId"] == theirs.info.run_id
    assert made.info.experiment_id == theirs.info.experiment_id
    assert f"run {theirs.info.run_id}, which MLFLOW_RUN_ID names, is in use already" in caplog.text


def test_a_name_that_somebody_gave_a_run_stays_and_one_that_mlflow_made_up_does_not(store, monkeypatch):
    for given, expected in (("lr-sweep-3", "lr-sweep-3"), (None, f"control-seed{_CONFIG.seed}")):
        run_id = store.create_run("0").info.run_id
        if given:
            store.set_tag(run_id, "mlflow.runName", given)  # as `mlflow run --run-name` does
        monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
        with tracking.open_run(_CONFIG, Path()):
            pass
        assert store.get_run(run_id).info.run_name == expected


@pytest.mark.parametrize(("value", "expected"), [(None, True), ("false", False), ("true", True)])
def test_mlflows_variable_says_whether_system_metrics_are_logged(store, monkeypatch, value, expected):
    monkeypatch.delenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", raising=False)
    if value is not None:
        monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", value)
    with tracking.open_run(_CONFIG, Path()) as tracker:
        assert (tracker.run_id in fluent.run_id_to_system_metrics_monitor) is expected


@pytest.mark.parametrize("call", ["start_run", "end_run"])
@pytest.mark.parametrize("first", [True, False], ids=["before", "after"])
def test_a_signal_while_a_run_is_made_or_ended_leaves_none_that_runs(store, monkeypatch, call, first):
    function = getattr(mlflow, call)

    def interrupted(*arguments, **named):
        monkeypatch.setattr(mlflow, call, function)
        if not first:
            function(*arguments, **named)
        raise Interrupted(signal.SIGTERM)

    monkeypatch.setattr(mlflow, call, interrupted)
    with pytest.raises(Interrupted), tracking.open_run(_CONFIG, Path(), claim="a1b2"):
        pass
    monkeypatch.undo()
    assert mlflow.active_run() is None
    expected = [] if call == "start_run" and first else ["KILLED"]
    assert [run.info.status for run in store.search_runs(["0"])] == expected


@pytest.mark.parametrize(
    ("error", "status"), [(None, "FINISHED"), (RuntimeError, "FAILED"), (KeyboardInterrupt, "KILLED")]
)
def test_a_runs_status_tells_how_it_ended_and_what_was_queued_is_written(store, error, status):
    def go():
        with tracking.open_run(_CONFIG, Path()) as tracker:
            ids.append(tracker.run_id)
            tracker.log_series(_rows("train/loss", range(3)))
            if error:
                raise error

    ids: list[str] = []
    if error:
        with pytest.raises(error):
            go()
    else:
        go()
    assert store.get_run(ids[0]).info.status == status
    assert len(store.get_metric_history(ids[0], "train/loss")) == 3
    assert tracking.run_state(ids[0]) == ("finished" if status == "FINISHED" else "unfinished")


def test_values_wait_while_the_store_is_away_and_arrive_when_it_is_back(store, monkeypatch, caplog):
    monkeypatch.setattr(logging.root, "level", logging.ERROR)  # as `mlflow.pytorch` leaves it
    with tracking.open_run(_CONFIG, Path()) as tracker:
        with monkeypatch.context() as outage:
            outage.setattr(tracker._client, "log_batch", _away)
            tracker.log_series(_rows("train/loss", range(1500)))
            assert not tracker.flush()
            assert tracker.unwritten == 1500
        assert not tracker.flush()  # it does not ask again at once: each time costs the training some seconds
        assert tracker.flush(at_once=True)
        assert tracker.unwritten == 0
    assert len(store.get_metric_history(tracker.run_id, "train/loss")) == 1500
    said = [record.getMessage() for record in caplog.records if record.name == "fnostab.tracking.tracker"]
    assert [line.partition(": ")[2] or line for line in said] == [
        "1500 values wait",
        "the tracking store answers again, nothing waits any more",
    ], said


def test_a_run_whose_last_values_cannot_be_stored_is_not_finished(store, monkeypatch):
    def go():
        with tracking.open_run(_CONFIG, Path()) as tracker:
            ids.append(tracker.run_id)
            monkeypatch.setattr(tracker._client, "log_batch", _away)
            tracker.log_series(_rows("train/loss", range(3)))

    ids: list[str] = []
    with pytest.raises(
        StoreUnavailable, match=r"answer \(no answer\): 3 values wait; the same command, or `fnostab sync`"
    ):
        go()
    assert tracking.run_state(ids[0]) == "unfinished"


def test_an_artifact_that_the_store_does_not_take_says_so(store, monkeypatch):
    with tracking.open_run(_CONFIG, Path()) as tracker, monkeypatch.context() as outage:
        outage.setattr(tracker._client, "log_text", _away)
        with pytest.raises(StoreUnavailable, match=r"answer \(no answer\); the same command"):
            tracker.log_text("x", "x.txt")


def _away(*_, **__):
    raise ConnectionError("no answer")


def _pictures(store, run_id):
    return sorted(entry.path.partition("+timestamp")[0] for entry in store.list_artifacts(run_id, "images"))


def test_pictures_wait_as_files_while_the_store_is_away_and_a_later_process_stores_them_once(
    store, tmp_path, monkeypatch
):
    picture = np.zeros((8, 8, 3), np.uint8)
    with tracking.open_run(_CONFIG, tmp_path) as first:
        first.log_image(picture, "frc", 3)

    def draw_again_and_go_on():
        with tracking.open_run(_CONFIG, tmp_path, first_run_id=first.run_id) as away:
            away.log_image(picture, "frc", 3)
            away.log_image(picture, "frc", 7)

    with monkeypatch.context() as outage:
        outage.setattr(mlflow.MlflowClient, "log_image", _away)
        with pytest.raises(StoreUnavailable, match="1 values wait"):
            draw_again_and_go_on()
    with tracking.open_run(_CONFIG, tmp_path, first_run_id=first.run_id) as back:
        assert back.flush()
        back.log_image(picture, "frc", 7)  # and drawn again
    # Each is there as it is and as a small copy.
    assert _pictures(store, first.run_id) == 2 * ["images/frc+step+3"] + 2 * ["images/frc+step+7"]
    assert list((tmp_path / "pictures").iterdir()) == []


def test_a_picture_whose_writing_was_cut_off_is_there_once_in_the_end(store, tmp_path, monkeypatch):
    log_artifact = mlflow.MlflowClient.log_artifact
    picture = np.zeros((8, 8, 3), np.uint8)
    with tracking.open_run(_CONFIG, tmp_path) as tracker:
        with monkeypatch.context() as outage:
            calls = iter([log_artifact, _away])
            outage.setattr(mlflow.MlflowClient, "log_artifact", lambda *arguments: next(calls)(*arguments))
            tracker.log_image(picture, "frc", 3)
            assert tracker.unwritten == 1
        assert _pictures(store, tracker.run_id) == ["images/frc+step+3"]
    assert _pictures(store, tracker.run_id) == 2 * ["images/frc+step+3"]  # itself and its small copy


def test_a_picture_whose_file_a_kill_left_half_written_keeps_nobody_waiting(store, tmp_path):
    picture = np.zeros((8, 8, 3), np.uint8)
    with tracking.open_run(_CONFIG, tmp_path) as killed:
        killed.log_image(picture, "frc", 3)
    partial = tmp_path / "pictures" / f".000000014+frc-{32 * 'a'}.partial.npy"  # as `files.whole` calls it
    partial.write_bytes(b"half")
    with tracking.open_run(_CONFIG, tmp_path, first_run_id=killed.run_id) as back:
        back.log_image(picture, "frc", 14)
        assert back.flush()
    assert not partial.exists()
    assert _pictures(store, killed.run_id) == 2 * ["images/frc+step+14"] + 2 * ["images/frc+step+3"]


def test_a_run_that_was_deleted_is_told_from_one_that_never_was(store, tmp_path):
    with tracking.open_run(_CONFIG, tmp_path) as tracker:
        pass
    store.delete_run(tracker.run_id)
    assert tracking.run_state(tracker.run_id) == "deleted"
    assert tracking.run_state("0" * 32) == "gone"


def test_a_run_is_found_by_the_word_that_it_was_made_with(store, tmp_path):
    with tracking.open_run(_CONFIG, tmp_path, claim="a1b2") as made:
        pass
    assert tracking.find_claimed("a1b2") == made.run_id
    assert tracking.find_claimed("a1b3") is None


def test_passwords_are_no_part_of_what_is_said(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "open sesame")
    said = "postgresql://me:s%2Fecret@host:5432/x refused 'open sesame'; http://host:80/a@b and https://me@host stay"
    assert redacted(said) == (
        "postgresql://me:***@host:5432/x refused '***'; http://host:80/a@b and https://me@host stay"
    )


@pytest.mark.parametrize("uri", ["http://me:se%2Fcret@127.0.0.1:{port}", "postgresql://me:secret@127.0.0.1:{port}/x"])
def test_a_password_in_the_uri_is_not_said_when_nothing_answers(fresh_store, monkeypatch, uri):
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri.format(port=_unused_port()))
    with pytest.raises(ConfigError, match="must name a tracking server that answers") as caught:
        check_store()
    assert "cret" not in str(caught.value)
    assert list(fresh_store.iterdir()) == []


def test_a_login_in_a_servers_uri_is_moved_to_the_variables_that_mlflow_has_for_it(fresh_store, monkeypatch):
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, "")
    with _silent_server() as server:
        monkeypatch.setattr(store_module, "_REACH_TIMEOUT_S", 0.1)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:se%2Fcret@127.0.0.1:{server.getsockname()[1]}/ml")
        with pytest.raises(ConfigError):
            check_store()
        assert os.environ["MLFLOW_TRACKING_URI"] == f"http://127.0.0.1:{server.getsockname()[1]}/ml"
    assert os.environ["MLFLOW_TRACKING_USERNAME"] == "me"
    assert os.environ["MLFLOW_TRACKING_PASSWORD"] == "se/cret"


def test_non_finite_values_do_not_stop_the_others(store):
    with tracking.open_run(_CONFIG, Path()) as tracker:
        tracker.log_metrics({"a": float("nan"), "b": float("inf"), "c": 1.0}, step=0)
    metrics = store.get_run(tracker.run_id).data.metrics
    assert np.isnan(metrics["a"])
    assert metrics["b"] > 1e300
    assert metrics["c"] == 1.0


def _unused_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def _silent_server():
    """A server that never says a word: the system takes its connections while nobody accepts them."""
    return socket.create_server(("127.0.0.1", 0))


@pytest.mark.parametrize("scheme", ["http", "postgresql"])
def test_a_tracking_uri_that_nothing_answers_is_refused_within_seconds(fresh_store, monkeypatch, scheme):
    uri = f"{scheme}://127.0.0.1:{_unused_port()}/x"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    started = time.monotonic()
    with pytest.raises(
        ConfigError, match=rf"`MLFLOW_TRACKING_URI` \(={uri}\) must name a tracking server that answers"
    ):
        check_store()
    assert time.monotonic() - started < 60
    assert list(fresh_store.iterdir()) == []


def test_a_server_that_takes_the_call_and_stays_silent_is_refused_within_seconds(fresh_store, monkeypatch):
    with _silent_server() as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.getsockname()[1]}")
        started = time.monotonic()
        with pytest.raises(ConfigError, match="must name a tracking server that answers: timed out"):
            check_store()
        assert time.monotonic() - started < 60


@pytest.mark.parametrize("uri", ["http://my host:5000", "http://" + 70 * "a", "http://[::1", "http://"])
def test_a_uri_that_is_none_is_refused_in_one_line(fresh_store, monkeypatch, uri):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(ConfigError, match="must name a tracking server that answers") as caught:
        check_store()
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_database_is_refused(fresh_store, monkeypatch):
    (fresh_store / "notes.db").write_text("these are notes, nothing else")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{fresh_store}/notes.db")
    with pytest.raises(ConfigError, match="must be a sqlite database"):
        check_store()


def test_two_working_directories_have_two_stores(fresh_store, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    first = check_store()
    (fresh_store / "other").mkdir()
    monkeypatch.chdir(fresh_store / "other")
    assert check_store() != first


def test_a_sqlite_store_in_a_folder_that_does_not_exist_is_refused(fresh_store, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{fresh_store}/nowhere/mlflow.db")
    with pytest.raises(ConfigError, match="must lie in a folder that exists"):
        open_store()
    assert list(fresh_store.iterdir()) == []


def test_a_full_disk_is_told_in_sqlites_words_whatever_comes_before_them():
    error = MlflowException(
        "(raised as a result of Query-invoked autoflush; consider using a session.no_autoflush block)\n"
        "(sqlite3.OperationalError) database or disk is full\n[SQL: INSERT INTO metrics VALUES (?)]"
    )
    assert failure_text(error) == "the tracking store has no room (database or disk is full)"
