"""Runs as SLURM jobs, with a small cluster of scripts in SLURM's place (`fake_slurm.py`) that really runs them."""

import json
import os
import pickletools
import signal
import stat
import sys
import time
from pathlib import Path

import fake_slurm
import pytest
from fake_slurm import calls, job_folders, state_of

from fnostab.cli import main
from fnostab.config import ConfigError
from fnostab.io.endings import CommandFailed, Interrupted
from fnostab.launch import Job, RunTask, check_slurm, run_slurm, slurm_config, slurm_jobs

pytest.importorskip("submitit")

#: What the jobs of these tests do: what their config asks for, at the first time and later.
RUNS = """
import os, signal, sys, time
from pathlib import Path
from fnostab.io.endings import Interrupted
from fnostab.launch import Update

def run(job, send):
    begun = Path(job.config["folder"]) / job.name
    first = not begun.exists()
    with begun.open("a") as file:
        file.write(f"{os.getpid()}\\n")
    kind = job.config["kind"]
    if kind == "die":
        print("the last words", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "fail":
        send(Update("failed", "ValueError: no"))
        return
    if kind == "once" and first or kind == "always":
        caught = []
        before = {signum: signal.signal(signum, lambda signum, _: caught.append(signum)) for signum in (10, 12, 15)}
        while not caught and not (begun.parent / "release").exists():
            send(Update("running", epoch=1, epochs=2, val_loss=0.5))
            time.sleep(0.05)
        for signum, handler in before.items():
            signal.signal(signum, handler)
        if caught:
            send(Update("interrupted", str(Interrupted(caught[0])), signum=caught[0]))
            return
    send(Update("done", "fine", 2, 2, 0.25, verdict="converged", run_id=str(job.cpus)))

def together(jobs, send):
    for place, job in enumerate(jobs):
        send(place, Update("running", f"with {len(jobs)}"))
"""
RUN = RunTask("slurm_runs", "run", "together")


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """The state of a cluster that starts jobs at once and is asked often."""
    monkeypatch.setattr(slurm_jobs, "READ_EVERY_S", 0.05)
    monkeypatch.setattr(slurm_jobs, "ASK_EVERY_S", 0.1)
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / "slurm_runs.py").write_text(RUNS)
    root = Path(__file__).resolve().parents[1]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(modules), str(root)]))
    cluster = fake_slurm.install(tmp_path, monkeypatch)
    yield cluster
    fake_slurm.stop(cluster)


@pytest.fixture
def study(tmp_path):
    """The folder that remembers a study's jobs."""
    return tmp_path / "cache" / "study.slurm"


class News:
    """What is heard; `then` is called with each update, and may stop the study."""

    def __init__(self, then=lambda place, update: None):
        self.updates = []
        self._then = then

    def __call__(self, place, update):
        self.updates.append((place, update))
        self._then(place, update)

    def texts(self, place):
        return [update.text for at, update in self.updates if at == place]


def jobs(folder, *kinds, **others):
    return [Job(f"{kind} {place}", {"kind": kind, "folder": str(folder)}, **others) for place, kind in enumerate(kinds)]


def launch(cluster, study, *kinds, news=None, at_once=None, wanted=None, **options):
    wanted = jobs(cluster.parent, *kinds) if wanted is None else wanted
    config = slurm_config({name: str(value) for name, value in options.items()})
    return run_slurm(wanted, RUN, news or News(), config, folder=study, label="a study", at_once=at_once)


def begun(cluster, name):
    """The processes in which a run was begun."""
    path = cluster.parent / name
    return [int(pid) for pid in path.read_text().split()] if path.exists() else []


def wait_for(condition, what):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def when_training(place, action):
    """A News whose `action` is done once, when the run at `place` has told an epoch."""
    done = []

    def then(at, update):
        if at == place and update.epoch and not done:
            done.append(True)
            action()

    return News(then)


def kill(cluster, name, signum):
    """Send a signal to the process that carries out a run now."""
    os.kill(begun(cluster, name)[-1], signum)


