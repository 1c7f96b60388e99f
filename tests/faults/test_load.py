"""A hundred trained runs, and thousands of made ones, on a real server: all there, ranked, and no work for nothing."""

import cProfile
import json
import pstats
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import mlflow
import pytest
from many_runs import METRICS, copy_runs, history_of, log_points, make_runs, put_history
from servers import client_environment
from skimage.io import imread

from fnostab.ranking import rank_arms
from fnostab.report.study import html_report, summary_markdown
from fnostab.study.result import StudyResult, StudyRun
from fnostab.study.selection import select_runs
from fnostab.study.stored_run import StoredRun

pytestmark = pytest.mark.faults

_ARMS, _SEEDS, _COPIES = 50, 10, 10
_POINTS = 10_000
#: Four arms that train within seconds, on two batches an epoch; two of them send models and pictures as well.
_TABLE = """
study: hundred
preset: smoke
seeds: 25
train: {epochs: 2, picture_every_epochs: 100}
data: {max_train_patches: 32}
model: {width: 4, fno_blocks: 1}
arms:
  - {name: cnn, arch: cnn, clip_algo: none, train.artifacts: numbers}
  - {name: cnn-agc, arch: cnn, clip_algo: agc, train.artifacts: numbers}
  - {name: control, arch: hybrid, clip_algo: norm}
  - {name: stable, arch: stable_hybrid, clip_algo: none}
"""
#: `fnostab compare` with its requests counted and its memory measured.
_COMPARE = """
import json, resource, sys, time
import requests
sent, send = 0, requests.Session.send
def counted(*args, **kwargs):
    global sent
    sent += 1
    return send(*args, **kwargs)
requests.Session.send = counted
from fnostab.cli import main
began = time.monotonic()
code = main(["compare", "--register", "false", *sys.argv[2:]])
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
with open(sys.argv[1], "w") as file:
    json.dump({"requests": sent, "peak_bytes": peak, "seconds": time.monotonic() - began}, file)
sys.exit(code)
"""


@dataclass(frozen=True)
class _Compared:
    """What `compare` left behind, and what it took."""

    files: Path
    study: str
    runs: int
    requests: int
    peak_bytes: int
    seconds: float

    @property
    def report(self) -> str:
        return (self.files / f"{self.study}_report.html").read_text()

    @property
    def rows(self) -> list[dict]:
        return json.loads((self.files / f"{self.study}_metrics.json").read_text())

    @property
    def note(self) -> str:
        return f"{self.runs} runs: {self.seconds:.0f} s, {self.peak_bytes >> 20} MiB, {self.requests} requests"


def _compare(server, study, runs, folder, *, code=0):
    measured = folder / f"{study}.json"
    command = [sys.executable, "-c", _COMPARE, str(measured), "--study", study, "--out", str(folder / study)]
    environment = client_environment(server.uri, folder / "cache")
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == code, done.stderr[-3000:]
    return _Compared(folder / study, study, runs, **json.loads(measured.read_text()))


def test_a_study_of_a_hundred_runs_is_trained_stored_and_ranked_whole(tracking_server, tmp_path, fault_report):
    tracking_server.start()
    (tmp_path / "table.yaml").write_text(_TABLE)
    environment = client_environment(tracking_server.uri, tmp_path / "cache")
    command = [sys.executable, "-m", "fnostab", "study", "--arms", "table.yaml", "--workers", "2"]
    began = time.monotonic()
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=2400)
    seconds = time.monotonic() - began
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]

    client = mlflow.MlflowClient(tracking_server.uri)
    runs = [run for run in client.search_runs(["0"], "tags.study = 'hundred'") if "arm" in run.data.tags]
    assert Counter(run.data.tags["arm"] for run in runs) == {"cnn": 25, "cnn-agc": 25, "control": 25, "stable": 25}
    assert len({(run.data.tags["arm"], run.data.tags["seed"]) for run in runs}) == 100
    assert {run.info.status for run in runs} == {"FINISHED"}
    for run in runs:
        steps = [point.step for point in client.get_metric_history(run.info.run_id, "train/loss")]
        assert sorted(steps) == [0, 1, 2, 3], run.data.tags["mlflow.runName"]
    compared = _compare(tracking_server, "hundred", 100, tmp_path)
    assert {row["arm"]: row["runs"] for row in compared.rows} == {"cnn": 25, "cnn-agc": 25, "control": 25, "stable": 25}
    fault_report.record("100 runs of one study on one server", 100, len(runs), f"trained and ranked in {seconds:.0f} s")


@pytest.fixture(scope="module")
def made(tracking_server):
    """500 runs made through the client, and 5,000 copies of them, every one with a history; the ids by (arm, seed)."""
    tracking_server.start()
    client = mlflow.MlflowClient(tracking_server.uri)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
        keys = [(f"arm{arm:02d}", seed) for arm in range(_ARMS) for seed in range(_SEEDS)]
        few = make_runs(client, "few", keys)
        many = copy_runs(tracking_server.backend_uri, "few", "many", _COPIES, _SEEDS)
        long = [many[f"arm{arm:02d}", 0] for arm in range(_ARMS)]
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda run_id: log_points(client, run_id, _POINTS), long))
    for ids in (few, many):
        for key, run_id in ids.items():
            steps = _POINTS if run_id in long else 100
            put_history(tracking_server.artifacts, run_id, history_of(key, steps=steps))
    return few, many


