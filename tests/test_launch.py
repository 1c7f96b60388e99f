"""Runs of a study wherever they execute: what is heard of them, and that none takes others along."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from fnostab.config import ConfigError
from fnostab.io.endings import Interrupted
from fnostab.io.openmp import OPENMP_CHOICES
from fnostab.launch import Job, Update, collected_signals, ray_cluster, run_inline, run_processes, run_ray

#: What the jobs of these tests do: the kind of end that their config asks for.
CHILD = """
import os, signal, sys, time
from pathlib import Path
from fnostab.launch import Update, serve_jobs

def run(job, send):
    send(Update("running", "starting", pid=os.getpid()))
    print("noise on stdout")
    kind = job.config["kind"]
    if kind == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "words":
        print("first words", file=sys.stderr)
    if kind == "exit":
        print("the last words", file=sys.stderr)
        sys.exit(3)
    if kind == "fail":
        send(Update("failed", "ValueError: no"))
        return
    if kind == "threads":
        send(Update("done", os.environ.get("OMP_WAIT_POLICY", "not said")))
        return
    if kind == "wait":
        ended = []
        signal.signal(signal.SIGTERM, lambda *_: ended.append(1))
        Path(job.config["begun"]).write_text(str(os.getpid()))
        while not ended:
            send(Update("running", "waiting"))
            time.sleep(0.02)
        Path(job.config["ended"]).touch()
        send(Update("interrupted", "stopped by SIGTERM"))
        return
    send(Update("running", epoch=1, epochs=1, val_loss=0.5))
    send(Update("done", "fine", 1, 1, 0.5, verdict="converged", run_id=str(job.cpus)))

if __name__ == "__main__":
    sys.exit(serve_jobs(run))
"""


@pytest.fixture
def command(tmp_path):
    path = tmp_path / "child.py"
    path.write_text(CHILD)
    return [sys.executable, str(path)]


def jobs(*kinds, **config):
    return [Job(f"{kind} {place}", {"kind": kind, **config}) for place, kind in enumerate(kinds)]


class News:
    def __init__(self):
        self.updates = []

    def __call__(self, place, update):
        self.updates.append((place, update))

    def of(self, place):
        return [update for at, update in self.updates if at == place]


@pytest.mark.parametrize(
    ("workers", "chosen", "found"),
    [(2, None, "PASSIVE"), (2, "ACTIVE", "ACTIVE"), (1, None, "not said"), (1, "ACTIVE", "ACTIVE")],
)
def test_threads_of_several_processes_sleep_while_they_wait(command, monkeypatch, workers, chosen, found):
    for name in OPENMP_CHOICES:
        monkeypatch.delenv(name, raising=False)
    if chosen:
        monkeypatch.setenv("OMP_WAIT_POLICY", chosen)
    ends = run_processes(jobs("threads", "threads"), command, News(), workers)
    assert [end.text for end in ends] == [found, found]


def test_a_process_tells_its_epochs_and_its_end(command):
    news = News()
    (end,) = run_processes(jobs("finish"), command, news, workers=1)
    assert (end.state, end.verdict, end.val_loss) == ("done", "converged", 0.5)
    assert [update.state for update in news.of(0)] == ["running", "running", "done"]
    assert news.of(0)[1].epoch == 1


def test_one_that_dies_exits_or_fails_does_not_stop_the_others(command):
    ends = run_processes(jobs("die", "exit", "fail", "finish"), command, News(), workers=2)
    assert [end.state for end in ends] == ["failed", "failed", "failed", "done"]
    assert ends[0].text.startswith("its process was ended by SIGKILL; the memory may not suffice")
    assert ends[1].text == "the last words"
    assert ends[2].text == "ValueError: no"


def test_a_process_takes_one_job_after_the_other_and_a_new_one_begins_after_a_failure(command):
    news = News()
    run_processes(jobs("finish", "finish", "fail", "finish", "exit", "finish"), command, news, workers=1)
    pids = [news.of(place)[0].pid for place in range(6)]
    assert pids[0] == pids[1] == pids[2]
    assert len({pids[2], pids[3], pids[5]}) == 3
    assert pids[3] == pids[4]


def test_what_a_process_says_when_it_dies_is_of_its_last_job_alone(command):
    ends = run_processes(jobs("words", "exit"), command, News(), workers=1)
    assert [end.details for end in ends] == ["", "noise on stdout\nthe last words"]


def test_no_more_than_the_workers_run_at_once(tmp_path):
    path = tmp_path / "child.py"
    path.write_text(
        textwrap.dedent(
            """
            import os, sys, time
            from pathlib import Path
            from fnostab.launch import Update, serve_jobs

            def run(job, send):
                folder = Path(job.config["folder"])
                mine = folder / str(os.getpid())
                mine.touch()
                time.sleep(0.3)
                send(Update("done", str(len(list(folder.iterdir())))))
                mine.unlink()

            sys.exit(serve_jobs(run))
            """
        )
    )
    folder = tmp_path / "running"
    folder.mkdir()
    ends = run_processes(jobs(*["x"] * 6, folder=str(folder)), [sys.executable, str(path)], News(), workers=2)
    assert max(int(end.text) for end in ends) <= 2


def _study_process(tmp_path, command, begun, ended):
    """A process that runs one waiting job and one that would come after it, and exits with 7 if it was stopped."""
    code = f"""
