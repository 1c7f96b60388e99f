"""`fnostab study --until decided` from command to store; its runs are recorded, not trained."""

import json
import signal
from contextlib import contextmanager

import mlflow
import pytest
from recorded_studies import ARMS, build_dataset, record_run

from fnostab.cli import main
from fnostab.config import ArmConfig, ConfigError
from fnostab.launch import Update
from fnostab.ranking.claims import Design
from fnostab.study.plan import plan_table
from fnostab.tracking.studies import find_parents, find_runs, planned_runs, stored_design
from fnostab.workflows import runs, study
from fnostab.workflows.compare import compare_study
from fnostab.workflows.ranked import rank_study
from fnostab.workflows.study import stage_b_of


@pytest.fixture(scope="module")
def dataset():
    return build_dataset()


@pytest.fixture
def folder(fresh_store, empty_store, dataset, monkeypatch):
    """A store and a table of two arms, whose runs are recorded without a training."""
    (fresh_store / "mlflow.db").write_bytes(empty_store.read_bytes())
    (fresh_store / "s.yaml").write_text(ARMS)
    monkeypatch.setattr(study, "build_dataset", lambda config, progress=None: dataset)
    return fresh_store


@pytest.fixture
def record(folder, dataset, monkeypatch):
    """Let runs have the loss that a function of arm and seed gives; gives the list of what was trained."""
    trained = []

    def let_runs_have(loss):
        def train(job, send):
            config = ArmConfig.model_validate(job.config)
            given = loss(config.arm, config.seed)
            if isinstance(given, Update):
                send(given)
                return
            trained.append((config.arm, config.seed))
            record_run(job, send, dataset, given)

        monkeypatch.setattr(runs, "train_job", train)
        return trained

    return let_runs_have


def _study(*words):
    return main(["study", "--arms", "s.yaml", "--launcher", "inline", *words])


def _until(*words):
    return _study("--until", "decided", *words)


def _parent():
    (parent,) = find_parents("s")
    return parent


def _apart(arm, seed):
    return 0.1 + 0.001 * seed + 0.1 * (arm == "b")


def _same(arm, seed):
    return 0.1 + 0.001 * seed


def test_a_study_ends_at_the_look_that_decides_it_and_says_so_everywhere(record, capsys):
    trained = record(_apart)
    assert _until("--max_seeds", "15") == 0
    assert trained == [(arm, seed) for seed in range(1, 6) for arm in "ab"]
    said = "decided after 5 seeds an arm: a over b (p = 0.024 with 5 seeds)"
    assert f"study s: {said}\n" in capsys.readouterr().out
    parent = _parent()
    wanted = {"until": "decided", "alpha": "0.05", "looks": "5,10,15", "max_seeds": "15", "seeds_used": "a 5, b 5"}
    wanted |= {"decided": "a over b (p = 0.024 with 5 seeds)", "open": "nothing"}
    wanted |= {"mlflow.note.content": f"Study s: {said}", "results": "10 of 10 runs have a result"}
    assert {name: parent.tags[name] for name in wanted} == wanted
    assert parent.status == "FINISHED"
    assert planned_runs(parent) == trained
    plan = json.loads(mlflow.artifacts.load_text(f"{parent.artifact_uri}/study.json"))
    assert plan["until"] == {name: wanted[name] for name in ("until", "alpha", "looks", "max_seeds")}


def test_a_study_that_is_not_decided_ends_at_its_maximum_with_exit_code_0_and_says_what_is_open(record, capsys):
    trained = record(_same)
    assert _until("--max_seeds", "7", "--alpha", "0.1", "--seeds", "3") == 0
    assert trained == [(arm, seed) for seed in range(1, 8) for arm in "ab"]
    printed = capsys.readouterr().out
    assert "\nafter 3 seeds an arm: decided: nothing; open: a and b (p = 1); fewer than 7 seeds" in printed
    assert "study s: not decided with the maximum of 7 seeds an arm: decided: nothing; open: a and b (p = 1)" in printed
    assert _parent().tags["open"] == "a and b (p = 1)"


