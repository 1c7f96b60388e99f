"""Scans and probes in NPZ files: read without trust, written whole or not at all.

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
import math
import tokenize
import warnings
import zipfile
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import psutil
from numpy.typing import ArrayLike, NDArray

from fnostab.io.files import DAMAGE, atomic_write
from fnostab.io.untrusted import printable, shown

Quantity = Literal["auto", "counts", "amplitude"]

#: Most bytes that one file may unpack to, if half of the free memory is not less: a damaged or malicious file must not
#: exhaust it.
MAX_BYTES: Final = 16 * 2**30

#: Fewer positions than this are no scan: neither training nor validation would mean anything.
MIN_POSITIONS: Final = 10

#: A wider scan is in other units.
MAX_EXTENT_PX: Final = 2**15

#: A rectangle of this many times the pixels of all windows is mostly empty: a position is wrong, and the canvas that
#: the object is put together on would exhaust the memory. (Windows that overlap need less than once.)
MAX_SPARSITY: Final = 16

#: Largest and smallest |probe|: beyond, its intensities leave the range of float32.
_PROBE_RANGE: Final = (1e-12, 1e12)

_DAMAGE: Final = (*DAMAGE, MemoryError)
#: What NumPy raises for a header that is none, of another version, or made to confuse Python's parser.
_NO_HEADER: Final = (
    *(ValueError, KeyError, TypeError, OverflowError, MemoryError, RecursionError, SyntaxError, tokenize.TokenError),
)
#: How NumPy packs. (zipfile unpacks bzip2 and LZMA without a limit: a few bytes become gigabytes.)
_PACKED: Final = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}
#: The number of entries in archives that say it elsewhere, having more.
_MORE_ENTRIES: Final = 2**16 - 1
#: Bytes of the record at an archive's end.
_END_RECORD: Final = 22
#: The flag of an encrypted member.
_ENCRYPTED: Final = 0x1


@dataclass(frozen=True, eq=False)
class Scan:
    """A measured scan in this package's conventions, whatever the layout of its file.

    `counts` float32 (n, M, M), zero frequency at M // 2; `positions_px` float64 (n, 2), (row, column) of the window's
    first pixel; `probe` complex64 (M, M) or None; `object` complex64 (H, W), whose pixel (0, 0) is position (0, 0), or
    None; `layout` is fnostab, tike or ptychopinn.
    """

    counts: NDArray[np.float32]
    positions_px: NDArray[np.float64]
    probe: NDArray[np.complex64] | None
    object: NDArray[np.complex64] | None = None
    layout: str = "fnostab"


@dataclass(frozen=True)
class _Layout:
    """The keys of one layout and what they mean."""

    patterns: tuple[str, ...]
    positions: tuple[str, ...]
    probe: str
    object: str | None = None
    fft_ordered: bool = False
    from_middle: bool = False
    ambiguous_quantity: bool = False

    def chosen(self, present: Sequence[str]) -> list[str]:
        """The keys to read: the first name of the patterns, the positions, and probe and object where present."""
        first = next(key for key in self.patterns if key in present)
        return [first, *self.positions, *(key for key in (self.probe, self.object) if key in present and key)]

    def fits(self, present: Container[str]) -> bool:
        return any(key in present for key in self.patterns) and all(key in present for key in self.positions)

    def described(self) -> str:
        return " and ".join((" or ".join(f"`{key}`" for key in self.patterns), *(f"`{key}`" for key in self.positions)))


_LAYOUTS: Final[Mapping[str, _Layout]] = {
    "fnostab": _Layout(("counts",), ("positions_px",), "probe", "object"),
    "tike": _Layout(("data",), ("scan",), "probe", fft_ordered=True),
    "ptychopinn": _Layout(
        ("diffraction", "diff3d"),
        ("ycoords", "xcoords"),
        "probeGuess",
        "objectGuess",
        from_middle=True,
        ambiguous_quantity=True,
    ),
}


_HEADER_READERS: Final = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


class NpzFile:
    """The arrays of an `.npz` or `.npz.bz2` file, each read when asked for and never unpickled.

    `keys` are their names; `parameter` is what the user calls the file, for the messages. What an array's header
    declares is compared with the bytes that are there, and their sum with `max_bytes` (by default the smaller of
    `MAX_BYTES` and half of the free memory), before memory is taken. Nothing is ever written under a name that the
    file gives. Raises ValueError, in one line, if the file is missing, damaged, truncated or too large, or if an array
    that is asked for is pickled, encrypted, not numeric, there twice, or packed in a way that NumPy does not use.
    """

    def __init__(self, path: str | Path, parameter: str = "data.path", max_bytes: int | None = None) -> None:
        self.path = Path(path)
        self._parameter = parameter
        if max_bytes is None:
            max_bytes = min(MAX_BYTES, psutil.virtual_memory().available // 2)
        self._max_bytes = self._left = max_bytes
        if self.path.exists() and not (self.path.is_file() or self.path.is_dir()):
            raise self.fault("must be a readable file: it is a device or a pipe")
        try:
            with open(self.path, "rb") as stream:
                magic = stream.read(3)
        except OSError as error:
            raise self.fault(f"must be a readable file: {error.strerror}") from None
        if magic != b"BZh" and magic[:2] != b"PK":
            raise self.fault("must be an NPZ file (.npz or .npz.bz2)")
        try:
            self._zip = zipfile.ZipFile(self._unpacked() if magic == b"BZh" else self.path)
        except _DAMAGE as error:
            raise self._damaged(error) from None
        try:
            self._check_names()
        except _DAMAGE as error:
            self._zip.close()
            raise self._damaged(error) from None
        names = self._zip.namelist()
        self.keys = tuple(name.removesuffix(".npy") for name in names if name.endswith(".npy"))

    def close(self) -> None:
        """Close the file."""
        self._zip.close()

    def read(self, key: str) -> NDArray[Any]:
        """Read the array `key`, which must be one of `keys`."""
        self._check_member(key)
        try:
            dtype, n_declared, n_present = self._header(key)
        except _DAMAGE as error:
            raise self._damaged(error) from None
        if dtype.hasobject:
            raise self.fault(f"must not hold pickled objects, `{key}` is one")
        if dtype.kind not in "biufc":
            raise self.fault(f"must hold numbers, `{key}` is {shown(dtype)}")
        if n_declared != n_present:
            raise self.fault(f"must be a whole NPZ file: `{key}` has {n_present} bytes of {n_declared}")
        self._left -= n_declared
        if self._left < 0:
            raise self.fault(f"must hold at most {self._max_bytes} bytes, `{key}` goes beyond")
        try:
            with self._zip.open(f"{key}.npy") as stream, _quiet():
                return np.asarray(np.lib.format.read_array(stream, allow_pickle=False))
        except ValueError:
            raise self.fault(f"must be a whole NPZ file: `{key}` cannot be read to its end") from None
        except _DAMAGE as error:
            raise self._damaged(error) from None

    def fault(self, rule: str) -> ValueError:
        """Make the error of a broken rule about this file."""
        return ValueError(printable(f"`{self._parameter}` (={self.path}) {rule}"))

    def _check_names(self) -> None:
        """Check that the directory is whole, which zipfile does not: a damaged name or entry would go unnoticed.

        It tells how many entries there are, and zipfile compares a name in it with that at the member on opening.
        """
        end = self._end_record()
        n_declared = int.from_bytes(end[10:12], "little")
        if n_declared not in (len(self._zip.infolist()), _MORE_ENTRIES):
            raise zipfile.BadZipFile(f"its directory has {len(self._zip.infolist())} entries of {n_declared}")
        for member in self._zip.infolist():
            if member.compress_type in _PACKED and not member.flag_bits & _ENCRYPTED:
                self._zip.open(member).close()

    def _end_record(self) -> bytes:
        """The record at the end of the archive that says where its directory is."""
        stream = self._zip.fp
        assert stream is not None
        size = stream.seek(0, io.SEEK_END)
        stream.seek(max(0, size - _END_RECORD - 2**16))  # a comment may follow
        tail = stream.read()
        return tail[tail.rfind(b"PK\x05\x06") :]

    def _check_member(self, key: str) -> None:
        """Refuse what NumPy never writes, before anything of it is unpacked."""
        if self.keys.count(key) > 1:
            raise self.fault(f"must hold each array once, `{key}` is there {self.keys.count(key)} times")
        member = self._zip.getinfo(f"{key}.npy")
        if member.flag_bits & _ENCRYPTED:
            raise self.fault(f"must not be encrypted, `{key}` is")
        if member.compress_type not in _PACKED:
            raise self.fault(f"must be stored or deflated, `{key}` is packed by method {member.compress_type}")

    def _header(self, key: str) -> tuple[np.dtype[Any], int, int]:
        """The dtype of `key`, and its bytes as its header declares them and as the archive does."""
        with self._zip.open(f"{key}.npy") as stream:
            try:
                version = np.lib.format.read_magic(stream)
                with _quiet():
                    shape, _, dtype = _HEADER_READERS[version](stream)
            except _NO_HEADER:
                raise ValueError(f"`{key}` has a header that cannot be read") from None
            if not all(0 <= length < 2**63 for length in shape):
                raise ValueError(f"`{key}` has a header that cannot be read")
            n_present = self._zip.getinfo(f"{key}.npy").file_size - stream.tell()
        return dtype, math.prod(shape) * dtype.itemsize, n_present

    def _unpacked(self) -> io.BytesIO:
        """The archive inside a `.bz2` file."""
        unpacked = io.BytesIO()
        with bz2.open(self.path) as stream:
            while chunk := stream.read(2**20):
                unpacked.write(chunk)
                if unpacked.tell() > self._max_bytes:
                    raise ValueError(f"it unpacks to more than {self._max_bytes} bytes")
        return unpacked

    def _damaged(self, error: Exception) -> ValueError:
        return self.fault(f"must be a whole NPZ file: {shown(' '.join(str(error).split()) or type(error).__name__)}")


@contextmanager
def _quiet() -> Iterator[None]:
    """Read files of Python 2 and of old NumPys without NumPy's warnings about them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


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
        return _probe(array, key)
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
        name = next((name for name, layout in _LAYOUTS.items() if layout.fits(npz.keys)), None)
        if name is None:
            known = " or ".join(layout.described() for layout in _LAYOUTS.values())
            raise npz.fault(f"must hold {known}; it holds {_listed(npz.keys)}")
        layout = _LAYOUTS[name]
        if layout.ambiguous_quantity and quantity == "auto":
            raise ValueError(
                f"`data.quantity` (=auto) must be counts or amplitude for {path}:"
                " patterns of such files are often amplitudes, and nothing in the file says so"
            )
        arrays = {key: npz.read(key) for key in layout.chosen(npz.keys)}
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
    """The scan in `arrays`, which are those of layout `name`."""
    layout = _LAYOUTS[name]
    positions = _positions({key: arrays[key] for key in layout.positions})
    patterns_key = next(key for key in layout.patterns if key in arrays)
    counts = _counts(arrays[patterns_key], patterns_key, len(positions), squared)
    M = counts.shape[-1]
    _check_overlap(positions, M, ", ".join(layout.positions))
    probe = _probe(arrays[layout.probe], layout.probe) if layout.probe in arrays else None
    if probe is not None and len(probe) != M:
        raise ValueError(f"`{layout.probe}` (={_size(probe)}) must be {M} x {M}, the size of the patterns")
    reference = _image(arrays[layout.object], layout.object) if layout.object and layout.object in arrays else None
    return Scan(
        counts=np.fft.fftshift(counts, axes=(-2, -1)) if layout.fft_ordered else counts,
        positions_px=positions - M / 2 if layout.from_middle else positions,
        probe=probe,
        object=reference,
        layout=name,
    )


