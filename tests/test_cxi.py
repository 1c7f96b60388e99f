"""CXI files are read as cdtools, ptychodus, PyNX and NeXus write them."""

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
    JOULES,
    MODES,
    N_FRAMES,
    PIXEL_M,
    SQUARE,
    WAVELENGTH_M,
    assert_scan,
    given,
)

from benchmarks.siemens_cxi import SETUP, write_cxi
from fnostab.dataset import import_scan

STAR = Path(__file__).resolve().parents[2] / "shared" / "data" / "siemens-star-small.npz.bz2"
TRANSLATION = np.c_[CORNERS[:, ::-1], np.zeros(N_FRAMES)] * PIXEL_M
DETECTOR, SOURCE = "entry_1/instrument_1/detector_1", "entry_1/instrument_1/source_1"
ARRAYS = {
    f"{DETECTOR}/data": SQUARE,
    "entry_1/sample_1/geometry_1/translation": TRANSLATION,
    f"{DETECTOR}/distance": DISTANCE_M,
    f"{DETECTOR}/x_pixel_size": DETECTOR_PIXEL_M,
    f"{DETECTOR}/y_pixel_size": DETECTOR_PIXEL_M,
    f"{SOURCE}/energy": JOULES,
}


def cxi(path: Path, arrays: dict[str, Any], units: dict[str, str] | None = None) -> Path:
    """Write a CXI file, its arrays linked to as usual."""
    with h5py.File(path, "w") as file:
        for key, array in arrays.items():
            if array is not None:
                file[key] = array
        for key, unit in (units or {}).items():
            file[key].attrs["units"] = unit
        file["entry_1"].require_group("data_1")
        for name, key in (("data", f"{DETECTOR}/data"), ("translation", "entry_1/sample_1/geometry_1/translation")):
            if key in file:
                file[f"entry_1/data_1/{name}"] = h5py.SoftLink(f"/{key}")
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "scan.cxi"


def test_a_scan_through_links_has_its_counts_positions_and_pixel(path: Path) -> None:
    got = given(cxi(path, ARRAYS))
    assert got.format == "cxi"
    assert got.raw.setup.energy_eV == pytest.approx(ENERGY_EV)
    assert got.raw.setup.object_pixel_m(len(SQUARE[0])) == pytest.approx(PIXEL_M)
    assert_scan(got, origin=True)


@pytest.mark.parametrize("key", ["entry_1/data_1/translation", f"{DETECTOR}/translation"])
def test_patterns_and_positions_are_found_in_each_of_their_places(path: Path, key: str) -> None:
    moved = {**ARRAYS, key: TRANSLATION, "entry_1/sample_1/geometry_1/translation": None}
    with h5py.File(path, "w") as file:
        for name, array in moved.items():
            if array is not None:
                file[name] = array
    assert_scan(given(path), origin=True)


def test_pynx_has_positions_in_rows_and_its_own_constant(path: Path) -> None:
    joules = 12384e-10 / WAVELENGTH_M * 1.60218e-19
    arrays = {**ARRAYS, "entry_1/sample_1/geometry_1/translation": TRANSLATION.T, f"{SOURCE}/energy": joules}
    cxi(path, arrays)
    assert given(path).raw.setup.energy_eV == pytest.approx(ENERGY_EV * 12384 / 12398.42, rel=1e-5)
    with h5py.File(path, "r+") as file:
        file.attrs["creator"] = "PyNX"
    got = given(path)
    assert got.raw.setup.energy_eV == pytest.approx(ENERGY_EV, rel=1e-6)
    assert_scan(got, origin=True)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(
    ("basis", "rows", "columns"),
    [
        ([[0, -1, 0], [-1, 0, 0]], "+row", "+column"),
        ([[0, 1, 0], [-1, 0, 0]], "-row", "+column"),
        ([[0, -1, 0], [1, 0, 0]], "+row", "-column"),
        ([[-1, 0, 0], [0, -1, 0]], "+column", "+row"),
        ([[1, 0.001, 0], [0, 1, 0.01]], "-column", "-row"),
    ],
)
def test_basis_vectors_turn_the_positions(path: Path, basis: list, turned: bool, rows: str, columns: str) -> None:
    steps = np.array(basis) * DETECTOR_PIXEL_M
    arrays = {**ARRAYS, f"{DETECTOR}/basis_vectors": steps.T if turned else steps}
    arrays |= {f"{DETECTOR}/x_pixel_size": None, f"{DETECTOR}/y_pixel_size": None}
    got = given(cxi(path, arrays))
    parts = {"row": CORNERS[:, 0], "column": CORNERS[:, 1]}
    wanted = np.stack([(-1 if way[0] == "-" else 1) * parts[way[1:]] for way in (rows, columns)], axis=1)
    assert np.abs(got.corners - wanted).max() < 1e-3
    np.testing.assert_array_equal(got.frames, SQUARE)


@pytest.mark.parametrize(
    "basis", [[[0, -1, 0], [0, -1, 0]], [[0, -1, 0.1], [-1, 0, 0]], [[0, 0, 0], [-1, 0, 0]], np.eye(3)]
)
def test_tilted_detectors_are_refused(path: Path, basis: Any) -> None:
    with pytest.raises(ValueError, match=r"`/entry_1/instrument_1/detector_1/basis_vectors` \(=.* must (lie|be) "):
        given(cxi(path, {**ARRAYS, f"{DETECTOR}/basis_vectors": np.array(basis)}))


