"""Files that people have, of `shared/cases`: each is read, or refused with a remedy, as its maker's docstring says."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from fnostab.cli import main

CASES = Path(__file__).resolve().parents[2] / "shared" / "cases"
pytestmark = pytest.mark.skipif(not CASES.is_dir(), reason=f"the makers of files are not in {CASES}")

READ, REFUSED = 0, 2
#: Maker; what `fnostab data import` gets; exit code; what it says.
TABLE = [
    ("01", "siemens.npz.bz2 --N 64", READ, r"516"),
    ("01", "siemens.npz.bz2 --N 64", READ, r"step_px +4\.55"),
    *(
        ("02", f"{name}.npz --quantity counts", READ, "note: the file's object is left out: ")
        for name in ("none", "layers", "nanobject")
    ),
    ("02", "channel.npz --quantity counts", READ, "sha256"),
    ("02", "noprobe.npz --quantity counts", REFUSED, "must not hold pickled objects, `probeGuess` is one"),
    ("02", "noprobe.npz --quantity counts --probe probe_only.npz", READ, "sha256"),
    *(
        ("04", name, REFUSED, r"must be under its type's largest value, a gap's; `data.bad_pixels` mask leaves")
        for name in ("gap32.npz", "gap16.npz", "gap32_tike.npz", "gap16_tike.npz")
    ),
    ("04", "gap32.npz --bad-pixels mask", READ, "note: 128 of 4096 pixels of a pattern are masked"),
    ("04", "gap16_tike.npz --bad-pixels mask", READ, "note: 128 of 4096 pixels of a pattern are masked"),
    ("05", "nan.npz", REFUSED, r"must be finite; `data.bad_pixels` mask leaves such pixels out"),
    ("05", "nan.npz --bad-pixels mask", READ, "note: 128 of 4096 pixels"),
    ("06", "background.npz", REFUSED, "must be >= 0; .*, clip takes negative counts as 0"),
    ("06", "background.npz --bad-pixels clip", READ, "sha256"),
    ("06", "pilatus.npz", REFUSED, r"\(=-2 at pattern, row, column 0, 3, 7\) must be >= 0"),
    ("06", "pilatus.npz --bad-pixels mask", READ, "note: 129 of 4096 pixels"),
    ("06", "negamp.npz --quantity amplitude", REFUSED, "must be >= 0"),
    ("07", "hot.npz", READ, r"warning: one pixel, row 9, column 55 of the patterns, holds 75 % of all light"),
    ("07", "hot.npz --strict", REFUSED, r"must be without warnings: one pixel, row 9, column 55"),
    ("07", "hot.npz --mask-value 3000000", READ, "note: 1 of 4096 pixels"),
    ("07", "dead.npz", READ, r"warning: \d+ pixels in the bright part of the patterns .* never saw a count"),
    ("09", "mismatch.npz", REFUSED, r"`counts` \(=284 patterns\) must match the 285 positions"),
    ("09", "mismatch_tike.npz", REFUSED, r"`data` \(=285 patterns\) must match the 283 positions"),
    ("10", "metres.npz --quantity counts", REFUSED, r"must span 1 to 32768 px; are they in pixels\? `data.unit` says"),
    ("10", "mm.npz --quantity counts", REFUSED, r"must span 1 to 32768 px; are they in pixels\? `data.unit` says"),
    ("10", "um.npz --quantity counts", READ, "warning: the scan's step of 0.103 px .* which hardly moves"),
    ("10", "nm.npz --quantity counts", READ, "warning: the scan's step of 103 px .* which leaves no overlap"),
    ("10", "angstrom.npz --quantity counts", REFUSED, "must cover at most"),
    ("10", "um.npz --quantity counts --unit um --object-pixel-m 20e-9", READ, r"step_px +5\.16"),
    ("10", "metres.npz --quantity counts --unit m --object-pixel-m 20e-9", READ, r"step_px +5\.16"),
    ("10", "metres.npz --quantity counts --unit m", REFUSED, "give `data.object_pixel_m`, or `data.energy_keV`"),
    ("11", "right.npz --N 32 --orient auto", READ, "orientation: as_given;"),
    ("11", "swapped.npz --N 32 --orient auto", READ, "orientation: swap;"),
    ("11", "flipped.npz --N 32 --orient auto", READ, "orientation: flip_both;"),
    ("11", "flipy.npz --N 32 --orient auto", READ, "orientation: flip_rows;"),
    ("12", "corner_fnostab.npz", READ, "warning: 99 % of the light lies in the corners .*`data.fft_order` corner"),
    ("12", "corner_fnostab.npz --N 32", READ, "warning: 99 % of the light lies in the corners"),
    ("12", "centred_tike.npz", READ, "warning: 99 % of the light lies in the corners .*`data.fft_order` centred"),
    ("12", "corner_pinn.npz --quantity counts --fft-order corner --strict", READ, "sha256"),
    ("13", "modes_tike.npz", READ, "note: 2 of the probe's 3 modes are used, with 99.1 % of its light"),
    ("13", "modes_tike.npz --modes 1", READ, "note: 1 of the probe's 3 modes are used, with 90.9 %"),
    ("13", "modes_tike.npz --probe single.npz --strict", READ, "sha256"),
    ("13", "modes_pinn.npz --quantity counts", READ, "note: 2 of the probe's 3 modes"),
    ("13", "last1_pinn.npz --quantity counts", READ, "sha256"),
    ("13", "zeroprobe.npz --probe single.npz", READ, "sha256"),
    ("13", "nanprobe.npz --probe single.npz", READ, "sha256"),
    ("13", "nanprobe.npz", REFUSED, "must be finite"),
    (
        "15",
        "scan.cxi",
        REFUSED,
        r"`data.unit` \(=m\) must be px where .*: give `data.object_pixel_m`, or `data.energy_keV`",
    ),
    ("15", "scan.cxi --object-pixel-m 20e-9", REFUSED, "must name a probe: there is none in scan.cxi"),
    ("15", "scan.h5", REFUSED, "must come with its positions: `data.positions` names"),
    ("15", "scan.h5 --paths patterns=/dp,x=/x,y=/y", REFUSED, "must hold `/y`, which .* for `y`; it holds /dp"),
    ("15", "scan.mat", REFUSED, r"not MATLAB's version 5: save it with -v7.3 in MATLAB, or convert it, numpy.savez"),
    ("15", "data.npy", REFUSED, "not one bare array .*: put patterns and positions into one file, numpy.savez"),
    ("15", "scan.npz.gz", REFUSED, "not packed by gzip: unpack it with gunzip"),
    ("15", "folder", REFUSED, "must be a readable file: Is a directory"),
    ("16", "patterns.npz", REFUSED, "must come with its positions: `data.positions` names ptychodus' product"),
    ("16", "product.npz", REFUSED, "must be the file of the patterns; this is ptychodus' product: name it in"),
    ("16", "patterns.npz --positions product.npz", READ, r"test_patterns +285"),
    ("16", "patterns.npz --positions product.npz", READ, r"step_px +5\.16"),
    ("17", "slac.npz --quantity counts", READ, "test_patterns +285"),
    ("17", "slac64.npz --quantity counts", READ, r"note: `diffraction` was read as \(M, M, n\)"),
    ("18", "grouped.npz --quantity counts", REFUSED, "must be single patterns, not groups of 4"),
    ("18", "channel.npz --quantity counts", READ, "test_patterns +285"),
    ("18", "torch.npz --quantity counts", READ, "test_patterns +285"),
    ("18", "coords4d.npz --quantity counts", READ, "test_patterns +285"),
    ("19", "wide.npz --N 64 --probe probe64.npz --strict", READ, "test_patterns +285"),
    ("19", "odd.npz --N 64 --strict", READ, "test_patterns +285"),
    ("20", "off.npz --N 32", READ, r"warning: the light's centre lies \+7 rows and -9 columns .*give `data.center`"),
    ("20", "off.npz --N 32 --center 40,22 --strict", READ, "sha256"),
    ("20", "off.npz --N 32 --center auto --strict", READ, "note: the light's centre, row 40, column 22, is taken"),
    ("20", "off.npz --N 32 --bin 2 --center 40,22", READ, r"step_px +5\.16"),
    ("22", "compound.npz", READ, "sha256"),
    ("22", "float16.npz", READ, "sha256"),
    ("22", "lastaxis.npz", REFUSED, r"`probe` \(=64 x 64 x 2\) must be one square array"),
    ("22", "complexcounts.npz", REFUSED, "must be n real patterns"),
    ("24", "twice.npz", READ, r"test_patterns +570"),
    ("24", "line.npz", READ, r"test_patterns +19"),
    ("24", "allsame.npz", REFUSED, r"\(=extent 0\) must span 1 to"),
    ("25", "one.npz", REFUSED, r"for single patterns, load the model itself \(docs/using-a-model.md\)"),
    ("25", "few.npz", REFUSED, "9 positions"),
    (
        "30",
        "both.npz --quantity amplitude",
        READ,
        "warning: the file holds both diffraction and diff3d: diffr",
    ),
    ("31", "raster.npz --strict", READ, r"test_patterns +285"),
    ("31", "raster_pinn.npz --quantity counts --strict", READ, r"test_patterns +285"),
    ("31", "transposed_positions.npz", REFUSED, r"\(=2 x 285\) must be row and column of n positions"),
]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of a maker's files, by its number."""
    folders: dict[str, Path] = {}

    def make(number: str) -> Path:
        if number not in folders:
            (script,) = CASES.glob(f"{number}_*.py")
            folders[number] = tmp_path_factory.mktemp(number)
            subprocess.run([sys.executable, str(script), str(folders[number])], check=True, cwd=CASES, timeout=120)
        return folders[number]

    return make


