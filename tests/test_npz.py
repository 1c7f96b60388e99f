import bz2
import io
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fnostab.dataset import import_scan
from fnostab.formats import npz
from fnostab.formats.own import write_scan
from fnostab.formats.probe import read_probe

N_POSITIONS, M = 12, 16


def read_scan(path: Path, quantity: Any = "auto") -> Any:
    return import_scan(path, quantity=quantity, probe_needed=False)


POSITIONS = np.stack([np.arange(N_POSITIONS) * 1.5, np.arange(N_POSITIONS) * -2.0], axis=1)


def counts(rng: np.random.Generator) -> np.ndarray:
    return rng.poisson(5.0, (N_POSITIONS, M, M)).astype(np.float32)


def probe() -> np.ndarray:
    return (np.eye(M) + 1j).astype(np.complex64)


def tike(**changes: Any) -> dict[str, Any]:
    data = counts(np.random.default_rng(0))
    arrays = {
        "data": np.fft.ifftshift(data, axes=(-2, -1))[None],
        "scan": POSITIONS[None].astype(np.float32),
        "probe": probe()[None, None, None, None],
    }
    return {key: value for key, value in {**arrays, **changes}.items() if value is not None}


def ptychopinn(patterns: str = "diffraction", **changes: Any) -> dict[str, Any]:
    arrays = {
        patterns: np.sqrt(counts(np.random.default_rng(0))),
        "xcoords": POSITIONS[:, 1] + M / 2,
        "ycoords": POSITIONS[:, 0] + M / 2,
        "probeGuess": probe(),
        "objectGuess": np.full((40, 41), 0.5j),
    }
    return {key: value for key, value in {**arrays, **changes}.items() if value is not None}


def saved(path: Path, arrays: dict[str, Any]) -> Path:
    packed = io.BytesIO()
    np.savez(packed, **arrays)
    path.write_bytes(bz2.compress(packed.getvalue()) if path.suffix == ".bz2" else packed.getvalue())
    return path


@pytest.mark.parametrize("name", ["scan.npz", "scan.npz.bz2"])
def test_own_layout_reads_back_as_written(tmp_path: Path, name: str) -> None:
    patterns, image = counts(np.random.default_rng(0)), np.full((40, 41), 0.5j, dtype=np.complex64)
    write_scan(tmp_path / name, patterns.astype(np.int32), POSITIONS, probe(), image)
    scan = read_scan(tmp_path / name)
    assert scan.layout == "fnostab"
    for read, written in zip(
        (scan.counts, scan.positions_px, scan.probe, scan.object), (patterns, POSITIONS, probe(), image), strict=True
    ):
        np.testing.assert_array_equal(read, written, strict=True)


def test_equal_scans_give_equal_files(tmp_path: Path) -> None:
    for name in ("one.npz", "two.npz"):
        write_scan(tmp_path / name, counts(np.random.default_rng(0)), POSITIONS, probe())
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()


def test_tike_patterns_are_brought_to_the_centre(tmp_path: Path) -> None:
    scan = read_scan(saved(tmp_path / "scan.npz", tike()))
    assert scan.layout == "tike"
    np.testing.assert_array_equal(scan.counts, counts(np.random.default_rng(0)))
    np.testing.assert_array_equal(scan.positions_px, POSITIONS)
    np.testing.assert_array_equal(scan.probe, probe())


@pytest.mark.parametrize("patterns", ["diffraction", "diff3d"])
def test_ptychopinn_amplitudes_become_counts_and_middles_corners(tmp_path: Path, patterns: str) -> None:
    scan = read_scan(saved(tmp_path / "scan.npz", ptychopinn(patterns)), "amplitude")
    assert scan.layout == "ptychopinn"
    np.testing.assert_allclose(scan.counts, counts(np.random.default_rng(0)), rtol=1e-6)
    np.testing.assert_array_equal(scan.positions_px, POSITIONS)
    np.testing.assert_array_equal(scan.probe, probe())
    assert scan.object is not None
    assert scan.object.shape == (40, 41)


def test_patterns_with_the_positions_last_are_turned(tmp_path: Path) -> None:
    arrays = ptychopinn()
    arrays["diffraction"] = np.moveaxis(arrays["diffraction"], 0, 2)
    scan = read_scan(saved(tmp_path / "scan.npz", arrays), "amplitude")
    np.testing.assert_allclose(scan.counts, counts(np.random.default_rng(0)), rtol=1e-6)


def test_quantity_counts_leaves_ptychopinn_patterns_alone(tmp_path: Path) -> None:
    arrays = ptychopinn(diffraction=counts(np.random.default_rng(0)))
    scan = read_scan(saved(tmp_path / "scan.npz", arrays), "counts")
    np.testing.assert_array_equal(scan.counts, arrays["diffraction"])


def test_ptychopinn_quantity_is_never_guessed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^`data.quantity` \(=auto\) must be counts or amplitude"):
        read_scan(saved(tmp_path / "scan.npz", ptychopinn()))


