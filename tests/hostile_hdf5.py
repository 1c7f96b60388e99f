"""Bad HDF5 files as a table: what is given to `fnostab`, and the files that it speaks of. Part of `hostile.py`."""

import gzip
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np

N_POSITIONS, M = 12, 16
COUNTS = np.arange(N_POSITIONS * M * M, dtype=np.uint16).reshape(N_POSITIONS, M, M) % 7
POSITIONS_M = np.stack([np.arange(N_POSITIONS) * 1.5e-8, np.arange(N_POSITIONS) * -2e-8, np.zeros(N_POSITIONS)], axis=1)
DATA, TRANSLATION = "entry_1/data_1/data", "entry_1/data_1/translation"
#: The arrays of a valid CXI file, and what of `data import` it needs.
CXI = {
    DATA: COUNTS,
    TRANSLATION: POSITIONS_M,
    "entry_1/instrument_1/source_1/illumination": (np.eye(M) + 1j).astype(np.complex64),
}
IMPORT = ("data", "import", "scan.cxi", "--N", "16", "--object-pixel-m", "1e-8")
NAMED = ("data", "import", "scan.h5", "--N", "16", "--object-pixel-m", "1e-8", "--paths")

Fill = Callable[[h5py.File], object]


def hdf5(fill: Fill | None = None, name: str = "scan.cxi", **changes: Any) -> Callable[[Path], None]:
    """Write the valid CXI file with `changes` (slashes as __); None leaves an array out, `fill` adds to it."""

    def make(folder: Path) -> None:
        with h5py.File(folder / name, "w") as file:
            for key, array in {**CXI, **{key.replace("__", "/"): value for key, value in changes.items()}}.items():
                if array is not None:
                    file[key] = array
            if fill:
                fill(file)

    return make


def patterns(fill: Callable[[h5py.File, str], object]) -> Callable[[Path], None]:
    """Write the valid CXI file with other patterns, which `fill(file, key)` writes."""
    return hdf5(lambda file: fill(file, DATA), **{DATA: None})


def changed(change: Callable[[bytes], bytes], name: str = "scan.cxi") -> Callable[[Path], None]:
    """Write the valid CXI file with other bytes."""

    def make(folder: Path) -> None:
        packed = io.BytesIO()
        with h5py.File(packed, "w") as file:
            for key, array in CXI.items():
                file[key] = array
        (folder / name).write_bytes(change(packed.getvalue()))

    return make


def _virtual(file: h5py.File, key: str) -> None:
    layout = h5py.VirtualLayout(COUNTS.shape, COUNTS.dtype)
    layout[:] = h5py.VirtualSource("raw.h5", "data", COUNTS.shape)
    file.create_virtual_dataset(key, layout)


def _raw(file: h5py.File, key: str) -> None:
    file.create_dataset(key, COUNTS.shape, COUNTS.dtype, external=[("/etc/passwd", 0, COUNTS.nbytes)])


def _linked(target: object) -> Callable[[Path], None]:
    return patterns(lambda file, key: file.__setitem__(key, target))


def _dataset(*arguments: Any, **options: Any) -> Callable[[Path], None]:
    return patterns(lambda file, key: file.create_dataset(key, *arguments, **options))


def _by_unknown_filter(folder: Path) -> None:
    _dataset(data=COUNTS, chunks=(1, M, M), **hdf5plugin.Bitshuffle())(folder)
    content = (folder / "scan.cxi").read_bytes()
    number = hdf5plugin.BSHUF_ID.to_bytes(2, "little")
    (folder / "scan.cxi").write_bytes(content.replace(number, (32767).to_bytes(2, "little")))


def _links(file: h5py.File) -> None:
    link = h5py.SoftLink("/")
    for i in range(50_000):
        file[f"links/{i}"] = link


def _named(folder: Path) -> None:
    hdf5(name="scan.h5", d=COUNTS, x=POSITIONS_M[:, 0], y=POSITIONS_M[:, 1])(folder)


def _ptychodus(folder: Path) -> None:
    np.savez(folder / "scan.npz", patterns=COUNTS, indexes=np.arange(N_POSITIONS))


