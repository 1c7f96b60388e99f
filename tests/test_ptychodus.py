"""ptychodus' files are read with the product that has their positions; so are the pairs of pty-chi's users."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from raw_scans import (
    BAD,
    CORNERS,
    COUNTS,
    DETECTOR_PIXEL_M,
    DISTANCE_M,
    ENERGY_EV,
    MODES,
    N_FRAMES,
    OBJECT,
    PIXEL_M,
    SQUARE,
    H,
    W,
    assert_scan,
    given,
)

from fnostab.config import ReadingConfig
from fnostab.formats.registry import open_scan, scan_files

CENTRE_M = np.array([-2e-6, 3e-6])
#: Row and column of the windows' middles: ptychodus counts from the object's middle, which lies at its centre.
MIDDLES_M = (CORNERS + H / 2 - np.array(OBJECT.shape) / 2) * PIXEL_M + CENTRE_M
INDEXES = np.arange(N_FRAMES)
PATTERNS = {"patterns": SQUARE, "indexes": INDEXES, "bad_pixels": BAD}


def product(
    path: Path,
    *,
    indexes: Any = INDEXES,
    positions: Any = MIDDLES_M,
    probe: Any = MODES[None],
    object: Any = OBJECT[None],
    width_m: float = PIXEL_M,
) -> Path:
    """Write a product, in NPZ or HDF5."""
    arrays = {"probe_position_x_m": positions[:, 1], "probe_position_y_m": positions[:, 0], "probe": probe}
    arrays |= {"object": object, "probe_position_indexes": indexes}
    arrays = {key: array for key, array in arrays.items() if array is not None}
    values = {"photon_energy_eV": ENERGY_EV, "detector_object_distance_m": DISTANCE_M}
    of_object = {
        "pixel_width_m": width_m,
        "pixel_height_m": PIXEL_M,
        "center_x_m": CENTRE_M[1],
        "center_y_m": CENTRE_M[0],
    }
    if path.suffix == ".npz":
        np.savez(path, **arrays, **values, **{f"object_{key}": value for key, value in of_object.items()})
        return path
    with h5py.File(path, "w") as file:
        for key, array in arrays.items():
            file[key] = array
        file.attrs.update(values)
        if object is not None:
            file["object"].attrs.update(of_object)
    return path


def patterns(path: Path, **changes: Any) -> Path:
    """Write ptychodus' patterns, in NPZ or HDF5."""
    arrays = {key: array for key, array in {**PATTERNS, **changes}.items() if array is not None}
    if path.suffix == ".npz":
        np.savez_compressed(path, **arrays)
        return path
    with h5py.File(path, "w") as file:
        for key, array in arrays.items():
            file[key] = array
        file["patterns"].attrs["detector_pixel_width_m"] = DETECTOR_PIXEL_M
    return path


@pytest.mark.parametrize("ending", ["npz", "h5"])
@pytest.mark.parametrize("others", ["npz", "h5"])
def test_patterns_and_their_product_are_one_scan(tmp_path: Path, ending: str, others: str) -> None:
    path, other = patterns(tmp_path / f"patterns.{ending}"), product(tmp_path / f"product.{others}")
    got = given(path, positions=str(other))
    assert got.format == "ptychodus"
    assert_scan(got, origin=True)
    np.testing.assert_array_equal(got.probe, MODES)
    np.testing.assert_array_equal(np.squeeze(got.object), OBJECT)
    np.testing.assert_array_equal(got.raw.good, ~BAD)
    assert got.raw.object_pixel_m == pytest.approx(PIXEL_M)
    assert got.raw.setup.energy_eV == ENERGY_EV
    assert got.raw.setup.distance_m == DISTANCE_M
    assert got.raw.setup.detector_pixel_m == (DETECTOR_PIXEL_M if ending == "h5" else None)
    assert scan_files(path, ReadingConfig(positions=str(other))) == (path, other)