def test_pickled_entries_that_are_not_needed_do_no_harm(tmp_path: Path) -> None:
    arrays = tike(notes=np.array([{"beamline": "2-ID-D"}], dtype=object))
    assert read_scan(saved(tmp_path / "scan.npz", arrays)).counts.shape == (N_POSITIONS, M, M)


def test_a_scan_without_probe_has_none(tmp_path: Path) -> None:
    assert read_scan(saved(tmp_path / "scan.npz", tike(probe=None))).probe is None


def broken(value: float) -> np.ndarray:
    data = tike()["data"].copy()
    data[0, 3, 2, 1] = value
    return data


BAD_SCANS = {
    "negative": (tike(data=broken(-3)), r"`data` \(=-3.0 at pattern, row, column 3, 2, 1\) must be >= 0"),
    "nan": (tike(data=broken(np.nan)), r"`data` \(=nan at pattern, row, column 3, 2, 1\) must be finite"),
    "infinite": (tike(data=broken(np.inf)), r"`data` \(=inf at .*\) must be finite"),
    "beyond float32": (tike(data=broken(1e30).astype(np.float64) * 1e30), r"`data` \(=.*\) must be finite"),
    "dark": (tike(data=np.zeros((1, N_POSITIONS, M, M))), r"`data` \(=0 everywhere\) must hold some counts"),
    "complex": (tike(data=tike()["data"] * 1j), r"`data` \(=1 x 12 x 16 x 16 complex64\) must be n real"),
    "fewer positions": (tike(scan=POSITIONS[:-1]), r"`data` \(=12 patterns\) must match the 11 positions"),
    "too few": (tike(scan=POSITIONS[:9]), r"`scan` \(=9 positions\) must be at least 10"),
    "three columns": (tike(scan=np.ones((12, 3))), r"`scan` \(=12 x 3\) must be row and column"),
    "nan position": (tike(scan=POSITIONS * np.nan), r"`scan` \(=nan at position 0\) must be finite"),
    "metres": (tike(scan=POSITIONS * 1e-9), r"`scan` \(=extent 2.2e-08\) must span 1 to 32768 px"),
    "text positions": (tike(scan=np.array(["a"] * 12)), r"must hold numbers, `scan` is <U1"),
    "probe not square": (tike(probe=probe()[:-2]), r"`probe` \(=14 x 16\) must be one square array"),
    "probe nan": (tike(probe=probe() * np.nan), r"`probe` \(=.*nan.*\) must be finite"),
    "probe dark": (tike(probe=probe() * 0), r"`probe` \(=0 everywhere\) must hold some light"),
    "pickled": (tike(scan=np.array([None] * 12)), r"`data.path` \(=.*\) must not hold pickled objects, `scan` is one"),
    "rows, columns": (ptychopinn(xcoords=np.arange(11)), r"`ycoords, xcoords` \(=12 and 11\) must be as many rows"),
    "unknown layout": ({"patterns": np.ones(3), "where": np.ones(3)}, r"`data.path` .*; it holds patterns, where$"),
    "empty": ({}, r"`data.path` .*; it holds nothing$"),
}


@pytest.mark.parametrize("case", BAD_SCANS)
def test_a_bad_scan_is_refused_in_one_line(tmp_path: Path, case: str) -> None:
    arrays, message = BAD_SCANS[case]
    with pytest.raises(ValueError, match=message) as caught:
        read_scan(saved(tmp_path / "scan.npz", arrays), "amplitude" if case == "rows, columns" else "auto")
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"PK", b"BZh9", b"\x80\x04]\x94.", b"\x93NUMPY\x01\x00", b"plain text"])
def test_a_file_that_is_no_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "scan.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"^`data.path` \(=.*\) must be an? (NPZ|whole NPZ) file"):
        read_scan(path)


@pytest.mark.parametrize("missing", ["nowhere.npz", "."])
def test_a_missing_file_is_refused(tmp_path: Path, missing: str) -> None:
    with pytest.raises(ValueError, match=r"^`data.path` \(=.*\) must be a readable file: "):
        read_scan(tmp_path / missing)


@pytest.mark.parametrize("name", ["scan.npz", "scan.npz.bz2"])
def test_a_file_truncated_anywhere_is_refused(tmp_path: Path, name: str) -> None:
    path = saved(tmp_path / name, tike())
    whole = path.read_bytes()
    for length in np.linspace(4, len(whole) - 1, 25).astype(int):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"^`data.path` \(=.*\) must be a whole NPZ file: "):
            read_scan(path)


def test_a_damaged_file_is_refused_or_harmless(tmp_path: Path) -> None:
    path = saved(tmp_path / "scan.npz", tike())
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    messages = []
    for place in rng.integers(0, len(whole), 200):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        try:
            read_scan(path)
        except ValueError as error:
            messages.append(str(error))
    assert len(messages) > 150  # the archive's checksums cover the arrays
    assert "\n" not in "".join(messages)


