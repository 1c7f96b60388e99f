import subprocess
import sys

import pytest

from fnostab.config import resolve_config
from fnostab.runfolder import AlreadyRunning, RunFolder

_CONFIG = resolve_config({"preset": "smoke"})


def _folder(config=_CONFIG, dataset="d" * 64, store="sqlite:///mlflow.db"):
    return RunFolder(config, dataset, store)


def test_an_unfinished_identity_is_found_again_and_a_finished_one_is_not(fresh_store):
    with _folder() as folder:
        assert folder.first_run_id is None
        folder.begin("run-1")
    with _folder() as folder:
        assert folder.first_run_id == "run-1"
        folder.finish()
    with _folder() as folder:
        assert folder.first_run_id is None


def test_identity_is_study_arm_seed_config_data_and_store(fresh_store):
    others = [
        _folder(resolve_config({"preset": "smoke", "seed": 1})),
        _folder(resolve_config({"preset": "smoke", "study": "x"})),
        _folder(resolve_config({"preset": "smoke", "lr": 0.1})),
        _folder(dataset="e" * 64),
        _folder(store="http://elsewhere"),
    ]
    assert len({folder.path for folder in [_folder(), *others]}) == 6


def test_a_second_process_is_refused_while_the_first_trains(fresh_store):
    code = """
from fnostab.config import resolve_config
from fnostab.runfolder import RunFolder
with RunFolder(resolve_config({"preset": "smoke"}), "d" * 64, "sqlite:///mlflow.db"):
    print("held", flush=True)
    input()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(AlreadyRunning, match=rf"arm control, seed .* by another process \(pid {other.pid}\)"):
            _folder().__enter__()
        other.kill()
    with _folder() as folder:  # a killed holder leaves nothing locked
        assert folder.path.is_dir()


def test_starting_over_forgets_checkpoints(fresh_store):
    with _folder() as folder:
        folder.begin("run-1")
        (folder.path / "last.ckpt").touch()
        folder.start_over()
        assert folder.first_run_id is None
        assert list(folder.path.iterdir()) == []
