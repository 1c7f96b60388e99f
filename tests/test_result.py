"""A scan's reconstruction in files for other programs: what is where, in which unit, and what is refused."""

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from fnostab.formats.result import Result, needs_pixel_size, resolve_layout, write_result

PIXEL_M = 2e-8
#: Where window 3 of `result` has its first pixel in the object's array, (row, column).
CORNER = (9, 4)


@pytest.fixture
def result():
    rng = np.random.default_rng(1)
    object = (rng.normal(size=(40, 50)) + 1j * rng.normal(size=(40, 50))).astype(np.complex64)
    modes = (rng.normal(size=(2, 16, 16)) + 1j * rng.normal(size=(2, 16, 16))).astype(np.complex64)
    origin = (-2, -3)
    positions = rng.uniform(0, 20, (12, 2))
    positions[3] = np.add(origin, CORNER)
    return Result(
        object=object,
        light=np.abs(object),
        origin_px=origin,
        positions_px=positions,
        first_px=np.array([100.5, -7.25]),
        modes=modes,
        scale=30.0,
        mean_counts=1e4,
        pixel_size_m=PIXEL_M,
        energy_eV=8000.0,
        distance_m=1.5,
        numbers={"r_factor": 0.05, "consistency": np.nan},
        model="models:/fnostab-here/3",
        scan="star.cxi",
        program="fnostab 1.2",
    )


def write(result: Result, path: Path, layout: str) -> Path:
    write_result(path, layout, result)
    return path


@pytest.mark.parametrize(
    ("out", "layout", "resolved"),
    [
        ("a.npz", "auto", "fnostab"),
        ("a.NPZ", "", "fnostab"),
        ("a.cxi", "auto", "cxi"),
        ("a.h5", "auto", "cxi"),
        ("a.hdf5", "cxi", "cxi"),
        ("a.h5", "ptychodus", "ptychodus"),
        ("a.npz", "ptychodus", "ptychodus"),
    ],
)
def test_the_ending_decides_unless_a_layout_is_given(out, layout, resolved):
    assert resolve_layout(Path(out), layout) == resolved


@pytest.mark.parametrize(
    ("out", "layout", "message"),
    [
        ("a.txt", "auto", r"`out` \(=a.txt\) must end in .npz, .cxi, .h5 or .hdf5"),
        ("a", "auto", r"`out` \(=a\) must end in"),
        ("a.cxi", "ptychodus", r"`out` \(=a.cxi\) must end in .npz, .h5 or .hdf5 for the layout ptychodus"),
        ("a.npz", "cxi", r"`out` \(=a.npz\) must end in .cxi, .h5 or .hdf5 for the layout cxi"),
        ("a.h5", "fnostab", r"`out` \(=a.h5\) must end in .npz for the layout fnostab"),
        ("a.h5", "nexus", r"`layout` \(=nexus\) must be one of auto, fnostab, cxi, ptychodus"),
    ],
)
def test_an_ending_that_does_not_fit_is_refused(out, layout, message):
    with pytest.raises(ValueError, match=message):
        resolve_layout(Path(out), layout)


def test_only_files_in_metres_need_the_pixel_size():
    assert [name for name in ("fnostab", "cxi", "ptychodus") if needs_pixel_size(name)] == ["cxi", "ptychodus"]


def test_npz_tells_the_pixel_size_or_nan_and_further_modes(result, tmp_path):
    with np.load(write(result, tmp_path / "a.npz", "fnostab"), allow_pickle=False) as file:
        assert file["pixel_size_m"] == PIXEL_M
        np.testing.assert_array_equal(file["probe"], result.modes[0])
        np.testing.assert_array_equal(file["modes"], result.modes)
        np.testing.assert_array_equal(file["origin_px"], result.origin_px)
    unknown = replace(result, pixel_size_m=None, modes=result.modes[:1])
    with np.load(write(unknown, tmp_path / "b.npz", "fnostab"), allow_pickle=False) as file:
        assert np.isnan(file["pixel_size_m"])
        assert "modes" not in file


def cxi_corner(path: Path) -> list[float]:
    """Where window 3 lies on the object's array, by what a CXI file alone says."""
    with h5py.File(path) as file:
        x_m, y_m, z_m = file["entry_1/data_1/translation"][3]
        assert z_m == 0
        object, probe = file["entry_1/image_2/data"], file["entry_1/image_1/data"]
        width_m, height_m, _ = file["entry_1/image_2/image_size"][()]
        pixel_m = [height_m / object.shape[0], width_m / object.shape[1]]
        center_m = [file[f"entry_1/ptychodus/object_center_{axis}_m"][()] for axis in "yx"]
        middle_px = (np.array([y_m, x_m]) - center_m) / pixel_m + np.array(object.shape) / 2
        return list(middle_px - np.array(probe.shape[1:]) / 2)