def test_the_runs_are_the_tasks_of_one_array_and_nothing_is_left_of_it(cluster, study):
    news = News()
    ends = launch(cluster, study, "finish", "finish", "finish", news=news, partition="long", time=30, mem="2G")
    assert [(end.state, end.verdict, end.val_loss) for end in ends] == [("done", "converged", 0.25)] * 3
    assert [job.name for job in job_folders(cluster)] == ["1_0", "1_1", "1_2"]
    asked = json.loads((cluster / "1_0" / "asked").read_text())
    named = {"partition": "long", "time": "30", "mem": "2G", "signal": "USR1@120", "cpus-per-task": "1"}
    assert {name: asked[name] for name in named} == named
    assert asked["requeue"] is True
    assert asked["array"] == "0-2%3"
    assert "wckey" not in asked
    assert news.texts(1)[0] == "SLURM job 1_1 is queued"
    assert news.texts(1)[1].startswith("SLURM job 1_1 begins on ")
    assert list(study.iterdir()) == []


def test_a_single_run_is_a_job_without_an_array(cluster, study):
    (end,) = launch(cluster, study, "finish")
    assert end.state == "done"
    assert "array" not in json.loads((cluster / "1_0" / "asked").read_text())


def test_no_more_runs_go_on_at_once_than_there_are_workers(cluster, study):
    launch(cluster, study, "finish", "finish", "finish", at_once=2)
    assert json.loads((cluster / "1_0" / "asked").read_text())["array"] == "0-2%2"


def test_a_run_that_dies_or_fails_does_not_stop_the_others_and_its_last_words_are_told(cluster, study):
    ends = launch(cluster, study, "die", "fail", "finish")
    assert [end.state for end in ends] == ["failed", "failed", "done"]
    assert ends[0].text.startswith("its SLURM job 1_0 ended (FAILED): ")
    assert "the last words" in ends[0].details
    assert ends[0].died
    assert (ends[1].text, ends[1].died) == ("ValueError: no", False)
    assert list(study.glob("*/1_0_0_log.err"))


def test_the_folder_of_the_jobs_is_the_users_own_and_its_pickles_hold_a_name_and_text(cluster, study):
    launch(cluster, study, "fail", "fail")
    assert stat.S_IMODE(study.stat().st_mode) == 0o700
    (array,) = study.iterdir()
    assert stat.S_IMODE(array.stat().st_mode) == 0o700
    (pickle, *_) = sorted(array.glob("1_*_submitted.pkl"))
    opcodes = list(pickletools.genops(pickle.read_bytes()))
    texts = [argument for opcode, argument, _ in opcodes if "UNICODE" in opcode.name]
    assert {opcode.name for opcode, _, _ in opcodes} & {"REDUCE", "INST", "OBJ", "GLOBAL"} == set()
    names = [pair for pair in zip(texts, texts[1:], strict=False) if pair[0].startswith(("submitit", "fnostab"))]
    assert ("fnostab.launch.slurm_task", "run_task") in names
    assert sum(opcode.name == "STACK_GLOBAL" for opcode, _, _ in opcodes) == 2  # the function, submitit's own class


@pytest.mark.parametrize("signum", [signal.SIGUSR1, signal.SIGUSR2])
def test_a_run_whose_time_is_up_is_queued_again_and_goes_on(cluster, study, signum):
    news = when_training(0, lambda: kill(cluster, "once 0", signum))
    ends = launch(cluster, study, "once", "finish", news=news)
    assert [end.state for end in ends] == ["done", "done"]
    assert len(begun(cluster, "once 0")) == 2
    name = signal.Signals(signum).name
    assert f"stopped by {name}, SLURM job 1_0 is queued again" in news.texts(0)
    assert len(calls(cluster, "scontrol")) == 1
    assert len(job_folders(cluster)) == 2


def each_time(cluster, name, action):
    """A News whose `action` is done once for each process that a run is begun in, when it has told an epoch."""
    done = []

    def then(place, update):
        if update.epoch and len(done) < len(begun(cluster, name)):
            done.append(True)
            action()

    return News(then)


def test_a_run_whose_time_is_up_is_queued_again_so_often_and_no_more(cluster, study):
    news = each_time(cluster, "always 0", lambda: kill(cluster, "always 0", signal.SIGUSR1))
    (end,) = launch(cluster, study, "always", news=news, requeues=1)
    assert len(begun(cluster, "always 0")) == 2
    assert (end.state, end.text) == ("interrupted", "its SLURM job 1 was stopped (FAILED)")


