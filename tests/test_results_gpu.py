"""The command that runs the studies that want a GPU: stopped by its minutes, resumed, and its file imported."""

import mlflow
import pytest

from fnostab.cli import main
from results import gpu

_TABLE = """
study: tiny
preset: smoke
seeds: [1, 2]
data: {object_size: 96, max_train_patches: 48, max_val_patches: 16}
model: {width: 4}
train: {epochs: 1, artifacts: numbers}
arms:
  - {name: control, arch: hybrid, clip_algo: norm}
"""


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """One study of two runs instead of those of the page, and the command that trains it, as a function."""
    monkeypatch.chdir(tmp_path)
    for name in ("FNOSTAB_CACHE", "MLFLOW_TRACKING_URI", "PYTHONPATH"):
        monkeypatch.setenv(name, "")
    (tmp_path / "tiny.yaml").write_text(_TABLE)
    monkeypatch.setattr(gpu, "TASKS", {"tiny": gpu.Task(tmp_path / "tiny.yaml", steps=True)})

    def run(*arguments):
        monkeypatch.chdir(tmp_path)
        monkeypatch.delenv("PYTHONPATH")
        return gpu.main(["--device", "cpu", "--workers", "1", "--studies", "tiny", *arguments])

    return run


def _runs(study="tiny"):
    return mlflow.MlflowClient().search_runs(["0"], f"tags.study = '{study}' and attributes.status = 'FINISHED'")


@pytest.mark.slow
def test_a_study_that_its_minutes_stopped_goes_on_and_its_file_is_imported(tiny, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patched:
        # The time is over once a run has ended.
        over = property(lambda setting: -1.0 if gpu._results("tiny") else 1.0)
        patched.setattr(gpu.Setting, "seconds_left", over)
        patched.setattr(gpu, "_PATIENCE_S", 600.0)
        assert tiny("--minutes", "60") == 0
    said = capsys.readouterr().out
    assert "tiny: 1 runs have a result; stopped when the minutes were over; the same command goes on" in said
    (first,) = [run for run in _runs() if "mlflow.parentRunId" in run.data.tags]
    assert tiny("--minutes", "60") == 0
    said = capsys.readouterr().out
    assert "results-gpu.jsonl.gz: 0 runs are taken over from it" in said
    assert "tiny: 2 runs have a result; complete" in said
    trained = [run.info.run_id for run in _runs() if "mlflow.parentRunId" in run.data.tags]
    assert first.info.run_id in trained
    assert len(trained) == 2
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'other.db'}")
    assert main(["import", str(tmp_path / "results-gpu.jsonl.gz")]) == 0
    assert "study tiny: 2 runs are new, 0 were there" in capsys.readouterr().out


def test_without_time_nothing_is_begun_and_no_file_is_written(tiny, tmp_path, capsys):
    assert tiny("--minutes", "0") == 0
    said = capsys.readouterr().out
    assert "tiny: not begun, as there is no time left" in said
    assert "no run has ended: there is no file" in said
    assert not (tmp_path / "results-gpu.jsonl.gz").exists()


def test_a_study_that_is_refused_is_named_with_its_line_and_the_exit_code_is_1(tiny, tmp_path, capsys):
    (tmp_path / "tiny.yaml").write_text(_TABLE + "lr: -1\n")
    assert tiny("--minutes", "60") == 1
    assert "tiny: 0 runs have a result; exit code 2: fnostab: error: `optim.lr` (=-1)" in capsys.readouterr().out


@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("name", gpu.TASKS)
def test_every_study_can_be_planned_as_it_is_told(name, small, tmp_path, capsys):
    setting = gpu.Setting("cpu", small, 2, 1, tmp_path, tmp_path / "file", 0.0)
    arguments = setting.command(name)
    assert main([*arguments[arguments.index("study") :], "--plan"]) == 0
    runs = capsys.readouterr().out.splitlines()
    assert len(runs) > 5
    assert any("seed" in run for run in runs)