def _counts(array: NDArray[Any], key: str, n: int, squared: bool) -> NDArray[np.float32]:
    """The `n` patterns of `array` as float32 counts (n, M, M)."""
    patterns = _without_leading_ones(array, 3)
    if patterns.ndim == 3 and patterns.shape[0] != n and patterns.shape[2] == n:
        patterns = np.moveaxis(patterns, 2, 0)
    if patterns.ndim != 3 or patterns.shape[1] != patterns.shape[2] or patterns.dtype.kind not in "biuf":
        raise ValueError(f"`{key}` (={_size(array)} {array.dtype}) must be n square real patterns, (n, M, M)")
    if len(patterns) != n:
        raise ValueError(f"`{key}` (={len(patterns)} patterns) must match the {n} positions")
    with np.errstate(over="ignore"):  # what overflows float32 becomes infinite and is refused below
        counts = np.square(patterns, dtype=np.float32) if squared else patterns.astype(np.float32)
    for broken, rule in ((~np.isfinite(counts), "finite"), (np.asarray(patterns < 0), ">= 0")):
        if broken.any():
            first = np.unravel_index(int(broken.argmax()), broken.shape)
            where = ", ".join(str(int(index)) for index in first)
            raise ValueError(f"`{key}` (={patterns[first]} at pattern, row, column {where}) must be {rule}")
    if not counts.any():
        raise ValueError(f"`{key}` (=0 everywhere) must hold some counts")
    return np.ascontiguousarray(counts)


