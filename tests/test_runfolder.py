import subprocess
import sys

import pytest

from fnostab.config import ArmConfig, resolve_config
from fnostab.io.endings import CommandFailed
from fnostab.workflows.runfolder import AlreadyRunning, RunFolder, unfinished_runs

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
from fnostab.workflows.runfolder import RunFolder
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
        word = folder.claim
        folder.start_over()
        assert folder.first_run_id is None
        assert not (folder.path / "last.ckpt").exists()
        assert folder.claim != word  # by the old one, the store would still find the old run


def test_the_word_of_a_folder_outlives_a_kill_before_the_run_was_noted(fresh_store):
    with _folder() as folder:
        word = folder.claim
    with _folder() as folder:
        assert folder.claim == word


def test_a_damaged_note_counts_as_none_and_half_written_files_go(fresh_store):
    with _folder() as folder:
        folder.begin("run-1")
        (folder.path / "run.json").write_text('{"run_id": "run-')
        (folder.path / ".last-0.partial.ckpt").touch()
    with _folder() as folder:
        assert folder.first_run_id is None
        assert not list(folder.path.glob(".*"))
    assert unfinished_runs() == []


def test_unfinished_runs_tell_all_that_is_needed_to_go_on(fresh_store):
    with _folder() as folder:
        folder.begin("run-1", {"stage": "a"})
    (found,) = unfinished_runs()
    assert (found.run_id, found.store, found.dataset_sha256) == ("run-1", "sqlite:///mlflow.db", "d" * 64)
    assert ArmConfig.model_validate(found.config) == _CONFIG
    assert found.tags == {"stage": "a"}


def test_a_note_that_cannot_be_read_is_not_taken_for_none(fresh_store):
    with _folder() as folder:
        (folder.path / "run.json").mkdir()  # as an unreadable file: root may read any
        with pytest.raises(CommandFailed, match=r"^the note of an earlier run cannot be read: .*run\.json"):
            _ = folder.first_run_id
