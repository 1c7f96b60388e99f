"""A tracking server that goes away while a run trains, for a minute or for good."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import mlflow
import pytest
from servers import client_environment

from fnostab.health.history import EPOCH_SERIES, STEP_SERIES
from fnostab.study.names import METRIC

pytestmark = pytest.mark.faults

_OUTAGE_S = 60.0
_EPOCHS = 12
_SMALL = (
    *("--preset", "smoke", "--width", "4", "--data.max_train_patches", "64", "--data.object_size", "112"),
    *("--train.layer_norms_every_steps", "20", "--train.watch_every_steps", "5", "--train.threads", "1"),
)


@contextmanager
def _training(environment, folder, epochs, *more):
    """A real `fnostab train`; what it says comes line by line."""
    command = [sys.executable, "-m", "fnostab", "train", *_SMALL, "--epochs", str(epochs), *more]
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def _wait_for_epoch(process, epoch):
    """Read until the line of `epoch` was said."""
    said = []
    for line in process.stdout:
        said.append(line)
        if line.startswith(f"epoch {epoch}/"):
            return said
    raise AssertionError(f"epoch {epoch} never came:\n{''.join(said)}")


def _environment(server, folder, experiment):
    """For one test: an experiment of its own on the server, and a cache of its own."""
    return client_environment(server.uri, folder / "cache", MLFLOW_EXPERIMENT_NAME=experiment)


def _command(environment, folder, *arguments):
    return subprocess.run(
        [sys.executable, "-m", "fnostab", *arguments],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
        check=False,
    )


def _stored(uri, experiment, status="FINISHED"):
    """What the only run of `experiment` holds, less what must differ; no point may be there twice."""
    client = mlflow.MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    assert run.info.status == status
    series = {}
    for key in run.data.metrics:
        if key.startswith("system/") or key == "samples_per_s":
            continue
        points = client.get_metric_history(run.info.run_id, key)
        assert max(Counter(point.step for point in points).values()) == 1, key
        by_step = sorted(points, key=lambda point: point.step)
        assert [p.timestamp for p in by_step] == sorted(p.timestamp for p in points), f"{key} is out of order"
        series[key] = [(point.step, point.value) for point in by_step]
    artifacts = sorted(
        path.partition("+timestamp")[0] for path in _paths(client, run.info.run_id) if ".webp" not in path
    )
    history = client.download_artifacts(run.info.run_id, "history.json") if "history.json" in artifacts else None
    return {
        "series": series,
        "artifacts": artifacts,
        "history": json.loads(Path(history).read_text()) if history else None,
        "verdict": run.data.tags.get("verdict"),
    }


def _paths(client, run_id, folder=None):
    for entry in client.list_artifacts(run_id, folder):
        if entry.is_dir:
            yield from _paths(client, run_id, entry.path)
        else:
            yield entry.path


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """What the same training stores when nothing happens to it; on sqlite, which must make no difference."""
    folder = tmp_path_factory.mktemp("unbroken")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    environment = client_environment(uri, folder / "cache", MLFLOW_EXPERIMENT_NAME="unbroken")
    command = [sys.executable, "-m", "fnostab", "train", *_SMALL, "--epochs", str(_EPOCHS)]
    subprocess.run(command, cwd=folder, env=environment, check=True, timeout=900, stdout=subprocess.DEVNULL)
    return _stored(uri, "unbroken")


def test_training_goes_on_while_the_server_is_away_for_a_minute_and_everything_arrives_once(
    tmp_path, tracking_server, fault_report
):
    epochs, pictures = 600, ("--train.picture_every_epochs", "200")
    environment = _environment(tracking_server, tmp_path, "outage")
    with _training(environment, tmp_path, epochs, *pictures) as process:
        said = _wait_for_epoch(process, 3)
        tracking_server.kill()
        away_at = time.monotonic()
        epoch = 3
        while time.monotonic() - away_at < _OUTAGE_S:
            epoch += 1
            assert epoch < epochs, "the training is too short for this machine"
            said += _wait_for_epoch(process, epoch)
        tracking_server.start()
        said += process.stdout.readlines()
        assert process.wait() == 0, "".join(said)
    stored = _stored(tracking_server.uri, "outage")
    history = stored["history"]
    for name in STEP_SERIES:
        assert stored["series"][METRIC[name]] == list(enumerate(history[name])), name
    for name in set(EPOCH_SERIES) & METRIC.keys():
        assert [value for _, value in stored["series"][METRIC[name]]] == history[name], name
    steps = [int(name.rpartition("+")[2]) for name in stored["artifacts"] if name.startswith("images/training")]
    assert len(history["loss_step"]) == 4 * epochs
    assert sorted(steps) == [800 * part - 1 for part in range(1, 1 + epochs // 200)]
    assert "the tracking store answers again" in "".join(said)
    note = f"{epoch - 3} epochs trained meanwhile; every point arrived, in order, once"
    fault_report.record(f"tracking server killed for {_OUTAGE_S:.0f} s while a run trains", 1, 1, note)


def test_what_a_server_that_is_gone_for_good_did_not_take_waits_for_sync(
    tmp_path, tracking_server, unbroken, fault_report
):
    environment = _environment(tracking_server, tmp_path, "gone")
    try:
        with _training(environment, tmp_path, _EPOCHS) as process:
            said = _wait_for_epoch(process, _EPOCHS - 4)
            tracking_server.kill()
            said += process.stdout.readlines()
            assert process.wait() == 1
        assert said[-1].startswith("fnostab: error: the tracking store does not answer")
        assert "`fnostab sync`" in said[-1]
        refused = _command(environment, tmp_path, "sync")
        assert refused.returncode == 2
        assert "must name a tracking server that answers" in refused.stdout
    finally:
        tracking_server.start()
    waiting = _command(environment, tmp_path, "sync", "--list").stdout
    assert waiting.startswith("stage_a_smoke control-seed20260128: run ")
    synced = _command(environment, tmp_path, "sync")
    assert synced.returncode == 0, synced.stdout
    assert "stage_a_smoke control-seed20260128: finished: verdict: " in synced.stdout
    assert _stored(tracking_server.uri, "gone") == unbroken
    assert _command(environment, tmp_path, "sync").stdout == "nothing waits\n"
    fault_report.record("tracking server killed for good near the end of a run", 1, 1, "waited on disk; `fnostab sync`")


def test_what_a_run_that_was_killed_during_an_outage_had_is_uploaded_and_the_run_goes_on(
    tmp_path, tracking_server, unbroken, fault_report
):
    environment = _environment(tracking_server, tmp_path, "both")
    try:
        with _training(environment, tmp_path, _EPOCHS) as process:
            _wait_for_epoch(process, 3)
            tracking_server.kill()
            _wait_for_epoch(process, 7)
            os.kill(process.pid, signal.SIGKILL)
    finally:
        tracking_server.start()
    synced = _command(environment, tmp_path, "sync")
    assert synced.returncode == 0, synced.stdout
    assert "uploaded: 2" in synced.stdout
    assert "; the command that began it trains on" in synced.stdout
    after_sync = _stored(tracking_server.uri, "both", status="RUNNING")["series"]["val/loss"]
    assert len(after_sync) >= 6
    finished = _command(environment, tmp_path, "train", *_SMALL, "--epochs", str(_EPOCHS))
    assert finished.returncode == 0, finished.stdout
    assert _stored(tracking_server.uri, "both") == unbroken
    assert after_sync == unbroken["series"]["val/loss"][: len(after_sync)]
    fault_report.record("the training killed too, during an outage", 1, 1, "sync stored what it had; it was trained on")
