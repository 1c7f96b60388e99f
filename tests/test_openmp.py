"""How OpenMP's threads wait: asleep where other work takes their cores, unless the user has chosen."""

import os
import subprocess
import sys

import pytest

from fnostab.io import openmp


@pytest.fixture
def machine(monkeypatch):
    """Eight cores under a load that the test says, in a process that has not imported torch."""
    for name in (*openmp.OPENMP_CHOICES, "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "")  # so that what the test leaves there is taken away
        monkeypatch.delenv(name)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    return lambda load: monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))


@pytest.mark.parametrize(
    ("load", "threads", "policy"),
    [(0.3, "", None), (1.0, "", "PASSIVE"), (3.0, "4", None), (5.0, "4", "PASSIVE"), (20.0, "1", None)],
)
def test_threads_sleep_while_they_wait_where_fewer_cores_are_free_than_they_are(
    machine, monkeypatch, load, threads, policy
):
    machine(load)
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    openmp.wait_passively_if_busy()
    assert os.environ.get("OMP_WAIT_POLICY") == policy


@pytest.mark.parametrize("name", openmp.OPENMP_CHOICES)
def test_what_the_user_has_chosen_stays(machine, monkeypatch, name):
    machine(8.0)
    monkeypatch.setenv(name, "ACTIVE")
    openmp.wait_passively_if_busy()
    assert [key for key in openmp.OPENMP_CHOICES if key in os.environ] == [name]
    assert os.environ[name] == "ACTIVE"


def test_nothing_is_changed_once_torch_is_imported(machine, monkeypatch):
    machine(8.0)
    monkeypatch.setitem(sys.modules, "torch", object())
    openmp.wait_passively_if_busy()
    assert "OMP_WAIT_POLICY" not in os.environ


def test_a_system_that_counts_no_load_is_left_alone(machine, monkeypatch):
    machine(8.0)
    monkeypatch.delattr(os, "getloadavg")
    openmp.wait_passively_if_busy()
    assert "OMP_WAIT_POLICY" not in os.environ


@pytest.mark.parametrize(("load", "spins"), [(99.0, "0"), (0.0, "300000")])
def test_a_command_decides_before_torch_has_read_it(load, spins):
    code = (
        f"import os; os.getloadavg = lambda: ({load}, 0, 0); os.cpu_count = lambda: 2\n"
        "from fnostab.cli import main; main(['check-arch', 'hybrid', '--N', '32', '--width', '4'])"
    )
    kept = {name: value for name, value in os.environ.items() if name not in openmp.OPENMP_CHOICES}
    environment = kept | {"OMP_NUM_THREADS": "2", "OMP_DISPLAY_ENV": "VERBOSE"}
    said = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    if "GOMP_SPINCOUNT" not in said.stderr:
        pytest.skip("this torch has another OpenMP than GNU's")
    assert f"GOMP_SPINCOUNT = '{spins}'" in said.stderr