@pytest.mark.parametrize("last", [3, 8])
def test_a_study_that_a_signal_stopped_goes_on_in_the_same_parent_and_trains_no_run_twice(record, last, capsys):
    def stop(arm, seed):
        return _same(arm, seed) if seed <= last else Update("interrupted", "stopped by SIGINT", signum=signal.SIGINT)

    record(stop)
    assert _until("--max_seeds", "10") == 128 + signal.SIGINT
    assert _parent().status == "KILLED"
    trained = record(_same)
    assert len(trained) == 2 * last
    assert _until("--max_seeds", "10") == 0
    assert trained == [(arm, seed) for seed in range(1, 11) for arm in "ab"]
    assert _parent().status == "FINISHED"
    assert planned_runs(_parent()) == trained
    assert _until("--max_seeds", "10") == 0  # and once it is over, it says so again
    assert len(trained) == 20
    assert "study s: not decided with the maximum of 10" in capsys.readouterr().out.splitlines()[-3]


def test_a_look_with_a_run_that_crashed_ends_the_study_and_the_same_command_completes_it(record, capsys):
    record(lambda arm, seed: Update("failed", "ValueError: no") if (arm, seed) == ("b", 7) else _same(arm, seed))
    assert _until("--max_seeds", "15") == 1
    printed = capsys.readouterr().out
    assert "b, seed 7: no result: ValueError: no\nstudy s: 19 of 20 runs have a result\nthe same command" in printed
    assert "decided with the maximum" not in printed
    assert _parent().status == "FAILED"
    trained = record(_same)
    assert _until("--max_seeds", "15") == 0
    assert trained[19:] == [("b", 7), *((arm, seed) for seed in range(11, 16) for arm in "ab")]


def test_a_larger_maximum_goes_on_and_what_was_begun_cannot_be_changed(record, capsys):
    trained = record(_same)
    assert _until("--max_seeds", "5") == 0
    assert _until("--max_seeds", "8", "--alpha", "0.05") == 0
    assert len(trained) == 16
    assert _parent().tags["looks"] == "5,8"
    capsys.readouterr()
    before = dict(_parent().tags)
    for words, message in (
        (("--max_seeds", "7"), "`max_seeds` (=7) must be >= 8, the number of seeds that there are"),
        (("--alpha", "0.1"), "`alpha` (=0.1) must be 0.05, which this study was begun with"),
        (("--seeds", "2,3"), "`seeds` (=2, 3) must be the first ones of the study, which has 1, 2, 3, 4, 5, 6, 7, 8"),
    ):
        assert _until(*words) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"fnostab: error: {message}")
        assert said.count("\n") == 1
    assert _parent().tags == before
    assert len(trained) == 16


def test_a_study_without_until_keeps_the_looks_of_its_parent(record, folder):
    trained = record(_same)
    assert _study("--seeds", "2") == 0
    assert stored_design(_parent()).looks == ()
    assert _until("--max_seeds", "8") == 0
    assert _study("--seeds", "9") == 0
    assert trained[-2:] == [("a", 9), ("b", 9)]
    assert stored_design(_parent()).looks == (5, 8)
    plan = json.loads(mlflow.artifacts.load_text(f"{_parent().artifact_uri}/study.json"))
    assert plan["until"]["looks"] == "5,8"
    assert len(plan["runs"]) == 18


def test_a_comparison_takes_the_looks_of_the_parent(record):
    record(_apart)
    assert _until("--max_seeds", "10", "--alpha", "0.1") == 0
    ranking = rank_study("s").ranking
    assert ranking.design == stored_design(_parent()) == Design(0.1, (5, 10))
    pair = next(pair for pair in ranking.pairs if pair.a == "a")
    assert (pair.better, pair.seeds) == ("a", 5)


def test_the_report_says_how_often_the_study_looked(record):
    record(_same)
    assert _until("--max_seeds", "6", "--alpha", "0.1") == 0
    found = compare_study("s", register=False)
    told = {name: found.result.facts[name] for name in ("until", "alpha", "looks")}
    assert told == {"until": "decided", "alpha": "0.1", "looks": "with 5, 6 seeds an arm"}


def test_runs_without_a_parent_are_looked_at_once(record):
    record(_apart)
    assert _until("--max_seeds", "10") == 0
    mlflow.MlflowClient().delete_run(_parent().run_id)
    ranking = rank_study("s").ranking
    assert ranking.design.looks == ()


def test_looks_that_somebody_has_changed_into_none_are_refused_in_one_line(record, capsys):
    record(_apart)
    assert _until("--max_seeds", "10") == 0
    mlflow.MlflowClient().set_tag(_parent().run_id, "looks", "10,x")
    capsys.readouterr()
    assert main(["compare", "--study", "s"]) == 2
    wanted = r"`looks` \(=10,x\) and `alpha` \(=0.05\), tags of run .*, must be ascending numbers of seeds and an error"
    with pytest.raises(ConfigError, match=wanted):
        stored_design(_parent())


