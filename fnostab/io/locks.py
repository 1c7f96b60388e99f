"""File locks between the processes of one machine; the system releases them when their holder dies."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import filelock

from fnostab.io.endings import CommandFailed


class LockTimeout(CommandFailed):
    """Another process holds a lock; `pid` is its process ID, or "unknown"."""

    def __init__(self, path: Path, pid: str, timeout_s: float) -> None:
        super().__init__(f"another process (pid {pid}) still holds the lock {path} after {timeout_s:g} s")
        self.pid = pid


@contextmanager
def file_lock(path: Path, *, timeout_s: float = -1) -> Iterator[None]:
    """Hold the lock file `path`, whose folder must exist; its owner's process ID lies beside it, in a `.pid` file.

    Raises `LockTimeout` if another process still holds it after `timeout_s` seconds (0: at once; -1: wait for ever),
    and OSError if the file cannot be written. What is raised inside the block passes unchanged.
    """
    owner = path.with_suffix(".pid")
    lock = filelock.FileLock(path)
    try:
        lock.acquire(timeout=timeout_s)
    except filelock.Timeout:
        raise LockTimeout(path, _read(owner), timeout_s) from None
    try:
        with suppress(OSError):  # a full disk: the lock holds without it
            owner.write_text(str(os.getpid()))
        try:
            yield
        finally:
            owner.unlink(missing_ok=True)
    finally:
        lock.release()


def _read(owner: Path) -> str:
    try:
        return owner.read_text() or "unknown"
    except OSError:
        return "unknown"
