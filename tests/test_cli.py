"""The command line: what it prints, and how it ends; bad input has its table in `test_hostile.py`."""

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


def _scan(path: Path):
    """A tike-style scan of 12 random patterns."""
    rng = np.random.default_rng(0)
    arrays = {
        "data": rng.poisson(5.0, (1, 12, 32, 32)).astype(np.float32),
        "probe": np.exp(-(np.hypot(*np.mgrid[-16:16, -16:16]) ** 2) / 50).astype(np.complex64)[None, None, None, None],
        "scan": rng.uniform(0, 20, (1, 12, 2)).astype(np.float32),
    }
    np.savez(path, **arrays)
    return path


def _left(folder: Path):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


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


@pytest.mark.parametrize("nothing", ["", "auto"])
def test_an_option_that_is_left_open_is_as_if_it_were_not_there(fresh_store, capsys, nothing):
    """`MLproject` hands over every parameter, so those that nobody gave as well."""
    (fresh_store / "arm.yaml").write_text("preset: smoke\nwidth: 6\n")
    assert main(["train", "--config", "arm.yaml", "--width", nothing, "--study", nothing, "--print-config"]) == 0
    assert main(["train", "--config", "arm.yaml", "--print-config"]) == 0
    first, second = capsys.readouterr().out.split("preset:")[1:]
    assert first == second
    options = (
        "seeds",
        "until",
        "alpha",
        "max_seeds",
        "arms",
        "stage_a",
        "launcher",
        "workers",
        "gpus_per_run",
        "ray_address",
        "width",
        "data",
    )
    given = [f"--{name}={nothing}" for name in options]
    assert main(["study", "--preset", "smoke", "--plan", *given]) == 0
    assert main(["study", "--preset", "smoke", "--plan"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == lines[3:]


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
    assert "384 training, 169 validation, 169 test patterns" in first


def test_stage_b_takes_its_depth_and_its_name_from_a_config_file_too(tmp_path, monkeypatch):
    (tmp_path / "b.yaml").write_text("study: deep\nfno_blocks: 12\n")
    asked = {}

    def ask(*_, **given):
        asked.update(given)
        raise CommandFailed("that was all")

    monkeypatch.setattr("fnostab.workflows.study.stage_b_of", ask)
    assert main(["study", "--stage", "b", "--config", str(tmp_path / "b.yaml")]) == 1
    assert asked == {"fno_blocks": 12, "study": "deep"}
