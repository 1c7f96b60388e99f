"""Whatever array stands in the place of another, a scan is read, or refused in one line, without a warning."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import test_cxi
import test_ptychodus
from raw_scans import BAD, CORNERS, ENERGY_EV, MODES, N_FRAMES, OBJECT, PIXEL_M, SQUARE

from fnostab.config import ReadingConfig
from fnostab.dataset import import_scan

#: What stands there instead; None: nothing does.
OTHERS: Mapping[str, Any] = {
    "nothing": None,
    "NaN": np.nan,
    "the largest": 1e308,
    "the smallest": 5e-324,
    "complex": 1j,
    "text": "text",
    "no frames": np.zeros((12, 0, 6)),
    "a table": np.zeros(3, [("a", "f4"), ("b", "i2")]),
    "large integers": np.full(N_FRAMES, 2**63 - 1),
    "a plane": np.full((6, 6), -1.0),
    "frames of signalling NaN": np.full((N_FRAMES, 6, 6), 0x7FA00000, "u4").view("f4"),
    "complex frames": np.ones((N_FRAMES, 6, 6), complex),
    "beyond double precision": np.ones((2, 3), np.longdouble) * np.longdouble("1e4000"),
}
CXI = {
    **test_cxi.ARRAYS,
    "entry_1/instrument_1/detector_1/mask": BAD.astype("u4"),
    "entry_1/instrument_1/detector_1/basis_vectors": np.array([[0, -1.0, 0], [-1.0, 0, 0]]),
    "entry_1/instrument_1/source_1/illumination": MODES,
    "entry_1/instrument_1/beam_1/energy": 8.0,
}
PTYD = {
    **{
        f"meta/{key}": value
        for key, value in {"energy": 8.0, "distance": 1.5, "psize": 75e-6, "center": [3.0, 3.0]}.items()
    },
    **{"chunks/0/data": SQUARE, "chunks/0/positions": CORNERS * PIXEL_M, "chunks/0/weights": np.ones(SQUARE.shape)},
    "info/rebin": 1,
}
TRAINING = {
    **{"patterns": SQUARE, "bad_pixels": BAD, "probe": MODES, "object": OBJECT, "photon_energy_eV": ENERGY_EV},
    **{f"probe_position_{axis}_px": CORNERS[:, i] for i, axis in enumerate("yx")},
    **{"object_pixel_width_m": PIXEL_M, "detector_object_distance_m": 1.0},
}
NAMED = {
    **{"d": SQUARE, "x": CORNERS[:, 1] * PIXEL_M, "y": CORNERS[:, 0] * PIXEL_M, "p": MODES, "o": OBJECT, "m": ~BAD},
    **{"e": 8.0, "z": 1.5, "s": 75e-6},
}
PATHS = "patterns=d,x_m=x,y_m=y,probe=p,object=o,mask=m,energy=e,distance=z,detector_pixel=s"
PRODUCT = {
    **{f"probe_position_{axis}_m": test_ptychodus.MIDDLES_M[:, i] for i, axis in enumerate("yx")},
    **{"probe": MODES[None], "object": OBJECT[None], "probe_position_indexes": np.arange(N_FRAMES)},
    **{"object_pixel_width_m": PIXEL_M, "object_pixel_height_m": PIXEL_M, "object_center_x_m": 1e-6},
}


def hdf5(path: Path, arrays: Mapping[str, Any]) -> Path:
    with h5py.File(path, "w") as file:
        for key, array in arrays.items():
            file[key] = array
    return path


def npz(path: Path, arrays: Mapping[str, Any]) -> Path:
    np.savez(path, **arrays)
    return path


def check(path: Path, **reading: Any) -> None:
    """Read the scan; all that may come of it is a `ValueError` of one line that names what is wrong."""
    try:
        import_scan(path, 4, quantity="counts", reading=ReadingConfig(**reading))
    except ValueError as error:
        text = str(error)
        if not (text.startswith("`") and text.isprintable()):
            raise AssertionError(text) from error


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize(
    ("write", "name", "arrays", "reading"),
    [
        (hdf5, "scan.cxi", CXI, {}),
        (hdf5, "scan.ptyd", PTYD, {}),
        (hdf5, "training.h5", TRAINING, {}),
        (npz, "named.npz", NAMED, {"paths": PATHS}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_any_array_in_any_place_is_read_or_refused_in_one_line(
    tmp_path: Path, write: Callable[..., Path], name: str, arrays: Mapping[str, Any], reading: dict, other: str
) -> None:
    for key in arrays:
        changed = {**arrays, key: OTHERS[other]}
        check(write(tmp_path / name, {key: array for key, array in changed.items() if array is not None}), **reading)


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("write", [hdf5, npz])
def test_any_array_in_a_product_is_read_or_refused_in_one_line(tmp_path: Path, write: Any, other: str) -> None:
    ending = "npz" if write is npz else "h5"
    patterns = write(tmp_path / f"patterns.{ending}", test_ptychodus.PATTERNS)
    for key in PRODUCT:
        changed = {**PRODUCT, key: OTHERS[other]}
        write(tmp_path / f"product.{ending}", {key: array for key, array in changed.items() if array is not None})
        check(patterns, positions=str(tmp_path / f"product.{ending}"))


def test_the_arrays_themselves_are_read(tmp_path: Path) -> None:
    for write, name, arrays, reading in (
        (hdf5, "scan.cxi", CXI, {}),
        (hdf5, "scan.ptyd", PTYD, {}),
        (hdf5, "training.h5", TRAINING, {}),
        (npz, "named.npz", NAMED, {"paths": PATHS}),
    ):
        probe = None if name != "scan.ptyd" else MODES
        scan = import_scan(write(tmp_path / name, arrays), 6, probe=probe, reading=ReadingConfig(**reading))
        assert len(scan.counts) == N_FRAMES
