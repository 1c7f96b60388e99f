"""The command that measures a GPU's rows: what it keeps, leaves out and prints. Its numbers are nobody's business."""

import json
import re
import time

import pytest

from benchmarks import gpu, gpu_rows
from benchmarks.gpu_rows import Measurement, Setting
from benchmarks.ledger import Ledger, Origin, read_entries, rendered
from benchmarks.table import Row

_HERE = Origin("commit abc; a machine", "a device", False, "hash")


def _row(what="a step"):
    return Row(what, "its peer", ">= 8 x", "9.00 x (8.50-9.50)", True, "1 ms against 9 ms")


def _setting(seconds=600.0):
    return Setting("cpu", False, time.monotonic() + seconds)


@pytest.fixture
def calls(monkeypatch):
    """Three measurements, of which the second fails; the names of those that were begun."""
    begun = []

    def succeed(setting):
        begun.append("good")
        yield _row()

    def fail(setting):
        begun.append("bad")
        yield _row("half")
        raise RuntimeError("CUDA error: out of luck\nand a long story")

    def last(setting):
        begun.append("last")
        yield _row("another step")

    made = {"good": Measurement(succeed, 10, 1), "bad": Measurement(fail, 10, 1), "last": Measurement(last, 500, 1)}
    monkeypatch.setattr(gpu, "MEASUREMENTS", made)
    return begun


def test_a_row_that_raises_is_named_with_its_line_and_the_others_go_on(calls, tmp_path, capsys):
    well = gpu.measure(["good", "bad", "last"], _setting(), Ledger(tmp_path / "gpu.json", _HERE))
    assert not well
    assert calls == ["good", "bad", "last"]
    assert "bad: failed: RuntimeError: CUDA error: out of luck" in capsys.readouterr().out
    lines = rendered(tmp_path / "gpu.json")
    assert "- bad: failed: RuntimeError: CUDA error: out of luck" in lines
    assert not any("half" in line for line in lines)


def test_a_second_call_measures_only_what_is_missing(calls, tmp_path):
    path = tmp_path / "gpu.json"
    gpu.measure(["good", "bad"], _setting(), Ledger(path, _HERE))
    gpu.measure(["good", "bad", "last"], _setting(), Ledger(path, _HERE))
    assert calls == ["good", "bad", "bad", "last"]


@pytest.mark.parametrize("change", [{"device": "another"}, {"small": True}, {"sources_sha256": "other"}], ids=str)
def test_a_row_of_other_code_device_or_size_is_measured_again(calls, tmp_path, change):
    path = tmp_path / "gpu.json"
    gpu.measure(["good"], _setting(), Ledger(path, _HERE))
    gpu.measure(["good"], _setting(), Ledger(path, _HERE._replace(**change)))
    assert calls == ["good", "good"]


def test_a_row_that_would_not_fit_is_left_out_and_named_and_a_smaller_one_after_it_is_not(calls, tmp_path):
    path = tmp_path / "gpu.json"
    assert gpu.measure(["last", "good"], _setting(60), Ledger(path, _HERE))
    assert calls == ["good"]
    assert any(re.fullmatch(r"- last: left out: it takes about 500 s, and \d+ s were left", x) for x in rendered(path))


def test_what_a_row_took_before_says_whether_it_fits(calls, tmp_path):
    path = tmp_path / "gpu.json"
    earlier = _HERE._replace(sources_sha256="older")
    Ledger(path, earlier).measured("last", [_row()], 20.0)
    gpu.measure(["last"], _setting(60), Ledger(path, _HERE))
    assert calls == ["last"]


def test_the_file_is_written_after_each_row(calls, tmp_path, monkeypatch):
    path = tmp_path / "gpu.json"

    def interrupted(setting):
        assert list(read_entries(path)) == ["good"]
        raise KeyboardInterrupt

    monkeypatch.setitem(gpu.MEASUREMENTS, "last", Measurement(interrupted, 1, 1))
    with pytest.raises(KeyboardInterrupt):
        gpu.measure(["good", "last"], _setting(), Ledger(path, _HERE))
    assert Ledger(path, _HERE).is_measured("good")


def test_a_file_is_rendered_as_a_table_that_says_what_was_measured_where(tmp_path):
    path = tmp_path / "gpu.json"
    Ledger(path, _HERE).measured("good", [_row()], 1.0)
    Ledger(path, _HERE._replace(machine="commit def; a machine")).measured("other", [_row("tf32")], 1.0)
    assert rendered(path) == [
        "| what | against | target | measured | met | times: median (quartiles) |",
        "|---|---|---|---|---|---|",
        "| a step | its peer | >= 8 x | 9.00 x (8.50-9.50) | yes | 1 ms against 9 ms |",
        "| tf32 | its peer | >= 8 x | 9.00 x (8.50-9.50) | yes | 1 ms against 9 ms |",
        "",
        "good: commit abc; a machine",
        "other: commit def; a machine",
    ]


def test_a_file_of_something_else_is_refused_in_one_line(tmp_path):
    path = tmp_path / "gpu.json"
    path.write_text(json.dumps({"rows": []}))
    with pytest.raises(ValueError, match=r"`file` \(=.*gpu.json\) must be one that this command has written"):
        Ledger(path, _HERE)


def test_a_study_that_does_not_end_in_time_is_stopped_and_named():
    with pytest.raises(RuntimeError, match="the study was not done in the 1 s that were left"):
        gpu_rows.study_s(_setting(1.0), "smoke")


def test_what_a_study_says_last_is_the_reason_that_it_failed():
    with pytest.raises(RuntimeError, match="exit code 2 and said: .*`preset` \\(=none\\)"):
        gpu_rows.study_s(_setting(), "none")
