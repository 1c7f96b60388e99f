"""The command line: what it prints, what it refuses, and that a refusal writes nothing."""

import bz2
import errno
import signal
import socket
from pathlib import Path

import numpy as np
import pytest
import torch

from fnostab.cli import main
from fnostab.config import ConfigError, read_config_file, resolve_config
from fnostab.io.endings import CommandFailed, Interrupted


def _scan(path: Path, **changes):
    """A tike-style scan of 12 random patterns."""
    rng = np.random.default_rng(0)
    arrays = {
        "data": rng.poisson(5.0, (1, 12, 32, 32)).astype(np.float32),
        "probe": np.exp(-(np.hypot(*np.mgrid[-16:16, -16:16]) ** 2) / 50).astype(np.complex64)[None, None, None, None],
        "scan": rng.uniform(0, 20, (1, 12, 2)).astype(np.float32),
    }
    np.savez(path, **(arrays | changes))
    return path


def _left(folder: Path):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["--arch", "nope"],
            "`model.arch` (=nope) must be one of hybrid, stable_hybrid, prenorm_hybrid",
        ),
        (["--clip_algo", "nope"], "`clip.algo` (=nope) must be 'none', 'norm', 'value' or 'agc'"),
        (["--preset", "nope"], "`preset` (=nope) must be one of seed_study, stage_a, quick, scan, smoke"),
        (["--model.mdoes", "8"], "`model.mdoes` (=8) is no parameter; did you mean model.modes?"),
        (["--model.mdoes=8"], "`model.mdoes` (=8) is no parameter; did you mean model.modes?"),
        (["--model.modes", "0"], "`model.modes` (=0) must be >= 1"),
        (["--fno_blocks", "0"], "`model.fno_blocks` (=0) must be >= 1"),
        (["--data", "nowhere.npz"], "`data.path` (=nowhere.npz) must"),
        (["--config", "nowhere.yaml"], "`config` (=nowhere.yaml) must be a readable file: No such file or directory"),
        (["stray"], "`stray` is no argument of this command"),
        (["--lr"], "argument --lr: expected one argument"),
    ],
)
def test_bad_arguments_exit_with_2_and_one_line_and_write_nothing(fresh_store, capsys, argv, message):
    assert main(["train", *argv]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"fnostab: error: {message}")
    assert error.count("\n") == 1
    assert _left(fresh_store) == []


_COUNTS = np.random.default_rng(0).poisson(5.0, (1, 12, 32, 32)).astype(np.float32)


def _with(value):
    counts = _COUNTS.copy()
    counts[0, 3, 4, 5] = value
    return counts


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"data": _with(-1)}, "must be >= 0"),
        ({"data": _with(np.nan)}, "finite"),
        ({"data": _with(np.inf)}, "finite"),
        ({"data": _COUNTS[..., :30]}, "square"),
        ({"probe": np.ones((1, 1, 1, 1, 16, 16), np.complex64)}, "probe"),
        ({"scan": np.zeros((1, 5, 2), np.float32)}, "position"),
        ({"data": np.array([{"a": 1}], dtype=object)}, "pickle"),
    ],
)
def test_a_bad_scan_exits_with_2_and_one_line_and_writes_nothing(fresh_store, capsys, changes, rule):
    scan = _scan(fresh_store / "scan.npz", **changes)
    assert main(["train", "--preset", "scan", "--data", str(scan), "--N", "32"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("fnostab: error: `")
    assert rule in error
    assert error.count("\n") == 1
    assert _left(fresh_store) == ["scan.npz"]


def test_a_truncated_scan_exits_with_2_and_writes_nothing(fresh_store, capsys):
    scan = _scan(fresh_store / "whole.npz")
    cut = fresh_store / "cut.npz.bz2"
    cut.write_bytes(bz2.compress(scan.read_bytes())[:-100])
    scan.unlink()
    assert main(["train", "--preset", "scan", "--data", str(cut), "--N", "32"]) == 2
    assert f"`data.path` (={cut}) must" in capsys.readouterr().err
    assert _left(fresh_store) == ["cut.npz.bz2"]


def test_an_unreachable_tracking_server_exits_with_2_and_writes_nothing(fresh_store, capsys, monkeypatch):
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{server.getsockname()[1]}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert main(["train", "--preset", "smoke"]) == 2
    assert f"`MLFLOW_TRACKING_URI` (={uri}) must name a tracking server that answers" in capsys.readouterr().err
    assert _left(fresh_store) == []


@pytest.mark.parametrize(
    ("ending", "code"),
    [
        (ConfigError("bad input"), 2),
        (CommandFailed("the store is away"), 1),
        (Interrupted(signal.SIGTERM), 143),
        (OSError(errno.ENOSPC, "No space left on device"), 1),
        (MemoryError("Unable to allocate 3.00 TiB"), 1),
    ],
)
def test_each_ending_of_a_command_has_its_exit_code_and_one_line(monkeypatch, capsys, ending, code):
    def stop(*_):
        raise ending

    monkeypatch.setattr("fnostab.cli.train.arm_config", stop)
    assert main(["train"]) == code
    said = capsys.readouterr()
    assert str(ending) in said.err
    assert (said.err.count("\n"), said.out) == (1, "")


def test_print_config_prints_yaml_that_resolves_to_the_same_config(fresh_store, capsys):
    assert main(["train", "--preset", "quick", "--clip_algo", "agc", "--print-config"]) == 0
    (fresh_store / "arm.yaml").write_text(capsys.readouterr().out)
    assert main(["train", "--config", "arm.yaml", "--print-config"]) == 0
    again = resolve_config({}, base=read_config_file(fresh_store / "arm.yaml"))
    assert again == resolve_config({"preset": "quick", "clip_algo": "agc"})
    assert capsys.readouterr().out.rstrip() == again.to_yaml().rstrip()


def test_data_import_keeps_the_scan_and_show_draws_it(fresh_store, capsys):
    scan = _scan(fresh_store / "scan.npz")
    assert main(["data", "import", str(scan), "--N", "32", "--out", "own.npz"]) == 0
    first = capsys.readouterr().out
    assert main(["data", "show", "--data", "own.npz", "--N", "32", "--out", "own.png"]) == 0
    assert (fresh_store / "own.png").read_bytes().startswith(b"\x89PNG")
    with np.load("own.npz", allow_pickle=False) as own, np.load(scan, allow_pickle=False) as original:
        np.testing.assert_array_equal(own["counts"], np.fft.fftshift(original["data"][0], axes=(-2, -1)))
    assert "12" in first


@pytest.mark.parametrize("out", ["own.txt", "nowhere/own.npz"])
def test_an_output_that_cannot_be_written_is_refused_before_the_scan_is_read(fresh_store, capsys, out):
    scan = _scan(fresh_store / "scan.npz")
    assert main(["data", "import", str(scan), "--N", "32", "--out", out]) == 2
    assert f"`out` (={out}) must" in capsys.readouterr().err
    assert _left(fresh_store) == ["scan.npz"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_an_accelerator_that_is_not_there_is_refused(fresh_store, capsys):
    assert main(["train", "--preset", "smoke", "--accelerator", "gpu"]) == 2
    assert "`train.accelerator` (=gpu) must be one that this machine has" in capsys.readouterr().err
    assert _left(fresh_store) == []


def test_data_build_reports_the_content_hash_and_is_repeatable(fresh_store, capsys):
    assert main(["data", "build", "--preset", "smoke"]) == 0
    first = capsys.readouterr().out
    assert main(["data", "build", "--preset", "smoke"]) == 0
    assert capsys.readouterr().out == first
    assert "192 training, 32 validation, 169 test patterns" in first
