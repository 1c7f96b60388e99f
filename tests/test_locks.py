"""Locks between processes: who holds one is named, and what is raised inside passes unchanged."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fnostab.io.locks import LockTimeout, file_lock

HOLDER = """
import sys
from pathlib import Path
from fnostab.io.locks import file_lock
with file_lock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path: Path):
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "a.lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


@pytest.mark.parametrize("timeout_s", [0, 0.2])
def test_a_lock_that_another_process_holds_names_it(holder, tmp_path: Path, timeout_s: float) -> None:
    with (
        pytest.raises(LockTimeout, match=rf"another process \(pid {holder.pid}\)"),
        file_lock(tmp_path / "a.lock", timeout_s=timeout_s),
    ):
        pass


def test_a_lock_is_free_again_when_its_holder_is_killed(holder, tmp_path: Path) -> None:
    holder.kill()
    holder.wait()
    with file_lock(tmp_path / "a.lock", timeout_s=0):
        assert (tmp_path / "a.pid").read_text() == str(os.getpid())
    assert not (tmp_path / "a.pid").exists()


def test_a_timeout_inside_the_block_is_not_taken_for_the_locks_own(tmp_path: Path) -> None:
    with pytest.raises(TimeoutError, match="of something else"), file_lock(tmp_path / "a.lock", timeout_s=0):
        raise TimeoutError("of something else")
