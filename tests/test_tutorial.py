"""docs/tutorial.md, followed as it stands: its files, its commands, and what it says they print."""

import os
import re
import subprocess
import sys
from pathlib import Path

import mlflow
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
#: Machines give other numbers, so that outputs are compared by their words.
_NUMBER = re.compile(r"\d[\d.e+-]*")


def says(printed: str, shown: str) -> bool:
    """Whether all that the page shows was printed, in that order; `...` stands for anything, numbers for any number."""
    pieces = (re.escape(piece.strip()) for piece in _NUMBER.sub("0", shown).split("..."))
    return re.search(".*".join(pieces), _NUMBER.sub("0", printed), flags=re.DOTALL) is not None


def test_an_output_is_compared_by_its_words_in_their_order():
    assert says("one: 1.5e-3 (of 7)\nmore\ntwo: 2\n", "one: 3 (of 4)\n...\ntwo: 2")
    assert not says("two: 2\none: 1\n", "one: 1\n...\ntwo: 2")
    assert not says("verdict: stagnated: why\n", "verdict: converged: ...")


def test_every_command_of_the_page_stands_in_a_block_that_is_run():
    ours = [line for kind, block in BLOCKS if kind == "sh" for line in block.splitlines()]
    assert {line.split()[0] for line in ours} == {"python", "fnostab"}
    assert {line.split()[1] for line in ours if line.startswith("fnostab")} == {
        *("data", "train", "study", "compare", "reconstruct", "export-model"),
    }
    assert {kind for kind, _ in BLOCKS} == {"sh", "python", "yaml", "text"}


@pytest.mark.slow
def test_the_tutorial_from_a_scan_file_to_a_champion_and_an_onnx_file(fresh_store, monkeypatch):
    # As a reader has it: no variable says where MLflow's store lies, and commands are those of this Python.
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    commands = fresh_store / "bin"
    commands.mkdir()
    for name, words in {"python": "", "fnostab": " -m fnostab"}.items():
        (commands / name).write_text(f'#!/bin/sh\nexec "{sys.executable}"{words} "$@"\n')
        (commands / name).chmod(0o755)
    path = {"PATH": f"{commands}{os.pathsep}{os.environ['PATH']}"}
    path["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    folder = fresh_store / "empty"
    folder.mkdir()
    said = ""
    for kind, block in BLOCKS:
        if kind == "sh":
            done = subprocess.run(
                ["sh", "-ec", block], cwd=folder, env=os.environ | path, capture_output=True, text=True, timeout=600
            )
            assert done.returncode == 0, (block, done.stdout[-2000:], done.stderr[-2000:])
            said = done.stdout
        elif kind == "text":
            assert says(said, block), (block, said)
        else:
            (folder / block.partition("\n")[0].removeprefix("# ")).write_text(block, encoding="utf-8")
    for name in ("scan.png", "object.png", "model.onnx"):
        assert (folder / name).stat().st_size > 1000
    client = mlflow.MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    champion = client.get_model_version_by_alias("fnostab-tutorial", "champion")
    assert client.get_run(champion.run_id).data.tags["verdict"] == "converged"
    with np.load(folder / "object.npz") as result:
        assert result["r_factor"] < 0.5 * client.get_run(champion.run_id).data.metrics["test/r_factor_mean_pattern"]