def test_a_mask_of_0_and_of_a_signal_is_good_and_all_else_is_bad(path: Path) -> None:
    mask = np.zeros((1, *BAD.shape), np.uint32)
    mask[0, 0, :4] = 1, 0x1000, 0x1001, 0x2000
    good = given(cxi(path, {**ARRAYS, f"{DETECTOR}/mask": mask})).raw.good
    assert good is not None
    assert good.shape == BAD.shape
    assert good[0, :4].tolist() == [False, True, False, False]
    assert good[1:].all()


def test_the_energy_of_the_photons_is_not_taken_from_the_machine(path: Path) -> None:
    units = {f"{SOURCE}/energy": "GeV", "entry_1/instrument_1/beam_1/energy": "keV"}
    arrays = {**ARRAYS, f"{SOURCE}/energy": 3.0, "entry_1/instrument_1/beam_1/energy": 8.0}
    assert given(cxi(path, arrays, units)).raw.setup.energy_eV == pytest.approx(8000)
    arrays["entry_1/instrument_1/beam_1/energy"] = 712.5
    assert given(cxi(path, arrays)).raw.setup.energy_eV == pytest.approx(712.5)
    del arrays["entry_1/instrument_1/beam_1/energy"]
    assert given(cxi(path, arrays), PIXEL_M).raw.setup.energy_eV is None
    arrays[f"{SOURCE}/wavelength"] = WAVELENGTH_M
    assert given(cxi(path, arrays)).raw.setup.energy_eV == pytest.approx(ENERGY_EV)


@pytest.mark.parametrize("shape", [(N_FRAMES,), (N_FRAMES, 1, 1), (3, 4)])
def test_nexus_has_x_and_y_of_their_own(path: Path, shape: tuple[int, ...]) -> None:
    arrays = {**ARRAYS, "entry_1/sample_1/geometry_1/translation": None}
    if len(shape) == 2:
        arrays[f"{DETECTOR}/data"] = SQUARE.reshape(*shape, *SQUARE.shape[1:])
    for axis, column in (("x", 0), ("y", 1)):
        arrays[f"entry_1/data/{axis}"] = TRANSLATION[:, column].reshape(shape) * 1e6
    units = {f"entry_1/data/{axis}": "um" for axis in "xy"}
    assert_scan(given(cxi(path, arrays, units)), origin=True)


def test_modes_of_the_probe_are_read_and_oblong_detectors_keep_their_axes(path: Path) -> None:
    arrays = {**ARRAYS, f"{DETECTOR}/data": COUNTS, f"{SOURCE}/illumination": MODES[None]}
    got = given(cxi(path, arrays))
    np.testing.assert_array_equal(got.frames, COUNTS)
    np.testing.assert_array_equal(got.probe, MODES)


def test_what_is_not_used_is_said(path: Path) -> None:
    notes = given(cxi(path, {**ARRAYS, f"{DETECTOR}/data_dark": SQUARE[0], "entry_2/data_1/data": SQUARE})).raw.notes
    assert notes == ("only `/entry_1` was read, not entry_2", "`data_dark` was not subtracted")


def test_positions_that_are_signalling_nan_are_read_without_a_warning(path: Path) -> None:
    """They are refused where they are used, and frames can be left out."""
    signalling = TRANSLATION.astype("f4")
    signalling[3, 0] = np.array(0x7FA00000, "u4").view("f4")
    got = given(cxi(path, {**ARRAYS, "entry_1/sample_1/geometry_1/translation": signalling}))
    assert np.flatnonzero(np.isnan(got.raw.positions).any(axis=1)).tolist() == [3]


def test_broken_rules_are_named(path: Path) -> None:
    translation = "entry_1/sample_1/geometry_1/translation"
    for change, rule in (
        (
            {translation: None},
            r"must hold positions, as `/entry_1/data_1/translation`; if they are in ptychodus' product",
        ),
        ({translation: TRANSLATION[:-1]}, r"\(=12 patterns\) must match the 11 positions, in .*scan.cxi$"),
        ({f"{DETECTOR}/x_pixel_size": 50e-6}, r"x_pixel_size` \(=5e-05 m\) must be as y_pixel_size, 7.5e-05 m: pixels"),
    ):
        with pytest.raises(ValueError, match=rule):
            given(cxi(path, {**ARRAYS, **change}))
    with pytest.raises(ValueError, match=r"translation` \(=in furlong\) must be in a unit of length"):
        given(cxi(path, ARRAYS, {translation: "Furlong"}))


def test_data_unit_stands_above_the_units_of_the_file(path: Path) -> None:
    translation = "entry_1/sample_1/geometry_1/translation"
    cxi(path, {**ARRAYS, translation: TRANSLATION * 1e6}, {translation: "mm"})
    assert given(path).raw.positions.max() == pytest.approx(TRANSLATION.max() * 1e3)
    assert given(path, unit="um").raw.positions.max() == pytest.approx(TRANSLATION.max() * 1e6)


@pytest.mark.skipif(not STAR.is_file(), reason=f"the measured Siemens star is not in {STAR.parent}")
def test_the_siemens_star_as_cxi_is_the_scan_of_its_npz_file(tmp_path: Path) -> None:
    write_cxi(STAR, tmp_path / "star.cxi")
    npz, cxi = import_scan(STAR, 64), import_scan(tmp_path / "star.cxi", 64)
    np.testing.assert_array_equal(cxi.counts, npz.counts)
    np.testing.assert_array_equal(cxi.modes, npz.modes)
    assert np.abs(cxi.positions_px - npz.positions_px).max() < 1e-3
    assert cxi.pixel_size_m == pytest.approx(SETUP.object_pixel_m(64))
