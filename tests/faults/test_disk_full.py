"""A disk that fills up: while data are cached, checkpoints written, artifacts or metrics stored."""

import subprocess
from contextlib import contextmanager

import numpy as np
import pytest
from killing import Trainings, empty_store, fresh_folder, left_behind

from fnostab.formats.result import Result, write_result
from fnostab.io.files import atomic_write, damage, is_disk_full

pytestmark = pytest.mark.faults


@contextmanager
def _small_disk(folder, kib):
    """A file system of `kib` KiB in memory at `folder`; gives a function that sets its size."""
    folder.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"needs to mount a tmpfs: {mounted.stderr.strip()}")
    try:
        yield lambda size: subprocess.run(
            ["mount", "-o", f"remount,size={size}k", "tmpfs", str(folder)], check=True, capture_output=True
        )
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture(scope="module")
def trainings():
    with Trainings() as trainings:
        yield trainings


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    return empty_store(tmp_path_factory.mktemp("store") / "template")


@pytest.fixture(scope="module")
def unbroken(trainings, template, tmp_path_factory):
    """What the training leaves behind where there is room."""
    folder = fresh_folder(template, tmp_path_factory.mktemp("unbroken") / "run")
    assert trainings.train(folder)["code"] == 0
    return left_behind(folder)


def _said(folder):
    return (folder / "output.txt").read_text()


def test_no_room_for_the_data_is_refused_in_one_line_and_leaves_nothing(
    tmp_path, trainings, template, unbroken, fault_report
):
    folder = fresh_folder(template, tmp_path / "run")
    with _small_disk(folder / "cache", 512) as resize:
        assert trainings.train(folder)["code"] == 2
        message = f"`FNOSTAB_CACHE` (={folder / 'cache'}) must have room for the dataset: it is full"
        assert _said(folder) == f"fnostab: error: {message}\n"
        assert [path for path in (folder / "cache").rglob("*") if path.suffix not in (".lock", ".pid")] == []
        resize(64 * 1024)
        assert trainings.train(folder)["code"] == 0
        assert left_behind(folder) == unbroken
    fault_report.record("disk full while data are cached", 1, 1, "refused in one line, nothing left; then as usual")


def test_no_room_for_a_checkpoint_stops_nothing_and_leaves_the_one_before(
    tmp_path, trainings, template, unbroken, fault_report
):
    folder = fresh_folder(template, tmp_path / "run")
    # Room for the data (1 MiB) and for three and a half checkpoints (half a MiB each), not for pictures.
    with _small_disk(folder / "cache", 2700) as resize:
        assert trainings.train(folder)["code"] == 1
        said = _said(folder)
        assert "no room for the checkpoint last.ckpt: training goes on, what was saved before stays" in said
        assert "epoch 3/3" in said
        assert said.splitlines()[-1].startswith("fnostab: error: the disk is full")
        (run,) = (folder / "cache" / "runs").glob("*/")
        checkpoints = {path.name: damage(path) for path in run.glob("*.ckpt")}
        assert checkpoints
        assert set(checkpoints.values()) == {None}
        resize(64 * 1024)
        assert trainings.train(folder)["code"] == 0
        assert left_behind(folder) == unbroken
    note = "training went on; checkpoints there stay whole; the same command ended as if there had been room"
    fault_report.record("disk full while checkpoints are written", 1, 1, note)


@pytest.mark.parametrize("kib", [16, 400])
def test_no_room_for_artifacts_is_said_and_the_same_command_stores_them(
    tmp_path, trainings, template, unbroken, fault_report, kib
):
    folder = fresh_folder(template, tmp_path / "run")
    with _small_disk(folder / "mlruns", kib) as resize:
        assert trainings.train(folder)["code"] == 1
        last = _said(folder).splitlines()[-1]
        assert last.startswith("fnostab: error: the tracking store has no room (")
        assert last.endswith("; the same command, or `fnostab sync`, finishes the run")
        resize(64 * 1024)
        assert trainings.train(folder)["code"] == 0
        assert left_behind(folder) == unbroken
    fault_report.record(f"disk full ({kib} KiB) while artifacts are logged", 1, 1, "said; the same command stored them")


def test_no_room_for_metrics_is_said_and_the_same_command_stores_them(
    tmp_path, trainings, template, unbroken, fault_report
):
    folder = tmp_path / "run"
    used_kib = sum(path.stat().st_size for path in template.iterdir()) // 1024
    with _small_disk(folder, used_kib + 100) as resize:
        fresh_folder(template, folder)
        for name in ("cache", "mlruns"):
            (tmp_path / name).mkdir()
            (folder / name).symlink_to(tmp_path / name)
        (folder / "output.txt").symlink_to(tmp_path / "output.txt")  # what is said needs room as well
        assert trainings.train(folder)["code"] == 1, _said(folder)
        last = _said(folder).splitlines()[-1]
        assert last.startswith("fnostab: error: the tracking store has no room (database or disk is full)")
        resize(64 * 1024)
        assert trainings.train(folder)["code"] == 0
        assert left_behind(folder) == unbroken
    fault_report.record("disk full while metrics are stored (sqlite)", 1, 1, "said; the same command stored them")


@pytest.mark.parametrize(
    ("name", "layout"), [("recon.npz", "fnostab"), ("recon.cxi", "cxi"), ("recon.h5", "ptychodus")]
)
def test_no_room_for_a_reconstruction_is_an_error_of_the_disk_and_leaves_nothing(tmp_path, fault_report, name, layout):
    noise = np.random.default_rng(0).normal(size=(256, 256))
    result = Result(
        object=noise.astype(np.complex64),
        light=noise.astype(np.float32),
        origin_px=(0, 0),
        positions_px=np.zeros((10, 2)),
        first_px=np.zeros(2),
        modes=np.ones((1, 16, 16), np.complex64),
        scale=1.0,
        mean_counts=1.0,
        pixel_size_m=1e-8,
        energy_eV=None,
        distance_m=None,
        numbers={},
        model="any",
        scan="any",
        program="fnostab 0",
    )
    with _small_disk(tmp_path / "disk", 128):
        with (
            pytest.raises(OSError, match="No space left| requested and ") as caught,
            atomic_write(tmp_path / "disk" / name) as partial,
        ):
            write_result(partial, layout, result)
        assert is_disk_full(caught.value)
        assert list((tmp_path / "disk").iterdir()) == []
    fault_report.record(f"disk full while {name} is written", 1, 1, "an error of the disk; nothing left")
