"""Whether the axes of a scan's positions are found to be right or wrong."""

import json
import re
from dataclasses import replace
from pathlib import Path

import mlflow
import numpy as np
import pytest
from small_runs import write_small_scan

from fnostab.cli import main
from fnostab.config import resolve_config
from fnostab.dataset import ORIENTATIONS, combined, load_or_build, r_by_orientation
from fnostab.formats.own import write_scan
from fnostab.health import better_orientation

_STAR = Path(__file__).resolve().parents[2] / "shared" / "data" / "siemens-star-small.npz.bz2"


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    path = tmp_path_factory.mktemp("scan") / "scan.npz"
    write_small_scan(path)
    return load_or_build(resolve_config({"preset": "scan", "data": str(path), "N": 32}).data)


def _turned(scan, turn):
    return replace(scan, test=replace(scan.test, positions_px=turn(scan.test.positions_px)))


def test_right_axes_fit_best_and_no_other_orientation_is_called_better(scan):
    found = r_by_orientation(scan)
    assert list(found) == list(ORIENTATIONS)
    assert min(found, key=found.get) == "as_given"
    assert better_orientation(found) == ""


@pytest.mark.parametrize("name", [name for name in ORIENTATIONS if name != "as_given"])
def test_each_wrong_orientation_is_found_and_what_would_mend_it_named(scan, name):
    said = better_orientation(r_by_orientation(_turned(scan, ORIENTATIONS[name])))
    assert f" turned by {_undoing(name)}, and " in said


def _undoing(name):
    undo = {"swap+flip_rows": "swap+flip_columns"}
    undo |= {back: forth for forth, back in undo.items()}
    return undo.get(name, name)


@pytest.mark.parametrize("name", ORIENTATIONS)
@pytest.mark.parametrize("sign", [1, -1], ids=["", "other sign of the Fourier transform"])
def test_import_finds_the_orientation_of_each_of_the_16_makings_of_a_scan(tmp_path, fresh_store, capsys, name, sign):
    """The other sign turns the patterns by half a turn, which is as if the positions were flipped both ways."""
    path, source = tmp_path / "scan.npz", write_small_scan(tmp_path / "right.npz")
    counts, probe = source.test.counts, source.probe * source.scale
    if sign < 0:
        counts = np.roll(counts[:, ::-1, ::-1], 1, axis=(1, 2))
    positions = ORIENTATIONS[name](source.test.positions_px)
    write_scan(path, counts=counts, probe=probe, positions_px=positions)
    assert main(["data", "import", str(path), "--N", "32", "--orient", "auto"]) == 0
    wanted = _undoing(name) if sign > 0 else combined(_undoing(name), "flip_both")
    assert f"orientation: {wanted}; train with data.orient={wanted}\n" in capsys.readouterr().out


def test_import_refuses_to_choose_between_orientations_that_fit_alike(tmp_path, fresh_store, capsys):
    """A single line of positions is its own mirror image."""
    path, source = tmp_path / "line.npz", write_small_scan(tmp_path / "right.npz")
    first = source.test.positions_px[:, 0] == source.test.positions_px[0, 0]
    line = np.tile(np.flatnonzero(first), 2)  # two exposures a place make enough patterns
    write_scan(path, source.test.counts[line], source.test.positions_px[line], source.probe * source.scale)
    assert main(["data", "import", str(path), "--N", "32", "--orient", "auto"]) == 2
    assert re.search(r"`data.orient` \(=auto\) must be given: \S+ and \S+ fit alike, R = ", capsys.readouterr().err)


@pytest.mark.skipif(not _STAR.is_file(), reason=f"the measured Siemens star is not at {_STAR}")
def test_import_finds_the_orientation_of_the_siemens_star(fresh_store, capsys):
    assert main(["data", "import", str(_STAR), "--N", "64", "--orient", "auto"]) == 0
    assert "orientation: as_given;" in capsys.readouterr().out


def test_patterns_that_share_little_light_cannot_tell(scan):
    assert r_by_orientation(_turned(scan, lambda positions: 4 * positions)) == {}


def test_simulated_positions_need_no_check():
    assert r_by_orientation(load_or_build(resolve_config({"preset": "smoke"}).data)) == {}


def test_a_training_on_flipped_positions_says_so_before_its_first_step(tmp_path, fresh_store, capsys):
    path = tmp_path / "flipped.npz"
    source = write_small_scan(tmp_path / "right.npz")
    positions = source.test.positions_px * [-1, 1]
    write_scan(path, counts=source.test.counts, probe=source.probe * source.scale, positions_px=positions)
    keys = ["--preset", "scan", "--data", str(path), "--N", "32", "--epochs", "1", "--width", "4"]
    assert main(["train", *keys]) == 0
    said = capsys.readouterr().out
    assert said.index("positions look wrong: a conventional reconstruction has an R-factor of") < said.index(
        "epoch 1/1"
    )
    assert "as given; try data.orient=flip_rows\n" in said
    (run,) = mlflow.search_runs(output_format="list")
    stored = json.loads(mlflow.artifacts.load_text(f"{run.info.artifact_uri}/history.json"))
    assert better_orientation(stored["r_by_orientation"]).count("turned by flip_rows, and") == 1
