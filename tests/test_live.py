"""A scan that is reconstructed while another process writes its file, as a detector does (HDF5, SWMR)."""

import os
import signal
import subprocess
import sys
import time

import h5py
import numpy as np
import pytest
from small_runs import save_untrained_model, save_untrained_model_of, write_small_scan

from fnostab.cli import main
from fnostab.config import ConfigError, ReadingConfig
from fnostab.optics import Beam
from fnostab.workflows.live import Following
from fnostab.workflows.reconstruct import reconstruct_scan

#: Writes a scan, a few frames at a time, each time when a line comes in; "close" ends it.
_WRITER = """
import sys
import h5py
import numpy as np

source, target, planned = sys.argv[1:]
with np.load(source) as scan:
    counts, positions = scan["counts"], scan["positions_px"]
file = h5py.File(target, "w", libver="latest")
size = counts.shape[1:]
frames = file.create_dataset("data", (0, *size), "f4", maxshape=(None, *size), chunks=(1, *size))
places = {}
for name, axis in (("y", 0), ("x", 1)):
    if planned == "planned":
        places[name] = file.create_dataset(name, data=positions[:, axis])
    else:
        places[name] = file.create_dataset(name, (0,), "f8", maxshape=(None,), chunks=(16,))
file.swmr_mode = True
print("open", flush=True)
for line in sys.stdin:
    if line.strip() == "close":
        break
    start, stop = frames.shape[0], frames.shape[0] + int(line)
    if planned != "planned":
        for axis, place in enumerate((places["y"], places["x"])):
            place.resize((stop,))
            place[start:stop] = positions[start:stop, axis]
            place.flush()
    frames.resize(stop, axis=0)
    frames[start:stop] = counts[start:stop]
    frames.flush()
    print(stop, flush=True)
file.close()
print("closed", flush=True)
"""

_READING = ReadingConfig(paths="patterns=/data,y_px=/y,x_px=/x")


class Writer:
    """The other process."""

    def __init__(self, scan, target, planned=True):
        command = [sys.executable, "-c", _WRITER, str(scan), str(target), "planned" if planned else "growing"]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
        self._answer()

    def write(self, frames):
        self._say(str(frames))

    def close(self):
        self._say("close")

    def _say(self, line):
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        self._answer()

    def _answer(self):
        assert self.process.stdout.readline().strip()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("live")


@pytest.fixture(scope="module")
def scan(folder):
    """49 patterns in a file that is not written any more."""
    write_small_scan(folder / "scan.npz")
    return folder / "scan.npz"


@pytest.fixture(scope="module")
def model(folder, scan):
    return save_untrained_model_of(scan, folder / "model")


@pytest.fixture(scope="module")
def expected(folder, model, scan):
    return reconstruct_scan(str(model), scan, folder / "expected.npz", quantity="counts")


@pytest.fixture
def writer(scan, tmp_path):
    writers = []

    def start(**options):
        writers.append(Writer(scan, tmp_path / "live.h5", **options))
        return writers[0]

    yield start
    for each in writers:
        each.process.kill()
        each.process.wait()
        each.process.stdin.close()
        each.process.stdout.close()


def _follow(model, tmp_path, steps, monkeypatch, **options):
    """Follow the file; each pause of the reader is a step of the writer's. The result, the lines, what was seen."""
    lines, seen = [], []
    waiting = iter(steps)

    def wait(seconds):
        assert 0 <= seconds <= 0.01
        if (tmp_path / "recon.npz").exists():
            with np.load(tmp_path / "recon.npz") as written:  # it is whole at every moment
                seen.append(len(written["positions_px"]))
            assert (tmp_path / "recon.png").stat().st_size > 10_000
        next(waiting, lambda: None)()

    monkeypatch.setattr("fnostab.workflows.live.sleep", wait)
    result = reconstruct_scan(
        str(model),
        tmp_path / "live.h5",
        tmp_path / "recon.npz",
        quantity="counts",
        reading=_READING,
        following=Following(every_s=0.01, **options),
        print_line=lines.append,
    )
    return result, lines, seen


