"""How the runs of a study are shown while they go on."""

import io

import pytest
from rich.console import Console

from fnostab.cli.table import Lines, LiveTable, _cells, study_view
from fnostab.launch import Update
from fnostab.study.plan import plan_stage_a, plan_table

_RUNS = plan_stage_a({"preset": "smoke"}, {}, "1").runs
_DONE = Update("done", "it learnt", 8, 8, 0.0512, verdict="converged", run_id="r")


def shown(table):
    console = Console(file=io.StringIO(), width=120, force_terminal=False)
    console.print(table._table())
    return console.file.getvalue()


def test_the_live_table_tells_arm_seed_epoch_loss_verdict_and_time_left():
    table = LiveTable("stage_a_smoke")
    table.begin(_RUNS, {0: _DONE})
    table.update(1, Update("running", "starting", epochs=8))
    table.update(1, Update("running", "", 3, 8, 0.25, 125.0))
    text = shown(table)
    assert "study stage_a_smoke: 1 of 3 runs ended" in text
    control, stable, agc = (
        next(line for line in text.splitlines() if arm in line) for arm in ("trol", "stable ", "agc")
    )
    for word in ("20260128", "8/8", "0.0512", "converged"):
        assert word in control
    for word in ("3/8", "0.2500", "training", "2 min 05 s"):
        assert word in stable
    assert "waiting" in agc


def test_a_message_without_numbers_leaves_those_that_are_shown():
    table = LiveTable("s")
    table.begin(_RUNS, {})
    table.update(0, Update("running", "", 3, 8, 0.25, 60.0))
    table.update(0, Update("running", "no pictures of epoch 3"))
    assert "0.2500" in shown(table)


def test_a_failed_verdict_and_a_crash_are_told_apart():
    table = LiveTable("s")
    table.begin(_RUNS, {})
    table.update(0, Update("done", "flat", 8, 8, None, verdict="collapsed"))
    table.update(1, Update("failed", "ValueError: no"))
    table.update(2, Update("running", "waiting for [/bold] something"))  # no markup, whatever a message holds
    text = shown(table)
    assert "collapsed" in text
    assert "failed" in text
    assert "waiting for [/bold] something" in text


@pytest.mark.parametrize(
    ("verdict", "colour"),
    [("converged", "green"), ("inconsistent", "red"), ("unknown", "yellow"), ("pruned", "yellow")],
)
def test_a_failure_is_red_and_what_is_no_result_yellow(verdict, colour):
    cells = _cells(_RUNS[0], Update("done", "told", 8, 8, 0.1, verdict=verdict))
    assert [cell.style for cell in cells if str(cell) == verdict] == [colour]


def test_a_long_study_shows_what_runs_and_what_ended_last():
    runs = plan_table([{"name": "a"}], {}, {"preset": "smoke"}, {}, "100").runs
    table = LiveTable("s")
    table.begin(runs, {})
    for place in range(60):
        table.update(place, _DONE)
    table.update(60, Update("running", "", 1, 8, 0.3, 5.0))
    lines = [line for line in shown(table).splitlines() if " a " in line]
    assert len(lines) == 30
    assert sum("training" in line for line in lines) == 1
    assert sum("waiting" in line for line in lines) == 14
    assert str(runs[59].seed) in shown(table)


def test_without_a_terminal_there_is_a_line_for_each_piece_of_news():
    said = []
    with study_view("s", said.append) as view:
        assert isinstance(view, Lines)
        view.begin(_RUNS, {0: _DONE})
        view.update(1, Update("running", "starting"))
        view.update(1, Update("running", "", 1, 8, 0.25, 61.0))
        view.update(1, Update("failed", "ValueError: no"))
        view.update(2, _DONE)
    assert said == [
        "3 runs, 1 of them finished before",
        "[2/3] stable, seed 20260128: starting",
        "[2/3] stable, seed 20260128: epoch 1/8: val_loss 0.2500, 1 min 01 s left",
        "[2/3] stable, seed 20260128: failed: ValueError: no",
        "[3/3] agc, seed 20260128: converged, best val_loss 0.0512: it learnt",
    ]


@pytest.mark.parametrize("live", [True, False])
def test_what_is_decided_and_what_is_open_is_shown_after_a_look(live):
    said = []
    view = LiveTable("s") if live else Lines(said.append)
    view.begin(_RUNS, {0: _DONE})
    view.look("after 5 seeds an arm: decided: nothing; open: [a] and b (p = 1)")
    view.begin(_RUNS, {0: _DONE, 1: _DONE})
    text = shown(view) if live else "\n".join(said)
    assert "after 5 seeds an arm: decided: nothing; open: [a] and b (p = 1)" in " ".join(text.split())


def test_on_a_terminal_there_is_the_table(monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    with study_view("s", pytest.fail) as view:
        view.begin(_RUNS, {})
        assert isinstance(view, LiveTable)