def test_all_arms_that_a_study_has_must_be_there(record, folder, capsys):
    record(_same)
    (folder / "s.yaml").write_text(ARMS + "  - {name: c, arch: fno}\n")
    assert _study("--seeds", "1") == 0
    (folder / "s.yaml").write_text(ARMS)
    assert _until() == 2
    assert "`until` (=decided) needs all arms of study s: c is not among them" in capsys.readouterr().err


def test_runs_that_were_trained_by_hand_are_not_trained_again(record):
    trained = record(_same)
    assert _study("--seeds", "2") == 0
    client = mlflow.MlflowClient()
    for run in find_runs("s"):
        client.delete_tag(run.run_id, "mlflow.parentRunId")
    client.delete_run(_parent().run_id)
    assert _until("--max_seeds", "6") == 0
    assert len(trained) == 12
    assert _parent().tags["seeds_used"] == "a 6, b 6"


def test_ray_is_started_once_for_all_looks(record, monkeypatch):
    record(_same)
    started, batches = [], []

    @contextmanager
    def cluster(*_, **__):
        started.append(1)
        yield

    def run_ray(jobs, run, on_update, run_together, **_):
        batches.append(len(jobs))
        return runs.launch.run_inline(jobs, run, on_update, run_together)

    monkeypatch.setattr(runs.launch, "ray_cluster", cluster)
    monkeypatch.setattr(runs.launch, "run_ray", run_ray)
    assert main(["study", "--arms", "s.yaml", "--launcher", "ray", "--until", "decided", "--max_seeds", "12"]) == 0
    assert batches == [10, 10, 4]
    assert len(started) == 1


def test_the_stage_b_of_such_a_study_has_the_arm_that_leads(record, folder, monkeypatch):
    record(_apart)
    assert _until("--max_seeds", "10") == 0
    config = plan_table([{"name": "a", "arch": "hybrid"}], {}, {"preset": "smoke", "study": "s"}, {}).arms["a"]
    monkeypatch.setattr(study, "read_config", lambda run_id: config)
    assert list(stage_b_of("s", "1").arms) == ["a"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--until", "maybe"], "`until` (=maybe) must be decided"),
        (["--alpha", "0.1"], "`alpha` (=0.1) is for a study with `until`"),
        (["--max_seeds", "7"], "`max_seeds` (=7) is for a study with `until`"),
        (["--until", "decided", "--alpha", "0.6"], "`alpha` (=0.6) must be above 0 and at most 0.5"),
        (["--until", "decided", "--alpha", "-1"], "`alpha` (=-1) must be above 0 and at most 0.5"),
        (["--until", "decided", "--alpha", "small"], "`alpha` (=small) must be a number"),
        (["--until", "decided", "--max_seeds", "0"], "`max_seeds` (=0) must be a whole number >= 1"),
        (["--until", "decided", "--max_seeds", "many"], "`max_seeds` (=many) must be a whole number >= 1"),
        (["--until", "decided", "--seeds", "6", "--max_seeds", "5"], "`max_seeds` (=5) must be >= 6, the number of"),
        (["--until", "decided", "--max_seeds", "2000"], "`max_seeds` (=2000) must be <= 1000"),
    ],
)
def test_bad_input_is_refused_in_one_line_before_anything_is_written(fresh_store, capsys, words, message):
    assert main(["study", "--preset", "smoke", *words]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"fnostab: error: {message}")
    assert said.count("\n") == 1
    assert list(fresh_store.iterdir()) == []


def test_one_arm_alone_has_nothing_to_be_compared_with(fresh_store, capsys):
    (fresh_store / "one.yaml").write_text("preset: smoke\narms: [{name: a}]\n")
    assert main(["study", "--arms", "one.yaml", "--until", "decided"]) == 2
    assert "`until` (=decided) needs two arms to compare: there is a alone" in capsys.readouterr().err
    assert [path.name for path in fresh_store.iterdir()] == ["one.yaml"]


def test_the_plan_of_a_study_until_decided_is_that_of_its_first_look(fresh_store, capsys):
    assert main(["study", "--preset", "smoke", "--until", "decided", "--max_seeds", "12", "--plan"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "looks with 5, 10, 12 seeds an arm; the runs of the first one:"
    assert len(lines) == 16
    assert main(["study", "--preset", "smoke", "--until", "decided", "--max_seeds", "4", "--plan"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 13
