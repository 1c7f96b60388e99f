"""What a command imports and when, and what Python's garbage collector has to do with it."""

import json
import subprocess
import sys

import pytest

from benchmarks import fixed_cost, phases

_COUNTS = "import gc, json, sys, os; from fnostab.io.garbage import lasting_imports\n"


def _run(code, *arguments):
    """What the last line that `code` prints says, as JSON."""
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_imported_modules_are_left_alone_by_the_collector_which_goes_on_afterwards():
    code = _COUNTS + (
        "with lasting_imports():\n    off = gc.isenabled(); import xml.dom.minidom\n"
        "print(json.dumps([off, gc.isenabled(), gc.get_freeze_count() > 1000]))"
    )
    assert _run(code) == [False, True, True]


def test_without_an_import_nothing_is_kept_from_the_collector():
    code = _COUNTS + (
        "with lasting_imports():\n    import sys\nprint(json.dumps([gc.isenabled(), gc.get_freeze_count()]))"
    )
    assert _run(code) == [True, 0]


def test_a_collector_that_is_off_stays_off():
    code = _COUNTS + (
        "gc.disable()\nwith lasting_imports():\n    import xml.dom.minidom\nprint(json.dumps(gc.isenabled()))"
    )
    assert _run(code) is False


def test_what_is_registered_for_the_end_of_the_process_still_happens(tmp_path):
    place = tmp_path / "ended"
    code = _COUNTS + (
        "import atexit, pathlib; atexit.register(pathlib.Path(sys.argv[1]).touch)\n"
        "with lasting_imports():\n    import xml.dom.minidom\nprint(1)"
    )
    _run(code, str(place))
    assert place.exists()


@pytest.mark.parametrize(
    ("command", "not_imported"),
    [
        (["--help"], ["torch", "lightning", "mlflow", "matplotlib", "scipy", "numpy"]),
        (["train", "--preset", "smoke", "--print-config"], ["torch", "lightning", "mlflow", "matplotlib", "scipy"]),
        (["study", "--preset", "smoke", "--plan"], ["torch", "lightning", "mlflow", "matplotlib"]),
        (["data", "formats"], ["lightning", "mlflow", "matplotlib", "scipy.signal"]),
        (["data", "build", "--preset", "smoke"], ["lightning", "mlflow", "matplotlib", "scipy.signal"]),
        (["data", "show", "--preset", "smoke"], ["lightning", "mlflow"]),
    ],
    ids=" ".join,
)
def test_a_command_imports_no_library_that_it_has_no_use_for(command, not_imported, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = (
        "import json, sys\nfrom fnostab.cli import main\n"
        "try:\n    code = main(sys.argv[1:])\nexcept SystemExit as end:\n    code = end.code or 0\n"
        "print(json.dumps([code, sorted(sys.modules)]))"
    )
    code, modules = _run(code, *command)
    assert code == 0
    assert set(not_imported).isdisjoint(modules)


def test_a_worker_of_a_study_leaves_its_modules_to_the_process(tmp_path):
    (tmp_path / "work.py").write_text(
        "import gc, xml.dom.minidom\nfrom fnostab.launch import Update\n"
        "def run(job, send):\n    send(Update('done', f'{gc.isenabled()} {gc.get_freeze_count() > 1000}'))\n"
        "run_together = None\n"
    )
    command = [sys.executable, "-m", "fnostab.launch.worker", "work", "run", "run_together"]
    job = json.dumps({"name": "a", "config": {}})
    done = subprocess.run(command, input=f"[{job}]\n\n", cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[1]["text"] == "True True"


def test_the_benchmark_of_fixed_costs_finds_every_phase_of_a_run(tmp_path):
    command = (*fixed_cost.COMMANDS["train"], "--train.epochs", "1")
    found = fixed_cost.measure(command, fixed_cost.ROOT, tmp_path, "once")
    assert set(found.phases) == {*phases.PHASES, fixed_cost.START_AND_EXIT}
    for place in (0, 1):
        parts = sum(seconds[place] for seconds in found.phases.values())
        assert parts == pytest.approx(found.total[place])
    assert 0 < found.after_s < found.total[0]