#: By the input's name: the arguments of `fnostab`, and who writes the files.
FILES: Mapping[str, tuple[Sequence[str], Callable[[Path], None] | None]] = {
    **{
        name: (IMPORT, make)
        for name, make in {
            "a truncated HDF5 file": changed(lambda content: content[:5000]),
            "an HDF5 file of nothing": hdf5(**dict.fromkeys(CXI)),
            "CXI without positions": hdf5(**{TRANSLATION: None}),
            "CXI with fewer positions than patterns": hdf5(**{TRANSLATION: POSITIONS_M[:-1]}),
            "CXI on a tilted detector": hdf5(
                entry_1__instrument_1__detector_1__basis_vectors=np.array([[0, -1.0, 0.2], [-1.0, 0, 0]])
            ),
            "HDF5 patterns that are a link to another file": _linked(h5py.ExternalLink("/etc/passwd", "/data")),
            "HDF5 patterns that are stored in another file": patterns(_raw),
            "HDF5 patterns that are put together from another file": patterns(_virtual),
            "HDF5 patterns that are a group": patterns(lambda file, key: file.create_group(f"{key}/more/data")),
            "HDF5 patterns of text": _dataset(data=np.full(N_POSITIONS, "7", h5py.string_dtype())),
            "HDF5 patterns of references": _dataset((N_POSITIONS, M, M), h5py.ref_dtype),
            "HDF5 patterns of rows of any length": _dataset((N_POSITIONS, M), h5py.vlen_dtype(np.int32)),
            "HDF5 patterns of pairs": _dataset(data=np.zeros(COUNTS.shape, [("a", "f4"), ("b", "f4")])),
            "complex HDF5 patterns": _dataset(data=COUNTS * 1j),
            "an HDF5 array without a size": _dataset(data=h5py.Empty("f4")),
            "HDF5 patterns by an unknown filter": _by_unknown_filter,
            "an HDF5 file of 50,000 links": hdf5(_links),
            "names in HDF5 that drive the terminal": hdf5(
                **dict.fromkeys(CXI), **{"\x1b[2J\x1b]0;owned\x07": 1, "a\nfnostab: error: b\r": 2}
            ),
        }.items()
    },
    "an unknown preset of paths": ((*NAMED, "diamnd"), _named),
    "a path without a name": ((*NAMED, "/d,x=/x,y=/y"), _named),
    "a named array that is not there": ((*NAMED, "patterns=/data,x_m=/x,y_m=/y"), _named),
    "named positions without a unit": ((*NAMED, "patterns=/d,x=/x,y=/y"), _named),
    "patterns of ptychodus without their product": (("data", "import", "scan.npz"), _ptychodus),
    "a product that is not there": (("data", "import", "scan.npz", "--positions", "nowhere.h5"), _ptychodus),
    "a product that is none": (("data", "import", "scan.npz", "--positions", "scan.npz"), _ptychodus),
    "a MATLAB file of version 5": (IMPORT, changed(lambda _: b"MATLAB 5.0 MAT-file, Platform: GLNXA64".ljust(200))),
    "a scan packed by gzip": (IMPORT, changed(lambda content: gzip.compress(content, mtime=0))),
    "a TIFF": (IMPORT, changed(lambda _: b"II*\0".ljust(200))),
}

#: The same, of which no more may be read than a limit that the name says.
LIMITED: Mapping[str, tuple[Sequence[str], Callable[[Path], None], int]] = {
    "HDF5 patterns that declare terabytes, with the limit lowered to 1 GiB": (
        IMPORT,
        _dataset((N_POSITIONS, 10**6, 10**6), "f4", chunks=(1, 64, 64)),
        2**30,
    ),
    "an HDF5 chunk of 4 MB, with the limit lowered to 1 MiB": (
        IMPORT,
        _dataset((N_POSITIONS, 64, 64), "u4", chunks=(256, 64, 64), maxshape=(None, 64, 64), compression="gzip"),
        2**20,
    ),
    "HDF5 positions that declare gigabytes, with the limit lowered to 1 GiB": (
        IMPORT,
        hdf5(
            lambda file: file.create_dataset(TRANSLATION, (10**8, 1, 3), "f8", chunks=(1000, 1, 3)),
            **{TRANSLATION: None},
        ),
        2**30,
    ),
}
