"""The programs in examples/, each in a small size."""

import runpy
import sys
from pathlib import Path

import mlflow
import pytest

from fnostab.cli import main

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
SMALL = ["--epochs", "2", "--samples", "16", "--cells", "16"]


def run_example(monkeypatch: pytest.MonkeyPatch, name: str, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    monkeypatch.syspath_prepend(str((EXAMPLES / name).parent))
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def runs_of(study: str) -> list[mlflow.entities.Run]:
    return mlflow.search_runs(
        search_all_experiments=True, filter_string=f"tags.study = '{study}'", output_format="list"
    )


@pytest.mark.parametrize(("study", "options"), [("darcy", []), ("darcy-lightning", ["--lightning"])])
def test_two_arms_on_darcy_flow_are_ranked(study, options, fresh_store, monkeypatch, capsys):
    run_example(monkeypatch, "darcy/train.py", *SMALL, *options)
    found = runs_of(study)
    assert sorted((run.data.tags["arm"], run.data.tags["seed"]) for run in found) == [
        (arm, str(seed)) for arm in ("fno-agc", "fno-plain") for seed in range(3)
    ]
    assert all(run.data.metrics["grad/norm_preclip"] > 0 for run in found)
    capsys.readouterr()
    assert main(["compare", "--study", study]) == 0
    said = capsys.readouterr().out
    assert "fno-agc" in said
    assert "stitched" not in said
    assert "nan" not in said.lower()


def test_both_programs_of_the_darcy_example_train_alike(fresh_store, monkeypatch):
    for options in ([], ["--lightning"]):
        run_example(monkeypatch, "darcy/train.py", *SMALL, "--seeds", "1", *options)
    losses = {
        study: sorted(run.data.metrics["best_val_loss"] for run in runs_of(study))
        for study in ("darcy", "darcy-lightning")
    }
    assert losses["darcy"] == pytest.approx(losses["darcy-lightning"], rel=1e-4)


@pytest.mark.parametrize("pruner", ["median", "asha"])
def test_a_search_prunes_trials_that_fall_behind(pruner, fresh_store, monkeypatch, capsys):
    optuna = pytest.importorskip("optuna")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    run_example(monkeypatch, "optuna_clip.py", *SMALL, "--epochs", "4", "--trials", "8", "--pruner", pruner)
    assert "best of 8" in capsys.readouterr().out
    verdicts = [run.data.tags["verdict"] for run in runs_of("darcy-search")]
    assert len(verdicts) == 8
    assert "pruned" in verdicts
