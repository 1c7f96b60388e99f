"""What keeps a tracking store from being used: each fault is told in its own line, before anything is built."""

import json
import os
import shutil
import ssl
import subprocess
import sys
import threading
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address

import mlflow
import pytest
import requests
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from mlflow.exceptions import MlflowException
from mlflow.protos import databricks_pb2 as codes

from fnostab.cli import main
from fnostab.config import ConfigError, resolve_config
from fnostab.tracking import errors, store, target
from fnostab.tracking.errors import StoreUnavailable, translated_store_errors
from fnostab.tracking.store import check_store
from fnostab.workflows.runfolder import RunFolder, unfinished_runs


@pytest.fixture
def client(empty_store, fresh_store):
    shutil.copy(empty_store, fresh_store / "mlflow.db")
    return mlflow.MlflowClient()


def _refused(match):
    with pytest.raises(ConfigError, match=match) as caught:
        check_store(for_new_run=True)
    assert "\n" not in str(caught.value)
    assert "sync" not in str(caught.value)


@pytest.mark.parametrize("value", ["7", "abc"])
def test_an_experiment_id_that_the_store_does_not_know_is_refused(client, monkeypatch, value):
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", value)
    _refused(rf"^`MLFLOW_EXPERIMENT_ID` \(={value}\) must be an experiment in the tracking store: ")


@pytest.mark.parametrize("setting", ["MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME"])
def test_a_deleted_experiment_is_refused_with_the_way_to_bring_it_back(client, monkeypatch, setting):
    deleted = client.create_experiment("old")
    client.delete_experiment(deleted)
    monkeypatch.setenv(setting, deleted if setting.endswith("ID") else "old")
    _refused(rf"^`{setting}` .* not deleted: `mlflow experiments restore -x {deleted}` brings it back$")


def test_an_experiments_name_that_does_not_fit_its_id_is_refused(client, monkeypatch):
    number = client.create_experiment("mine")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "0")
    _refused(rf"^`MLFLOW_EXPERIMENT_ID` \(=0\) must be {number}, that of .* MLFLOW_EXPERIMENT_NAME \(=mine\)")


def test_a_new_experiments_name_is_taken_and_the_experiment_made_once(client, monkeypatch):
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "new")
    check_store(for_new_run=True)
    assert client.get_experiment_by_name("new") is None
    assert target.target_experiment_id() == target.target_experiment_id()


def test_a_run_that_the_store_does_not_know_or_that_was_deleted_is_refused(client, monkeypatch):
    run_id = client.create_run("0").info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    check_store(for_new_run=True)
    client.delete_run(run_id)
    _refused(rf"^`MLFLOW_RUN_ID` \(={run_id}\) must be a run that is not deleted$")
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    _refused(r"^`MLFLOW_RUN_ID` \(=0{32}\) must be a run in the tracking store: ")


@pytest.mark.parametrize(("setting", "value"), [("MLFLOW_EXPERIMENT_ID", "7"), ("MLFLOW_RUN_ID", "0" * 32)])
def test_in_a_store_that_is_still_to_be_made_no_run_or_experiment_is_there(fresh_store, monkeypatch, setting, value):
    monkeypatch.setenv(setting, value)
    _refused(rf"^`{setting}` \(={value}\) must be in the tracking store, which is new and empty$")
    assert main(["train", "--preset", "smoke"]) == 2
    assert not list(fresh_store.iterdir())


def test_a_folder_for_artifacts_that_cannot_be_written_to_is_refused(client, fresh_store, monkeypatch):
    (fresh_store / "file").write_text("no folder")
    client.create_experiment("nowhere", artifact_location=f"file://{fresh_store}/file/artifacts")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "nowhere")
    _refused(
        r"^`artifact_location` \(=.*/file/artifacts\) must be a folder that can be written to, which .*/file is not"
    )
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME")
    check_store(for_new_run=True)
    monkeypatch.setattr(os, "access", lambda path, mode: str(path).endswith("mlflow.db"))
    _refused(r"^`artifact_location` \(=.*/mlruns/0\) must be a folder that can be written to")


def test_a_database_that_cannot_be_written_to_is_refused(client, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    _refused(r"^`MLFLOW_TRACKING_URI` \(=.*mlflow.db\) must name a database that can be written to$")


def test_a_place_for_artifacts_whose_client_is_missing_is_refused(client, monkeypatch):
    client.create_experiment("bucket", artifact_location="s3://user:secret@bucket/x")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "bucket")
    for name in ("boto3", "botocore"):
        monkeypatch.setitem(sys.modules, name, None)
    _refused(
        r"^`artifact_location` \(=s3://user:\*\*\*@bucket/x\) must be a place that can be written to from here: .*boto"
    )


