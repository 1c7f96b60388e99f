"""Files that rot between two starts of one training, and models that rot before they are used."""

import signal
import struct
import subprocess
import sys
import zipfile

import pytest
from killing import Moment, Trainings, empty_store, fresh_folder, left_behind
from servers import client_environment

from fnostab.formats.own import write_scan

pytestmark = pytest.mark.faults

_KILL = Moment("step", 12, 0.0, signal.SIGKILL)


def _flip(path):
    """Flip a bit in the middle of a file; of an archive in its largest record, as what pads records means nothing."""
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            largest = max(archive.infolist(), key=lambda record: record.compress_size)
        start = largest.header_offset
        name, extra = struct.unpack("<HH", content[start + 26 : start + 30])
        middle = start + 30 + name + extra + largest.compress_size // 2
    content[middle] ^= 4
    path.write_bytes(content)


def _cut(path):
    path.write_bytes(path.read_bytes()[:-100])


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """(trainings, an empty store, what an unbroken training leaves behind, the folder of that)."""
    template = empty_store(tmp_path_factory.mktemp("store") / "template")
    folder = fresh_folder(template, tmp_path_factory.mktemp("unbroken") / "run")
    with Trainings() as trainings:
        assert trainings.train(folder)["code"] == 0
        yield trainings, template, left_behind(folder), folder


@pytest.mark.parametrize(
    ("name", "spoil", "said"),
    [
        ("cache/runs/*/last.ckpt", _flip, "last.ckpt is damaged"),
        ("cache/runs/*/last.ckpt", _cut, "last.ckpt is damaged"),
        ("cache/runs/*/best.ckpt", _flip, "best.ckpt is damaged"),
        ("cache/runs/*/run.json", _cut, "continuing control"),
        ("cache/*/train_counts.npy", _flip, "is damaged and was built anew"),
        ("cache/*/meta.json", _cut, "is damaged and was built anew"),
    ],
)
def test_a_file_that_is_damaged_between_two_starts_is_noticed_and_made_anew(
    tmp_path, store, fault_report, name, spoil, said
):
    trainings, template, expected, _ = store
    folder = fresh_folder(template, tmp_path / "run")
    assert trainings.train(folder, _KILL)["code"] == -signal.SIGKILL
    (path,) = folder.glob(name)
    spoil(path)
    assert trainings.train(folder)["code"] == 0
    assert said in (folder / "output.txt").read_text()
    assert left_behind(folder) == expected
    what = "one byte flipped in" if spoil is _flip else "cut short:"
    fault_report.record(f"{what} {path.name}", 1, 1, "noticed, said; the same numbers in the end")


@pytest.mark.parametrize("spoil", [_flip, _cut])
def test_a_model_that_is_damaged_is_refused(tmp_path, store, fault_report, spoil):
    import numpy as np

    *_, folder = store
    (model,) = folder.glob("mlruns/0/models/*/artifacts/data/model.pt2")
    whole = model.read_bytes()
    rng = np.random.default_rng(0)
    write_scan(tmp_path / "scan.npz", rng.poisson(9.0, (12, 32, 32)), rng.uniform(0, 20, (12, 2)))
    command = ["reconstruct", "--model", str(model.parents[1]), "--data", "scan.npz"]
    try:
        spoil(model)
        answer = subprocess.run(
            [sys.executable, "-m", "fnostab", *command],
            cwd=tmp_path,
            env=client_environment(f"sqlite:///{folder / 'mlflow.db'}", tmp_path / "cache"),
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        model.write_bytes(whole)
    assert answer.returncode == 2, answer.stderr
    assert answer.stderr.startswith(f"fnostab: error: `model` (={model.parents[1]}) must be a whole model: ")
    assert answer.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["scan.npz"]
    what = "one byte flipped in" if spoil is _flip else "cut short:"
    fault_report.record(f"{what} model.pt2 of a logged model", 1, 1, "refused in one line")
