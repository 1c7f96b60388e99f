"""The folder that one run's identity owns on this machine until it is finished: lock, checkpoints, first MLflow run."""

import hashlib
import json
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from fnostab.config import ArmConfig
from fnostab.io.cache import cache_folder
from fnostab.io.endings import CommandFailed
from fnostab.io.files import atomic_write_text, remove_partial
from fnostab.io.locks import LockTimeout, file_lock

_NOTE: Final = "run.json"


class AlreadyRunning(CommandFailed):
    """Another process on this machine trains the same identity, or runs the same study."""


@contextmanager
def held_alone(lock: Path, what: str) -> Iterator[None]:
    """Hold the file `lock`; raises `AlreadyRunning`, a sentence that begins with `what`, if another process does."""
    with ExitStack() as held:
        try:
            held.enter_context(file_lock(lock, timeout_s=0))
        except LockTimeout as error:
            raise AlreadyRunning(f"{what} by another process (pid {error.pid})") from None
        yield


@dataclass(frozen=True)
class Unfinished:
    """What a run folder says of its run: where it is stored, and all that is needed to go on with it."""

    run_id: str
    store: str
    dataset_sha256: str
    config: Mapping[str, Any]
    tags: Mapping[str, str]


class RunFolder:
    """The folder of the identity (study, arm, seed, config, dataset, tracking store), held under a lock as a context.

    `first_run_id` is the MLflow run that an earlier, unfinished process of this identity wrote to, or None: one that
    was killed may have made a run that it could not take note of. That run has the tag `claim`, a word that stands for
    this folder. Raises `AlreadyRunning` on entry while another process holds the identity.
    """

    def __init__(self, config: ArmConfig, dataset_sha256: str, store: str) -> None:
        parts = (config.study, config.arm, config.seed, config.sha256(), dataset_sha256, store)
        name = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
        self.path = _folder() / name
        self._claim = self.path / "claim"
        self._config = config
        self._dataset_sha256 = dataset_sha256
        self._store = store
        self._held = ExitStack()
        self._label = f"arm {config.arm}, seed {config.seed} of study {config.study}"

    def __enter__(self) -> "RunFolder":
        self.path.mkdir(parents=True, exist_ok=True)
        self._held.enter_context(held_alone(self.path.with_suffix(".lock"), f"{self._label} is being trained"))
        remove_partial(self.path)
        self._prepare()  # whoever held the lock may have finished and removed the folder
        return self

    def _prepare(self) -> None:
        self.path.mkdir(exist_ok=True)
        if not self._claim.exists():
            atomic_write_text(self._claim, uuid.uuid4().hex)

    def __exit__(self, *_: object) -> None:
        self._held.close()

    @property
    def claim(self) -> str:
        """The word of this folder."""
        return self._claim.read_text()

    @property
    def first_run_id(self) -> str | None:
        """The run that was begun for this identity; None if none was, or the note of it is damaged."""
        note = _read_note(self.path)
        return note.run_id if note else None

    def begin(self, run_id: str, tags: Mapping[str, str] | None = None) -> None:
        """Remember `run_id` as the run of this identity, and the tags that it was started with."""
        config = self._config.model_dump(mode="json")
        note = Unfinished(run_id, self._store, self._dataset_sha256, config, dict(tags or {}))
        atomic_write_text(self.path / _NOTE, json.dumps(asdict(note), indent=1))

    def start_over(self) -> None:
        """Forget an earlier attempt."""
        shutil.rmtree(self.path)
        self._prepare()

    def finish(self) -> None:
        """Remove the folder: everything in it is in the tracking store."""
        shutil.rmtree(self.path)


def unfinished_runs() -> list[Unfinished]:
    """The runs that were begun on this machine and not finished, in whatever store, in the order of their folders."""
    notes = (_read_note(path) for path in sorted(_folder().glob("*/")))
    return [note for note in notes if note]


def _folder() -> Path:
    return cache_folder() / "runs"


def _read_note(path: Path) -> Unfinished | None:
    try:
        return Unfinished(**json.loads((path / _NOTE).read_text(encoding="utf-8")))
    except (FileNotFoundError, NotADirectoryError, ValueError, TypeError):
        return None
    except OSError as error:  # there may be a run to go on with
        raise CommandFailed(f"the note of an earlier run cannot be read: {error}") from None
