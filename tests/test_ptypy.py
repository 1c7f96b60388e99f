"""ptypy's .ptyd files are read over the borders of their chunks."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from raw_scans import (
    BAD,
    CORNERS,
    DETECTOR_PIXEL_M,
    DISTANCE_M,
    ENERGY_EV,
    N_FRAMES,
    PIXEL_M,
    SQUARE,
    H,
    assert_scan,
    given,
)

from fnostab.config import ReadingConfig
from fnostab.dataset import import_scan
from fnostab.formats.registry import open_scan


def ptyd(path: Path, size: int = 1, **changes: Any) -> Path:
    """Write chunks of `size` frames, so that chunk 10 comes after chunk 9 and not after chunk 1."""
    meta = {"energy": ENERGY_EV / 1e3, "distance": DISTANCE_M, "psize": [DETECTOR_PIXEL_M] * 2, "center": [H / 2] * 2}
    with h5py.File(path, "w") as file:
        for name, value in {**meta, **changes.pop("meta", {})}.items():
            file[f"meta/{name}"] = np.zeros(1) if value is None else value
            file[f"meta/{name}"].attrs["type"] = "None" if value is None else "array"
        for name, value in changes.pop("info", {}).items():
            file[f"info/{name}"] = value
        for i, start in enumerate(range(0, N_FRAMES, size)):
            chunk, part = file.create_group(f"chunks/{i}"), slice(start, start + size)
            chunk["data"], chunk["positions"] = SQUARE[part].astype("i4"), CORNERS[part] * PIXEL_M
            if "weights" in changes:
                chunk["weights"] = changes["weights"][part]
            else:
                chunk.create_group("weights")
    return path


@pytest.mark.parametrize("size", [1, 5, 12])
def test_chunks_are_one_scan_in_the_order_of_their_numbers(tmp_path: Path, size: int) -> None:
    got = given(ptyd(tmp_path / "scan.ptyd", size))
    assert got.format == "ptypy"
    assert_scan(got, origin=True)
    assert got.raw.setup.object_pixel_m(H) == pytest.approx(PIXEL_M)
    assert got.raw.good is None
    assert got.raw.warnings == ()


def test_frames_are_read_over_the_borders_of_chunks(tmp_path: Path) -> None:
    with open_scan(ptyd(tmp_path / "scan.ptyd", 5), ReadingConfig()) as (_, raw):
        for start, stop in ((0, 12), (3, 9), (4, 5), (5, 12), (0, 5)):
            np.testing.assert_array_equal(raw.frames.read(start, stop), SQUARE[start:stop])


def test_weights_over_zero_in_every_frame_are_good(tmp_path: Path) -> None:
    weights = np.ones(SQUARE.shape)
    weights[:, BAD] = 0
    weights[7, 0, 0] = 0
    good = ~BAD
    good[0, 0] = False
    got = given(ptyd(tmp_path / "scan.ptyd", 5, weights=weights))
    np.testing.assert_array_equal(got.raw.good, good)
    np.testing.assert_array_equal(given(ptyd(tmp_path / "a.ptyd", meta={"weight2d": ~BAD})).raw.good, ~BAD)


def test_zeros_that_stand_for_nothing_are_no_values(tmp_path: Path) -> None:
    setup = given(ptyd(tmp_path / "scan.ptyd", meta={"energy": None, "psize": None}), PIXEL_M).raw.setup
    assert (setup.energy_eV, setup.distance_m, setup.detector_pixel_m) == (None, DISTANCE_M, None)


def test_a_centre_elsewhere_is_that_of_the_patterns(tmp_path: Path) -> None:
    path = ptyd(tmp_path / "scan.ptyd", meta={"center": [2.2, 4.0]})
    assert given(path).raw.notes == ("zero frequency is at row 2, column 4, as the file says",)
    scan = import_scan(path, 4, probe_needed=False)
    np.testing.assert_array_equal(scan.counts, SQUARE[:, 0:4, 2:6])
    for nowhere in ([7.0, 2.0], [np.nan, 2.0], [2.9, 3.4]):
        assert given(ptyd(path, meta={"center": nowhere})).raw.centre is None


def test_averaged_pixels_are_warned_of(tmp_path: Path) -> None:
    got = given(ptyd(tmp_path / "scan.ptyd", info={"rebin": 2}))
    assert got.raw.warnings == ("ptypy averaged 2 x 2 pixels: counts are too small by the square of that",)


def test_broken_rules_are_named(tmp_path: Path) -> None:
    path = tmp_path / "scan.ptyd"
    for change, rule in (
        (
            lambda f: f.__delitem__("chunks/1/positions"),
            r"must hold positions in each of its chunks; `/chunks/1/positions` is",
        ),
        (
            lambda f: _replace(f, "chunks/1/positions", np.zeros((4, 2))),
            r"\(=4 x 2\) must be row and column of 5 patterns",
        ),
        (
            lambda f: _replace(f, "chunks/1/data", np.zeros((5, 4, 4))),
            r"must be patterns \(m, H, W\), all chunks' of one size",
        ),
        (_link, r"`/chunks/1/data` lies in scan.ptyd.part001; copy it into one file"),
    ):
        ptyd(path, 5)
        with h5py.File(path, "r+") as file:
            change(file)
        with pytest.raises(ValueError, match=rule):
            given(path)


def _replace(file: h5py.File, key: str, array: np.ndarray) -> None:
    del file[key]
    file[key] = array


def _link(file: h5py.File) -> None:
    del file["chunks/1/data"]
    file["chunks/1/data"] = h5py.ExternalLink("scan.ptyd.part001", "/data")