@pytest.fixture(scope="module")
def compared(made, tracking_server, tmp_path_factory):
    """The comparisons of 500 and of 5,000 runs; in the smaller study the history of seed 3 of each arm is cut off."""
    few, many = made
    for (_, seed), run_id in few.items():
        if seed == 3:
            put_history(tracking_server.artifacts, run_id, '{"val_loss": [0.16, 0.1')
    folder = tmp_path_factory.mktemp("compared")
    # Histories that cannot be read are named, and make the exit code 1.
    damaged = _compare(tracking_server, "few", len(few), folder, code=1)
    return damaged, _compare(tracking_server, "many", len(many), folder)


def test_thousands_of_runs_are_in_the_store_as_a_client_reads_them(made, tracking_server):
    few, many = made
    assert (len(few), len(many)) == (500, 5000)
    client = mlflow.MlflowClient(tracking_server.uri)
    copy = client.get_run(many["arm07", 93])
    assert {key: copy.data.tags[key] for key in ("study", "arm", "seed")} == {
        **{"study": "many", "arm": "arm07", "seed": "93"}
    }
    original = client.get_run(few["arm07", 3])
    assert copy.data.metrics.keys() == original.data.metrics.keys() == set(METRICS)
    assert copy.data.params == original.data.params
    assert copy.data.metrics["best_val_loss"] == pytest.approx(1.009 * original.data.metrics["best_val_loss"])
    points = client.get_metric_history(many["arm07", 0], "train/loss")
    assert {point.step for point in points} == set(range(_POINTS))


def test_every_run_of_thousands_is_ranked(compared, fault_report):
    for of in compared:
        assert [row["runs"] for row in of.rows] == [of.runs // _ARMS] * _ARMS
        assert of.report.count('<tr><th scope="row"><span class="text">') >= of.runs
    fault_report.record(
        "compare of 5,500 runs", 5500, sum(of.runs for of in compared), "; ".join(of.note for of in compared)
    )


def test_ten_times_the_runs_need_few_more_requests(compared):
    """Pages of a thousand runs, and histories of those that are drawn: none of the rest."""
    few, many = compared
    assert many.requests < 3 * few.requests
    assert many.requests < 1000


def test_a_run_more_takes_little_more_memory(compared):
    few, many = compared
    assert many.peak_bytes - few.peak_bytes < 60 * 1024 * (many.runs - few.runs)
    assert many.peak_bytes < 2**30


def test_the_report_of_thousands_of_runs_can_be_opened_and_says_what_is_not_drawn(compared):
    _, many = compared
    assert len(many.report) < 10 * 2**20
    assert "The first 12 of 50 arms in rank." in many.report
    assert "The first 24 of 50 arms in rank." in many.report
    assert "25 at even distances in the order from the best to the worst" in many.report
    assert "Of 38 more arms there are no pictures here" in many.report
    for path in (many.files / "figures").glob("*.png"):
        height, width, _ = imread(path).shape
        assert max(height, width) < 4000, path.name


def test_a_damaged_history_is_named_and_its_run_still_ranked(compared, made):
    few, _ = compared
    damaged = {run_id for (_, seed), run_id in made[0].items() if seed == 3}
    named = {run_id for run_id in damaged if f"history.json of run {run_id} is damaged" in few.report}
    drawn = [row["arm"] for row in few.rows[:12]]
    assert named == {made[0][arm, 3] for arm in drawn}
    assert all(3 in row["seeds"] for row in few.rows)


def test_the_work_of_selecting_ranking_and_telling_grows_no_faster_than_the_runs():
    few, many = (_calls(seeds) for seeds in (_SEEDS, _SEEDS * _COPIES))
    assert many < 1.2 * _COPIES * few


def _calls(seeds):
    """Function calls from the runs of a store to the report."""
    found = [_stored(f"arm{arm:02d}", seed) for arm in range(20) for seed in range(seeds)]
    with cProfile.Profile() as profile:
        selection = select_runs("many", found)
        ranking = rank_arms([run.to_row() for run in selection.runs], 0, resamples=100)
        runs = [
            StudyRun(run.arm, run.seed, run.run_id, "converged", "", run.metrics["best_val_loss"])
            for run in selection.runs
        ]
        result = StudyResult("many", ranking, runs, selection.dataset_sha256)
        assert html_report(result, {}).count("arm07") > seeds
        assert summary_markdown(result).count("arm07") > seeds
    return pstats.Stats(profile).total_calls


def _stored(arm, seed):
    tags = {"study": "many", "arm": arm, "seed": str(seed), "dataset_sha256": "5f" * 32, "verdict": "converged"}
    params = {"model.width": "8", "optim.lr": "0.003", "clip.val": arm.removeprefix("arm")}
    return StoredRun(f"{arm}{seed}", "0", "FINISHED", seed, tags, params, {"best_val_loss": 0.02 + 1e-5 * seed})
