"""Files that appear whole or not at all, and what is wrong with one that does not read as it was written."""

import errno
import os
import struct
import uuid
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

#: What reading a damaged archive may lead to.
DAMAGE: Final = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, ValueError, RuntimeError)

#: What sqlite says where the disk is full; through MLflow and SQLAlchemy, it is a part of their text.
SQLITE_FULL: Final = "database or disk is full"

#: How a zip archive without a comment ends: the signature of a record of so many bytes.
_END: Final = b"PK\x05\x06"
_END_BYTES: Final = 22

_PARTIAL: Final = ".partial"


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A name beside `path`, with its ending, to write to; the file takes the place of `path` when the block ends well.

    By then it is on the disk, not only in the system's memory. After an error nothing is left of it and `path` is as
    it was; after a kill a hidden file that ends in `.partial` may stay, which `remove_partial` finds.
    """
    partial = path.with_name(f".{path.stem}-{uuid.uuid4().hex}{_PARTIAL}{path.suffix}")
    try:
        yield partial
        with open(partial, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def atomic_write_text(path: Path, text: str) -> None:
    """Make `text` the content of `path`, wholly or not at all."""
    with atomic_write(path) as partial:
        partial.write_text(text, encoding="utf-8")


def open_binary(path: Path) -> BinaryIO:
    """Open a file to read its bytes; raises OSError, with the reason in `strerror`, also for a device or a pipe."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise OSError(errno.EINVAL, "it is a device or a pipe", str(path))  # /dev/zero never ends
    return open(path, "rb")


def remove_partial(folder: Path) -> None:
    """Remove what killed processes left half-written in `folder`, which no other process writes to now."""
    for path in folder.glob(f".*{_PARTIAL}*"):
        path.unlink(missing_ok=True)


def damage(path: Path) -> str | None:
    """What is wrong with an archive that torch or NumPy wrote (a checkpoint, a pt2 export, an NPZ file); None if whole.

    Every record is compared with its checksum. (torch reads them without: its build leaves that out, so that a flipped
    byte would become a weight.)
    """
    try:
        # Python would take the end of an archive inside a truncated one for its own.
        with open(path, "rb") as file:
            file.seek(-min(_END_BYTES, path.stat().st_size), os.SEEK_END)
            end = file.read(len(_END))
        if end != _END:
            return "its end is missing"
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
    except DAMAGE as error:
        return " ".join(str(error).split()) or type(error).__name__
    return None if bad is None else f"{bad} is not what was written"


def is_disk_full(error: BaseException) -> bool:
    """Whether `error` says that a file system, or a user's share of it, is full."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    text = str(error)
    # NumPy leaves the number out.
    short_write = isinstance(error, OSError) and " requested and " in text and text.endswith(" written")
    return short_write or SQLITE_FULL in text or f"[Errno {errno.ENOSPC}]" in text
