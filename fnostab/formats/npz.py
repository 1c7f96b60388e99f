"""NPZ files, plain or compressed by bzip2, which are read without trust.

Plain `.npz` and `.npz.bz2` are told apart by their first bytes, not by their names.
"""

import bz2
import io
import math
import warnings
import zipfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
import psutil
from numpy.typing import NDArray

from fnostab.formats.frames import InMemory, Stored
from fnostab.formats.scan import as_numbers, key_list
from fnostab.io.files import DAMAGE, open_binary
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
#: Bytes of an array that may be a short text.
_LONGEST_TEXT: Final = 2**16


def memory_limit() -> int:
    """Most bytes that are read of one file as wholes: the smaller of `MAX_BYTES` and half of the free memory."""
    return min(MAX_BYTES, psutil.virtual_memory().available // 2)


class NpzFile:
    """The arrays of an `.npz` or `.npz.bz2` file, each read when asked for and never unpickled.

    `keys` are their names; `parameter` is what the user calls the file, for the messages; `unpacked` says that its
    content is in memory, as that of a `.bz2` file. The sizes that the archive
    declares for the arrays that are read must not add up to more than `max_bytes` (by default the smaller of
    `MAX_BYTES` and half of the free memory). Nothing is ever written under a name that the file gives. Raises
    ValueError, in one line, if the file is missing, damaged, truncated or too large, or if an array that is asked for
    is pickled, encrypted, not numeric, there twice, or packed in a way that NumPy does not use.
    """

    def __init__(self, path: str | Path, parameter: str = "data.path", max_bytes: int | None = None) -> None:
        self.path = Path(path)
        self._parameter = parameter
        self._streams = ExitStack()
        self.unpacked = False
        if max_bytes is None:
            max_bytes = memory_limit()
        self._max_bytes = self._left = max_bytes
        try:
            self._zip = self._opened()
        except OSError as error:
            raise self.fault(f"must be a readable file: {error.strerror}") from None
        names = self._zip.namelist()
        self.keys = tuple(name.removesuffix(".npy") for name in names if name.endswith(".npy"))

    def close(self) -> None:
        """Close the file and what streams from it."""
        self._streams.close()
        self._zip.close()

    def open_member(self, member: zipfile.ZipInfo) -> IO[bytes]:
        """Open a member of the archive to read its bytes, until the file is closed."""
        return self._streams.enter_context(self._zip.open(member))

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
        if not isinstance(array, np.ndarray) or (numbers := as_numbers(array)) is None:
            raise self.fault(f"must hold numbers, `{key}` is {shown(getattr(array, 'dtype', 'no array'))}")
        return numbers

    def stored(self, key: str) -> Stored:
        """Describe the array `key`, which is read frame by frame if it is stored so, and else at once."""
        member = self._checked_member(key)
        try:
            with self._zip.open(member) as stream:
                shape, fortran_order, dtype = _npy_header(stream)
                nbytes = math.prod(shape) * dtype.itemsize
                streamed = not fortran_order and dtype.kind in "biuf" and len(shape) >= 3
                if streamed and nbytes == member.file_size - stream.tell():
                    return _NpyStream(self, member, stream.tell(), shape, dtype)
        except Exception:
            pass  # whatever is wrong is said when the array is read
        return InMemory(self.read(key))

    def text(self, key: str) -> str | None:
        """Read a short text, None if there is none."""
        member = self._checked_member(key)
        if member.file_size > _LONGEST_TEXT:
            return None
        try:
            with self._zip.open(member) as stream:
                array = np.load(stream, allow_pickle=False)
        except Exception:
            return None
        return str(array[()]) if array.dtype.kind == "U" and array.ndim == 0 else None

    def attributes(self, key: str) -> Mapping[str, Any]:
        """Nothing: NPZ files have no attributes."""
        return {}

    @property
    def name(self) -> str:
        """The file's own, as the user gave it."""
        return str(self.path)

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
                content, self.unpacked = self._unpacked(), True
                magic = content.getvalue()[:4]
            if magic in _ZIP_MAGIC:
                return _with_whole_directory(zipfile.ZipFile(content))
        except (*DAMAGE, MemoryError) as error:
            reason = shown(" ".join(str(error).split()) or type(error).__name__)
            raise self.fault(f"must be a whole NPZ file: {reason}") from None
        raise self.fault("must be an NPZ file (.npz or .npz.bz2)")

    def _checked_member(self, key: str) -> zipfile.ZipInfo:
        """Refuse what is not there, and what NumPy never writes, before anything of it is unpacked."""
        if key not in self.keys:
            raise self.fault(f"must hold `{key}`; it holds {key_list(self.keys)}")
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


def _npy_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, order and type of the array that follows."""
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran_order, dtype = read(stream)
    return shape, fortran_order, dtype


class _NpyStream:
    """An array in row-major order in an archive, read from its beginning on, never as a whole."""

    def __init__(
        self, file: NpzFile, member: zipfile.ZipInfo, offset: int, shape: tuple[int, ...], dtype: np.dtype[Any]
    ) -> None:
        self.shape, self.dtype, self.in_memory, self.may_be_longer = shape, dtype, file.unpacked, False
        self._file, self._member, self._offset = file, member, offset
        self._stream: IO[bytes] | None = None
        self._next = 0

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Frames (k, H, W), as `Stored` says; begins anew if it is past `start`."""
        frame = self.shape[-2:]
        frame_bytes = math.prod(frame) * self.dtype.itemsize
        try:
            if self._stream is None or start < self._next:
                self._rewind()
            assert self._stream is not None
            for _ in range(self._next, start):
                self._stream.read(frame_bytes)
            content = self._stream.read((stop - start) * frame_bytes)
            self._next = stop
            if stop == math.prod(self.shape[:-2]):
                self._stream.read(1)  # at the end, zipfile compares the checksum
            return np.frombuffer(content, self.dtype).reshape(stop - start, *frame)
        except (*DAMAGE, MemoryError) as error:
            key = self._member.filename.removesuffix(".npy")
            raise self._file.fault(f"must be a whole NPZ file: `{key}` cannot be read") from error

    def whole(self) -> NDArray[Any]:
        """The array."""
        return self._file.read(self._member.filename.removesuffix(".npy"))

    def _rewind(self) -> None:
        if self._stream is not None:
            self._stream.close()
        self._stream = self._file.open_member(self._member)
        self._stream.read(self._offset)
        self._next = 0
