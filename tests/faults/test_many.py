"""Many processes that do the same at the same moment: build, train, register; and a training that lost its launcher."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
from mlflow.entities import LoggedModelStatus
from servers import client_environment, wait_until

pytestmark = pytest.mark.faults

_ROOT = Path(__file__).resolve().parents[2]
_STEPS = 24  # an epoch of smoke: 384 patches in batches of 16

#: What takes seconds, and differs between processes, comes before "ready".
_BUILD = """
from fnostab.config import resolve_config
from fnostab.dataset import load_or_build
config = resolve_config({"preset": "smoke"}).data
print("ready", flush=True)
sys.stdin.readline()
print(load_or_build(config).sha256)
"""
_TRAIN = """
import fnostab.mlproject.train
from fnostab.cli import main
print("ready", flush=True)
sys.stdin.readline()
small = ["--preset", "smoke", "--epochs", "1", "--width", "4", "--fno_blocks", "1", "--train.threads", "1"]
sys.exit(main(["train", *small, *sys.argv[1:]]))
"""
_REGISTER = """
from fnostab.study.champion import Candidate
from fnostab.tracking.model_registry import register_winner
from fnostab.tracking.store import open_store
study, run_id, loss = sys.argv[1:]
open_store()
print("ready", flush=True)
sys.stdin.readline()
done = register_winner(Candidate(study, "stable", 0, run_id, float(loss), 64 * "a"), "summary")
print(done.version, done.is_new)
"""


def _at_once(script, arguments, environments, folder):
    """Run `script` once for each of `arguments`, all from the same moment on; (exit code, lines) of each."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", f"import sys\n{script}", *given],
            cwd=folder,
            env=environment,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for given, environment in zip(arguments, environments, strict=True)
    ]
    try:
        for process in processes:
            assert any(line.strip() == "ready" for line in iter(process.stdout.readline, ""))
        for process in processes:
            process.stdin.write("go\n")
            process.stdin.flush()
        outputs = [process.communicate(timeout=600)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return [
        (process.returncode, output.strip().splitlines()) for process, output in zip(processes, outputs, strict=True)
    ]


def _trained(client, study):
    """The runs of `study`, by seed; none twice."""
    runs = client.search_runs(["0"], f"tags.study = '{study}'")
    by_seed = {int(run.data.tags["seed"]): run for run in runs}
    assert len(by_seed) == len(runs)
    return by_seed


def _assert_whole(client, run, epochs=1):
    """The run is finished, and has every point of its series once."""
    assert run.info.status == "FINISHED"
    for key, points in (("train/loss", epochs * _STEPS), ("grad/norm_preclip", epochs * _STEPS), ("val/loss", epochs)):
        steps = [point.step for point in client.get_metric_history(run.info.run_id, key)]
        assert len(steps) == len(set(steps)) == points, key
    artifacts = {entry.path for entry in client.list_artifacts(run.info.run_id)}
    assert {"config.yaml", "history.json", "metrics.json", "recon", "checkpoints"} <= artifacts


def test_eight_processes_that_build_one_dataset_leave_one_whole_entry(tmp_path, fault_report):
    environment = client_environment("sqlite:///none.db", tmp_path / "cache")
    ends = _at_once(_BUILD, [[]] * 8, [environment] * 8, tmp_path)
    assert [code for code, _ in ends] == [0] * 8, ends
    assert len({lines[-1] for _, lines in ends}) == 1
    assert len(ends[0][1][-1]) == 64
    folders = [path for path in (tmp_path / "cache").iterdir() if path.is_dir() and (path / "meta.json").exists()]
    assert len(folders) == 1
    assert not list((tmp_path / "cache").rglob("*.partial*"))
    fault_report.record("8 processes build one dataset at once", 8, 8)


def test_eight_trainings_initialise_and_fill_one_fresh_sqlite_store(tmp_path, fault_report):
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    environment = client_environment(uri, tmp_path / "cache")
    ends = _at_once(_TRAIN, [["--seed", str(seed)] for seed in range(8)], [environment] * 8, tmp_path)
    assert [lines[-5:] for code, lines in ends if code != 0] == []
    client = mlflow.MlflowClient(uri)
    runs = _trained(client, "stage_a_smoke")
    assert set(runs) == set(range(8))
    for run in runs.values():
        _assert_whole(client, run)
    fault_report.record("8 trainings start on one fresh sqlite store", 8, len(runs))


def test_eight_trainings_log_to_one_server_at_once(tracking_server, tmp_path, fault_report):
    tracking_server.start()
    environment = client_environment(tracking_server.uri, tmp_path / "cache")
    arguments = [["--seed", str(seed), "--study", "eight"] for seed in range(8)]
    ends = _at_once(_TRAIN, arguments, [environment] * 8, tmp_path)
    assert [lines[-5:] for code, lines in ends if code != 0] == []
    client = mlflow.MlflowClient(tracking_server.uri)
    runs = _trained(client, "eight")
    assert set(runs) == set(range(8))
    for run in runs.values():
        _assert_whole(client, run)
    fault_report.record("8 trainings log to one server at once", 8, len(runs))


def _run_with_model(client):
    """A run with a logged model that has no files: the registry does not read them."""
    run_id = client.create_run("0").info.run_id
    logged = client.create_logged_model("0", name="model", source_run_id=run_id)
    client.finalize_logged_model(logged.model_id, LoggedModelStatus.READY)
    return run_id


@pytest.mark.parametrize("machines", [1, 4], ids=["one machine", "four machines"])
def test_four_that_register_at_once_leave_a_version_a_run_and_the_best_as_champion(
    machines, tracking_server, tmp_path, fault_report
):
    tracking_server.start()
    client = mlflow.MlflowClient(tracking_server.uri)
    environments = [
        client_environment(tracking_server.uri, tmp_path / f"cache{place % machines}") for place in range(4)
    ]
    study = f"crowd_{machines}"
    losses = [0.05, 0.03, 0.06, 0.04]
    runs = {_run_with_model(client): loss for loss in losses}
    arguments = [[study, run_id, str(loss)] for run_id, loss in runs.items()]
    ends = _at_once(_REGISTER, arguments, environments, tmp_path)
    assert [code for code, _ in ends] == [0] * 4, ends
    name = f"fnostab-crowd-{machines}"
    versions = client.search_model_versions(f"name = '{name}'")
    assert sorted(version.run_id for version in versions) == sorted(runs)
    assert sorted(lines[-1] for _, lines in ends) == sorted(f"{version.version} True" for version in versions)
    champion = client.get_model_version_by_alias(name, "champion")
    assert runs[champion.run_id] == min(losses)
    fault_report.record(
        f"4 processes on {machines} machine(s) register at once", 4, len(versions), "the best is champion"
    )


@pytest.mark.parametrize("machines", [1, 4], ids=["one machine", "four machines"])
def test_four_that_register_the_same_run_at_once_leave_one_version(machines, tracking_server, tmp_path):
    tracking_server.start()
    client = mlflow.MlflowClient(tracking_server.uri)
    environments = [
        client_environment(tracking_server.uri, tmp_path / f"cache{place % machines}") for place in range(4)
    ]
    study = f"same_{machines}"
    run_id = _run_with_model(client)
    ends = _at_once(_REGISTER, [[study, run_id, "0.05"]] * 4, environments, tmp_path)
    assert [code for code, _ in ends] == [0] * 4, ends
    assert sorted(lines[-1] for _, lines in ends) == ["1 False", "1 False", "1 False", "1 True"]
    (version,) = client.search_model_versions(f"name = 'fnostab-same-{machines}'")
    assert client.get_model_version_by_alias(version.name, "champion").version == version.version


def test_of_two_trainings_of_one_identity_that_start_together_one_trains_and_one_is_refused(
    tracking_server, tmp_path, fault_report
):
    tracking_server.start()
    environment = client_environment(tracking_server.uri, tmp_path / "cache")
    ends = _at_once(_TRAIN, [["--study", "twins", "--seed", "1"]] * 2, [environment] * 2, tmp_path)
    assert sorted(code for code, _ in ends) == [0, 1], [lines[-3:] for _, lines in ends]
    (refused,) = (lines for code, lines in ends if code == 1)
    assert refused[-1].startswith("fnostab: error: arm ")
    assert "seed 1 of study twins is being trained by another process (pid " in refused[-1]
    client = mlflow.MlflowClient(tracking_server.uri)
    (run,) = _trained(client, "twins").values()
    _assert_whole(client, run)
    fault_report.record("2 trainings of one identity start together", 2, 2, "one trains, one is refused")


def test_a_training_that_lost_its_launcher_is_not_trained_by_another_and_ends_whole(
    tracking_server, tmp_path, fault_report
):
    tracking_server.start()
    client = mlflow.MlflowClient(tracking_server.uri)
    environment = client_environment(tracking_server.uri, tmp_path / "cache")
    command = [sys.executable, "-m", "mlflow", "run", str(_ROOT), "--env-manager", "local"]
    command += ["-P", "preset=smoke", "-P", "epochs=20", "-P", "study=orphan", "-P", "train.threads=1"]
    log = tmp_path / "log"
    with log.open("w") as file:
        launcher = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=file, stderr=file)
    try:
        wait_until(lambda: "epoch 2/20" in log.read_text(), "no epoch of the training ended", 180, log=log)
        (owner,) = (tmp_path / "cache" / "runs").glob("*.pid")
        orphan = int(owner.read_text())
        assert orphan != launcher.pid
        launcher.send_signal(signal.SIGKILL)
        launcher.wait()
        # It holds still until the second command has ended, however slow that is, and then goes on.
        os.kill(orphan, signal.SIGSTOP)
        try:
            second = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
        finally:
            os.kill(orphan, signal.SIGCONT)
        assert second.returncode == 1
        reason = f"of study orphan is being trained by another process (pid {orphan})"
        assert [line for line in second.stderr.splitlines() if line.startswith("fnostab: ") and reason in line]
        (run,) = client.search_runs(["0"], "tags.study = 'orphan'")
        wait_until(lambda: client.get_run(run.info.run_id).info.status == "FINISHED", "it did not end", 300, log=log)
    finally:
        launcher.kill()
        launcher.wait()
    wait_until(lambda: not owner.exists(), "the finished training still holds its folder", 60, log=log)
    (run,) = client.search_runs(["0"], "tags.study = 'orphan'")
    _assert_whole(client, run, epochs=20)
    refused = [
        each
        for each in client.search_runs(["0"], "attributes.status = 'FAILED'")
        if reason in each.data.tags.get("verdict_reason", "")
    ]
    (refused_run,) = refused
    assert "\n" not in refused_run.data.tags["verdict_reason"]
    assert client.list_artifacts(refused_run.info.run_id) == []
    assert client.search_runs(["0"], "attributes.status = 'RUNNING' and tags.study = 'orphan'") == []
    fault_report.record("the launcher of a training is killed, the command given again", 2, 2, "the second is refused")
