"""Which formats there are, and which one a file is read as."""

from importlib.metadata import EntryPoint
from pathlib import Path

import h5py
import numpy as np
import pytest

from fnostab import optics
from fnostab.cli import main
from fnostab.config import DataConfig, ReadingConfig
from fnostab.dataset import import_scan, load_or_build
from fnostab.formats import registry
from fnostab.formats.frames import InMemory, frames_of
from fnostab.formats.own import write_scan
from fnostab.formats.raw import Format, RawScan, optional_image

COUNTS = np.random.default_rng(0).poisson(9.0, (12, 16, 16))
POSITIONS = np.stack([np.arange(12) * 1.5, np.arange(12) * -2.0], axis=1)


def _backwards(file, reading):
    """Read a file whose patterns, oddly, stand in the other order than its positions."""
    counts = file.read("backwards")[::-1]
    frames = frames_of(InMemory(counts), "backwards", len(counts))
    return RawScan(frames, file.read("where"), "where", probe=optional_image(file, "probe"))


THEIRS = Format("theirs", "a lab's own", "NPZ", "backwards", "here", lambda file: "backwards" in file.keys, _backwards)


@pytest.fixture
def offered(monkeypatch):
    """Make another package's entry points under `fnostab.formats`."""

    def offer(value):
        entry = EntryPoint("theirs", value, "fnostab.formats")
        monkeypatch.setattr(registry, "entry_points", lambda group: [entry])
        registry.formats.cache_clear()

    yield offer
    registry.formats.cache_clear()


def test_a_format_of_another_package_is_read_and_listed(offered, tmp_path, capsys):
    offered("test_formats:THEIRS")
    np.savez(tmp_path / "scan.npz", backwards=COUNTS, where=POSITIONS, probe=optics.curved_disk(16))
    found = import_scan(tmp_path / "scan.npz")
    assert found.layout == "theirs"
    np.testing.assert_array_equal(found.counts, COUNTS[::-1])
    assert main(["data", "formats"]) == 0
    assert "theirs (NPZ): a lab's own" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("value", "rule"),
    [("no_such_package:FORMAT", "must be importable: No module"), ("test_formats:COUNTS", "must be a fnostab.formats")],
)
def test_a_package_that_offers_no_format_is_named(offered, capsys, value, rule):
    offered(value)
    assert main(["data", "formats"]) == 2
    assert f"`fnostab.formats` (={value}) {rule}" in capsys.readouterr().err


READER = """
from fnostab.formats.frames import InMemory, frames_of
from fnostab.formats.raw import Format, RawScan, optional_image

def read(file, reading):
    counts = file.read("patterns")[::STEP]
    return RawScan(frames_of(InMemory(counts), "patterns", len(counts)), file.read("where"), "where",
                   probe=optional_image(file, "probe"))

MINE = Format("mine", "ours", "NPZ", "patterns, where", "here", lambda file: False, read)
"""


def test_a_reader_in_a_file_of_the_users_own_is_named_like_a_network(tmp_path):
    reader, scan = tmp_path / "mine.py", tmp_path / "scan.npz"
    np.savez(scan, patterns=COUNTS, where=POSITIONS, probe=optics.curved_disk(16))
    config = DataConfig(path=str(scan), N=16, format=f"{reader}:MINE")
    reader.write_text(READER.replace("STEP", "1"))
    forwards = load_or_build(config, cache_dir=tmp_path / "cache")
    np.testing.assert_array_equal(forwards.test.counts, COUNTS)
    reader.write_text(READER.replace("STEP", "-1"))
    backwards = load_or_build(config, cache_dir=tmp_path / "cache")  # not the entry of the reader as it was
    np.testing.assert_array_equal(backwards.test.counts, COUNTS[::-1])


def test_what_a_user_names_as_a_format_must_be_one(tmp_path):
    (tmp_path / "mine.py").write_text("MINE = 3")
    with pytest.raises(ValueError, match=r"`data.format` \(=.*mine.py:MINE\) must be a fnostab.*Format, not int$"):
        import_scan(_file(tmp_path / "scan.npz"), reading=ReadingConfig(format=f"{tmp_path}/mine.py:MINE"))


def _file(path: Path) -> Path:
    write_scan(path, COUNTS, POSITIONS, optics.curved_disk(16))
    return path


def test_a_format_that_is_given_must_be_known_and_fit_the_file(tmp_path):
    path = _file(tmp_path / "scan.npz")
    for name, rule in (
        ("cix", r"`data.format` \(=cix\) must be auto, one of fnostab, tike, .*cxi.*, or ./file.py:NAME"),
        ("cxi", r"`data.path` \(=.*\) must be HDF5 to be read as cxi, not NPZ$"),
        ("tike", r"`data.path` \(=.*\) must hold `scan`; it holds counts, positions_px, probe$"),
    ):
        with pytest.raises(ValueError, match=rule):
            import_scan(path, reading=ReadingConfig(format=name))
    with h5py.File(tmp_path / "scan.h5", "w") as file:
        file["a"] = COUNTS
    with pytest.raises(ValueError, match=r"must be NPZ to be read as fnostab, not HDF5$"):
        import_scan(tmp_path / "scan.h5", reading=ReadingConfig(format="fnostab"))


def test_every_format_says_what_it_is_known_by_and_where_that_is_written_down(capsys):
    assert main(["data", "formats"]) == 0
    said = capsys.readouterr().out
    for format in registry.formats():
        assert (
            f"{format.name} ({format.container}): {format.title}\n    {format.holds}\n    source: {format.source}"
            in said
        )
