"""Whole studies on small data: the same numbers wherever they run, killed and resumed, ranked and registered."""

import gzip
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import mlflow
import numpy as np
import pytest

from fnostab.cli import main
from fnostab.config import ConfigError, resolve_config
from fnostab.launch import Job, LaunchConfig
from fnostab.study.plan import plan_file, plan_stage_a
from fnostab.workflows.child import train_job
from fnostab.workflows.compare import compare_study
from fnostab.workflows.study import run_study, stage_b_of

_ROOT = Path(__file__).resolve().parents[1]
#: Two arms that learn within seconds; their runs are bit for bit the same wherever they run.
_TABLE = """
study: small
preset: smoke
seeds: [1, 2]
train: {epochs: 3, picture_every_epochs: 100}
arms:
  - {name: control, arch: hybrid, clip_algo: norm}
  - {name: stable, arch: stable_hybrid, clip_algo: none}
"""


class _NoView:
    def __init__(self):
        self.said = []

    def begin(self, runs, finished):
        self.finished = dict(finished)

    def look(self, text):
        self.said.append(text)

    def update(self, place, update):
        pass


def _environment(folder):
    return os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}",
        "FNOSTAB_CACHE": str(folder / "cache"),
    }


def _use(folder, monkeypatch):
    for name, value in _environment(folder).items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(folder)


def _runs(study="small"):
    """The runs of a study that trained something, by arm and seed."""
    found = mlflow.MlflowClient().search_runs(["0"], f"tags.study = '{study}'")
    return sorted(
        (run for run in found if "arm" in run.data.tags), key=lambda run: (run.data.tags["arm"], run.data.tags["seed"])
    )


def _numbers(runs):
    """What training gave, by arm and seed; not how fast."""
    return {
        (run.data.tags["arm"], run.data.tags["seed"]): {
            key: value
            for key, value in run.data.metrics.items()
            if not key.startswith("system/") and key != "samples_per_s"
        }
        for run in runs
    }


def _assert_same_numbers(one, other):
    assert one.keys() == other.keys()
    for key, metrics in one.items():
        assert metrics.keys() == other[key].keys()
        for name, value in metrics.items():
            np.testing.assert_equal(other[key][name], value, err_msg=f"{key} {name}")  # NaN equals NaN


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    path = tmp_path_factory.mktemp("table") / "small.yaml"
    path.write_text(_TABLE)
    return path


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, table):
    """The folder of a study that ran in one process; its numbers; and its comparison."""
    folder = tmp_path_factory.mktemp("unbroken")
    with pytest.MonkeyPatch.context() as monkeypatch:
        _use(folder, monkeypatch)
        outcome = run_study(plan_file(table, {}), LaunchConfig("inline"), _NoView())
        assert outcome.without_result == []
        runs = _runs()
        comparison = compare_study("small", out=folder / "out")
    return folder, _numbers(runs), outcome, comparison


def test_a_child_of_the_parent_run_for_each_arm_and_seed(unbroken, monkeypatch):
    folder, _, outcome, _ = unbroken
    _use(folder, monkeypatch)
    runs = _runs()
    assert [(run.data.tags["arm"], run.data.tags["seed"]) for run in runs] == [
        (arm, seed) for arm in ("control", "stable") for seed in ("1", "2")
    ]
    assert {run.data.tags["mlflow.parentRunId"] for run in runs} == {outcome.run_id}
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert len({run.data.tags["dataset_sha256"] for run in runs}) == 1
    parent = mlflow.MlflowClient().get_run(outcome.run_id)
    assert (parent.data.tags["study"], parent.info.status) == ("small", "FINISHED")
    assert "arm" not in parent.data.tags


@pytest.mark.slow
def test_the_same_study_gives_the_same_numbers_as_ray_tasks(unbroken, table, tmp_path, monkeypatch):
    pytest.importorskip("ray")
    _use(tmp_path, monkeypatch)
    outcome = run_study(plan_file(table, {}), LaunchConfig("ray", workers=2), _NoView())
    assert outcome.without_result == []
    _assert_same_numbers(unbroken[1], _numbers(_runs()))


