"""A trained network behind HTTP, with nothing but MLflow's own command."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import mlflow
import numpy as np
import pytest

from fnostab.config import resolve_config
from fnostab.dataset import load_or_build
from fnostab.workflows.train import train_arm


def _post(url, content):
    request = urllib.request.Request(url, json.dumps(content).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait_for(url, process, within_s):
    end = time.monotonic() + within_s
    while time.monotonic() < end and process.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(f"no answer from {url}; exit code {process.poll()}")


@pytest.fixture(scope="module")
def trained():
    """(URI of a network trained for this module, its test patterns)."""
    config = resolve_config({"preset": "smoke", "epochs": 1})
    result = train_arm(config, lambda line: None)
    return f"runs:/{result.run_id}/model", np.array(load_or_build(config.data).test.counts)


@pytest.fixture(scope="module")
def server(trained, tmp_path_factory):
    """(address, log file) of `mlflow models serve`, while the module's tests run."""
    log = tmp_path_factory.mktemp("server") / "log.txt"
    with _serving(trained[0], log) as address:
        yield address, log


@contextlib.contextmanager
def _serving(uri, log):
    """The address of `mlflow models serve`, which answers inside this context."""
    port = _free_port()
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", uri, "--env-manager", "local"]
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    with log.open("w") as output:
        process = subprocess.Popen(
            [*command, "-h", "127.0.0.1", "-p", str(port)],
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            _wait_for(f"http://127.0.0.1:{port}/ping", process, within_s=300)
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(timeout=30)


@pytest.mark.parametrize("n", [1, 5])
def test_invocations_answers_with_what_pyfunc_predicts(n, trained, server):
    uri, counts = trained
    expected = mlflow.pyfunc.load_model(uri).predict(counts[:n])
    answer = _post(f"{server[0]}/invocations", {"inputs": counts[:n].tolist()})
    patches = np.array(answer["predictions"], dtype=np.float32)
    assert patches.shape == (n, 32, 32, 2)
    np.testing.assert_allclose(patches, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def test_whole_numbers_are_taken_as_counts(trained, server):
    _, counts = trained
    address = f"{server[0]}/invocations"
    whole = _post(address, {"inputs": counts[:2].astype(int).tolist()})
    assert whole == _post(address, {"inputs": counts[:2].tolist()})


def test_patterns_of_another_size_are_refused(trained, server):
    _, counts = trained
    with pytest.raises(urllib.error.HTTPError, match="400") as caught:
        _post(f"{server[0]}/invocations", {"inputs": counts[:2, :16, :16].tolist()})
    caught.value.close()


def test_the_server_warns_of_nothing_that_a_user_sends(trained, server):
    address, log = server
    _post(f"{address}/invocations", {"inputs": trained[1][:2].tolist()})
    assert "float64" not in log.read_text()


def test_a_network_of_groups_answers_with_four_patches_a_group(tmp_path):
    config = resolve_config({"preset": "smoke", "epochs": 1, "data.gridsize": 2})
    uri = f"runs:/{train_arm(config, lambda line: None).run_id}/model"
    test = load_or_build(config.data).test
    counts = test.counts[test.groups(2).members[:3]]
    expected = mlflow.pyfunc.load_model(uri).predict(counts)
    with _serving(uri, tmp_path / "log.txt") as address:
        answer = _post(f"{address}/invocations", {"inputs": counts.tolist()})
    patches = np.array(answer["predictions"], dtype=np.float32)
    assert patches.shape == (3, 4, 32, 32, 2)
    np.testing.assert_allclose(patches, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