def test_cxi_holds_object_modes_positions_and_where_they_come_from(result, tmp_path):
    path = write(result, tmp_path / "a.cxi", "cxi")
    assert cxi_corner(path) == pytest.approx(CORNER, abs=1e-9)
    with h5py.File(path) as file:
        assert file["cxi_version"][()] == 160
        entry = file["entry_1"]
        np.testing.assert_array_equal(entry["image_2/data"], result.object)
        np.testing.assert_allclose(entry["instrument_1/source_1/illumination"], 30 * result.modes, rtol=1e-6)
        np.testing.assert_allclose(entry["image_2/basis_vectors"], [[0, -PIXEL_M, 0], [-PIXEL_M, 0, 0]])
        assert entry["instrument_1/source_1/energy"][()] == pytest.approx(8000 * 1.602176634e-19)
        assert entry["instrument_1/detector_1/distance"][()] == 1.5
        assert entry["process_1/program"].asstr()[()] == "fnostab"
        assert entry["process_1/version"].asstr()[()] == "1.2"
        assert entry["process_1/configuration/model"].asstr()[()] == "models:/fnostab-here/3"
        assert entry["process_1/configuration/scan"].asstr()[()] == "star.cxi"
        assert entry["fnostab/r_factor"][()] == 0.05
        np.testing.assert_array_equal(entry["fnostab/origin_px"], result.origin_px)
        np.testing.assert_array_equal(entry["fnostab/light"], result.light)


def test_cxi_leaves_out_what_is_not_known(result, tmp_path):
    path = write(replace(result, energy_eV=None, distance_m=None), tmp_path / "a.cxi", "cxi")
    with h5py.File(path) as file:
        assert "energy" not in file["entry_1/instrument_1/source_1"]
        assert "distance" not in file["entry_1/instrument_1/detector_1"]


def test_positions_stay_where_the_scan_has_them(result, tmp_path):
    with h5py.File(write(result, tmp_path / "a.cxi", "cxi")) as file:
        x_m, y_m, _ = file["entry_1/sample_1/geometry_1/translation"][()].T
    expected = (result.positions_px + [100.5, -7.25] + 8) * PIXEL_M
    np.testing.assert_allclose(np.stack([y_m, x_m], axis=1), expected, rtol=1e-12)


def product(path: Path) -> dict:
    """The content of a product by its names in NPZ files, whichever kind of file it is."""
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    with h5py.File(path) as file:
        found = {key: dataset[()] for key, dataset in file.items()} | dict(file.attrs)
        for owner in ("object", "probe"):
            found |= {f"{owner}_{key}": value for key, value in file[owner].attrs.items()}
        return found


@pytest.mark.parametrize("name", ["a.npz", "a.h5"])
def test_a_product_of_ptychodus_holds_the_same_in_its_convention(name, result, tmp_path):
    found = product(write(result, tmp_path / name, "ptychodus"))
    assert found["probe"].shape == (1, 2, 16, 16)
    np.testing.assert_allclose(found["probe"][0], 30 * result.modes, rtol=1e-6)
    np.testing.assert_array_equal(found["object"][0], result.object)
    corner = []
    for axis, length, side in (("y", 40, "height"), ("x", 50, "width")):
        assert found[f"object_pixel_{side}_m"] == found[f"probe_pixel_{side}_m"] == PIXEL_M
        # The middle of n pixels is pixel (n - 1) / 2 there.
        offset_px = (found[f"probe_position_{axis}_m"][3] - found[f"object_center_{axis}_m"]) / PIXEL_M
        corner.append(offset_px + (length - 1) / 2 - (16 - 1) / 2)
    assert corner == pytest.approx(CORNER, abs=1e-9)
    assert found["photon_energy_eV"] == 8000
    assert found["detector_object_distance_m"] == 1.5
    assert str(found["comments"]) == "fnostab 1.2, models:/fnostab-here/3, r_factor 0.05, consistency nan"
    np.testing.assert_array_equal(found["probe_position_indexes"], np.arange(12))


def test_a_product_says_zero_for_an_energy_that_is_not_known(result, tmp_path):
    found = product(write(replace(result, energy_eV=None, distance_m=None), tmp_path / "a.h5", "ptychodus"))
    assert (found["photon_energy_eV"], found["detector_object_distance_m"]) == (0, 0)
