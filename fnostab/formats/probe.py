"""Probes that are given by themselves, as `data.probe`."""

from contextlib import closing
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fnostab.formats.containers import open_container
from fnostab.formats.product import first_coherent
from fnostab.formats.scan import checked_modes, key_list
from fnostab.formats.values import present
from fnostab.io.untrusted import printable

#: Where files have a probe: this package's and PtychoPINN's names, CXI's, and CXI's of ptychodus.
_KEYS = ("probe", "probeGuess", "/entry_1/instrument_1/source_1/illumination", "/entry_1/image_1/data")


def read_probe(path: str | Path, parameter: str = "data.probe") -> NDArray[np.complex64]:
    """Read the first mode of the probe in a file, complex64 (M, M); raises as `read_modes` does."""
    return np.asarray(read_modes(path, parameter)[0])


def read_modes(path: str | Path, parameter: str = "data.probe") -> NDArray[np.complex64]:
    """Read the probe of an NPZ, HDF5 or CXI file, under `probe` or `probeGuess` or where CXI has it.

    Returns its modes, complex64 (k, M, M); axes of length one are dropped. Raises ValueError, in one line, for files
    that cannot be read, if no key is there, or if the probe is not square, finite, and somewhere not zero.
    """
    with closing(open_container(Path(path), parameter)) as file:
        key = present(file, *_KEYS)
        if key is None:
            raise file.fault(f"must hold the key `probe` or `probeGuess`; it holds {key_list(file.keys)}")
        array = first_coherent(file.read(key))
    try:
        return checked_modes(array, key)
    except ValueError as error:
        raise ValueError(printable(f"{error}, in {path}")) from None