@pytest.mark.slow
def test_a_study_in_processes_that_was_killed_finishes_with_no_run_twice_and_the_same_numbers(
    unbroken, table, tmp_path, monkeypatch
):
    _use(tmp_path, monkeypatch)
    command = [sys.executable, "-m", "fnostab", "study", "--arms", str(table), "--workers", "2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path) as study:
        assert study.stdout is not None
        ended = 0
        for line in study.stdout:  # the third run is in the middle of its training
            ended += ": converged, " in line or ": stagnated, " in line
            if ended and "epoch 1/3" in line:
                study.send_signal(signal.SIGKILL)
                break
    assert study.returncode == -signal.SIGKILL
    finished = sum(run.info.status == "FINISHED" for run in _runs())
    assert 0 < finished < 4

    view = _NoView()
    outcome = run_study(plan_file(table, {}), LaunchConfig("processes", workers=2), view)
    assert len(view.finished) >= finished
    assert outcome.without_result == []
    assert len(_runs()) == 4  # those that were cut off went on in their own MLflow runs
    _assert_same_numbers(unbroken[1], _numbers(_runs()))
    assert compare_study("small").result.ranking.to_json_rows()[0]["arm"] == _rows(unbroken)[0]["arm"]
    parents = mlflow.MlflowClient().search_runs(["0"], "tags.study_role = 'parent'")
    assert len(parents) == 1


def _rows(unbroken):
    return json.loads((unbroken[0] / "out" / "small_metrics.json").read_text())


def test_what_is_finished_is_not_trained_again_and_more_seeds_join_the_same_parent(
    unbroken, table, tmp_path, monkeypatch
):
    folder, _, outcome, _ = unbroken
    _use(folder, monkeypatch)
    view = _NoView()
    again = run_study(plan_file(table, {}), LaunchConfig("inline"), view)
    assert len(view.finished) == 4
    assert again.run_id == outcome.run_id
    assert [end.run_id for _, end in again.ends] == [run.info.run_id for run in _by_seed(_runs())]


def test_a_study_whose_precision_is_auto_goes_on_in_that_of_its_runs_on_a_machine_that_would_take_another(
    unbroken, table, monkeypatch
):
    folder, _, outcome, _ = unbroken
    _use(folder, monkeypatch)
    view = _NoView()
    monkeypatch.setattr("fnostab.training.precision.has_bf16", lambda kind: True)
    again = run_study(plan_file(table, {"train.precision": "auto"}), LaunchConfig("inline"), view)
    assert len(view.finished) == 4
    assert again.run_id == outcome.run_id
    assert view.said == ["train.precision (=auto) is 32-true, as that of 4 runs that the study has"]


@pytest.mark.parametrize("bf16", [False, True])
def test_results_on_another_dataset_do_not_count_and_the_study_says_so(bf16, unbroken, tmp_path, monkeypatch):
    _use(unbroken[0], monkeypatch)
    assert main(["export", "--study", "small", "--out", str(tmp_path / "small.gz")]) == 0
    ours = _runs()[0].data.tags["dataset_sha256"]
    exported = gzip.decompress((tmp_path / "small.gz").read_bytes()).replace(ours.encode(), b"b" * 64)
    _use(tmp_path, monkeypatch)
    (tmp_path / "theirs.gz").write_bytes(gzip.compress(exported))
    assert main(["import", "theirs.gz"]) == 0
    (tmp_path / "one.yaml").write_text(_TABLE[: _TABLE.index("  - {name: stable")].replace("[1, 2]", "[1]"))
    monkeypatch.setattr("fnostab.training.precision.has_bf16", lambda kind: bf16)  # theirs are 32-true
    view = _NoView()
    plan = plan_file(tmp_path / "one.yaml", {"train.precision": "auto"})
    outcome = run_study(plan, LaunchConfig("inline"), view)
    assert outcome.without_result == []
    assert view.finished == {}
    assert [run.data.tags["dataset_sha256"] for run in _runs()].count(ours) == 1
    assert view.said == [
        "warning: 1 finished of these runs do not count and are trained again: they have dataset bbbbbbbbbbbb, this"
        f" study has {ours[:12]} (another version of fnostab made it, or a file has changed)"
    ]


def test_a_run_that_was_finished_since_it_was_planned_is_not_trained_again(unbroken, table, monkeypatch):
    folder, _, outcome, _ = unbroken
    _use(folder, monkeypatch)
    told = []
    for planned in plan_file(table, {}).runs:
        job = Job(planned.name, planned.config.model_dump(mode="json"), {"mlflow.parentRunId": outcome.run_id}, cpus=1)
        train_job(job, told.append)
    done = [update for update in told if update.state != "running"]
    wanted = [(end.run_id, end.verdict, end.val_loss) for _, end in outcome.ends]
    assert [(update.run_id, update.verdict, update.val_loss) for update in done] == wanted
    assert len(_runs()) == 4


def _by_seed(runs):
    return sorted(runs, key=lambda run: (run.data.tags["seed"], run.data.tags["arm"]))


def test_the_comparison_lies_in_the_parent_run_whole(unbroken, monkeypatch):
    folder, _, outcome, comparison = unbroken
    _use(folder, monkeypatch)
    assert comparison.run_id == outcome.run_id
    client = mlflow.MlflowClient()
    names = {artifact.path for artifact in client.list_artifacts(outcome.run_id)}
    assert {"small_metrics.json", "small_summary.md", "small_report.html", "study.json", "figures"} <= names
    rows = _rows(unbroken)
    assert [row["arm"] for row in rows] == [row["arm"] for row in comparison.result.ranking.table]
    wanted = ["arm", "arch", "best_val_loss", "amp_ssim", "phase_ssim", "amp_mae", "phase_mae"]
    assert list(rows[0])[:11] == [*wanted, "grad_norm_median", "grad_norm_max", "runs", "failures"]
    assert (rows[0]["runs"], rows[0]["failures"]) == (2, 0)
    run = client.get_run(rows[0]["best_run_id"])
    assert rows[0]["best_val_loss"] == run.data.metrics["best_val_loss"]
    html = (folder / "out" / "small_report.html").read_text()
    assert html.count("data:image/png;base64,") >= 8  # four figures, best and worst run of two arms
    assert "http://" not in html.replace("http://www.w3.org", "")


def test_the_best_run_of_the_first_arm_is_champion_and_loads_by_alias(unbroken, monkeypatch):
    folder, _, _, comparison = unbroken
    _use(folder, monkeypatch)
    first = comparison.result.ranking.table[0]
    assert "is registered as fnostab-" in comparison.registry
    version = mlflow.MlflowClient().get_model_version_by_alias("fnostab-small", "champion")
    assert version.run_id == first["best_run_id"]
    assert first["arm"] in version.description
    model = mlflow.pyfunc.load_model("models:/fnostab-small@champion")
    assert model.predict(np.ones((3, 32, 32), np.float32)).shape == (3, 32, 32, 2)


def test_two_comparisons_at_the_same_moment_leave_one_version_and_one_champion(unbroken, tmp_path):
    folder = unbroken[0]
    command = [sys.executable, "-m", "fnostab", "compare", "--study", "small"]
    both = [
        subprocess.Popen(command, cwd=folder, env=_environment(folder), stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    printed = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert all("# Study small" in text for text in printed)
    client = mlflow.MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    versions = client.search_model_versions("name = 'fnostab-small'")
    assert [version.version for version in versions] == ["1"] or [version.version for version in versions] == [1]
    assert client.get_registered_model("fnostab-small").aliases == {"champion": versions[0].version}


def test_stage_b_takes_the_winner_deeper_on_the_same_data_and_compares_with_stage_a(unbroken, monkeypatch):
    folder, _, _, comparison = unbroken
    _use(folder, monkeypatch)
    plan = stage_b_of("small", "1", fno_blocks=3)
    winner = comparison.result.ranking.table[0]["arm"]
    assert list(plan.arms) == [winner]
    assert plan.seeds == (1,)
    outcome = run_study(plan, LaunchConfig("inline"), _NoView())
    (run,) = _runs("small_stage_b")
    assert run.data.params["model.fno_blocks"] == "3"
    assert run.data.tags["dataset_sha256"] == comparison.result.dataset_sha256
    deeper = compare_study("small_stage_b")
    assert deeper.run_id == outcome.run_id
    (depth,) = deeper.result.depths
    assert (depth.depths, depth.runs) == ((2, 3), (2, 1))
    summary = mlflow.artifacts.load_text(
        f"{mlflow.MlflowClient().get_run(outcome.run_id).info.artifact_uri}/small_stage_b_summary.md"
    )
    assert "Instability " in summary
    assert "2 blocks (Stage A)" in summary
    assert "Seeds: 2 in Stage A and 1 in Stage B." in summary


def test_runs_on_two_datasets_are_not_compared_and_both_are_named(unbroken, monkeypatch, capsys):
    folder = unbroken[0]
    _use(folder, monkeypatch)
    client = mlflow.MlflowClient()
    made = []
    for arm, sha256 in (("control", "a" * 64), ("agc", "b" * 64)):
        run = client.create_run("0")
        tags = {"study": "mixed", "arm": arm, "seed": "1", "dataset_sha256": sha256, "verdict": "converged"}
        for key, value in tags.items():
            client.set_tag(run.info.run_id, key, value)
        client.set_terminated(run.info.run_id, "FINISHED")
        made.append(run.info.run_id)
    before = len(client.search_runs(["0"]))
    assert main(["compare", "--study", "mixed"]) == 2
    said = capsys.readouterr().err
    assert "a" * 64 in said
    assert "b" * 64 in said
    assert said.count("\n") == 1
    assert len(client.search_runs(["0"])) == before
    for run_id in made:
        client.delete_run(run_id)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compare", "--study", "nothing"], "`study` (=nothing) must be the tag of runs in the tracking store"),
        (["compare", "--study", "it's"], "`study` (=it's) must be a name without quotes"),
        (["compare", "--study", "small", "--dataset", "zz"], "`dataset` (=zz) must be the beginning of one of"),
        (["compare", "--study", "small", "--parent", "zz"], "`parent` (=zz) must be the parent of runs of study small"),
        (["compare", "--study", "small", "--promote", "maybe"], "`promote` (=maybe) must be true or false"),
        (["compare", "--study", "small", "--out", "no/such"], "`out` (=no/such) must be a folder"),
        (
            ["study", "--preset", "smoke", "--launcher", "moon"],
            "`launcher` (=moon) must be one of processes, inline",
        ),
        (["study", "--preset", "smoke", "--workers", "0"], "`workers` (=0) must be a whole number >= 1"),
        (["study", "--preset", "smoke", "--launcher", "ray", "--gpus_per_run", "1.5"], "`gpus_per_run` (=1.5) must"),
        (["study", "--preset", "smoke", "--gpus_per_run", "0.5"], "`gpus_per_run` (=0.5) is for launcher ray"),
        (["study", "--stage", "b", "--stage_a", "nothing"], "`study` (=nothing) must be the tag of runs"),
        (["study", "--stage", "b", "--stage_a", "small", "--lr", "1"], "`lr` (=1) must be that of Stage A"),
        (["study", "--stage", "b", "--stage_a", "small", "--fno_blocks", "2"], "`fno_blocks` (=2) must be > 2"),
        (["study", "--preset", "smoke", "--arch", "cnn"], "`--arch` is no argument of this command"),
        (["study", "--arms", "missing.yaml"], "`arms` (=missing.yaml) must be a readable file"),
    ],
)
def test_bad_input_is_refused_in_one_line_and_nothing_is_written(unbroken, monkeypatch, capsys, arguments, message):
    folder = unbroken[0]
    _use(folder, monkeypatch)
    before = len(mlflow.MlflowClient().search_runs(["0"]))
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"fnostab: error: {message}")
    assert said.count("\n") == 1
    assert len(mlflow.MlflowClient().search_runs(["0"])) == before


