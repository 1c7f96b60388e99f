"""HDF5 files, which are read without trust: nothing outside of the file is opened, and nothing is read unasked."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fnostab.formats import links
from fnostab.formats.links import Elsewhere, TooManyLinks, arrays_in, followed
from fnostab.formats.npz import memory_limit
from fnostab.formats.scan import as_numbers, key_list
from fnostab.io.files import open_binary
from fnostab.io.untrusted import printable, shown

#: Bytes of unpacked chunks that HDF5 keeps, so that frames which share a chunk unpack it once; and its number of slots.
_CACHE_BYTES: Final = 2**27
_CACHE_SLOTS: Final = 12_007
#: What to do about data in another file.
_COPY: Final = "copy it into one file, for example with `h5copy -f ext`"
_SIGNATURE: Final = b"\x89HDF\r\n\x1a\n"


def is_hdf5(path: Path) -> bool:
    """Whether a file has HDF5's signature, at its beginning or at 512, 1024, 2048, ... bytes, after another header."""
    with open_binary(path) as stream:
        place = 0
        while True:
            stream.seek(place)
            head = stream.read(len(_SIGNATURE))
            if head == _SIGNATURE:
                return True
            if len(head) < len(_SIGNATURE):
                return False
            place = 2 * place or 512


class Hdf5File:
    """The arrays of an HDF5 file, each read when asked for.

    `keys` are the full paths of its arrays, also those by soft links, which begin with a slash; links to other files
    are among them, and refused when they are read. `parameter` is what the user calls the file, for the messages. What
    is read as a whole must not add up to more than `max_bytes` (by default the limit of NPZ files). With `may_grow` a
    file may be one that a program is writing to in HDF5's mode for a single writer and several readers (SWMR):
    `is_growing` says whether it is, `wholes_may_grow` whether an array that was read as a whole can become longer.
    Raises ValueError, in one line, if the file is missing, damaged, truncated or has
    too many links, or if what is asked for is missing, not numeric, outside of the file, larger than the limit, or
    packed by an unknown filter.
    """

    def __init__(
        self, path: str | Path, parameter: str = "data.path", max_bytes: int | None = None, may_grow: bool = False
    ) -> None:
        import h5py  # takes a third of a second, and most commands need none

        self.path = Path(path)
        self._parameter = parameter
        self._max_bytes = self._left = memory_limit() if max_bytes is None else max_bytes
        self._h5py = h5py
        self._keys: tuple[str, ...] | None = None
        try:
            open_binary(self.path).close()
        except OSError as error:
            raise self.fault(f"must be a readable file: {error.strerror}") from None
        self.may_grow, self.is_growing, self.wholes_may_grow = may_grow, False, False
        # A program that still has the file open for writing, or a file system without locks, must not keep us out.
        how = {"locking": False, "rdcc_nbytes": _CACHE_BYTES, "rdcc_nslots": _CACHE_SLOTS}
        try:
            self._file = h5py.File(self.path, "r", **how)
        except Exception as error:
            if not may_grow or not _is_written(error):
                raise self.fault(f"must be a whole HDF5 file: {_reason(error)}") from None
            try:
                self._file, self.is_growing = h5py.File(self.path, "r", swmr=True, **how), True
            except Exception as of_swmr:
                raise self.fault(f"must be a whole HDF5 file: {_reason(of_swmr)}") from None

    @property
    def name(self) -> str:
        """The file's own, as the user gave it."""
        return str(self.path)

    @property
    def keys(self) -> tuple[str, ...]:
        """The paths of all arrays."""
        if self._keys is None:
            try:
                self._keys = tuple(arrays_in(self._file))
            except TooManyLinks:
                raise self.fault(f"must hold at most {links.MAX_LINKS} groups and arrays") from None
            except (OSError, RuntimeError, TypeError, KeyError) as error:
                raise self.fault(f"must be a whole HDF5 file: {_reason(error)}") from None
        return self._keys

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def read(self, key: str) -> NDArray[Any]:
        """Read the array `key`."""
        return self.stored(key).whole()

    def stored(self, key: str) -> "_Hdf5Array":
        """Describe the array `key`, after all that can be known about it without reading it was checked."""
        dataset = self._dataset(key)
        self._check_inside(dataset, key)
        try:
            declared = dataset.dtype
            empty = dataset.shape is None
        except Exception:
            raise self.fault(f"must hold numbers, `{key}` is of a type that NumPy lacks") from None
        numbers = None if empty else as_numbers(np.empty(0, declared))
        if numbers is None:
            raise self.fault(f"must hold numbers, `{key}` is {'empty' if empty else self._kind(declared)}")
        self._check_filters(dataset, key)
        at_once = max(math.prod(dataset.chunks or ()), math.prod(dataset.shape[-2:])) * declared.itemsize
        if at_once > self._max_bytes:
            rule = f"must hold frames and chunks of at most {self._max_bytes} bytes, one of `{key}` has {at_once}"
            raise self.fault(rule)
        return _Hdf5Array(self, key, dataset, numbers.dtype)

    def text(self, key: str) -> str | None:
        """Read a short text, None if there is none."""
        try:
            dataset = self._dataset(key)
            self._check_inside(dataset, key)
            if dataset.size != 1 or dataset.dtype.kind not in "SO":
                return None
            value = dataset.asstr()[()]
        except Exception:
            return None
        return str(value if isinstance(value, str) else value.ravel()[0])

    def attributes(self, key: str) -> Mapping[str, Any]:
        """The attributes of an array or a group, each read when asked for; none where it is missing or damaged."""
        try:
            thing = followed(self._file, key)
            return _Attributes(thing.attrs, tuple(thing.attrs))
        except Exception:
            return {}

    def fault(self, rule: str) -> ValueError:
        """Make the error of a broken rule about this file."""
        return ValueError(printable(f"`{self._parameter}` (={self.path}) {rule}"))

    def take(self, size: int, key: str) -> None:
        """Count `size` bytes that are read as a whole against the limit."""
        self._left -= size
        if self._left < 0:
            raise self.fault(f"must hold at most {self._max_bytes} bytes, `{key}` goes beyond")

    def _dataset(self, key: str) -> Any:
        try:
            thing = followed(self._file, key)
        except Elsewhere as there:
            raise self._outside(key, there.file) from None
        except KeyError:
            raise self.fault(f"must hold `{key}`; it holds {key_list(self.keys)}") from None
        except Exception as error:
            raise self.fault(f"must be a whole HDF5 file: `{key}` cannot be read: {_reason(error)}") from None
        if not isinstance(thing, self._h5py.Dataset):
            raise self.fault(f"must hold an array `{key}`, which is a group there")
        return thing

    def _check_inside(self, dataset: Any, key: str) -> None:
        """Refuse an array whose values HDF5 would fetch from other files."""
        if dataset.external:
            raise self._outside(key, dataset.external[0][0])
        if not dataset.is_virtual:
            return
        for source in dataset.virtual_sources():
            if source.file_name != ".":
                raise self._outside(key, source.file_name)
            part = self._dataset(source.dset_name)
            if part.is_virtual or part.external:
                raise self.fault(f"must hold its arrays themselves: `{key}` is made of others that are made of others")

    def _outside(self, key: str, file: object) -> ValueError:
        return self.fault(f"must hold all of its arrays: `{key}` lies in {shown(file)}; {_COPY}")

    def _kind(self, dtype: np.dtype[Any]) -> str:
        """What an array holds that holds no numbers; NumPy's word for most of it is object."""
        h5py = self._h5py
        if h5py.check_string_dtype(dtype):
            return "text"
        if h5py.check_ref_dtype(dtype):
            return "references"
        return "rows of any length" if h5py.check_vlen_dtype(dtype) else shown(dtype)

    def _check_filters(self, dataset: Any, key: str) -> None:
        """Refuse what was packed by a filter that is not here, after those of hdf5plugin were made known."""
        listed = dataset.id.get_create_plist()
        filters = [listed.get_filter(i) for i in range(listed.get_nfilters())]
        available = self._h5py.h5z.filter_avail
        if any(not available(number) for number, *_ in filters):
            import hdf5plugin  # noqa: F401  # registers its filters
        for number, _, _, name in filters:
            if not available(number):
                called = f" ({name.decode('ascii', 'replace')})" if name else ""
                raise self.fault(
                    f"must be packed by a filter that h5py or hdf5plugin has: `{key}` is by filter {number}{called};"
                    " unpack it with `h5repack -f NONE` where that filter is installed"
                )


