"""Scans and probes in NPZ files, which are read without trust and written atomically.

Three layouts are known, plain `.npz` or compressed `.npz.bz2` (told apart by their first bytes, not by their names):

- fnostab: `counts` (n, M, M), centred; `positions_px` (n, 2), corners; `probe` (M, M); `object` (H, W)
- tike: `data` (1, n, M, M), counts in FFT order; `scan` (1, n, 2), corners; `probe` (1, 1, 1, 1, M, M)
- PtychoPINN and ptychodus: `diffraction` or `diff3d` (n, M, M), centred; `xcoords` and `ycoords` (n,), window middles;
  `probeGuess` (M, M); `objectGuess` (H, W)

Centred patterns have zero frequency at index M // 2. Corners are (row, column) of the first pixel of the probe's window
in object pixels; PtychoPINN's x is the column and y the row of the window's middle. Its older files hold patterns as
(M, M, n): the number of positions tells. Probe and object may be missing.
"""

import bz2
import io
import warnings
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import psutil
from numpy.typing import ArrayLike, NDArray

from fnostab.formats.scan import (
    Quantity,
    Scan,
    check_overlap,
    checked_counts,
    checked_image,
    checked_positions,
    checked_probe,
    size_text,
)
from fnostab.io.files import DAMAGE, atomic_write, open_binary
from fnostab.io.untrusted import printable, shown

#: Most bytes that one file may unpack to, if half of the free memory is not less: a damaged or malicious file must not
#: exhaust it.
MAX_BYTES: Final = 16 * 2**30

#: How NumPy packs. (zipfile unpacks bzip2 and LZMA without a limit: a few bytes become gigabytes.)
_PACKED: Final = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}
#: The flag of an encrypted member.
_ENCRYPTED: Final = 0x1
#: The first bytes of a zip archive, and of an empty one.
_ZIP_MAGIC: Final = (b"PK\x03\x04", b"PK\x05\x06")