def test_a_crashed_run_is_named_with_its_traceback_and_the_others_have_results(table, tmp_path, monkeypatch):
    _use(tmp_path, monkeypatch)
    from fnostab.workflows import child

    train_arm = child.train_arm

    def crash(config, *rest, **named):
        if config.arm == "stable":
            raise RuntimeError("the machine is on fire\nreally")
        return train_arm(config, *rest, **named)

    monkeypatch.setattr(child, "train_arm", crash)
    monkeypatch.setattr("fnostab.tracking.checkout.uncommitted_code", lambda: "")  # or there is a note of it
    outcome = run_study(plan_file(table, {}, "1,"), LaunchConfig("inline"), _NoView())
    ((run, end),) = outcome.without_result
    assert (run.arm, end.state, end.text) == ("stable", "failed", "RuntimeError: the machine is on fire")
    client = mlflow.MlflowClient()
    log = client.download_artifacts(outcome.run_id, "failures/stable-seed1.txt", str(tmp_path))
    assert "Traceback" in Path(log).read_text()
    assert len(_runs()) == 1
    found = compare_study("small", register=False)
    assert found.result.notes == ["stable, seed 1: planned, and not begun."]


def test_a_second_process_does_not_run_the_same_study(table, tmp_path, monkeypatch, capsys):
    _use(tmp_path, monkeypatch)
    words = ["study", "--arms", str(table), "--workers", "1"]
    command = [sys.executable, "-m", "fnostab", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path) as first:
        assert first.stdout is not None
        next(line for line in first.stdout if "starting" in line)
        assert main(words) == 1
        first.terminate()
        first.stdout.read()
    assert f"study small is being run by another process (pid {first.pid})" in capsys.readouterr().err
    assert first.returncode == 128 + signal.SIGTERM


