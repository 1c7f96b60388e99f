"""What a training writes to its run, also where something goes wrong."""

import math

import pytest

from fnostab.config import resolve_config
from fnostab.dataset import load_or_build
from fnostab.evaluation import baselines
from fnostab.health import Verdict, judge
from fnostab.tracking.verdict import StoredPicture, description, with_description
from fnostab.training.checkpoint_files import CheckpointFiles
from fnostab.workflows import logbook as logbook_module
from fnostab.workflows.logbook import Logbook


class _Tracker:
    """Takes everything, and remembers the names."""

    run_id = "r"
    resumed = False

    def __init__(self):
        self.written: list[str] = []

    def __getattr__(self, method):
        return lambda *arguments, **named: self.written.append(str(arguments[-1]) if "text" in method else method)

    def log_image(self, image, key, step):
        self.written.append(key)


@pytest.fixture
def book(tmp_path):
    config, tracker, said = resolve_config({"preset": "smoke"}), _Tracker(), []
    book = Logbook(config, load_or_build(config.data), tracker, tmp_path, said.append)
    return book, tracker, said


def _fails(*_):
    raise ValueError("Expected end of text, found '$'\n^")


def test_a_picture_of_the_end_that_cannot_be_drawn_costs_no_result(book, tmp_path, monkeypatch):
    book, tracker, said = book
    monkeypatch.setattr(logbook_module, "training_figure", _fails)
    book.end(judge(book.history.to_mapping()), None, {}, None, CheckpointFiles(tmp_path))
    assert said == ["no picture figures/training.png: ValueError: Expected end of text, found '$'"]
    assert {"set_tags", "metrics.json", "history.json"} <= set(tracker.written)


def test_a_picture_on_the_way_that_cannot_be_drawn_costs_no_other(book, monkeypatch):
    book, tracker, said = book
    monkeypatch.setattr(book, "_reconstruct_middle", _fails)
    book.draw(None, 3, 35)
    assert said == ["no picture reconstruction of epoch 3: ValueError: Expected end of text, found '$'"]
    assert tracker.written == ["training"]


def test_uncommitted_code_lies_beside_the_run(book, monkeypatch):
    book, tracker, _ = book
    monkeypatch.setattr("fnostab.workflows.logbook.uncommitted_code", lambda: "diff --git ...")
    book.begin("cpu", baselines(load_or_build(resolve_config({"preset": "smoke"}).data), False))
    assert "code.diff" in tracker.written
    assert book.history.val_loss_constant > book.history.val_loss_floor > 0


def test_a_run_says_its_verdict_its_numbers_and_shows_its_picture():
    verdict = Verdict("collapsed", "first in `up_s_` at epoch 4 | <b>", {})
    picture = StoredPicture("abc", "recon/object_0.png", "#/experiments/0/runs/abc/artifacts/recon/object_0.png")
    told = description(verdict, None, {"best_val_loss": 0.0123456, "frc50": math.nan}, picture)
    assert told.split("\n\n") == [
        "**Verdict: collapsed.** First in \\`up_s\\_\\` at epoch 4 \\| &lt;b&gt;.",
        "best_val_loss **0.0123**, [object_0](#/experiments/0/runs/abc/artifacts/recon/object_0.png)",
        "![object_0](get-artifact?path=recon%2Fobject_0.png&run_uuid=abc)",
    ]


def test_what_somebody_said_of_a_run_stays_above_however_often_it_is_written():
    ours = description(Verdict("converged", "told", {}), None)
    once = with_description("Is it alive?\n\n**Bold.**", ours)
    assert once == f"Is it alive?\n\n**Bold.**\n\n{ours}"
    assert with_description(once, ours) == once
    assert with_description("", ours) == with_description(ours, ours) == ours


def test_a_run_whose_metrics_all_mean_something_has_no_tag_vacuous(book, tmp_path):
    book, tracker, _ = book
    tags = {}
    tracker.set_tags = tags.update
    book.end(judge(book.history.to_mapping()), None, {}, None, CheckpointFiles(tmp_path))
    assert "verdict" in tags
    assert "vacuous" not in tags


def test_numbers_of_which_a_run_has_one_come_after_its_series_those_that_all_runs_share_last(book, tmp_path):
    book, tracker, _ = book
    logged = []
    tracker.log_metrics = lambda numbers, step, model_id=None: logged.append((dict(numbers), step))
    book.begin("cpu", {"val_loss_constant": 0.3})
    assert logged == []
    book.end(judge(book.history.to_mapping()), None, {"best_val_loss": 0.1}, None, CheckpointFiles(tmp_path))
    assert logged == [({"best_val_loss": 0.1}, 0), ({"val/loss_constant": 0.3}, 0)]