@pytest.mark.parametrize("state", ["TIMEOUT", "PREEMPTED", "NODE_FAIL"])
def test_a_run_whose_job_is_lost_is_submitted_again(cluster, study, state):
    def lose():
        (cluster / "1_0" / "end_as").write_text(state)
        kill(cluster, "once 0", signal.SIGKILL)

    news = when_training(0, lose)
    ends = launch(cluster, study, "once", "finish", news=news)
    assert [end.state for end in ends] == ["done", "done"]
    assert len(begun(cluster, "once 0")) == 2
    assert len(begun(cluster, "finish 1")) == 1
    assert [job.name for job in job_folders(cluster)] == ["1_0", "1_1", "2_0"]
    assert "SLURM job 2 is queued again" in news.texts(0)


def test_a_run_whose_job_is_lost_again_and_again_ends_with_a_line_that_says_so(cluster, study):
    def lose():
        (job_folders(cluster)[-1] / "end_as").write_text("NODE_FAIL")
        kill(cluster, "always 0", signal.SIGKILL)

    (end,) = launch(cluster, study, "always", news=each_time(cluster, "always 0", lose), requeues=1)
    text = "its SLURM job 2 ended (NODE_FAIL) after it was begun again `slurm.requeues` (=1) times"
    assert (end.state, end.text) == ("interrupted", text)
    assert len(begun(cluster, "always 0")) == 2


def test_a_run_that_somebody_cancels_is_interrupted_and_the_others_go_on(cluster, study):
    news = when_training(0, lambda: fake_slurm.scancel(cluster, ["1_0"]))
    ends = launch(cluster, study, "always", "finish", news=news)
    assert [end.state for end in ends] == ["interrupted", "done"]
    assert ends[0].text == "its SLURM job 1_0 was stopped (CANCELLED)"
    assert len(begun(cluster, "always 0")) == 1


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_jobs_go_on_when_the_study_is_stopped_and_the_next_call_waits_for_them(cluster, study, signum):
    news = when_training(0, lambda: signal.raise_signal(signum))
    goes_on = "its SLURM jobs go on, and the same command waits for them; to cancel them: scancel 1"
    with pytest.raises(Interrupted, match=f"^stopped by {signum.name}; {goes_on}$"):
        launch(cluster, study, "always", "always", news=news)
    assert state_of(cluster / "1_0") == "RUNNING"
    news = News(lambda *_: (cluster.parent / "release").touch())
    ends = launch(cluster, study, "always", "always", news=news)
    assert [end.state for end in ends] == ["done", "done"]
    assert news.texts(0)[0] == "SLURM job 1_0 goes on"
    assert [len(begun(cluster, f"always {place}")) for place in (0, 1)] == [1, 1]
    assert len(calls(cluster, "sbatch")) == 1


def test_a_later_call_submits_what_is_new_and_waits_for_what_goes_on(cluster, study):
    def stop():
        raise RuntimeError("the display is broken")

    with pytest.raises(RuntimeError, match="the display is broken"):
        launch(cluster, study, wanted=jobs(cluster.parent, "finish", "always"), news=when_training(1, stop))
    wait_for(lambda: state_of(cluster / "1_0") == "COMPLETED", "the first one ends")
    wanted = jobs(cluster.parent, "finish", "always", "finish")[1:]
    ends = launch(cluster, study, wanted=wanted, news=News(lambda *_: (cluster.parent / "release").touch()))
    assert [end.state for end in ends] == ["done", "done"]
    assert [job.name for job in job_folders(cluster)] == ["1_0", "1_1", "2_0"]
    assert len(begun(cluster, "always 1")) == 1