@pytest.mark.parametrize(("number", "words", "code", "said"), TABLE, ids=[f"{row[0]} {row[1]}" for row in TABLE])
def test_a_file_that_people_have_is_read_or_refused_as_its_maker_says(
    made, number, words, code, said, monkeypatch, capsys, fresh_store
):
    monkeypatch.chdir(made(number))
    before = sorted(Path().iterdir())
    assert main(["data", "import", *words.split()]) == code
    printed = capsys.readouterr()
    assert re.search(said, printed.out if code == READ else printed.err), printed
    assert (code == READ) == (printed.err == "")
    assert sorted(Path().iterdir()) == before


def _sha256(words, capsys) -> str:
    assert main(["data", "import", *words.split()]) == READ
    found = re.search(r"^sha256 +(\w+)", capsys.readouterr().out, re.MULTILINE)
    assert found
    return found[1]


def test_one_scan_in_any_number_type_and_order_is_the_same_dataset(made, monkeypatch, capsys, fresh_store):
    monkeypatch.chdir(made("22"))
    names = ("float32", "uint16", "int32", "bigendian", "fortran", "double", "longdouble", "compressed", "compound")
    assert len({_sha256(f"{name}.npz", capsys) for name in names}) == 1


def test_whichever_way_its_cube_lies_a_scan_is_the_same_dataset(made, monkeypatch, capsys, fresh_store):
    monkeypatch.chdir(made("17"))
    assert _sha256("slac64.npz --quantity counts", capsys) == _sha256("plain64.npz --quantity counts", capsys)


def test_import_out_keeps_the_object_in_the_frame_of_the_positions(made, monkeypatch, capsys, fresh_store, tmp_path):
    monkeypatch.chdir(made("29"))
    first = _sha256(f"pinn.npz --quantity counts --N 64 --out {tmp_path / 'own.npz'}", capsys)
    assert _sha256(f"{tmp_path / 'own.npz'} --N 64", capsys) == first


def test_a_dense_scan_is_read(made, monkeypatch, capsys, fresh_store):
    monkeypatch.chdir(made("28"))
    assert _sha256("dense.npz --quantity counts", capsys)
