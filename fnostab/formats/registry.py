"""The formats of scan files: which there are, and which one a file has."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import Final

from fnostab.config import ReadingConfig
from fnostab.formats import cxi, matlab, named, own, ptychodus, ptychopinn, ptypy, tike
from fnostab.formats.containers import open_container
from fnostab.formats.hdf5 import Hdf5File
from fnostab.formats.npz import NpzFile
from fnostab.formats.paths import array_paths
from fnostab.formats.product import product_of
from fnostab.formats.raw import Format, RawScan, ScanFile, in_file
from fnostab.formats.scan import key_list
from fnostab.io.foreign import is_foreign, load_foreign
from fnostab.io.untrusted import shown

#: The formats that come with the package; the first one that a file looks like counts.
_OWN: Final = (
    own.FORMAT,
    tike.FORMAT,
    ptychopinn.FORMAT,
    cxi.FORMAT,
    matlab.FORMAT,
    ptychodus.FORMAT,
    ptychodus.PAIR,
    ptypy.FORMAT,
    named.FORMAT,
)
_GROUP: Final = "fnostab.formats"


@functools.cache
def formats() -> tuple[Format, ...]:
    """List all formats: the package's own, then those that other packages offer under `fnostab.formats`.

    Raises ValueError if one of these cannot be loaded or is no `Format`.
    """
    found = list(_OWN)
    for entry in entry_points(group=_GROUP):
        try:
            offered = entry.load()
        except Exception as error:
            raise ValueError(f"`{_GROUP}` (={entry.value}) must be importable: {shown(error)}") from error
        if not isinstance(offered, Format):
            raise ValueError(f"`{_GROUP}` (={entry.value}) must be a fnostab.formats.raw.Format")
        found.append(offered)
    return tuple(found)


@contextmanager
def open_scan(path: str | Path, reading: ReadingConfig, may_grow: bool = False) -> Iterator[tuple[Format, RawScan]]:
    """Open a scan file; its frames can be read while the block lasts.

    With `may_grow` it may be an HDF5 file that is being written (SWMR): then `RawScan.is_growing` is set, and there may
    be another number of positions than of frames. Raises ValueError, in one line, for a file that is none, or of no
    known format, or that its reader refuses.
    """
    file = open_container(Path(path), may_grow=may_grow)
    try:
        kind = _format_of(file, reading)
        try:
            raw = kind.read(file, reading)
            if isinstance(file, Hdf5File) and file.is_growing:
                raw = replace(raw, is_growing=True, positions_are_final=not file.wholes_may_grow)
            yield kind, raw
        except ValueError as error:
            raise in_file(error, file.name) from None
    finally:
        file.close()


def scan_files(path: str | Path, reading: ReadingConfig) -> tuple[Path, ...]:
    """All files that decide what a scan is read as, `path` first: also that of a format which the user names.

    Raises ValueError for `data.paths` and `data.format` that cannot be.
    """
    named_in = array_paths(reading.paths).file if reading.paths else None
    reader = load_foreign(reading.format, "data.format").source if is_foreign(reading.format) else None
    others = (named_in, product_of(Path(path), reading), reader)
    return (Path(path), *(other for other in others if other is not None))


def _format_of(file: ScanFile, reading: ReadingConfig) -> Format:
    known = {format.name: format for format in formats()}
    if is_foreign(reading.format):
        known[reading.format] = _named_by_user(reading.format)
    container = "NPZ" if isinstance(file, NpzFile) else "HDF5"
    if reading.format != "auto":
        if reading.format not in known:
            raise ValueError(
                f"`data.format` (={shown(reading.format)}) must be auto, one of {', '.join(known)}, or ./file.py:NAME"
            )
        if container not in known[reading.format].container:
            raise file.fault(
                f"must be {known[reading.format].container} to be read as {reading.format}, not {container}"
            )
        return known[reading.format]
    if reading.paths:
        return named.FORMAT
    for format in known.values():
        if container in format.container and format.matches(file):
            return format
    raise file.fault(
        "must be of a known format (`fnostab data formats` lists them), or `data.paths` must name its arrays; it holds"
        f" {key_list(file.keys)}"
    )


def _named_by_user(name: str) -> Format:
    found = load_foreign(name, "data.format").value
    if not isinstance(found, Format):
        raise ValueError(
            f"`data.format` (={shown(name)}) must be a fnostab.formats.raw.Format, not {type(found).__name__}"
        )
    return found