def _positions(arrays: Mapping[str, NDArray[Any]]) -> NDArray[np.float64]:
    """Positions (n, 2) from one array of that shape, or from a row and a column array (n,)."""
    name = ", ".join(arrays)
    sizes = " and ".join(_size(array) for array in arrays.values())
    parts = [_without_leading_ones(array, 3 - len(arrays)) for array in arrays.values()]
    if any(part.dtype.kind not in "iuf" for part in parts):
        raise ValueError(f"`{name}` (={parts[0].dtype}) must be real numbers")
    if len(parts) == 2:
        rows, cols = (part.reshape(-1) for part in parts)
        if len(rows) != len(cols):
            raise ValueError(f"`{name}` (={sizes}) must be as many rows as columns")
        positions = np.stack([rows, cols], axis=1).astype(np.float64)
    else:
        positions = parts[0].astype(np.float64)
    if positions.ndim != 2 or positions.shape[1] != 2:
        raise ValueError(f"`{name}` (={sizes}) must be row and column of n positions, (n, 2)")
    if len(positions) < MIN_POSITIONS:
        raise ValueError(f"`{name}` (={len(positions)} positions) must be at least {MIN_POSITIONS} positions")
    if not np.isfinite(positions).all():
        raise ValueError(f"`{name}` (={positions[~np.isfinite(positions)][0]}) must be finite")
    with np.errstate(over="ignore"):
        extent = float(np.ptp(positions, axis=0).max())
    if not 1 <= extent <= MAX_EXTENT_PX:
        raise ValueError(f"`{name}` (=extent {extent:g}) must span 1 to {MAX_EXTENT_PX} px; are they in pixels?")
    return positions


