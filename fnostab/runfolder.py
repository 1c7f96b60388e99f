"""The folder that one run's identity owns on this machine until it is finished: lock, checkpoints, first MLflow run."""

import hashlib
import json
import os
import shutil

import filelock

from fnostab.config import ArmConfig
from fnostab.dataset import cache_folder


class AlreadyRunning(RuntimeError):
    """Another process on this machine trains the same identity."""


class RunFolder:
    """The folder of the identity (study, arm, seed, config, dataset, tracking store), held under a lock as a context.

    `first_run_id` is the MLflow run that an earlier, unfinished process of this identity wrote to, or None. Raises
    `AlreadyRunning` on entry while another process holds the identity.
    """

    def __init__(self, config: ArmConfig, dataset_sha256: str, store_uri: str) -> None:
        parts = (config.study, config.arm, config.seed, config.sha256(), dataset_sha256, store_uri)
        name = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
        folder = cache_folder() / "runs"
        self.path = folder / name
        self._lock = filelock.FileLock(folder / f"{name}.lock")
        self._owner = folder / f"{name}.pid"
        self._label = f"arm {config.arm}, seed {config.seed} of study {config.study}"

    def __enter__(self) -> "RunFolder":
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=0)
        except filelock.Timeout:
            pid = self._owner.read_text() if self._owner.exists() else "unknown"
            raise AlreadyRunning(f"{self._label} is being trained by another process (pid {pid})") from None
        self._owner.write_text(str(os.getpid()))
        self.path.mkdir(exist_ok=True)  # whoever held the lock may have finished and removed it
        return self

    def __exit__(self, *_: object) -> None:
        self._owner.unlink(missing_ok=True)
        self._lock.release()

    @property
    def first_run_id(self) -> str | None:
        """The run that was begun for this identity; None if none was."""
        note = self.path / "run_id"
        return note.read_text() if note.exists() else None

    def begin(self, run_id: str) -> None:
        """Remember `run_id` as the run of this identity."""
        partial = self.path / "run_id.partial"
        partial.write_text(run_id)
        partial.replace(self.path / "run_id")

    def start_over(self) -> None:
        """Forget an earlier attempt."""
        shutil.rmtree(self.path)
        self.path.mkdir()

    def finish(self) -> None:
        """Remove the folder: everything in it is in the tracking store."""
        shutil.rmtree(self.path)