@pytest.mark.slow
def test_the_five_arms_of_the_original_study_are_ranked_in_one_table(tmp_path, monkeypatch):
    _use(tmp_path, monkeypatch)
    short = ["--seeds", "1", "--epochs", "2", "--train.artifacts", "numbers", "--launcher", "inline"]
    assert main(["study", "--arms", "original_five.yaml", "--preset", "smoke", *short]) == 0
    assert main(["compare", "--study", "original_five", "--out", "out"]) == 0
    rows = json.loads((tmp_path / "out" / "original_five_metrics.json").read_text())
    assert sorted(row["arm"] for row in rows) == ["agc", "baseline", "cnn", "control", "stable"]
    assert len({tuple(row) for row in rows}) == 1
    for name in ("summary.md", "report.html"):
        said = (tmp_path / "out" / f"original_five_{name}").read_text()
        assert said.count("is supervised: its network was trained on the true patches") == 1
    found = {run.data.tags["arm"]: run for run in _runs("original_five")}
    assert len({run.data.tags["dataset_sha256"] for run in found.values()}) == 1
    baseline = found.pop("baseline")
    assert len(mlflow.MlflowClient().get_metric_history(baseline.info.run_id, "val/supervised_loss")) == 2
    assert baseline.data.metrics["val/supervised_loss_constant"] > 0
    assert not any("supervised" in name for run in found.values() for name in run.data.metrics)