import os
from fnostab.io.endings import Interrupted
from fnostab.launch import Job, run_processes
jobs = [Job("w", {{"kind": "wait", "begun": {str(begun)!r}, "ended": {str(ended)!r}}}), Job("f", {{"kind": "finish"}})]
try:
    run_processes(jobs, {command!r}, lambda place, update: print(place, update.state, flush=True), workers=1)
except Interrupted as stopped:
    if stopped.signum != 13:
        print("stopped", stopped.signum, flush=True)
    os._exit(7)
"""
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=tmp_path)


def _wait_for(condition, seconds=60.0):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it took too long"
        time.sleep(0.02)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_runs_store_what_they_have_and_begins_no_more(tmp_path, command, signum):
    begun, ended = tmp_path / "begun", tmp_path / "ended"
    with _study_process(tmp_path, command, begun, ended) as study:
        _wait_for(begun.exists)
        study.send_signal(signum)
        printed, _ = study.communicate(timeout=60)
    assert study.returncode == 7
    assert ended.exists()
    assert f"stopped {int(signum)}" in printed
    assert "1 running" not in printed


def test_runs_end_when_the_process_that_started_them_is_killed(tmp_path, command):
    begun, ended = tmp_path / "begun", tmp_path / "ended"
    with _study_process(tmp_path, command, begun, ended) as study:
        _wait_for(lambda: begun.exists() and begun.read_text())
        study.kill()
    _wait_for(ended.exists)
    pid = int(begun.read_text())
    _wait_for(lambda: not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text().split()[2])


def test_an_interrupted_inline_run_ends_the_rest_and_says_by_which_signal():
    def run(job, send):
        send(Update("running", "starting"))
        send(Update("interrupted" if job.config["kind"] == "stop" else "done", job.name, signum=signal.SIGINT))

    news = News()
    with pytest.raises(Interrupted, match="stopped by SIGINT"):
        run_inline(jobs("finish", "stop", "finish"), run, news)
    assert [(place, update.state) for place, update in news.updates] == [
        *((0, "running"), (0, "done")),
        *((1, "running"), (1, "interrupted")),
    ]


class _Display:
    """Whoever watches: raises `error` at the first update that says `text`."""

    def __init__(self, error, text):
        self.error, self.text = error, text

    def __call__(self, place, update):
        if update.text == self.text:
            raise self.error


#: What is raised when a display fails so.
_FAILURES = [(RuntimeError("no display"), RuntimeError, "no display"), (BrokenPipeError(), Interrupted, "by SIGPIPE")]


@pytest.mark.parametrize(("error", "raised", "match"), _FAILURES)
def test_a_display_that_fails_stops_an_inline_run_as_a_signal_does(error, raised, match):
    def run(job, send):
        send(Update("running", "starting"))  # too early: the run would not hear a signal yet
        heard = []
        previous = signal.signal(signal.SIGTERM, lambda *_: heard.append(job.name))
        for epoch in range(3):
            send(Update("running", "", epoch))
            if heard:
                break
        signal.signal(signal.SIGTERM, previous)
        ended.append((job.name, epoch))
        send(Update("interrupted" if heard else "done", "ended"))

    ended = []
    with pytest.raises(raised, match=match):
        run_inline(jobs("a", "b"), run, _Display(error, "starting"))
    assert ended == [("a 0", 0)]


@pytest.mark.parametrize(("error", "raised", "match"), _FAILURES)
def test_a_display_that_fails_stops_the_processes(tmp_path, command, error, raised, match):
    ended = tmp_path / "ended"
    waiting = Job("waits", {"kind": "wait", "begun": str(tmp_path / "begun"), "ended": str(ended)})
    with pytest.raises(raised, match=match):
        run_processes([waiting, *jobs("finish")], command, _Display(error, "waiting"), workers=1)
    assert ended.exists()


def test_a_closed_pipe_stops_the_processes(tmp_path, command):
    begun, ended = tmp_path / "begun", tmp_path / "ended"
    with _study_process(tmp_path, command, begun, ended) as study:
        assert study.stdout.readline() == "0 running\n"
        study.stdout.close()
        assert study.wait(60) == 7
    assert ended.exists()


def test_a_signal_from_before_the_runs_begin_is_heard():
    with collected_signals():
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Interrupted, match="SIGTERM"):
            run_inline(jobs("finish"), pytest.fail, News())


def test_what_a_job_prints_does_not_disturb_what_it_tells(tmp_path, command):
    news = News()
    run_processes(jobs("finish"), command, news, workers=1)
    assert all("noise" not in update.text for update in news.of(0))


def _ray_run(job, send):
    send(Update("running", "starting", pid=os.getpid()))
    marker = Path(job.config["folder"]) / job.name.replace(" ", "-")
    if job.config["kind"] == "lost" and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if job.config["kind"] == "fail":
        raise ValueError("no")
    if job.config["kind"] == "wait":
        try:
            while True:  # Ray's interrupt does not end a sleep
                time.sleep(0.1)
        except KeyboardInterrupt:
            marker.touch()
            send(Update("interrupted", "cancelled"))
            return
    send(Update("done", os.environ.get("FNOSTAB_TEST", ""), verdict="converged"))


@pytest.fixture(scope="module")
def cluster():
    pytest.importorskip("ray")
    # Workers import what they run; pickling by value spares them this file, which is in no package.
    import ray.cloudpickle

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with ray_cluster(None, cpus=2):
        yield
    ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


def test_ray_runs_the_jobs_and_begins_a_lost_one_again(cluster, tmp_path, monkeypatch):
    monkeypatch.setenv("FNOSTAB_TEST", "passed on")
    news = News()
    ends = run_ray(jobs("finish", "lost", "fail", folder=str(tmp_path)), _ray_run, news, workers=2)
    assert [end.state for end in ends] == ["done", "done", "failed"]
    assert ends[0].text == "passed on"
    assert (tmp_path / "lost-1").exists()
    assert "no" in ends[2].text
    assert {place for place, _ in news.updates} == {0, 1, 2}


def test_a_display_that_fails_stops_the_ray_tasks(cluster, tmp_path):
    with pytest.raises(RuntimeError, match="no display"):
        run_ray(
            jobs("wait", "finish", folder=str(tmp_path)),
            _ray_run,
            _Display(RuntimeError("no display"), "starting"),
            workers=1,
        )
    assert [path.name for path in tmp_path.iterdir()] == ["wait-0"]


@pytest.mark.parametrize(("gpus", "share"), [(0, 0.5), (2, 4)])
def test_gpus_that_no_machine_of_the_cluster_has_are_refused(monkeypatch, gpus, share):
    ray = pytest.importorskip("ray")
    monkeypatch.setattr(ray, "init", lambda **_: None)
    monkeypatch.setattr(
        ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 2.0} | ({"GPU": gpus} if gpus else {})}]
    )
    message = rf"^`gpus_per_run` \(={share}\) must be at most the {gpus} GPUs"
    with pytest.raises(ConfigError, match=message), ray_cluster(None, cpus=1, gpus_per_run=share):
        pytest.fail("it began")


def test_a_ray_cluster_that_does_not_answer_is_refused(monkeypatch):
    ray = pytest.importorskip("ray")

    def refuse(**_):
        raise ConnectionError("no GCS")

    monkeypatch.setattr(ray, "init", refuse)
    message = r"^`ray_address` \(=there:1\) must name a Ray cluster that answers: no GCS$"
    with pytest.raises(ConfigError, match=message), ray_cluster("there:1", cpus=1):
        pytest.fail("it began")


#: A child whose groups are told of in a file; the kind `dies` kills the process in the middle of one.
_GROUPS = (
    CHILD.replace("import Update, serve_jobs", "import Update, collected_signals, serve_jobs")
    .replace("sys.exit(serve_jobs(run))", "sys.exit(serve_jobs(run, together))")
    .replace(
        "if __name__ ==",
        """
