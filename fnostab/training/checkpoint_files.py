"""The files of a run's checkpoints, which survive kills, full disks and damage."""

import io
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from fnostab.io.files import atomic_write, damage, is_disk_full


class Kept(NamedTuple):
    """The state of a network in a checkpoint, on the CPU, and how many optimizer steps were done then."""

    weights: dict[str, torch.Tensor]
    steps: int


class CheckpointFiles(TorchCheckpointIO):
    """Writes `best.ckpt` and `last.ckpt` atomically, and keeps the previous last one as `before.ckpt`.

    A full disk does not stop the training: the files that exist stay, the best checkpoint waits in memory until there
    is room, and `report` takes a line. The last checkpoint holds the loss of the best one, so it is written after it.
    """

    def __init__(self, folder: Path, report: Callable[[str], None] = lambda line: None) -> None:
        self.folder = folder
        self.last = folder / "last.ckpt"
        self.before = folder / "before.ckpt"
        self.best = folder / "best.ckpt"
        self.accident = folder / "before_accident.ckpt"
        self._report = report
        self._waiting_best: bytes | None = None
        self._last_is_old = False

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write `checkpoint` as `last` or `best`, on the first process alone."""
        self.folder.mkdir(parents=True, exist_ok=True)
        packed = io.BytesIO()
        torch.save(checkpoint, packed)
        if path == self.best:
            self._waiting_best = packed.getvalue()
        else:
            self._last_is_old = True
        try:
            if self._waiting_best is not None:
                _write(self.best, self._waiting_best)
                self._waiting_best = None
            if path == self.last:
                _write(self.last, packed.getvalue(), keep=self.before)
                self._last_is_old = False
        except OSError as error:
            if not is_disk_full(error):
                raise
            self._report(f"no room for the checkpoint {path.name}: training goes on, what was saved before stays")

    def newest_complete(self) -> Path | None:
        """The checkpoint to resume from: the last one, or the one before if that is damaged; None to start anew.

        If the best one is damaged, training starts anew as well: its weights are stored nowhere else, and the same
        steps find them again.
        """
        if not (self.best.exists() and self._is_damaged(self.best, "training starts again")):
            for path in (self.last, self.before):
                if path.exists() and not self._is_damaged(path, "the one before is used, if there is one"):
                    return path
        self._remove()
        return None

    def _remove(self) -> None:
        for path in (self.last, self.before, self.best, self.accident):
            path.unlink(missing_ok=True)

    def _is_damaged(self, path: Path, instead: str) -> bool:
        fault = _damage(path)
        if fault:
            self._report(f"the checkpoint {path.name} is damaged ({fault}): {instead}")
        return fault is not None

    @property
    def has_best(self) -> bool:
        """Whether there is a best checkpoint, on the disk or in memory."""
        return self._waiting_best is not None or self.best.exists()

    def kept_best(self) -> Kept:
        """What the best checkpoint holds; raises `OSError` if its file is damaged."""
        if self._waiting_best is None and (fault := _damage(self.best)):
            self._remove()
            raise OSError(f"the checkpoint {self.best} is damaged ({fault}): the same command trains the run again")
        return _kept(self.best if self._waiting_best is None else io.BytesIO(self._waiting_best))

    def keep_before_accident(self) -> None:
        """Keep the last checkpoint, as it is now, as the one from before an accident, if it is on the disk."""
        if self._last_is_old or not self.last.exists():
            return
        # The last checkpoint is never changed, only replaced: a second name for it costs no room and no time.
        with suppress(OSError), atomic_write(self.accident) as partial:
            try:
                os.link(self.last, partial)
            except OSError:  # a file system without links
                shutil.copyfile(self.last, partial)

    def kept_before_accident(self) -> Kept | None:
        """What was kept from before an accident; None if nothing was, or its file is damaged."""
        return None if not self.accident.exists() or _damage(self.accident) else _kept(self.accident)

    @property
    def at_the_end(self) -> list[Path]:
        """Paths of the best and the last checkpoint; one that the disk had no room for is left out."""
        kept = {self.best: self._waiting_best is None, self.last: not self._last_is_old}
        return [path for path, is_new in kept.items() if is_new and path.exists()]


def _damage(path: Path) -> str | None:
    """What is wrong with a checkpoint, None if nothing is: torch checks its headers, but not its checksums."""
    if fault := damage(path):
        return fault
    try:
        torch.load(path, weights_only=True, map_location="cpu", mmap=True)
    except Exception as error:  # torch raises many kinds for a damaged archive
        return str(error).partition(".")[0]
    return None


def _kept(source: Path | io.BytesIO) -> Kept:
    checkpoint = torch.load(source, weights_only=True, map_location="cpu")
    return Kept(checkpoint["state_dict"], int(checkpoint.get("global_step", 0)))


def _write(path: Path, content: bytes, keep: Path | None = None) -> None:
    """Write `content` to `path`; the file that was there is moved to `keep`."""
    with atomic_write(path) as partial:
        partial.write_bytes(content)
        if keep is not None and path.exists():
            path.replace(keep)