def test_a_file_store_is_refused_in_mlflows_words(fresh_store, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", str(fresh_store / "mlruns"))
    _refused(
        r"must name a tracking store that can be opened: The filesystem tracking backend .*MLFLOW_ALLOW_FILE_STORE"
    )


def _http_error(status):
    response = requests.Response()
    response.status_code = status
    return requests.HTTPError(f"{status}", response=response)


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (MlflowException("API request failed"), "does not answer"),
        (MlflowException("later", codes.TEMPORARILY_UNAVAILABLE), "does not answer"),
        (requests.ConnectionError("refused"), "does not answer"),
        (_http_error(502), "does not answer"),
        (MlflowException("Run must be active", codes.INVALID_PARAMETER_VALUE), "refuses this"),
        (MlflowException("not yours", codes.PERMISSION_DENIED), "refuses this"),
        (MlflowException("no run", codes.RESOURCE_DOES_NOT_EXIST), "refuses this"),
        (PermissionError(13, "Permission denied"), "refuses this"),
        (_http_error(403), "refuses this"),
    ],
)
def test_only_an_outage_is_told_with_the_advice_to_sync(error, fault):
    with pytest.raises(StoreUnavailable) as caught, translated_store_errors():
        raise error
    assert str(caught.value).startswith(f"the tracking store {fault} (")
    assert ("fnostab sync" in str(caught.value)) == (fault == "does not answer") == errors.is_outage(error)


_HOLDER = """
import sys
from pathlib import Path
from fnostab.io.locks import file_lock
with file_lock(Path("mlflow.db.lock")):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_lock_on_the_store_that_is_never_free_ends_a_command_in_one_line(client, fresh_store, monkeypatch, capsys):
    monkeypatch.setattr(store, "LOCK_TIMEOUT_S", 0.1)
    command = [sys.executable, "-c", _HOLDER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        holder.stdout.readline()
        assert main(["compare", "--study", "any"]) == 1
        holder.kill()
    lock = f"{fresh_store}/mlflow.db.lock"
    said = f"fnostab: error: another process (pid {holder.pid}) still holds the lock {lock} after 0.1 s\n"
    assert capsys.readouterr().err == said


def _waiting(client, uri):
    """A run that waits for the store at `uri`, as an outage leaves it."""
    config = resolve_config({"preset": "smoke"})
    with RunFolder(config, "d" * 64, uri) as folder:
        run_id = client.create_run("0").info.run_id
        folder.begin(run_id)
    return run_id


def test_a_run_that_was_deleted_in_the_ui_is_forgotten_by_sync(client, fresh_store, capsys):
    run_id = _waiting(client, f"sqlite:///{fresh_store}/mlflow.db")
    client.delete_run(run_id)
    assert main(["sync"]) == 0
    assert f"forgotten: run {run_id} was deleted in the tracking store" in capsys.readouterr().out
    assert unfinished_runs() == []
    assert main(["sync"]) == 0
    assert capsys.readouterr().out == "nothing waits\n"


def test_what_waits_for_a_run_that_the_store_never_had_is_kept_and_it_is_said_how_to_forget_it(
    client, fresh_store, capsys, monkeypatch
):
    run_id = _waiting(client, f"sqlite:///{fresh_store}/other.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{fresh_store}/other.db")
    assert main(["sync"]) == 1
    said = capsys.readouterr().out
    assert f"failed: the tracking store has no run {run_id}; to forget what waits of it, delete {fresh_store}/" in said
    assert len(unfinished_runs()) == 1


class _Answers(BaseHTTPRequestHandler):
    """What MLflow asks of a tracking server when a run is to be made in a new experiment."""

    def _answer(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        is_known = "experiments/get-by-name" not in self.path
        body = {} if is_known else {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no such experiment"}
        self.send_response(200 if is_known else 404)
        content = json.dumps(body).encode()
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = _answer

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def https_server(tmp_path_factory):
    """The URI of a server whose certificate nobody signed but itself, and the file of that certificate."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(timezone.utc)
    address = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(address, critical=False)
        .sign(key, hashes.SHA256())
    )
    folder = tmp_path_factory.mktemp("tls")
    pem, no_password = serialization.Encoding.PEM, serialization.NoEncryption()
    (folder / "certificate.pem").write_bytes(certificate.public_bytes(pem))
    (folder / "key.pem").write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, no_password))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "certificate.pem", folder / "key.pem")
    with ThreadingHTTPServer(("127.0.0.1", 0), _Answers) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"https://127.0.0.1:{server.server_port}", folder / "certificate.pem"
        server.shutdown()


@pytest.mark.filterwarnings("ignore:Unverified HTTPS request")
def test_a_certificate_that_nobody_trusts_is_refused_and_taken_with_each_of_mlflows_settings(
    https_server, fresh_store, monkeypatch
):
    uri, certificate = https_server
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "new")
    settings = {
        "MLFLOW_TRACKING_INSECURE_TLS": "true",
        "MLFLOW_TRACKING_SERVER_CERT_PATH": str(certificate),
        "REQUESTS_CA_BUNDLE": str(certificate),
    }
    for name in settings:
        monkeypatch.delenv(name, raising=False)
    _refused(
        r"^`MLFLOW_TRACKING_URI` \(=https:.*\) must name a server whose certificate is trusted: .*"
        "MLFLOW_TRACKING_SERVER_CERT_PATH .* MLFLOW_TRACKING_INSECURE_TLS=true"
    )
    for name, value in settings.items():
        with monkeypatch.context() as setting:
            setting.setenv(name, value)
            assert check_store(for_new_run=True) == uri
    monkeypatch.setenv("MLFLOW_TRACKING_INSECURE_TLS", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(certificate))
    _refused("only one of these environment variables may be set")