def together(jobs, send):
    for place, job in enumerate(jobs):
        send(place, Update("running", f"together {len(jobs)}", pid=os.getpid()))
    if jobs[0].config.get("group") == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    if jobs[0].config.get("group") == "waits":
        with collected_signals() as caught:
            send(0, Update("running", "waiting"))
            while not caught:
                time.sleep(0.02)
        for place in range(len(jobs)):
            send(place, Update("interrupted", "stopped by SIGTERM"))
    if jobs[0].config.get("group") == "first":
        send(0, Update("interrupted", "stopped"))

if __name__ ==""",
    )
)


@pytest.fixture
def group_command(tmp_path):
    path = tmp_path / "groups.py"
    path.write_text(_GROUPS)
    return [sys.executable, str(path)]


def _grouped(*groups, kind="finish", **config):
    return [Job(f"{place}", {"kind": kind, **config}, {}, 1, group) for place, group in enumerate(groups)]


def _said(news, place):
    return [update.text for update in news.of(place)]


def test_jobs_of_a_group_are_trained_together_and_then_each_is_carried_out(group_command):
    news = News()
    ends = run_processes(_grouped(1, 2, 1, None, 2), group_command, news, workers=1)
    assert [end.state for end in ends] == ["done"] * 5
    for place in (0, 1, 2, 4):
        assert _said(news, place) == ["together 2", "starting", "", "fine"]
    assert _said(news, 3) == ["starting", "", "fine"]
    order = [place for place, update in news.updates if update.text in ("together 2", "starting")]
    assert order == [0, 2, 0, 2, 1, 4, 1, 4, 3]  # what is trained is finished before more is begun


def test_further_processes_finish_what_was_trained_together(group_command):
    news = News()
    run_processes(_grouped(1, 1, 1, 1, 2, 2), group_command, news, workers=1, finishers=3)
    trainers = {update.pid for _, update in news.updates if update.text.startswith("together")}
    finishers = {update.pid for _, update in news.updates if update.text == "starting"}
    assert len(trainers) <= 3
    assert len(finishers) > 1


def test_a_group_whose_process_dies_leaves_its_jobs_to_be_carried_out_one_by_one(group_command):
    news = News()
    ends = run_processes(_grouped(1, 1, group="dies"), group_command, news, workers=1)
    assert [end.state for end in ends] == ["done", "done"]
    assert _said(news, 1)[1].startswith("on its own from here: its process was ended by SIGKILL")


def test_a_job_that_ends_within_its_group_is_not_carried_out_again(group_command):
    news = News()
    ends = run_processes(_grouped(1, 1, group="first"), group_command, news, workers=1)
    assert [end.state for end in ends] == ["interrupted", "done"]
    assert _said(news, 0) == ["together 2", "stopped"]


def test_a_signal_stops_a_group_and_what_would_follow(group_command):
    def on_update(place, update):
        seen.append((place, update))
        if update.text == "waiting":
            signal.raise_signal(signal.SIGTERM)

    seen = []
    with pytest.raises(Interrupted):
        run_processes(_grouped(1, 1, 2, 2, group="waits"), group_command, on_update, workers=1)
    assert [(place, update.state) for place, update in seen][-2:] == [(0, "interrupted"), (1, "interrupted")]
    assert {place for place, _ in seen} == {0, 1}


def test_groups_in_this_process_hear_of_signals_and_of_a_display_that_fails():
    def together(jobs, send):
        with collected_signals() as caught:
            for step in range(1000):
                if caught:
                    for place in range(len(jobs)):
                        send(place, Update("interrupted", "stopped"))
                    return
                send(0, Update("running", f"step {step}"))
                time.sleep(0.001)

    def on_update(place, update):
        if update.text == "step 3":
            raise RuntimeError("no display")

    with pytest.raises(RuntimeError, match="no display"):
        run_inline(_grouped(1, 1), pytest.fail, on_update, together)
