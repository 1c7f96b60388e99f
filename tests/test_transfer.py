"""Runs that travel between tracking stores in a file, and runs that keep their numbers alone."""

import gzip
import json
import math
import shutil

import mlflow
import pytest

from fnostab.cli import main
from fnostab.health import VERDICT_VERSION
from fnostab.launch import LaunchConfig
from fnostab.study.plan import plan_file
from fnostab.study.selection import select_runs
from fnostab.tracking import transfer
from fnostab.tracking.store import open_store
from fnostab.tracking.studies import find_results, find_runs
from fnostab.workflows.compare import compare_study
from fnostab.workflows.study import run_study

_TABLE = """
study: numbers
preset: smoke
seeds: [1, 2]
train: {epochs: 3, artifacts: numbers, watch_every_steps: 20}
arms:
  - {name: control, arch: hybrid, clip_algo: norm}
  - {name: plain, arch: hybrid, clip_algo: none}
"""


class _NoView:
    def begin(self, runs, finished):
        pass

    def update(self, place, update):
        pass


def _use(folder, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
    monkeypatch.setenv("FNOSTAB_CACHE", str(folder / "cache"))
    monkeypatch.chdir(folder)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The folder of a study's store, with its comparison in `out` and its runs in two files."""
    folder = tmp_path_factory.mktemp("exported")
    with pytest.MonkeyPatch.context() as monkeypatch:
        _use(folder, monkeypatch)
        (folder / "numbers.yaml").write_text(_TABLE)
        assert run_study(plan_file(folder / "numbers.yaml", {}), LaunchConfig("inline"), _NoView()).without_result == []
        compare_study("numbers", out=folder / "out")
        assert main(["export", "--study", "numbers"]) == 0
        assert main(["export", "--study", "numbers", "--out", "with_steps.jsonl.gz", "--steps"]) == 0
    return folder


def _lines(path):
    return [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]


def _rewritten(path, lines):
    path.write_bytes(gzip.compress(b"".join(json.dumps(line).encode() + b"\n" for line in lines)))
    return path


def test_a_run_that_keeps_its_numbers_alone_has_all_of_them_and_no_model(exported, monkeypatch):
    _use(exported, monkeypatch)
    client = mlflow.MlflowClient()
    (run, *_) = client.search_runs(["0"], "tags.arm = 'control'")
    assert {artifact.path for artifact in client.list_artifacts(run.info.run_id)} - {"code.diff"} == {
        "config.yaml",
        "history.json",
        "metrics.json",
    }
    assert {"best_val_loss", "test/r_factor", "test/amp_ssim", "grad/norm_max"} <= run.data.metrics.keys()
    assert len(client.get_metric_history(run.info.run_id, "train/loss")) == 72


def test_nothing_without_a_model_is_registered_and_it_is_said_why(exported, monkeypatch, capsys):
    _use(exported, monkeypatch)
    assert main(["compare", "--study", "numbers"]) == 0
    assert (
        "the numbers are here, but no model; one that is trained with `train.artifacts=all`" in capsys.readouterr().out
    )
    assert mlflow.MlflowClient().search_registered_models() == []


@pytest.mark.parametrize("name", ["numbers.jsonl.gz", "with_steps.jsonl.gz"])
def test_what_was_watched_travels_with_and_without_the_series_of_steps(exported, tmp_path, monkeypatch, name):
    _, *runs = _lines(exported / name)
    for run in runs:
        assert run["history"]["watched"]["step"] == [0, 20, 40, 60, 72]
        assert run["metrics"]["watch/loss"] == run["history"]["watched"]["loss"][-1]
    _use(tmp_path, monkeypatch)
    assert main(["import", str(exported / name)]) == 0
    for run in mlflow.MlflowClient().search_runs(["0"]):
        (sent,) = [each for each in runs if each["run_id"] == run.data.tags["exported_from"]]
        history = mlflow.artifacts.load_dict(f"runs:/{run.info.run_id}/history.json")
        assert history["watched"] == sent["history"]["watched"]


def test_what_was_watched_is_in_the_store_by_step(exported, monkeypatch):
    _use(exported, monkeypatch)
    client = mlflow.MlflowClient()
    for run in client.search_runs(["0"], "tags.arm = 'plain'"):
        watched = mlflow.artifacts.load_dict(f"runs:/{run.info.run_id}/history.json")["watched"]
        stored = client.get_metric_history(run.info.run_id, "watch/grad_norm/bottleneck")
        assert [metric.step for metric in stored] == [0, 20, 40, 60]
        assert [metric.value for metric in stored] == watched["grad_norm/bottleneck"][:4]
        assert watched["grad_norm/bottleneck"][4] == "NaN"


def test_runs_that_were_imported_are_compared_to_the_same_numbers(exported, tmp_path, monkeypatch, capsys):
    _use(tmp_path, monkeypatch)
    assert main(["import", str(exported / "numbers.jsonl.gz")]) == 0
    assert "study numbers: 4 runs are new, 0 were there" in capsys.readouterr().out
    assert main(["compare", "--study", "numbers", "--out", "out"]) == 0
    before, after = (
        json.loads((folder / "out" / "numbers_metrics.json").read_text()) for folder in (exported, tmp_path)
    )
    for row in (*before, *after):
        del row["best_run_id"]
    assert before == after


def test_imported_runs_are_judged_by_todays_rules_and_the_verdict_before_is_kept(
    exported, tmp_path, monkeypatch, capsys
):
    _use(tmp_path, monkeypatch)
    header, changed, same, without, _ = _lines(exported / "numbers.jsonl.gz")
    for run in (changed, same, without):
        run["tags"] |= {"verdict": "converged", "verdict_reason": "as it was", "stability": "steady"}
        del run["tags"]["verdict_version"]
    changed["history"] |= {"val_loss": [0.1, 0.01, 0.03], "val_loss_constant": 0.2}
    same["history"] |= {"val_loss": [0.1, 0.05, 0.05], "val_loss_constant": 0.2, "r_stitched": []}
    for run in (changed, same):
        run["history"] |= {"val_loss_floor": 0.0, "object_std_ratio": [1.0] * 3, "parameters_moved": [], "health": {}}
    without["history"] = None
    path = _rewritten(tmp_path / "f.gz", [header, changed, same, without])
    assert main(["import", str(path)]) == 0
    assert "today's rules give 1 of the new runs another verdict; the tag" in capsys.readouterr().out
    found = {run.data.tags["exported_from"]: run.data for run in mlflow.MlflowClient().search_runs(["0"])}
    tags = found[changed["run_id"]].tags
    assert (tags["verdict"], tags["verdict_before"], tags["stability"]) == ("diverged", "converged", "relapsed")
    assert "over 2 times its best" in tags["verdict_reason"]
    assert tags["verdict_version"] == str(VERDICT_VERSION)
    assert found[changed["run_id"]].metrics["stability/max_drawdown"] == pytest.approx(3)
    tags = found[same["run_id"]].tags
    assert (tags["verdict"], tags["verdict_reason"]) == ("converged", "as it was")
    assert tags["verdict_version"] == str(VERDICT_VERSION)
    assert "verdict_before" not in tags
    assert "verdict_version" not in found[without["run_id"]].tags


def test_a_second_import_adds_nothing_and_one_that_was_cut_off_is_done_again(exported, tmp_path, monkeypatch, capsys):
    _use(tmp_path, monkeypatch)
    assert main(["import", str(exported / "numbers.jsonl.gz")]) == 0
    client = mlflow.MlflowClient()
    first = client.search_runs(["0"])[0].info.run_id
    client.update_run(first, status="RUNNING")
    assert main(["import", str(exported / "numbers.jsonl.gz"), str(exported / "numbers.jsonl.gz")]) == 0
    said = capsys.readouterr().out
    assert "1 runs are new, 3 were there" in said
    assert "0 runs are new, 4 were there" in said
    runs = client.search_runs(["0"])
    assert len(runs) == 4
    assert first not in {run.info.run_id for run in runs}


def test_files_that_were_joined_are_imported_like_each_by_itself(exported, tmp_path, monkeypatch, capsys):
    _use(tmp_path, monkeypatch)
    lines = _lines(exported / "numbers.jsonl.gz")
    other = [
        lines[0] | {"study": "other"},
        lines[1] | {"tags": lines[1]["tags"] | {"study": "other"}, "run_id": "another"},
    ]
    joined = tmp_path / "joined.jsonl.gz"
    joined.write_bytes((exported / "numbers.jsonl.gz").read_bytes() + _rewritten(tmp_path / "o.gz", other).read_bytes())
    assert main(["import", str(joined)]) == 0
    said = capsys.readouterr().out
    assert "study numbers: 4 runs are new" in said
    assert "study other: 1 runs are new" in said
    found = mlflow.MlflowClient().search_runs(["0"])
    assert sorted(run.data.tags["study"] for run in found) == ["numbers"] * 4 + ["other"]


def test_runs_are_not_imported_into_the_store_that_they_come_from(exported, monkeypatch, capsys):
    _use(exported, monkeypatch)
    assert main(["import", "numbers.jsonl.gz"]) == 0
    assert "0 runs are new, 4 were there" in capsys.readouterr().out


def test_the_series_of_steps_travel_if_they_are_asked_for(exported):
    plain, full = (_lines(exported / name)[1] for name in ("numbers.jsonl.gz", "with_steps.jsonl.gz"))
    assert len(full["history"]["loss_step"]) == 72
    assert "loss_step" not in plain["history"]
    assert len(plain["history"]["val_loss"]) == len(full["history"]["val_loss"]) == 3


def test_nothing_of_the_machine_is_in_the_file(exported):
    header, *runs = _lines(exported / "numbers.jsonl.gz")
    assert header == {"format": "fnostab runs", "version": 1, "study": "numbers"}
    for run in runs:
        assert not any(key.startswith(("mlflow.", "run_folder")) for key in run["tags"])
        assert not any(key.startswith("system/") for key in run["metrics"])
        assert str(exported) not in json.dumps(run)


def test_a_number_that_is_none_is_nan_in_the_store(exported, tmp_path, monkeypatch):
    _use(tmp_path, monkeypatch)
    header, run, *_ = _lines(exported / "numbers.jsonl.gz")
    run["metrics"]["test/phase_ssim"] = None
    assert main(["import", str(_rewritten(tmp_path / "f.gz", [header, run]))]) == 0
    (found,) = mlflow.MlflowClient().search_runs(["0"])
    assert math.isnan(found.data.metrics["test/phase_ssim"])


@pytest.mark.parametrize(
    ("spoil", "rule"),
    [
        (lambda lines: [], "its first line says otherwise"),
        (lambda lines: [{"format": "other"}, *lines[1:]], "its first line says otherwise"),
        (lambda lines: [{"format": "fnostab runs", "version": 1}, *lines[1:]], "its first line says otherwise"),
        (lambda lines: [lines[0], lines[1] | {"metrics": {"a": "b"}}], "`metrics.a`: Input should be a valid number"),
        (lambda lines: [lines[0], lines[1] | {"more": 1}], "`more`: Extra inputs are not permitted"),
        (
            lambda lines: [lines[0], lines[1] | {"tags": {"study": "numbers"}}],
            "has not the tags of one of study numbers",
        ),
    ],
)
def test_another_file_is_refused_in_one_line_and_nothing_is_written(
    exported, tmp_path, monkeypatch, capsys, spoil, rule
):
    _use(tmp_path, monkeypatch)
    path = _rewritten(tmp_path / "bad.jsonl.gz", spoil(_lines(exported / "numbers.jsonl.gz")))
    assert main(["import", str(path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"fnostab: error: `file` (={path}) must be runs that were exported: ")
    assert rule in error
    assert error.count("\n") == 1
    assert {entry.name for entry in tmp_path.iterdir()} == {"bad.jsonl.gz"}


@pytest.mark.parametrize("content", [b"", b"no gzip at all", None])
def test_a_file_that_is_no_archive_or_cut_short_is_refused(exported, tmp_path, monkeypatch, capsys, content):
    _use(tmp_path, monkeypatch)
    path = tmp_path / "bad.jsonl.gz"
    path.write_bytes((exported / "numbers.jsonl.gz").read_bytes()[:-40] if content is None else content)
    assert main(["import", str(path)]) == 2
    assert f"`file` (={path}) must be runs that were exported: " in capsys.readouterr().err


def test_a_file_that_unpacks_to_too_much_is_refused_before_it_fills_the_memory(tmp_path, monkeypatch, capsys):
    _use(tmp_path, monkeypatch)
    monkeypatch.setattr(transfer, "_MAX_BYTES", 2**20)
    path = tmp_path / "bomb.gz"
    path.write_bytes(gzip.compress(b" " * 2**22))
    assert main(["import", str(path)]) == 2
    assert "unpacked, it has more than 1048576 bytes" in capsys.readouterr().err


def test_a_study_that_is_not_there_is_not_exported_and_no_file_is_left(fresh_store, capsys):
    assert main(["export", "--study", "nothing"]) == 2
    assert "must name a tracking store: there is none yet" in capsys.readouterr().err
    assert not list(fresh_store.iterdir())
    open_store()
    assert main(["export", "--study", "nothing"]) == 2
    assert "`study` (=nothing) must have finished runs in the tracking store" in capsys.readouterr().err
    assert not list(fresh_store.glob("*.gz"))


def test_an_export_whose_histories_cannot_be_read_is_refused_and_writes_nothing(
    exported, tmp_path, monkeypatch, capsys
):
    _use(exported, monkeypatch)
    (exported / "mlruns").rename(exported / "moved")
    try:
        assert main(["export", "--study", "numbers", "--out", str(tmp_path / "x.gz")]) == 2
        said = capsys.readouterr().err
        assert main(["compare", "--study", "numbers", "--register", "false"]) == 1
    finally:
        shutil.rmtree(exported / "mlruns")  # of the comparison
        (exported / "moved").rename(exported / "mlruns")
    assert "those of 4 of 4 cannot: history.json of run " in said
    assert f" is not there (looked for in {exported}/mlruns/" in said
    assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())
    assert "curves of 4 of 4 runs" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b'{"val_loss": [0.1', "Expecting"),
        (b"[1, 2]", "it is no JSON object"),
        (b'{"val_loss": [NaN]}', "NaN"),
        (100_000 * b"[", "nested too deeply"),
        (b"\xff", "can't decode"),
    ],
)
def test_a_damaged_history_is_told_with_its_run_when_it_is_exported(
    exported, tmp_path, monkeypatch, capsys, content, fault
):
    _use(exported, monkeypatch)
    path = next((exported / "mlruns").glob("*/*/artifacts/history.json"))
    whole = path.read_bytes()
    path.write_bytes(content)
    try:
        assert main(["export", "--study", "numbers", "--out", str(tmp_path / "x.gz")]) == 2
    finally:
        path.write_bytes(whole)
    said = capsys.readouterr().err
    assert f"history.json of run {path.parts[-3]} is damaged: " in said
    assert fault in said
    assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_run_of_somebody_else_without_the_tags_to_compare_by_is_left_out_everywhere(
    exported, tmp_path, monkeypatch, caplog
):
    _use(exported, monkeypatch)
    client = mlflow.MlflowClient()
    strangers = [
        client.create_run("0", tags={"study": "numbers", "verdict": "converged", "dataset_sha256": "a" * 64} | tags)
        for tags in ({"seed": "1"}, {"arm": "control", "seed": "one"})
    ]
    for run in strangers:
        client.set_terminated(run.info.run_id)
    try:
        assert len(find_runs("numbers")) == 4
        assert len(find_results("numbers", find_runs("numbers")[0].dataset_sha256)) == 4
        assert main(["export", "--study", "numbers", "--out", str(tmp_path / "x.gz")]) == 0
    finally:
        for run in strangers:
            client.delete_run(run.info.run_id)
    assert len(_lines(tmp_path / "x.gz")) == 5
    assert "2 runs without the tags arm and seed (a number) are left out" in caplog.text


def test_of_several_results_of_one_identity_the_newest_counts_as_in_a_comparison(fresh_store):
    open_store()
    client = mlflow.MlflowClient()
    tags = {"study": "s", "arm": "a", "seed": "1", "dataset_sha256": "d", "config_sha256": "c", "verdict": "converged"}
    ended = {}
    for end_time in (2000, 3000, 1000):
        run_id = client.create_run("0", tags=tags).info.run_id
        client.set_terminated(run_id, end_time=end_time)
        ended[end_time] = run_id
    assert find_results("s", "d")["a", 1, "c"].run_id == ended[3000]
    assert select_runs("s", find_runs("s")).runs[0].run_id == ended[3000]