def test_what_was_cut_off_while_it_was_submitted_is_cancelled_and_submitted_anew(cluster, study):
    news = when_training(0, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(Interrupted):
        launch(cluster, study, "always", news=news)
    (record,) = study.glob("*/array.json")
    content = json.loads(record.read_text())
    record.write_text(json.dumps(content | {"job_ids": []}))  # as before SLURM's answer
    (cluster.parent / "release").touch()
    os.kill(begun(cluster, "always 0")[0], signal.SIGSTOP)
    (end,) = launch(cluster, study, "always")
    assert end.state == "done"
    assert ["--user=" + str(os.getuid()), f"--name={content['name']}"] in calls(cluster, "scancel")
    assert len(calls(cluster, "sbatch")) == 2


def test_a_record_that_cannot_be_read_is_said_and_nothing_is_submitted(cluster, study):
    (study / "old").mkdir(parents=True)
    (study / "old" / "array.json").write_text("{")
    with pytest.raises(CommandFailed, match=r"^the record of a study's SLURM jobs cannot be read, .*array\.json: "):
        launch(cluster, study, "finish")
    assert job_folders(cluster) == []


def test_a_controller_that_is_away_for_a_while_costs_nothing(cluster, study):
    seen = []

    def outage(place, update):
        if update.epoch:
            seen.append(time.monotonic())
            (cluster / "down").touch()
            if seen[-1] > seen[0] + 1:
                (cluster / "down").unlink()
                (cluster.parent / "release").touch()

    ends = launch(cluster, study, "always", "finish", news=News(outage))
    assert [end.state for end in ends] == ["done", "done"]
    assert len(job_folders(cluster)) == 2


@pytest.mark.parametrize(("accounts", "state"), [(True, "OUT_OF_MEMORY"), (False, "UNKNOWN")])
def test_a_job_that_the_queue_has_forgotten_is_looked_up_in_the_accounts(cluster, study, accounts, state):
    if accounts:
        (cluster / "accounts").touch()

    def lose():
        job = cluster / "1_0"
        (job / "unknown").touch()
        (job / "end_as").write_text("OUT_OF_MEMORY")
        kill(cluster, "always 0", signal.SIGKILL)

    ends = launch(cluster, study, "always", "finish", news=when_training(0, lose))
    assert [end.state for end in ends] == ["failed", "done"]
    assert ends[0].text.startswith(f"its SLURM job 1_0 ended ({state}): ")


def test_the_runs_of_a_group_are_one_task(cluster, study):
    wanted = [*jobs(cluster.parent, "finish", "finish", group=1), *jobs(cluster.parent, "fail")]
    news = News()
    ends = launch(cluster, study, wanted=wanted, news=news)
    assert [end.state for end in ends] == ["done", "done", "failed"]
    assert len(job_folders(cluster)) == 2
    assert "with 2" in news.texts(1)
    assert begun(cluster, "finish 0") == begun(cluster, "finish 1")


def test_jobs_that_sbatch_refuses_are_said_in_its_words(cluster, study):
    (cluster / "refuse").write_text("Batch job submission failed: Invalid job array specification")
    with pytest.raises(CommandFailed, match="^SLURM did not take the runs: .*Invalid job array specification$"):
        launch(cluster, study, "finish", "finish")
    assert list(study.iterdir()) == []


def check(given, cache="/cache"):
    check_slurm(slurm_config(given), 1, Path(cache))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"partition": "moon"}, r"^`slurm.partition` \(=moon\) must be one of debug, long$"),
        ({"partition": "debug,moon"}, r"^`slurm.partition` \(=moon\) must be one of debug, long$"),
    ],
)
def test_a_partition_that_is_not_there_is_refused(cluster, given, message):
    with pytest.raises(ConfigError, match=message):
        check(given)


def test_what_sbatch_refuses_is_said_in_its_words_before_anything_is_submitted(cluster):
    (cluster / "refuse").write_text("allocation failure: Invalid account or account/partition combination specified")
    message = "must ask for jobs that the cluster takes: sbatch: allocation failure: Invalid account or account"
    with pytest.raises(ConfigError, match=message):
        check({"account": "nobody"})
    assert "--test-only" in calls(cluster, "sbatch")[0]
    assert "--account=nobody" in calls(cluster, "sbatch")[0]


def test_jobs_that_would_wait_for_a_node_are_not_refused(cluster):
    (cluster / "refuse").write_text("allocation failure: Required node not available (down, drained or reserved)")
    check({})


_NO_SUCH_NODE = "allocation failure: Requested node configuration is not available"


def test_jobs_that_no_node_can_run_are_refused(cluster):
    (cluster / "refuse-mem").write_text(_NO_SUCH_NODE)
    with pytest.raises(ConfigError, match="takes: sbatch: allocation failure: Requested node configuration is not"):
        check({"mem": "500G"})


