"""A tracking server with a login: every command works with it, none without, and no password is seen or stored."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import mlflow
import pytest
from servers import PASSWORD as DATABASE_PASSWORD, MlflowServer, client_environment

from fnostab.config import resolve_config
from fnostab.dataset import load_or_build
from fnostab.formats.own import write_scan

pytestmark = pytest.mark.faults

_USER, _PASSWORD = "admin", "Login-Secret-9zK4w7q"
_WRONG = "Wrong-Secret-3vB8n1x"
_TABLE = """
study: logged-in
preset: smoke
seeds: [1]
train: {epochs: 3, picture_every_epochs: 100}
arms:
  - {name: control, arch: hybrid, clip_algo: norm}
  - {name: stable, arch: stable_hybrid, clip_algo: none}
"""


@dataclass(frozen=True)
class _Said:
    """How a command ended, and all that it said."""

    code: int
    out: str
    err: str


def _fnostab(folder: Path, uri: str, *arguments: str, **login: str) -> _Said:
    environment = client_environment(uri, folder / "cache", **login)
    command = [sys.executable, "-m", "fnostab", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    return _Said(done.returncode, done.stdout, done.stderr)


def _login(password: str = _PASSWORD) -> dict[str, str]:
    return {"MLFLOW_TRACKING_USERNAME": _USER, "MLFLOW_TRACKING_PASSWORD": password}


def _files_with(secret: str, *folders: Path) -> list[str]:
    """The files below `folders`, databases among them, that hold `secret`."""
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 10
    return [str(path) for path in files if secret.encode() in path.read_bytes()]


def _uri_with(uri: str, password: str) -> str:
    return uri.replace("://", f"://{_USER}:{password}@")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("login")
    config = folder / "auth" / "basic_auth.ini"
    config.parent.mkdir()
    config.write_text(
        f"[mlflow]\ndefault_permission = READ\ndatabase_uri = sqlite:///{folder / 'auth' / 'auth.db'}\n"
        f"admin_username = {_USER}\nadmin_password = {_PASSWORD}\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
        "auth_cache_ttl_seconds = 600\n"  # hashing the password takes longer than all the rest of a request
    )
    environment = {"MLFLOW_AUTH_CONFIG_PATH": str(config), "MLFLOW_FLASK_SERVER_SECRET_KEY": "for tests"}
    store = folder / "store"
    store.mkdir()
    uri = f"sqlite:///{store / 'mlflow.db'}"
    with MlflowServer(uri, store, app_name="basic-auth", environment=environment) as running:
        yield running


@pytest.fixture(scope="module")
def client(server):
    """A client that reads the server's database: it needs no login."""
    return mlflow.MlflowClient(server.backend_uri)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the commands are given: their cache, the table of a study, and a scan."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "table.yaml").write_text(_TABLE)
    dataset = load_or_build(resolve_config({"preset": "smoke"}).data)
    test = dataset.test
    write_scan(folder / "scan.npz", counts=test.counts, positions_px=test.positions_px, probe=dataset.probe)
    return folder


@pytest.fixture(scope="module")
def said(server, folder, client):
    """What every command says with the right login, by its name."""

    def run(*arguments):
        done = _fnostab(folder, server.uri, *arguments, **_login())
        assert done.code == 0, done
        return done

    answers = {
        "train": run("train", "--preset", "smoke", "--epochs", "1", "--study", "by-hand"),
        "study": run("study", "--arms", "table.yaml", "--workers", "2"),
        "compare": run("compare", "--study", "logged-in", "--out", "compared"),
        "registry": run("registry", "show", "--study", "logged-in"),
    }
    answers["reconstruct"] = run("reconstruct", "--model", "models:/fnostab-logged-in@champion", "--data", "scan.npz")
    (trained,) = client.search_runs(["0"], "tags.study = 'by-hand'")
    return answers | {"inspect": run("inspect", trained.info.run_id)}


def test_every_command_works_with_the_login(said, client, folder, fault_report):
    runs = client.search_runs(["0"], "tags.study = 'logged-in' and attributes.status = 'FINISHED'")
    assert sorted(run.data.tags["arm"] for run in runs if "arm" in run.data.tags) == ["control", "stable"]
    assert "champion" in client.get_registered_model("fnostab-logged-in").aliases
    assert "champion" in said["registry"].out
    assert len(json.loads((folder / "compared" / "logged-in_metrics.json").read_text())) == 2
    assert (folder / "recon.npz").exists()
    assert "verdict" in said["inspect"].out
    fault_report.record("commands on a server with a login", len(said), len(said))


