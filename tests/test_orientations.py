"""Whether the axes of a scan's positions are found to be right or wrong."""

import json
from dataclasses import replace

import mlflow
import pytest
from small_runs import write_small_scan

from fnostab.cli import main
from fnostab.config import resolve_config
from fnostab.dataset import ORIENTATIONS, load_or_build, r_by_orientation
from fnostab.formats.own import write_scan
from fnostab.health import better_orientation


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
    undo = {"swap+flip_rows": "swap+flip_columns"}
    undo |= {back: forth for forth, back in undo.items()}
    said = better_orientation(r_by_orientation(_turned(scan, ORIENTATIONS[name])))
    assert f" turned by {undo.get(name, name)}, and " in said


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