class NpzFile:
    """The arrays of an `.npz` or `.npz.bz2` file, each read when asked for and never unpickled.

    `keys` are their names; `parameter` is what the user calls the file, for the messages. The sizes that the archive
    declares for the arrays that are read must not add up to more than `max_bytes` (by default the smaller of
    `MAX_BYTES` and half of the free memory). Nothing is ever written under a name that the file gives. Raises
    ValueError, in one line, if the file is missing, damaged, truncated or too large, or if an array that is asked for
    is pickled, encrypted, not numeric, there twice, or packed in a way that NumPy does not use.
    """

    def __init__(self, path: str | Path, parameter: str = "data.path", max_bytes: int | None = None) -> None:
        self.path = Path(path)
        self._parameter = parameter
        if max_bytes is None:
            max_bytes = min(MAX_BYTES, psutil.virtual_memory().available // 2)
        self._max_bytes = self._left = max_bytes
        try:
            self._zip = self._opened()
        except OSError as error:
            raise self.fault(f"must be a readable file: {error.strerror}") from None
        names = self._zip.namelist()
        self.keys = tuple(name.removesuffix(".npy") for name in names if name.endswith(".npy"))

    def close(self) -> None:
        """Close the file."""
        self._zip.close()

    def read(self, key: str) -> NDArray[Any]:
        """Read the array `key`, which must be one of `keys`."""
        member = self._checked_member(key)
        self._left -= member.file_size
        if self._left < 0:
            raise self.fault(f"must hold at most {self._max_bytes} bytes, `{key}` goes beyond")
        try:
            with self._zip.open(member) as stream, warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of NumPy, about files of Python 2 and of old NumPys
                array = np.load(stream, allow_pickle=False)
                rest = stream.read(1)  # at the end, zipfile compares the checksum
        except Exception as error:  # a hostile header makes NumPy and Python's parser raise almost anything
            if "Object arrays" in str(error):
                raise self.fault(f"must not hold pickled objects, `{key}` is one") from None
            raise self.fault(f"must be a whole NPZ file: `{key}` cannot be read") from error
        if rest:
            raise self.fault(f"must be a whole NPZ file: `{key}` is longer than its header says")
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "biufc":
            raise self.fault(f"must hold numbers, `{key}` is {shown(getattr(array, 'dtype', 'no array'))}")
        return array

    def fault(self, rule: str) -> ValueError:
        """Make the error of a broken rule about this file."""
        return ValueError(printable(f"`{self._parameter}` (={self.path}) {rule}"))

    def _opened(self) -> zipfile.ZipFile:
        """Open the archive and check its directory; raises OSError only if the file cannot be opened."""
        with open_binary(self.path) as stream:
            magic = stream.read(4)
        content: Path | io.BytesIO = self.path
        try:
            if magic.startswith(b"BZh"):
                content = self._unpacked()
                magic = content.getvalue()[:4]
            if magic in _ZIP_MAGIC:
                return _with_whole_directory(zipfile.ZipFile(content))
        except (*DAMAGE, MemoryError) as error:
            reason = shown(" ".join(str(error).split()) or type(error).__name__)
            raise self.fault(f"must be a whole NPZ file: {reason}") from None
        raise self.fault("must be an NPZ file (.npz or .npz.bz2)")

    def _checked_member(self, key: str) -> zipfile.ZipInfo:
        """Refuse what NumPy never writes, before anything of it is unpacked."""
        if self.keys.count(key) > 1:
            raise self.fault(f"must hold each array once, `{key}` is there {self.keys.count(key)} times")
        member = self._zip.getinfo(f"{key}.npy")
        if member.flag_bits & _ENCRYPTED:
            raise self.fault(f"must not be encrypted, `{key}` is")
        if member.compress_type not in _PACKED:
            raise self.fault(f"must be stored or deflated, `{key}` is packed by method {member.compress_type}")
        return member

    def _unpacked(self) -> io.BytesIO:
        """Unpack a `.bz2` file, within the limit."""
        unpacked = io.BytesIO()
        with bz2.open(self.path) as stream:
            while chunk := stream.read(2**20):
                unpacked.write(chunk)
                if unpacked.tell() > self._max_bytes:
                    raise ValueError(f"it unpacks to more than {self._max_bytes} bytes")
        return unpacked


def _with_whole_directory(archive: zipfile.ZipFile) -> zipfile.ZipFile:
    """Return `archive`, or close it and raise BadZipFile if a damaged directory hides a member.

    zipfile compares a member's two names only when it opens it, and takes the entries after a damaged length of a
    comment for that comment. NumPy writes none.
    """
    try:
        for member in archive.infolist():
            if member.comment:
                raise zipfile.BadZipFile("its directory has a comment where NumPy writes none")
            if member.compress_type in _PACKED and not member.flag_bits & _ENCRYPTED:
                archive.open(member).close()
    except BaseException:
        archive.close()
        raise
    return archive


@dataclass(frozen=True)
class _Layout:
    """The keys of one layout, the first known name of the patterns counting, and what the arrays mean."""

    patterns: tuple[str, ...]
    positions: tuple[str, ...]
    probe: str
    object: str = ""
    fft_ordered: bool = False
    from_middle: bool = False
    ambiguous_quantity: bool = False

    def keys(self, present: Sequence[str]) -> list[str]:
        """List the keys to read; none if `present` lacks patterns or positions."""
        patterns = [key for key in self.patterns if key in present][:1]
        if not patterns or not set(self.positions) <= set(present):
            return []
        return [*patterns, *self.positions, *(key for key in (self.probe, self.object) if key in present)]


_LAYOUTS: Final = {
    "fnostab": _Layout(("counts",), ("positions_px",), "probe", "object"),
    "tike": _Layout(("data",), ("scan",), "probe", fft_ordered=True),
    "ptychopinn": _Layout(
        *(("diffraction", "diff3d"), ("ycoords", "xcoords"), "probeGuess", "objectGuess"),
        from_middle=True,
        ambiguous_quantity=True,
    ),
}
_KNOWN: Final = (
    "`counts` and `positions_px` or `data` and `scan` or `diffraction` or `diff3d` and `ycoords` and `xcoords`"
)


def read_probe(path: str | Path, parameter: str = "data.probe") -> NDArray[np.complex64]:
    """Read the probe of an NPZ file, key `probe` or `probeGuess`.

    Returns complex64 (M, M); leading axes of length one are dropped. Raises ValueError, in one line, as `NpzFile` does,
    if neither key is there, or if the probe is not one square, finite array that is not zero everywhere.
    """
    with closing(NpzFile(path, parameter)) as npz:
        key = next((key for key in ("probe", "probeGuess") if key in npz.keys), None)
        if key is None:
            raise npz.fault(f"must hold the key `probe` or `probeGuess`; it holds {_listed(npz.keys)}")
        array = npz.read(key)
    try:
        return checked_probe(array, key)
    except ValueError as error:
        raise ValueError(printable(f"{error}, in {path}")) from None


def read_scan(path: str | Path, quantity: Quantity = "auto") -> Scan:
    """Read a measured scan in any of the three layouts.

    `quantity` says what the patterns are; amplitudes are squared to counts. `auto` means counts, but is refused for
    PtychoPINN-style files: those usually hold amplitudes, and a guess would be wrong in silence. Raises ValueError, in
    one line, as `NpzFile` does, and: if no layout fits; for patterns that are not n square ones, or negative, NaN or
    infinite, or zero everywhere; for positions that do not match them in number, are not finite, fewer than
    `MIN_POSITIONS`, or span less than 1 px or more than `MAX_EXTENT_PX`; for a probe of another size than the patterns.
    """
    with closing(NpzFile(path)) as npz:
        name = next((name for name, layout in _LAYOUTS.items() if layout.keys(npz.keys)), None)
        if name is None:
            raise npz.fault(f"must hold {_KNOWN}; it holds {_listed(npz.keys)}")
        if _LAYOUTS[name].ambiguous_quantity and quantity == "auto":
            raise ValueError(
                f"`data.quantity` (=auto) must be counts or amplitude for {path}:"
                " patterns of such files are often amplitudes, and nothing in the file says so"
            )
        arrays = {key: npz.read(key) for key in _LAYOUTS[name].keys(npz.keys)}
    try:
        return _scan(arrays, name, squared=quantity == "amplitude")
    except ValueError as error:
        raise ValueError(printable(f"{error}, in {path}")) from None


def write_scan(
    path: str | Path,
    counts: ArrayLike,
    positions_px: ArrayLike,
    probe: ArrayLike | None = None,
    object: ArrayLike | None = None,
) -> None:
    """Write a scan in this package's own layout, compressed by bzip2 if `path` ends in `.bz2`.

    Arguments as in `Scan`; counts of any real type are stored as they are. The file appears whole or not at all, and
    equal arrays give equal bytes. Raises ValueError, in one line, for whatever `read_scan` would refuse and for a name
    that ends in neither `.npz` nor `.npz.bz2`.
    """
    path = Path(path)
    if not path.name.endswith((".npz", ".npz.bz2")):
        raise ValueError(f"`path` (={path}) must end in .npz or .npz.bz2")
    given = {"counts": counts, "positions_px": positions_px, "probe": probe, "object": object}
    arrays = {key: np.asarray(value) for key, value in given.items() if value is not None}
    _scan(arrays, "fnostab")
    packed = io.BytesIO()
    np.savez(packed, **arrays)  # type: ignore[arg-type]  # the stub takes any keyword for `allow_pickle`
    content = bz2.compress(packed.getvalue()) if path.suffix == ".bz2" else packed.getvalue()
    with atomic_write(path) as partial:
        partial.write_bytes(content)


def _scan(arrays: Mapping[str, NDArray[Any]], name: str, squared: bool = False) -> Scan:
    """Make a scan of `arrays`, whose keys are those of layout `name`."""
    layout = _LAYOUTS[name]
    positions = checked_positions({key: arrays[key] for key in layout.positions})
    patterns = next(key for key in layout.patterns if key in arrays)
    counts = checked_counts(arrays[patterns], patterns, len(positions), squared)
    M = counts.shape[-1]
    check_overlap(positions, M, ", ".join(layout.positions))
    probe = checked_probe(arrays[layout.probe], layout.probe) if layout.probe in arrays else None
    if probe is not None and len(probe) != M:
        raise ValueError(f"`{layout.probe}` (={size_text(probe)}) must be {M} x {M}, the size of the patterns")
    return Scan(
        counts=np.fft.fftshift(counts, axes=(-2, -1)) if layout.fft_ordered else counts,
        positions_px=positions - M / 2 if layout.from_middle else positions,
        modes=None if probe is None else probe[None],
        object=checked_image(arrays[layout.object], layout.object) if layout.object in arrays else None,
        layout=name,
    )


def _listed(keys: Iterable[str]) -> str:
    """The first keys of a file, for a message of one line."""
    names = sorted(key if len(key) <= 40 else f"{key[:40]}..." for key in keys)
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "") or "nothing"
