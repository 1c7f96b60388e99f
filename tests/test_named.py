"""Any HDF5 or NPZ file is read by the names of its arrays; MATLAB's axes are turned round."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import yaml
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
    OBJECT,
    PIXEL_M,
    SQUARE,
    WAVELENGTH_M,
    H,
    assert_scan,
    given,
)

from fnostab.config import ReadingConfig
from fnostab.formats.paths import PRESETS, array_paths
from fnostab.formats.registry import scan_files

POSITIONS_UM = CORNERS * PIXEL_M * 1e6
ARRAYS = {"entry/data": COUNTS, "entry/x": POSITIONS_UM[:, 1], "entry/y": POSITIONS_UM[:, 0]}
PATHS = "patterns=/entry/data,x_um=/entry/x,y_um=/entry/y"


def hdf5(path: Path, arrays: dict[str, Any] = ARRAYS, units: dict[str, Any] | None = None) -> Path:
    with h5py.File(path, "w") as file:
        for key, array in arrays.items():
            file[key] = array
        for key, unit in (units or {}).items():
            file[key].attrs["units"] = unit
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return hdf5(tmp_path / "scan.h5")


@pytest.mark.parametrize("paths", [PATHS, " patterns = entry/data, x_um=entry/x ,y_um=/entry/y"])
def test_arrays_are_found_by_their_names(path: Path, paths: str) -> None:
    got = given(path, PIXEL_M, paths=paths)
    assert got.format == "named"
    assert got.raw.quantity == "counts"
    assert_scan(got, COUNTS, origin=True)


def test_npz_files_are_named_alike(tmp_path: Path) -> None:
    np.savez(
        tmp_path / "a.npz",
        d=SQUARE[None],
        xy=POSITIONS_UM[:, ::-1].T,
        p=MODES,
        o=OBJECT,
        bad=BAD,
        e=8.0,
        z=150,
        p_um=75,
    )
    paths = "patterns=d,xy_um=xy,probe=p,object=o,bad_pixels=bad,energy_keV=e,distance=z,detector_pixel_um=p_um"
    got = given(tmp_path / "a.npz", PIXEL_M, paths=paths)
    assert_scan(got, origin=True)
    np.testing.assert_array_equal(got.probe, MODES)
    np.testing.assert_array_equal(got.object, OBJECT)
    np.testing.assert_array_equal(got.raw.good, ~BAD)
    assert (got.raw.setup.energy_eV, got.raw.setup.distance_m) == (8000, 150)
    assert got.raw.setup.detector_pixel_m == pytest.approx(DETECTOR_PIXEL_M)


@pytest.mark.parametrize(
    "unit", ["um", np.bytes_(b"um"), "Microns", "\N{MICRO SIGN}m", np.array(["um"], h5py.string_dtype())]
)
def test_the_units_of_the_file_stand_above_those_of_the_name(tmp_path: Path, unit: Any) -> None:
    path = hdf5(tmp_path / "scan.h5", units={"entry/x": unit, "entry/y": unit})
    assert_scan(given(path, PIXEL_M, paths=PATHS.replace("_um", "_mm")), COUNTS, origin=True)
    assert_scan(given(path, PIXEL_M, paths=PATHS.replace("_um", "")), COUNTS, origin=True)


def test_data_unit_stands_above_all(tmp_path: Path) -> None:
    path = hdf5(tmp_path / "scan.h5", units={"entry/x": "mm"})
    got = given(path, PIXEL_M, paths=PATHS, unit="um")
    np.testing.assert_array_equal(got.raw.positions, POSITIONS_UM)


def test_positions_in_pixels_stay(tmp_path: Path) -> None:
    path = hdf5(tmp_path / "scan.h5", {**ARRAYS, "xy": CORNERS[:, ::-1]})
    got = given(path, paths="patterns=/entry/data,xy_px=/xy")
    assert got.raw.unit == "px"
    assert_scan(got, COUNTS, origin=True)


def test_a_minus_turns_an_axis_round(path: Path) -> None:
    got = given(path, PIXEL_M, paths=PATHS.replace("=/entry/x", "=-/entry/x"))
    assert np.abs(got.corners - CORNERS * [1, -1]).max() < 1e-3


@pytest.mark.parametrize("axes_only", [False, True])
def test_a_raster_may_keep_its_axes(tmp_path: Path, axes_only: bool) -> None:
    rows, columns = np.arange(3) * 2.0, np.arange(4) * 1.5
    grid = np.meshgrid(rows, columns, indexing="ij")
    y, x = (rows, columns) if axes_only else grid
    path = hdf5(tmp_path / "scan.h5", {"d": COUNTS.reshape(3, 4, *COUNTS.shape[1:]), "x": x, "y": y})
    got = given(path, paths="patterns=d,x_px=x,y_px=y")
    np.testing.assert_array_equal(got.raw.positions, np.stack(grid, axis=-1).reshape(-1, 2))
    np.testing.assert_array_equal(got.frames, COUNTS)


def test_positions_and_probe_may_lie_in_another_file(tmp_path: Path) -> None:
    path = hdf5(tmp_path / "scan.h5", {"entry/data": SQUARE, "entry/x": np.zeros(N_FRAMES)})
    np.savez(tmp_path / "other.npz", x=POSITIONS_UM[:, 1], y=POSITIONS_UM[:, 0], probe=MODES)
    other = str(tmp_path / "other.npz")
    got = given(path, PIXEL_M, paths="patterns=/entry/data,x_um=x,y_um=y,probe=probe", positions=other)
    assert_scan(got, origin=True)
    np.testing.assert_array_equal(got.probe, MODES)
    assert scan_files(path, ReadingConfig(paths=PATHS, positions=other)) == (path, Path(other))


@pytest.mark.parametrize(
    ("name", "value", "unit"),
    [
        ("energy", ENERGY_EV, None),
        ("energy", ENERGY_EV / 1e3, None),
        ("energy", JOULES, None),
        ("energy_eV", ENERGY_EV / 1e3, "keV"),
        ("energy_keV", [ENERGY_EV / 1e3] * 5, None),
        ("wavelength", WAVELENGTH_M, None),
        ("wavelength_nm", WAVELENGTH_M * 1e10, "angstrom"),
    ],
)
def test_the_energy_is_read_in_every_unit(tmp_path: Path, name: str, value: Any, unit: str | None) -> None:
    arrays = {**ARRAYS, "e": value, "z": -DISTANCE_M * 1e3, "p": DETECTOR_PIXEL_M}
    path = hdf5(tmp_path / "scan.h5", arrays, {"e": unit, "z": "mm"} if unit else {"z": "mm"})
    setup = given(path, paths=f"{PATHS},{name}=/e,distance=/z,detector_pixel=/p").raw.setup
    assert setup.energy_eV == pytest.approx(ENERGY_EV)
    assert setup.object_pixel_m(H) == pytest.approx(PIXEL_M)


@pytest.mark.parametrize("value", [np.nan, 0.0, [1.0, 2.0], np.zeros(0), "eight"])
def test_values_that_cannot_be_used_are_none(tmp_path: Path, value: Any) -> None:
    path = hdf5(tmp_path / "scan.h5", {**ARRAYS, "e": value})
    assert given(path, PIXEL_M, paths=f"{PATHS},energy_keV=/e").raw.setup.energy_eV is None


def test_real_numbers_leave_open_what_they_are(tmp_path: Path) -> None:
    path = hdf5(tmp_path / "scan.h5", {**ARRAYS, "entry/data": COUNTS.astype("f4")})
    assert given(path, PIXEL_M, paths=PATHS).raw.quantity is None


def test_a_file_of_names_says_also_what_the_patterns_are(path: Path, tmp_path: Path) -> None:
    names = {"paths": {"patterns": ["/no", "/entry/data"], "x_um": "/entry/x", "y_um": "-/entry/y"}}
    own = tmp_path / "own.yaml"
    own.write_text(yaml.safe_dump({**names, "quantity": "amplitude", "fft_order": "corner", "sure": "I wrote it"}))
    got = given(path, PIXEL_M, paths=str(own))
    assert (got.raw.quantity, got.raw.fft_ordered) == ("amplitude", True)
    assert np.abs(got.corners - CORNERS * [-1, 1]).max() < 1e-3
    assert got.raw.notes == (f"`data.paths` {own}: I wrote it",)
    assert scan_files(path, ReadingConfig(paths=str(own))) == (path, own)


@pytest.mark.parametrize("preset", sorted(file.stem for file in PRESETS.glob("*.yaml")))
def test_every_preset_says_where_its_paths_are_from_and_how_sure_that_is(preset: str) -> None:
    content = yaml.safe_load((PRESETS / f"{preset}.yaml").read_text())
    assert {"about", "source", "sure", "paths"} <= set(content)
    assert "patterns" in array_paths(preset).places


def test_presets_read_files_as_their_programs_write_them(tmp_path: Path) -> None:
    um = POSITIONS_UM
    amplitudes = np.fft.ifftshift(np.sqrt(SQUARE), axes=(1, 2))
    nexus = {"x_pixel_size": DETECTOR_PIXEL_M, "distance": DISTANCE_M}
    files: dict[str, dict[str, Any]] = {
        "diamond": {
            "entry_1/data/data": SQUARE,
            **{f"entry_1/data/{axis}": um[:, i, None, None] / 1e6 for i, axis in enumerate("yx")},
            "entry_1/instrument_1/beam_1/energy": ENERGY_EV,
            **{f"entry_1/instrument_1/detector_1/{key}": value for key, value in nexus.items()},
        },
        "nanomax": {
            "entry/measurement/eiger/frames": SQUARE,
            "entry/measurement/pseudo/x": -um[:, 1],
            "entry/measurement/pseudo/y": -um[:, 0],
            "entry/snapshot/energy": [ENERGY_EV],
        },
        "nsls2": {"diff_data/merlin1/det_images": SQUARE, "scan/scan_positions": um.T[::-1], "scan/energy": ENERGY_EV},
        "nsls2_prepared": {
            "diffamp": amplitudes,
            "points": um.T,
            "lambda_nm": WAVELENGTH_M * 1e9,
            "z_m": DISTANCE_M,
            "ccd_pixel_um": DETECTOR_PIXEL_M * 1e6,
        },
        "csaxs": {"entry/data/data": SQUARE},
    }
    assert set(files) == {file.stem for file in PRESETS.glob("*.yaml")}
    np.savez(tmp_path / "positions.npz", x=um[:, 1], y=um[:, 0])
    for preset, arrays in files.items():
        path = hdf5(tmp_path / f"{preset}.h5", arrays)
        more = {"positions": str(tmp_path / "positions.npz")} if preset == "csaxs" else {}
        got = given(path, PIXEL_M, paths=preset, **more)
        assert_scan(got, amplitudes if preset == "nsls2_prepared" else SQUARE, origin=True)
        assert got.raw.fft_ordered == (preset == "nsls2_prepared")
        assert got.raw.setup.energy_eV == (None if preset == "csaxs" else pytest.approx(ENERGY_EV))
        assert str(yaml.safe_load((PRESETS / f"{preset}.yaml").read_text())["sure"]) in got.raw.notes[0]


def matlab(path: Path, arrays: dict[str, np.ndarray], *more: str) -> Path:
    """Write arrays with MATLAB's axes as MATLAB does: reversed, complex ones as pairs, after a header of its own."""
    with h5py.File(path, "w", userblock_size=512) as file:
        for key, array in arrays.items():
            turned = array.T
            if np.iscomplexobj(turned):
                pairs = np.zeros(turned.shape, [("real", "f8"), ("imag", "f8")])
                pairs["real"], pairs["imag"] = turned.real, turned.imag
                turned = pairs
            file[key] = turned
            file[key].attrs["MATLAB_class"] = np.bytes_("double")
        file["#refs#/a"] = np.zeros(3)
    with open(path, "rb+") as raw:
        raw.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64")
    return path