def test_patterns_and_positions_belong_together_by_index(tmp_path: Path) -> None:
    order = np.random.default_rng(1).permutation(N_FRAMES)
    path = patterns(tmp_path / "patterns.npz", indexes=INDEXES + 100)
    assert_scan(given(path, positions=str(product(tmp_path / "a.h5", indexes=order + 100, positions=MIDDLES_M[order]))))
    kept = np.setdiff1d(order, [0, 3, 4])
    got = given(
        path, positions=str(product(tmp_path / "b.h5", indexes=[*kept + 100, 7], positions=MIDDLES_M[[*kept, 0]]))
    )
    np.testing.assert_array_equal(got.frames, SQUARE[kept])
    assert np.abs(got.corners - CORNERS[kept]).max() < 1e-3
    assert got.raw.notes == ("9 of 12 patterns and 10 positions share an index; only these are read",)
    with open_scan(path, ReadingConfig(positions=str(tmp_path / "b.h5"))) as (_, raw):
        for start, stop in ((0, 9), (0, 3), (2, 7)):
            np.testing.assert_array_equal(raw.frames.read(start, stop), SQUARE[kept[start:stop]])


def test_older_products_without_indexes_and_of_a_probe_in_three_axes_are_read(tmp_path: Path) -> None:
    other = product(tmp_path / "a.npz", indexes=None, probe=MODES)
    got = given(patterns(tmp_path / "patterns.npz"), positions=str(other))
    assert_scan(got, origin=True)
    np.testing.assert_array_equal(got.probe, MODES)


def test_a_product_for_patterns_of_another_size_has_the_same_field_of_view(tmp_path: Path) -> None:
    half = MODES[None, :, 1:-1, 1:-1]
    got = given(patterns(tmp_path / "patterns.npz"), positions=str(product(tmp_path / "product.h5", probe=half)))
    assert got.raw.object_pixel_m == pytest.approx(PIXEL_M * (H - 2) / H)
    assert got.object is None
    assert "`/object` is left out: it is for patterns of 4 pixels" in got.raw.notes[0]


def test_oblong_detectors_have_oblong_pixels_of_the_object(tmp_path: Path) -> None:
    path = patterns(tmp_path / "oblong.npz", patterns=COUNTS, bad_pixels=None)
    other = product(tmp_path / "oblong.h5", probe=np.ones((1, 1, H, W), "c8"), width_m=PIXEL_M * H / W)
    got = given(path, positions=str(other))
    assert_scan(got, COUNTS)
    assert got.raw.object_pixel_m == pytest.approx(PIXEL_M)
    assert got.object is None
    with pytest.raises(ValueError, match=r"must be of a detector with square pixels: the object's are .* x .* m,"):
        given(path, positions=str(product(tmp_path / "product.h5", probe=np.ones((1, 1, H, W), "c8"))))


def test_what_nobody_uses_does_not_block(tmp_path: Path) -> None:
    other = tmp_path / "product.npz"
    product(other, probe=np.array(None), object=np.array(None))
    with open_scan(patterns(tmp_path / "patterns.npz"), ReadingConfig(positions=str(other))) as (_, raw):
        assert raw.frames.n == N_FRAMES
        assert raw.probe is not None
        with pytest.raises(ValueError, match="must not hold pickled objects, `probe` is one"):
            raw.probe.read()


def test_of_several_coherent_modes_the_first_is_used(tmp_path: Path) -> None:
    other = product(tmp_path / "product.h5", probe=np.stack([MODES, 2 * MODES]))
    got = given(patterns(tmp_path / "patterns.npz"), positions=str(other))
    np.testing.assert_array_equal(got.probe, MODES)
    assert got.raw.notes == ("the first of 2 coherent modes of `/probe` is used",)


@pytest.mark.parametrize("names", [("scan_dp.hdf5", "scan_para.hdf5"), ("diffraction.h5", "product.h5")])
def test_a_pair_is_found_beside_each_other(tmp_path: Path, names: tuple[str, str]) -> None:
    path, other = (tmp_path / name for name in names)
    with h5py.File(path, "w") as file:
        file["dp" if "_dp" in path.name else "patterns"] = SQUARE.astype("f4")
        file["indexes"] = INDEXES
    with pytest.raises(ValueError, match=r"must come with its positions: `data.positions` names ptychodus' product"):
        given(path)
    product(other, indexes=None, probe=MODES)
    assert_scan(given(path), origin=True)
    assert scan_files(path, ReadingConfig()) == (path, other)
    elsewhere = product(tmp_path / "other.npz", positions=2 * MIDDLES_M)
    assert np.ptp(given(path, positions=str(elsewhere)).corners) > 1.5 * np.ptp(given(path).corners)