def declared(shape: str) -> bytes:
    """An archive whose only array claims `shape` and holds 64 bytes."""
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}".encode()
    header += b" " * (118 - len(header)) + b"\n"
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("probe.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(64))
    return packed.getvalue()


@pytest.mark.parametrize("shape", ["(1000000, 1000000)", "(-4, -4)", "(4, 5)", "(10**9,)", "'x'"])
def test_a_header_that_lies_about_the_size_is_refused(tmp_path: Path, shape: str) -> None:
    (tmp_path / "probe.npz").write_bytes(declared(shape))
    with pytest.raises(ValueError, match=r"^`data.probe` \(=.*\) must be a whole NPZ file: "):
        read_probe(tmp_path / "probe.npz")


def test_an_array_that_is_longer_than_its_header_says_is_refused(tmp_path: Path) -> None:
    """A damaged shape would else give fewer numbers, whose checksum nothing compares."""
    (tmp_path / "probe.npz").write_bytes(declared("(3, 3)"))
    with pytest.raises(ValueError, match=r"must be a whole NPZ file: `probe` is longer than its header says$"):
        read_probe(tmp_path / "probe.npz")


def test_a_header_of_python_2_is_read_without_a_warning(tmp_path: Path) -> None:
    (tmp_path / "probe.npz").write_bytes(declared("(4L, 4L)"))
    assert npz.NpzFile(tmp_path / "probe.npz").read("probe").shape == (4, 4)


def test_a_wide_scan_whose_windows_overlap_is_taken(tmp_path: Path) -> None:
    """A long line of windows covers little of a canvas that is as wide, but all of its own rectangle."""
    positions = np.stack([np.zeros(300), np.arange(300) * 8.0], axis=1)
    write_scan(tmp_path / "scan.npz", np.ones((300, M, M), np.uint8), positions, probe())
    assert len(read_scan(tmp_path / "scan.npz").counts) == 300


def test_a_directory_that_lost_entries_is_refused(tmp_path: Path) -> None:
    """A comment that is longer than it was swallows what follows; zipfile takes what is left."""
    path = saved(tmp_path / "scan.npz", tike())
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 33] = 0x7F
    path.write_bytes(content)
    with pytest.raises(ValueError, match="its directory has a comment where NumPy writes none$"):
        npz.NpzFile(path)


def test_an_array_beyond_the_limit_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "scan.npz", {"a": np.zeros(100), "b": np.zeros(100)})
    archive = npz.NpzFile(path, max_bytes=1200)
    assert archive.read("a").shape == (100,)
    with pytest.raises(ValueError, match=r"^`data.path` \(=.*\) must hold at most 1200 bytes, `b` goes beyond$"):
        archive.read("b")
    archive.close()


def test_a_bz2_bomb_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "scan.npz.bz2"
    path.write_bytes(bz2.compress(bytes(2**22)))
    with pytest.raises(ValueError, match=r"must be a whole NPZ file: it unpacks to more than 1000000 bytes$"):
        npz.NpzFile(path, max_bytes=10**6)


@pytest.mark.parametrize("key", ["probe", "probeGuess"])
def test_a_probe_is_read_under_either_key(tmp_path: Path, key: str) -> None:
    read = read_probe(saved(tmp_path / "probe.npz", {key: probe()[None]}))
    np.testing.assert_array_equal(read, probe(), strict=True)


def test_a_probe_file_without_probe_names_what_it_holds(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^`data.probe` \(=.*\) must hold the key `probe` .* holds light$"):
        read_probe(saved(tmp_path / "probe.npz", {"light": probe()}))


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("scan.npz", {"counts": -np.ones((12, M, M))}, r"`counts` \(=-1.0 at .*\) must be >= 0"),
        ("scan.npz", {"probe": np.ones((8, 8))}, r"`probe` \(=8 x 8\) must be 16 x 16, as the patterns"),
        ("scan.npz", {"counts": np.array([[["a"]]])}, r"`counts` .* must be n real patterns"),
        ("scan.h5", {}, r"`path` \(=.*scan.h5\) must end in .npz or .npz.bz2"),
    ],
)
def test_a_bad_scan_is_not_written(tmp_path: Path, name: str, changes: dict[str, Any], message: str) -> None:
    arrays = {"counts": np.ones((12, M, M)), "positions_px": POSITIONS, "probe": probe(), **changes}
    with pytest.raises(ValueError, match=message):
        write_scan(tmp_path / name, **arrays)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "scan.npz"
    path.write_bytes(b"old")

    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match=re.escape("no space")):
        write_scan(path, np.ones((12, M, M)), POSITIONS, probe())
    assert [entry.name for entry in tmp_path.iterdir()] == ["scan.npz"]
    assert path.read_bytes() == b"old"
