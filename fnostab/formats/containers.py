"""Which kind of file of arrays a file is, by its first bytes; for kinds that are not read, what to do about it."""

from pathlib import Path
from typing import Final

from fnostab.formats.hdf5 import Hdf5File, is_hdf5
from fnostab.formats.npz import NpzFile
from fnostab.formats.raw import ScanFile
from fnostab.io.files import open_binary
from fnostab.io.untrusted import printable

#: How NPZ files begin: as zip archives, empty ones too, or as a bzip2 stream.
_NPZ: Final = (b"PK\x03\x04", b"PK\x05\x06", b"BZh")
_READABLE: Final = "an NPZ file (.npz or .npz.bz2) or HDF5 (.h5, .cxi, .ptyd, .mat of version 7.3)"
#: How other files begin, and what their owners do.
_OTHERS: Final = {
    b"\x93NUMPY": "not one bare array (.npy): put patterns and positions into one file,"
    " numpy.savez('scan.npz', counts=numpy.load('data.npy'), positions_px=...)",
    b"MATLAB 5.0": "not MATLAB's version 5: save it with -v7.3 in MATLAB, or convert it,"
    " numpy.savez('scan.npz', **scipy.io.loadmat('scan.mat'))",
    b"\x1f\x8b": "not packed by gzip: unpack it with gunzip",
    b"\xfd7zXZ": "not packed by xz: unpack it with unxz",
    b"\x28\xb5\x2f\xfd": "not packed by Zstandard: unpack it with unzstd",
    b"\x80": "not a pickle, which is never read: its program must write arrays, numpy.savez",
    **dict.fromkeys(
        (b"II*\x00", b"MM\x00*"),
        "not TIFF: put its frames and the positions into one file,"
        " numpy.savez('scan.npz', counts=..., positions_px=...)",
    ),
    b"\x0e\x03\x13\x01": "not HDF4: convert it with h4toh5",
}


def open_container(path: Path, parameter: str = "data.path", may_grow: bool = False) -> ScanFile:
    """Open a file of arrays, which the user gave as `parameter`; `may_grow` as in `Hdf5File`.

    Raises ValueError, in one line, for a file that cannot be read, is damaged, or is of another kind.
    """
    try:
        with open_binary(path) as stream:
            head = stream.read(16)
        if head.startswith(_NPZ):
            return NpzFile(path, parameter)
        if is_hdf5(path):
            return Hdf5File(path, parameter, may_grow=may_grow)
    except OSError as error:
        raise ValueError(printable(f"`{parameter}` (={path}) must be a readable file: {error.strerror}")) from None
    advice = next((f", {text}" for begin, text in _OTHERS.items() if head.startswith(begin)), "")
    raise ValueError(printable(f"`{parameter}` (={path}) must be {_READABLE}{advice}"))