def test_a_cxi_file_of_ptychodus_has_its_positions_in_a_product_too(tmp_path: Path) -> None:
    path, other = tmp_path / "diffraction.cxi", tmp_path / "product.cxi"
    with h5py.File(path, "w") as file:
        file["entry_1/data_1/data"] = SQUARE
        file["entry_1/instrument_1/detector_1/mask"] = BAD.astype("u4")
    with h5py.File(other, "w") as file:
        file["entry_1/sample_1/geometry_1/translation"] = np.c_[MIDDLES_M[:, ::-1], np.zeros(N_FRAMES)]
        file["entry_1/image_1/data"], file["entry_1/image_2/data"] = MODES[None], OBJECT[None]
        file["entry_1/instrument_1/source_1/energy"] = ENERGY_EV * 1.602176634e-19
        group = file.create_group("entry_1/ptychodus")
        group["probe_position_indexes"] = INDEXES
        for name, value in (
            ("object_pixel_width_m", PIXEL_M),
            ("object_center_x_m", 3e-6),
            ("object_center_y_m", -2e-6),
        ):
            group[name] = value
    got = given(path, positions=str(other))
    assert_scan(got, origin=True)
    np.testing.assert_array_equal(got.probe, MODES)
    np.testing.assert_array_equal(got.raw.good, ~BAD)
    assert got.raw.setup.energy_eV == pytest.approx(ENERGY_EV)
    with pytest.raises(ValueError, match=r"must be the file of the patterns; this is ptychodus' product"):
        given(other)


def test_the_training_file_has_everything(tmp_path: Path) -> None:
    path = tmp_path / "training.h5"
    with h5py.File(path, "w") as file:
        middles = CORNERS + (H - 1) / 2
        for key, array in {"patterns": SQUARE, "bad_pixels": BAD, "probe": MODES, "object": OBJECT}.items():
            file[key] = array
        file["probe_position_x_px"], file["probe_position_y_px"] = middles[:, 1], middles[:, 0]
        file["object_pixel_width_m"], file["photon_energy_eV"] = PIXEL_M, ENERGY_EV
    got = given(path)
    assert_scan(got, origin=True)
    np.testing.assert_array_equal(got.probe, MODES)
    np.testing.assert_array_equal(got.object, OBJECT)
    np.testing.assert_array_equal(got.raw.good, ~BAD)
    assert got.raw.object_pixel_m == PIXEL_M


def test_an_export_for_ptychopinn_has_bad_pixels(tmp_path: Path) -> None:
    middles = CORNERS + H / 2
    arrays = {"diff3d": SQUARE, "xcoords": middles[:, 1], "ycoords": middles[:, 0], "bad_pixels": BAD}
    np.savez(tmp_path / "pinn.npz", **arrays)
    got = given(tmp_path / "pinn.npz")
    assert got.format == "ptychopinn"
    assert_scan(got, origin=True)
    np.testing.assert_array_equal(got.raw.good, ~BAD)


def test_broken_rules_are_named(tmp_path: Path) -> None:
    path = patterns(tmp_path / "patterns.npz")
    for changes, rule in (
        ({"indexes": INDEXES + 50}, r"`patterns` \(=12 patterns\) must share indexes with the 12 positions"),
        ({"indexes": INDEXES // 2}, r"\(=12 positions\) must have an index each, all different"),
        ({"indexes": INDEXES + 0.5}, r"must hold whole numbers, `/probe_position_indexes` is float64"),
        ({"indexes": None, "positions": MIDDLES_M[:-1]}, r"`patterns` \(=12 patterns\) must match the 11 positions"),
    ):
        with pytest.raises(ValueError, match=rule):
            given(path, positions=str(product(tmp_path / "product.h5", **changes)))
    with pytest.raises(
        ValueError, match=r"`data.positions` \(=.*\) must be a product of ptychodus, which holds probe_pos"
    ):
        given(path, positions=str(path))
    with pytest.raises(ValueError, match=r"`data.positions` \(=nowhere.h5\) must be a readable file: No such file"):
        given(path, positions="nowhere.h5")
    with pytest.raises(ValueError, match=r"must be the file of the patterns; this is ptychodus' product: name it in"):
        given(product(tmp_path / "product.npz"))