def test_no_password_is_said_or_stored(said, server, folder, fault_report):
    for name, answer in said.items():
        assert _PASSWORD not in answer.out + answer.err, name
    assert _files_with(_PASSWORD, folder, server.folder) == []
    assert _files_with("logged-in", server.folder) != []  # it does look into what is stored
    fault_report.record("passwords kept out of output, tags, artifacts, cache", len(said), len(said))


def test_a_login_within_the_address_works_and_is_neither_said_nor_stored(server, folder, client):
    answer = _fnostab(
        *(folder, _uri_with(server.uri, _PASSWORD)),
        *("train", "--preset", "smoke", "--epochs", "1", "--study", "in-address"),
    )
    assert answer.code == 0, answer
    (run,) = client.search_runs(["0"], "tags.study = 'in-address'")
    assert run.info.status == "FINISHED"
    assert _PASSWORD not in answer.out + answer.err
    assert server.uri in answer.out  # how to see the run
    assert _files_with(_PASSWORD, folder, server.folder) == []


def _everything(client):
    """All that the store holds, as numbers: runs, models, versions."""
    runs = client.search_runs(["0"], max_results=1000)
    tags = sorted((run.info.run_id, *sorted(run.data.tags.items())) for run in runs)
    return tags, [model.name for model in client.search_registered_models()]


def test_without_the_right_login_every_command_ends_with_one_line_and_writes_nothing(
    said, server, folder, client, tmp_path, fault_report
):
    (trained,) = client.search_runs(["0"], "tags.study = 'by-hand'")
    commands = {
        "train": ("train", "--preset", "smoke", "--epochs", "1", "--study", "refused"),
        "study": ("study", "--arms", str(folder / "table.yaml"), "--study", "refused"),
        "compare": ("compare", "--study", "logged-in"),
        "registry": ("registry", "show"),
        "reconstruct": (
            *("reconstruct", "--model", "models:/fnostab-logged-in@champion"),
            *("--data", str(folder / "scan.npz"), "--out", "refused.npz"),
        ),
        "inspect": ("inspect", trained.info.run_id),
    }
    before = _everything(client)
    wrong = [(name, server.uri, _login(_WRONG)) for name in commands]
    missing = [(name, server.uri, {}) for name in ("train", "registry")]
    in_address = [("train", _uri_with(server.uri, _WRONG), {})]
    attempts = [*wrong, *missing, *in_address]

    def attempt(place):
        name, uri, login = attempts[place]
        own = tmp_path / str(place)
        own.mkdir()
        return name, _fnostab(own, uri, *commands[name], **login), own

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for name, answer, own in pool.map(attempt, range(len(attempts))):
            assert answer.code == 2, (name, answer)
            lines = answer.err.splitlines()
            assert len(lines) == 1, (name, lines)
            assert lines[0].startswith("fnostab: error: "), name
            assert "MLFLOW_TRACKING_PASSWORD" in lines[0], name
            assert _WRONG not in answer.out + answer.err, name
            left = {path.relative_to(own).parts[0] for path in own.rglob("*") if path.is_file()}
            assert left <= {"cache"}, (name, left)  # a dataset, which the store has no part in
            assert not list((own / "cache" / "runs").glob("*/*")), name
    assert _everything(client) == before
    fault_report.record("commands with a wrong login, or none", len(attempts), len(attempts), "refused in one line")


def test_the_password_of_a_database_is_neither_said_nor_stored(tracking_server, tmp_path):
    answer = _fnostab(
        *(tmp_path, tracking_server.backend_uri),
        *("train", "--preset", "smoke", "--epochs", "1", "--study", "direct"),
        MLFLOW_EXPERIMENT_NAME="direct",  # the artifacts of the default one are for those who go through the server
    )
    assert answer.code == 0, answer
    assert DATABASE_PASSWORD not in answer.out + answer.err
    assert _files_with(DATABASE_PASSWORD, tmp_path, tracking_server.artifacts) == []
    wrong = tracking_server.backend_uri.replace(DATABASE_PASSWORD, _WRONG)
    refused = _fnostab(tmp_path, wrong, "train", "--preset", "smoke", "--epochs", "1", "--study", "refused")
    assert refused.code == 2
    assert _WRONG not in refused.out + refused.err
    (line,) = refused.err.splitlines()
    assert line.startswith("fnostab: error: ")