@pytest.mark.parametrize("frames_last", [True, False])
def test_matlab_has_its_axes_reversed(tmp_path: Path, frames_last: bool) -> None:
    patterns = np.moveaxis(COUNTS, 0, 2) if frames_last else COUNTS
    arrays = {
        "dp": patterns,
        "pos": POSITIONS_UM,
        "probe": np.moveaxis(MODES, 0, 2),
        "good": ~BAD,
        "E": np.array([[8.0]]),
    }
    path = matlab(tmp_path / "scan.mat", arrays)
    got = given(path, PIXEL_M, paths="patterns=dp,yx_um=pos,probe=probe,mask=good,energy_keV=E")
    assert_scan(got, COUNTS, origin=True)
    np.testing.assert_array_equal(got.probe, MODES)
    np.testing.assert_array_equal(got.raw.good, ~BAD)
    assert got.raw.setup.energy_eV == 8000


def test_arrays_that_python_put_into_a_matlab_file_keep_their_axes(tmp_path: Path) -> None:
    path = hdf5(tmp_path / "scan.mat", {"dp": COUNTS, "xy": POSITIONS_UM[:, ::-1]})
    with h5py.File(path, "r+") as file:
        for key in file:
            file[key].attrs["MATLAB_class"] = np.bytes_("double")
            file[key].attrs["Python.Shape"] = file[key].shape
    assert_scan(given(path, PIXEL_M, paths="patterns=dp,xy_um=xy"), COUNTS, origin=True)