@pytest.mark.parametrize("planned", [True, False])
def test_the_object_grows_with_the_file_and_ends_as_that_of_the_whole_scan(
    planned, model, expected, writer, tmp_path, monkeypatch
):
    other = writer(planned=planned)
    other.write(15)
    steps = [lambda: other.write(10), lambda: None, lambda: other.write(20), lambda: other.write(4)]
    steps += [] if planned else [other.close]
    result, lines, seen = _follow(model, tmp_path, steps, monkeypatch, idle_s=300)
    assert seen == ([15, 25, 25, 45] if planned else [15, 25, 25, 45, 49])
    told = [line.partition(":")[0] for line in lines if ": R-factor 0." in line or ": R-factor " in line]
    of = " of 49" if planned else ""
    assert told == [f"{n}{of} patterns" for n in ((15, 25, 45) if planned else (15, 25, 45, 49))]
    largest = np.abs(expected.stitched.object).max()
    np.testing.assert_allclose(result.stitched.object, expected.stitched.object, rtol=0, atol=1e-5 * largest)
    assert result.r_factor == pytest.approx(expected.r_factor, rel=1e-5)
    assert result.frc_halves_half_bit == pytest.approx(expected.frc_halves_half_bit, abs=0.02)
    assert not planned or other.process.poll() is None  # it is still there: the reader disturbed nothing
    with np.load(result.npz) as written, np.load(expected.npz) as known:
        np.testing.assert_allclose(written["positions_px"], known["positions_px"], atol=1e-9)
        np.testing.assert_array_equal(written["origin_px"], known["origin_px"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["live.h5", "recon.npz", "recon.png"]


def test_each_pattern_is_predicted_once(model, writer, tmp_path, monkeypatch):
    from fnostab.tracking.models import ShippedModel

    calls = []
    predict = ShippedModel.predict_with_deviation
    monkeypatch.setattr(
        ShippedModel, "predict_with_deviation", lambda self, c: calls.append(len(c)) or predict(self, c)
    )
    other = writer()
    other.write(12)
    _follow(model, tmp_path, [lambda: other.write(30), lambda: other.write(7)], monkeypatch, idle_s=300)
    assert calls == [12, 30, 7]


def test_a_scan_that_is_closed_early_ends_with_what_there_is(model, writer, tmp_path, monkeypatch):
    other = writer()
    other.write(20)
    result, lines, _ = _follow(model, tmp_path, [lambda: other.write(5), other.close], monkeypatch, idle_s=300)
    assert "live.h5 was closed with 25 of the 49 patterns that it announced" in lines
    with np.load(result.npz) as written:
        assert len(written["positions_px"]) == 25


def test_a_scan_that_does_not_grow_any_more_ends_with_one_line(model, writer, tmp_path, monkeypatch):
    other = writer()
    other.write(20)
    result, lines, _ = _follow(model, tmp_path, [lambda: time.monotonic()] * 3, monkeypatch, idle_s=0.3)
    assert [line for line in lines if "has not grown" in line] == [
        "live.h5 has not grown for 0.3 s: 20 patterns are read, and the scan counts as ended"
    ]
    with np.load(result.npz) as written:
        assert len(written["positions_px"]) == 20
    assert other.process.poll() is None


def test_a_writer_that_is_killed_leaves_an_object_of_what_it_wrote(model, writer, tmp_path, monkeypatch):
    other = writer()
    other.write(20)

    def kill():
        os.kill(other.process.pid, signal.SIGKILL)
        other.process.wait()

    result, lines, _ = _follow(model, tmp_path, [kill], monkeypatch, idle_s=0.3)
    assert any("has not grown for 0.3 s: 20 patterns are read" in line for line in lines)
    assert result.timing.n == 20


def test_pixels_that_go_bad_on_the_way_count_nowhere(model, scan, tmp_path, monkeypatch):
    with np.load(scan) as arrays:
        counts, positions = arrays["counts"].copy(), arrays["positions_px"]
    counts[30:, 3, 5] = np.nan
    np.savez(tmp_path / "bad.npz", counts=counts, positions_px=positions)
    other = Writer(tmp_path / "bad.npz", tmp_path / "live.h5")
    try:
        other.write(20)
        reading = _READING.model_copy(update={"bad_pixels": "mask"})
        monkeypatch.setattr("fnostab.workflows.live.sleep", lambda seconds: other.write(29))
        result = reconstruct_scan(
            *(str(model), tmp_path / "live.h5", tmp_path / "recon.npz"),
            quantity="counts",
            reading=reading,
            following=Following(0.01, 60),
        )
    finally:
        other.process.kill()
        other.process.wait()
        other.process.stdin.close()
        other.process.stdout.close()
    assert np.isfinite(result.r_factor)
    assert np.isfinite(result.stitched.object).all()
    masked = ReadingConfig(bad_pixels="mask")
    whole = reconstruct_scan(str(model), tmp_path / "bad.npz", tmp_path / "whole.npz", reading=masked)
    assert result.r_factor == pytest.approx(whole.r_factor, rel=1e-3)


def test_a_finished_file_is_read_at_once(model, scan, expected, tmp_path, capsys):
    with np.load(scan) as arrays, h5py.File(tmp_path / "live.h5", "w") as file:
        file["data"] = arrays["counts"]
        file["y"], file["x"] = arrays["positions_px"].T
    arguments = ["--data", str(tmp_path / "live.h5"), "--paths", _READING.paths, "--quantity", "counts", "--follow"]
    arguments += ["--model", str(model), "--out", str(tmp_path / "recon.npz"), "--every", "0.1", "--idle", "5"]
    assert main(["reconstruct", *arguments]) == 0
    said = capsys.readouterr().out
    assert "patterns: read and waited for in " in said
    assert f"R-factor: {expected.r_factor:.4f} for the stitched object" in said


# What is refused, in one line, with nothing written.


def _refused(model, data, tmp_path, match, reading=_READING):
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ConfigError, match=match) as caught:
        reconstruct_scan(
            *(str(model), data, tmp_path / "recon.npz"),
            quantity="counts",
            reading=reading,
            following=Following(0.01, 0.2),
        )
    assert str(caught.value).isprintable()
    assert sorted(tmp_path.iterdir()) == before


def test_a_file_that_cannot_grow_is_refused(model, scan, tmp_path):
    _refused(model, scan, tmp_path, r"`follow` \(=true\) needs an HDF5 file, which can be read while it is written")


def test_a_file_in_which_nothing_comes_is_refused_with_the_reason(model, writer, tmp_path):
    other = writer()
    _refused(model, tmp_path / "live.h5", tmp_path, r"had nothing to read for 0.2 s: `/data` \(=0 x 32 x 32")
    other.write(3)
    _refused(model, tmp_path / "live.h5", tmp_path, r"had nothing to read for 0.2 s: .* 10 patterns or more, not 3")


def test_what_takes_all_patterns_is_refused(model, writer, tmp_path):
    writer().write(20)
    match = r"`data.center` \(=auto\) must be left out with `follow`: it takes all patterns"
    _refused(model, tmp_path / "live.h5", tmp_path, match, _READING.model_copy(update={"center": "auto"}))


def test_a_model_of_groups_is_refused(folder, scan, writer, tmp_path):
    with np.load(scan) as arrays:
        groups = save_untrained_model(folder / "groups", Beam.of(arrays["probe"] / 100), 100.0, 2000.0, gridsize=2)
    writer().write(20)
    _refused(groups, tmp_path / "live.h5", tmp_path, r"`follow` \(=true\) needs a model of single patterns")
