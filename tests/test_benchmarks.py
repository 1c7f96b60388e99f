"""That the benchmarks run, at tiny sizes: their numbers are nobody's business here."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import table

ROOT = Path(__file__).parent.parent


def _lines(*arguments):
    command = [sys.executable, "-m", *arguments]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def test_a_table_of_the_chosen_rows_is_printed():
    rows = ("step", "bf16", "agc", "data", "observing", "monitor", "waiting", "pages", "denormals")
    lines = _lines("benchmarks", "--small", "--threads", "1", "--rows", *rows)
    start = next(i for i, line in enumerate(lines) if line.startswith("| what |"))
    found = lines[start + 2 :]
    assert len(found) == 14
    assert all(line.count("|") == 7 for line in found)
    assert lines[start - 2].startswith("commit ")


def test_the_rows_of_gpus_are_measured_on_a_cpu_and_their_file_gives_the_table_again(tmp_path):
    path = tmp_path / "gpu.json"
    small = ("benchmarks.gpu", "--device", "cpu", "--small", "--minutes", "10", "--file", str(path))
    lines = _lines(*small, "--rows", "original", "bf16", "graph", "agc", "observing")
    start = next(i for i, line in enumerate(lines) if line.startswith("| what |"))
    found = lines[start + 2 : -2]
    assert len(found) == 7
    assert all(line.count("|") == 7 for line in found)
    assert lines[-1].startswith("original, bf16, graph, agc, observing: commit ")
    assert _lines("benchmarks.gpu", "--render", str(path)) == lines[start:]


def test_what_watching_costs_is_told_in_a_line():
    (line,) = _lines("benchmarks.watching", "--preset", "smoke", "--turns", "2")
    assert line.startswith("10 steps ")
    assert line.endswith(" times the time")


def test_the_instructions_of_a_processor_are_named(tmp_path, monkeypatch):
    cpuinfo = tmp_path / "cpuinfo"
    monkeypatch.setattr(table, "_CPUINFO", cpuinfo)
    cpuinfo.write_text("model name\t: A: B\nflags\t\t: avx2 avx512_bf16 amx_bf16\n\nmodel name\t: C\nflags\t: none\n")
    assert (table.processor(), table.cpu_features()) == ("A: B", ["AVX512-BF16", "AMX"])
    cpuinfo.write_text("model name\t: D\nflags\t\t: avx2\n")
    assert (table.processor(), table.cpu_features()) == ("D", [])
    cpuinfo.unlink()
    assert table.cpu_features() == []


def test_a_gpu_that_is_not_there_is_missed_in_one_line():
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    command = [sys.executable, "-m", "benchmarks.gpu"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "`device` (=cuda) must be there: this machine has no CUDA device" in result.stderr


def test_onnxruntime_and_torch_are_timed_by_turns():
    lines = _lines("benchmarks.onnx_speed", "--small")
    assert [line.count("|") for line in lines] == [7, 7, 7, 7]