def test_a_matlab_file_without_names_lists_what_it_holds_with_matlabs_sizes(tmp_path: Path) -> None:
    path = matlab(tmp_path / "scan.mat", {"dp": np.moveaxis(COUNTS, 0, 2), "pos": POSITIONS_UM})
    with pytest.raises(
        ValueError, match=r"must be read with `data.paths`, .*; it holds /dp \(6 x 8 x 12\), /pos \(12 x 2\)$"
    ):
        given(path)


def test_broken_rules_are_named(path: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    for paths, rule in (
        ("x=/a,y=/b", r"`data.paths` \(=x=/a,y=/b\) must name `patterns`"),
        ("patterns=/a,x=/b", r"must name positions once: `x` and `y`, or `xy` or `yx` for one array of both"),
        ("patterns=/a,xy=/b,yx=/c", r"must name positions once"),
        ("patern=/a,xy=/b", r"must name x, y, .*, not `patern`; did you mean patterns\?"),
        ("patterns=/a,patterns=/b,xy=/c", r"must name each array once"),
        ("patterns=/a,x=/b,x_um=/c,y=/d", r"must name each array once, not `x` twice"),
        ("patterns=/a,xy_furlong=/b", r"must have a unit of px, m, mm, um, nm, angstrom at the end of `xy_furlong`"),
        ("patterns=,xy=/b", r"must have the path of an array for `patterns`, not "),
        ("diamnd", r"must be NAME=PATH,..., a preset \(csaxs, diamond, .*\) or a YAML file; did you mean diamond\?"),
        ("nowhere.yaml", r"`data.paths` \(=nowhere.yaml\) must be a readable file: No such file"),
        (
            PATHS.replace("_um", ""),
            r"`data.unit` \(=auto\) must say what `/entry/y` is in: neither its file nor its name",
        ),
        (
            PATHS.replace("x_um", "x_px"),
            r"`/entry/y, /entry/x` must be x and y, two arrays, both in pixels or both in units",
        ),
        (PATHS.replace("/x", "/y"), r"must be x and y, two arrays"),
        (
            PATHS.replace("/entry/data", "/data"),
            r"must hold `/data`, which `data.paths` names for `patterns`; it holds /en",
        ),
        (
            f"{PATHS},probe=/p",
            r"must hold `/p`, which `data.paths` names for `probe`; it holds /entry/data, /entry/x, /en",
        ),
        (f"{PATHS},energy=/entry", r"must hold `/entry`, which `data.paths` names for `energy`"),
    ):
        with pytest.raises(ValueError, match=rule):
            given(path, PIXEL_M, paths=paths)
    for text, rule in (
        ("[1, 2]", r"must hold `paths`, each a name and a path"),
        ("paths: {patterns: /a, xy: /b}\nunits: um", r"must hold paths, quantity, .* and nothing else, not `units`"),
        (
            "paths: {patterns: /a, xy: /b}\nquantity: photons",
            r"must have counts or amplitude for `quantity`, not photons",
        ),
        ("paths: {patterns: /a, xy: /b}\nfft_order: 3", r"must have centred or corner for `fft_order`, not 3"),
        ("paths: {patterns: [], xy: /b}", r"must have the path of an array for `patterns`, not \[\]"),
        ("paths: {patterns: /a, xy: 3}", r"must have the path of an array for `xy`, not 3"),
        ("paths: {patterns: &a [*a]}", r"own.yaml\) must not hold itself"),
    ):
        own.write_text(text)
        with pytest.raises(ValueError, match=rule):
            given(path, paths=str(own))
    with pytest.raises(ValueError, match=r"must be read with `data.paths`, as patterns=/entry/data/data"):
        given(path, format="named")