def _check_overlap(positions: NDArray[np.float64], M: int, name: str) -> None:
    """Refuse windows (M, M) that leave most of their rectangle empty."""
    height, width = (float(extent) + M for extent in np.ptp(positions, axis=0))
    most = MAX_SPARSITY * len(positions) * M**2
    if height * width > most:
        raise ValueError(
            f"`{name}` (=a rectangle of {height:.0f} x {width:.0f} px) must cover at most {most} px,"
            f" {MAX_SPARSITY} times the {len(positions)} windows of {M} x {M}: is one of them wrong?"
        )


def _probe(array: NDArray[Any], key: str) -> NDArray[np.complex64]:
    """One square probe (M, M)."""
    probe = _image(array, key)
    if probe.shape[0] != probe.shape[1]:
        raise ValueError(f"`{key}` (={_size(array)}) must be one square array, (M, M)")
    if not probe.any():
        raise ValueError(f"`{key}` (=0 everywhere) must hold some light")
    least, most = _PROBE_RANGE
    brightest = float(np.abs(probe).max())
    if not least <= brightest <= most:
        raise ValueError(
            f"`{key}` (=at most {brightest:g}) must have its largest amplitude within {least:g} to {most:g}"
        )
    return probe


def _image(array: NDArray[Any], key: str) -> NDArray[np.complex64]:
    """One finite complex image (H, W)."""
    image = _without_leading_ones(array, 2)
    if image.ndim != 2 or image.dtype.kind not in "iufc" or not image.size:
        raise ValueError(f"`{key}` (={_size(array)} {array.dtype}) must be one array of numbers with two axes")
    with np.errstate(over="ignore"):
        image = np.ascontiguousarray(image, dtype=np.complex64)
    if not np.isfinite(image).all():
        raise ValueError(f"`{key}` (={image[~np.isfinite(image)][0]}) must be finite")
    return image


def _without_leading_ones(array: NDArray[Any], ndim: int) -> NDArray[Any]:
    """Drop leading axes of length one until `ndim` axes are left."""
    while array.ndim > ndim and array.shape[0] == 1:
        array = array[0]
    return array


def _size(array: NDArray[Any]) -> str:
    return " x ".join(str(length) for length in array.shape) or "a scalar"


def _listed(keys: Iterable[str]) -> str:
    """The first keys of a file, for a message of one line."""
    names = sorted(key if len(key) <= 40 else f"{key[:40]}..." for key in keys)
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "") or "nothing"