@dataclass(frozen=True)
class _Attributes(Mapping[str, Any]):
    """Attributes by their names; one that h5py cannot read is as one that is not there."""

    attributes: Any
    names: tuple[str, ...]

    def __getitem__(self, name: str) -> Any:
        if name not in self.names:
            raise KeyError(name)
        try:
            return self.attributes[name]
        except Exception:
            raise KeyError(name) from None

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


class _Hdf5Array:
    """An array in an HDF5 file, as a `Stored`."""

    def __init__(self, file: Hdf5File, key: str, dataset: Any, dtype: np.dtype[Any]) -> None:
        self.shape: tuple[int, ...] = dataset.shape
        self.dtype, self.in_memory, self.may_be_longer = dtype, False, file.may_grow
        self._file, self._key, self._dataset = file, key, dataset

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Frames (k, H, W), as `Stored` says."""
        if len(self.shape) == 2:
            return self._values(())[None][start:stop]
        *outer, inner = self.shape[:-2]
        parts: list[NDArray[Any]] = []
        while start < stop:
            row, first = divmod(start, inner)
            last = min(inner, first + stop - start)
            place = np.unravel_index(row, outer) if outer else ()
            parts.append(self._values((*map(int, place), slice(first, last))))
            start += last - first
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def whole(self) -> NDArray[Any]:
        """The array."""
        self._file.take(math.prod(self.shape) * self.dtype.itemsize, self._key)
        self._file.wholes_may_grow |= self._dataset.maxshape != self._dataset.shape
        return self._values(())

    def _values(self, part: Any) -> NDArray[Any]:
        try:
            numbers = as_numbers(np.asarray(self._dataset[part]))
        except Exception as error:  # h5py hands on whatever HDF5 and the filters say
            reason = f"`{self._key}` cannot be read: {_reason(error)}"
            raise self._file.fault(f"must be a whole HDF5 file: {reason}") from None
        assert numbers is not None
        return numbers


def _is_written(error: Exception) -> bool:
    """Whether HDF5 refuses a file because a program is writing to it, by what it says then."""
    return "already open for write" in str(error)


def _reason(error: Exception) -> str:
    """HDF5's own words for what is wrong, which it puts into brackets at the end."""
    text = " ".join(str(error).split())
    inner = text.partition("(")[2].rpartition(")")[0]
    return shown(inner or text or type(error).__name__)