def _mlflow_run(folder, *words):
    command = [sys.executable, "-m", "mlflow", "run", str(_ROOT), "--env-manager", "local", *words]
    return subprocess.run(
        command, cwd=folder, env=_environment(folder), capture_output=True, text=True, timeout=600, check=False
    )


@pytest.mark.slow
def test_three_runs_by_hand_are_ranked_and_registered_without_a_parent(tmp_path, monkeypatch):
    _use(tmp_path, monkeypatch)
    for arch, clip_algo in (("hybrid", "norm"), ("stable_hybrid", "none"), ("hybrid", "agc")):
        rule = ["--arch", arch, "--clip_algo", clip_algo, "--preset", "smoke", "--epochs", "4"]
        assert main(["train", *rule]) == 0
    answer = _mlflow_run(tmp_path, "-e", "compare", "-P", "study=stage_a_smoke")
    assert answer.returncode == 0, answer.stderr
    client = mlflow.MlflowClient()
    (comparison,) = client.search_runs(["0"], "tags.study_role = 'comparison'")
    assert comparison.data.tags["study"] == "stage_a_smoke"
    assert comparison.info.status == "FINISHED"
    rows = mlflow.artifacts.load_dict(f"{comparison.info.artifact_uri}/stage_a_smoke_metrics.json")
    assert sorted(row["arm"] for row in rows) == ["agc", "control", "stable"]
    version = client.get_model_version_by_alias("fnostab-stage-a-smoke", "champion")
    assert version.run_id == rows[0]["best_run_id"]


