"""The recipes of docs/extending.md, each run as it stands there."""

import re
import runpy
import shlex
from pathlib import Path
from typing import NamedTuple

import mlflow
import numpy as np
import pytest
from small_runs import write_small_scan

from fnostab.cli import main

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "extending.md").read_text()
#: Laid over the page's commands, so that they take seconds.
SHORT = {
    "train": ["--epochs", "1", "--data.max_train_patches", "32"],
    "study": ["--seeds", "1", "--launcher", "inline", "--width", "4"],
}


class Section(NamedTuple):
    """What a section of the page has: files by name, and commands."""

    files: dict[str, str]
    commands: list[list[str]]


def section(title: str) -> Section:
    (text,) = re.findall(rf"^## {title}\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S)
    blocks = re.findall(r"^```(\w+)\n(.*?)^```", text, re.M | re.S)
    files = {block.partition("\n")[0].removeprefix("# "): block for kind, block in blocks if kind != "sh"}
    commands = [shlex.split(line) for kind, block in blocks if kind == "sh" for line in block.splitlines()]
    return Section(files, commands)


def follow(title: str, capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """Write a section's files and run its commands; returns what each printed, by its first two words."""
    said = {}
    found = section(title)
    for name, content in found.files.items():
        Path(name).write_text(content)
    for program, command, *arguments in found.commands:
        capsys.readouterr()
        if program == "python":
            runpy.run_path(command, run_name="__main__")
        else:
            # Of an option that is given twice, the last one counts.
            code = main([command, *arguments, *SHORT.get(command, [])])
            assert code == 0, (command, arguments, capsys.readouterr().err)
        said[f"{program} {command}"] = capsys.readouterr().out
    return said


def runs_of(study: str) -> list[mlflow.entities.Run]:
    found = mlflow.search_runs(
        search_all_experiments=True, filter_string=f"tags.study = '{study}'", output_format="list"
    )
    return [run for run in found if "arm" in run.data.tags]


def test_every_section_of_the_page_is_run_here():
    titles = re.findall(r"^## (.*)", PAGE, re.M)
    assert titles == ["An arm", "A network", "A clipping rule", "A file format", "A metric", "A training loop"]
    assert all(section(title).commands for title in titles)


def test_an_arm_and_a_metric_of_ones_own_by_which_the_arms_are_ranked(fresh_store, capsys):
    said = follow("An arm", capsys)
    assert {run.data.tags["arm"] for run in runs_of("arms")} == {"control", "patient"}
    assert "patient" in said["fnostab compare"]
    said = follow("A metric", capsys)
    assert all("test/roughness" in run.data.metrics for run in runs_of("arms"))
    assert "median test/roughness" in said["fnostab compare"]


def test_a_network_of_ones_own_is_checked_compared_registered_and_used(fresh_store, capsys):
    write_small_scan(Path("scan.npz"))
    said = follow("A network", capsys)
    assert "mynet.py:MyNet: fit for training" in said["fnostab check-arch"]
    by_arm = {run.data.tags["arm"]: run for run in runs_of("own_network")}
    assert by_arm.keys() == {"control", "mine"}
    assert by_arm["mine"].data.params["model.options.start"] == "0.2"
    assert "| mine |" in said["fnostab compare"]
    assert np.load("object.npz")["object"].ndim == 2


def test_a_rule_of_ones_own_keeps_what_it_remembers_in_the_checkpoint(fresh_store, capsys):
    follow("A clipping rule", capsys)
    (run,) = runs_of("stage_a_smoke")
    assert run.data.tags["clip_algo"].endswith("rules.py:halve_outliers")
    assert len(run.data.params["clip.source_sha256"]) == 64
    assert run.data.metrics["grad/clipped_fraction"] in (0.0, 1.0)


def test_a_format_of_ones_own_is_imported_and_trained_on(fresh_store, capsys):
    source = write_small_scan(Path("scan.npz"))
    with np.load("scan.npz") as ours:
        where_um = ours["positions_px"] * 0.02  # 20 nm a pixel
        np.savez("lab.npz", images=ours["counts"], where_um=where_um, beam=ours["probe"])
    follow("A file format", capsys)
    with np.load("scan.npz") as imported:
        np.testing.assert_array_equal(imported["counts"], source.test.counts)
        np.testing.assert_allclose(imported["positions_px"], where_um / 0.02, atol=1e-6)
    assert len(runs_of("scan")) == 1


def test_a_loop_of_ones_own_is_recorded_judged_and_compared(fresh_store, capsys):
    said = follow("A training loop", capsys)
    assert sorted((run.data.tags["arm"], run.data.tags["seed"]) for run in runs_of("sine")) == [
        (arm, str(seed)) for arm in ("agc", "plain") for seed in range(3)
    ]
    assert {run.data.tags["verdict"] for run in runs_of("sine")} == {"converged"}
    assert "plain" in said["fnostab compare"]