def test_where_all_nodes_are_down_nothing_is_refused_for_it(cluster):
    (cluster / "refuse").write_text(_NO_SUCH_NODE)
    check({"mem": "500G", "partition": "long"})
    assert calls(cluster, "sbatch")[-1] == ["--test-only", "--partition=long", "--wrap=true"]


def test_a_cluster_that_does_not_answer_is_refused(cluster):
    (cluster / "down").touch()
    message = r"^`launcher` \(=slurm\) needs a SLURM controller that answers: sinfo: Unable to contact slurm controller"
    with pytest.raises(ConfigError, match=message):
        check({})


def test_a_machine_without_slurm_is_refused(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(
        ConfigError, match=r"^`launcher` \(=slurm\) needs SLURM's commands on PATH: there is no sbatch$"
    ):
        check({})


def test_without_the_extra_it_is_named(cluster, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ConfigError, match=r"^`launcher` \(=slurm\) needs submitit: pip install fnostab\[slurm\]$"):
        check({})


def test_a_cache_whose_path_slurm_would_replace_is_refused(cluster):
    with pytest.raises(ConfigError, match=r"^`FNOSTAB_CACHE` \(=/a%b\) must have no % in its path"):
        check({}, cache="/a%b")


def test_nothing_of_an_outer_job_and_no_default_of_sbatch_reaches_the_jobs(cluster, study, monkeypatch):
    for name in ("SBATCH_EXPORT", "SLURM_NTASKS", "SRUN_DEBUG", "MLFLOW_RUN_ID"):
        monkeypatch.setenv(name, "NONE")
    launch(cluster, study, "fail")
    environment = (cluster / "1_0" / "environment").read_text().split("\0")
    assert not [line for line in environment if line.startswith(("SBATCH_", "SLURM_NTASKS", "SRUN_", "MLFLOW_RUN_ID"))]
    assert os.environ["MLFLOW_RUN_ID"] == "NONE"


_TABLE = """
study: small
preset: smoke
width: 4
seeds: [1, 2]
train: {epochs: 2, picture_every_epochs: 100, artifacts: numbers}
arms: [{name: control, arch: hybrid, clip_algo: norm}]
"""


def _results(study):
    """What training gave, by seed; not how fast."""
    import mlflow

    found = mlflow.MlflowClient().search_runs(["0"], f"tags.study = '{study}'")
    runs = [run for run in found if "arm" in run.data.tags]
    assert len(runs) == 2
    assert {run.info.status for run in runs} == {"FINISHED"}
    of_machine = ("system/", "samples_per_s")
    return {
        (run.data.tags["seed"], name): str(value)  # as text NaN equals NaN
        for run in runs
        for name, value in run.data.metrics.items()
        if not name.startswith(of_machine)
    }


@pytest.mark.slow
def test_a_study_gives_the_numbers_of_one_in_this_process_and_its_jobs_are_done_once(cluster, fresh_store, capsys):
    (fresh_store / "small.yaml").write_text(_TABLE)
    flags = ["--slurm.partition", "long", "--slurm.time", "1-0", "--slurm.sbatch.qos=high", "--workers", "1"]
    study = ["study", "--arms", "small.yaml"]
    assert main([*study, "--launcher", "slurm", *flags]) == 0
    said = capsys.readouterr().out
    assert "warning: the tracking store is a sqlite file" in said
    assert "2 of 2 runs have a result" in said
    asked = json.loads((cluster / "1_1" / "asked").read_text())
    wanted = {"partition": "long", "time": "1-0", "qos": "high", "array": "0-1%1"}
    assert {name: asked[name] for name in wanted} == wanted
    assert asked["job-name"].startswith("small-")
    assert main([*study, "--launcher", "slurm", *flags]) == 0  # all runs are finished: nothing is submitted
    assert len(job_folders(cluster)) == 2
    assert main([*study, "--launcher", "inline", "--study", "inline"]) == 0
    jobs, inline = _results("small"), _results("inline")
    assert {seed for seed, _ in jobs} == {"1", "2"}
    assert set(jobs.items()) ^ set(inline.items()) == set()