@pytest.mark.slow
def test_stage_a_and_compare_through_mlflow_run(tmp_path, monkeypatch):
    answer = _mlflow_run(
        tmp_path, "-e", "stage_a", "-P", "preset=smoke", "-P", "seeds=1", "-P", "train.epochs=2", "-P", "workers=2"
    )
    assert answer.returncode == 0, answer.stderr
    answer = _mlflow_run(tmp_path, "-e", "compare", "-P", "study=stage_a_smoke", "-P", "register=false")
    assert answer.returncode == 0, answer.stderr
    _use(tmp_path, monkeypatch)
    client = mlflow.MlflowClient()
    (parent,) = client.search_runs(["0"], "tags.study_role = 'parent'")
    assert len(client.search_runs(["0"], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")) == 3
    assert "stage_a_smoke_report.html" in {entry.path for entry in client.list_artifacts(parent.info.run_id)}
    (pointer,) = client.search_runs(["0"], f"tags.compared_into = '{parent.info.run_id}'")
    assert "study" not in pointer.data.tags
    assert client.search_registered_models() == []


def test_the_plan_is_printed_and_nothing_is_written(fresh_store, capsys):
    assert main(["study", "--preset", "smoke", "--seeds", "2", "--plan"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 6
    first = plan_stage_a({"preset": "smoke"}, {}, "2").runs[0]
    assert printed[0] == f"{first.name}: config {first.config.sha256()[:12]}"
    assert list(fresh_store.iterdir()) == []


def test_a_study_over_two_datasets_shares_them_out_over_its_seeds_and_is_ranked_as_one(tmp_path, monkeypatch):
    _use(tmp_path, monkeypatch)
    several = _TABLE.replace("seeds: [1, 2]", "seeds: [1, 2, 3]\ndata: {seeds: 2}").replace("epochs: 3", "epochs: 1")
    Path("two.yaml").write_text(several.replace("study: small", "study: two"))
    plan = plan_file(Path("two.yaml"), {})
    assert run_study(plan, LaunchConfig(), _NoView()).without_result == []
    seen = {(run.data.tags["arm"], run.data.tags["seed"]): run.data.tags["dataset_sha256"] for run in _runs("two")}
    assert seen["control", "1"] == seen["control", "3"] != seen["control", "2"]
    assert all(seen["control", seed] == seen["stable", seed] for seed in "123")
    view = _NoView()
    run_study(plan, LaunchConfig(), view)
    assert len(view.finished) == 6
    compared = compare_study("two", register=False)
    assert "share 2 datasets" in " ".join(compared.result.notes)
    assert len(compared.result.runs) == 6


def test_several_datasets_of_a_measured_scan_are_refused():
    with pytest.raises(ConfigError, match=r"^`data.seeds` \(=2\) must be 1 on a measured scan: there is one$"):
        resolve_config({"preset": "scan", "data": "scan.npz", "data.seeds": 2})
