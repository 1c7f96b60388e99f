"""That the benchmarks run, at tiny sizes: their numbers are nobody's business here."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent


def _lines(*arguments):
    command = [sys.executable, "-m", *arguments]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


@pytest.mark.parametrize(
    ("arguments", "rows"),
    [
        (("benchmarks", "--rows", "step", "agc", "data", "observing", "monitor"), 9),
        (("benchmarks.gpu", "--device", "cpu", "--rows", "step", "agc"), 6),
    ],
    ids=["benchmarks", "benchmarks.gpu"],
)
def test_a_table_of_the_chosen_rows_is_printed(arguments, rows):
    lines = _lines(*arguments, "--small")
    start = next(i for i, line in enumerate(lines) if line.startswith("| what |"))
    table = lines[start + 2 :]
    assert len(table) == rows
    assert all(line.count("|") == 7 for line in table)
    assert lines[start - 2].startswith("commit ")


def test_a_gpu_that_is_not_there_is_missed_in_one_line():
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    command = [sys.executable, "-m", "benchmarks.gpu"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "`device` (=cuda) must be there: this machine has no CUDA device" in result.stderr
