"""A study on a real SLURM whose jobs are killed, preempted, told that their time is up, and cancelled."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import mlflow
import psutil
import pytest
from real_slurm import Slurm, why_not
from servers import client_environment, wait_until

pytestmark = [pytest.mark.faults, pytest.mark.skipif(bool(why_not()), reason=why_not())]

_ROOT = Path(__file__).resolve().parents[2]
_TABLE = """
study: jobs
preset: smoke
seeds: [1, 2, 3]
width: 4
train: {epochs: 12, batch_size: 16, picture_every_epochs: 100, checkpoint_every_s: 1, artifacts: numbers}
arms:
  - {name: control, arch: hybrid, clip_algo: norm}
  - {name: stable, arch: stable_hybrid, clip_algo: none}
"""
_COMMAND = (sys.executable, "-m", "fnostab", "study", "--arms", "jobs.yaml")
#: SLURM lets a job that is queued again wait for two minutes; two cores are shared with whatever runs beside.
_LONG_S = 1200.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[Slurm]:
    with Slurm() as slurm:
        yield slurm


@pytest.fixture
def folder(tmp_path, cluster):
    (tmp_path / "jobs.yaml").write_text(_TABLE)
    yield tmp_path
    for study in _Study.begun:
        study.process.kill()
        study.process.wait()
    cluster.call("scancel", f"--user={os.getuid()}")
    wait_until(lambda: not cluster.states(), "jobs stay", _LONG_S, every_s=1)


def _environment(folder: Path, cluster: Slurm) -> dict[str, str]:
    names = {"PYTHONPATH": str(_ROOT), "OMP_NUM_THREADS": "1"} | cluster.environment
    return client_environment(f"sqlite:///{folder / 'mlflow.db'}", folder / "cache", **names)


class _Study:
    """The study's command, and what it said; all of them are ended after the test."""

    begun: ClassVar[list["_Study"]] = []

    def __init__(self, folder: Path, cluster: Slurm, name: str, *options: str) -> None:
        self.log = folder / f"{name}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*_COMMAND, *options],
                cwd=folder,
                env=_environment(folder, cluster),
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.begun.append(self)

    def said(self, pattern: str) -> bool:
        """Whether a line says this; raises if it can say nothing any more."""
        text = self.log.read_text(errors="replace")
        if re.search(pattern, text, re.MULTILINE):
            return True
        if self.process.poll() is not None:
            raise RuntimeError(f"the study ended with {self.process.returncode}:\n{text}")
        return False

    def wait_for(self, pattern: str) -> None:
        wait_until(lambda: self.said(pattern), f"nobody said {pattern}", _LONG_S, every_s=0.1, log=self.log)

    def end(self) -> int:
        code = self.process.wait(_LONG_S)
        print(self.log.read_text(errors="replace"))
        return code


def _process_of(job_id: str) -> psutil.Process:
    """The process that carries out the run of a job."""
    array, _, number = job_id.partition("_")
    for process in psutil.process_iter(["cmdline"]):
        try:
            names = process.environ() if "submitit.core._submit" in (process.info["cmdline"] or ()) else {}
        except psutil.Error:
            continue
        is_python = "srun" not in Path((process.info["cmdline"] or [""])[0]).name
        if is_python and (names.get("SLURM_ARRAY_JOB_ID"), names.get("SLURM_ARRAY_TASK_ID")) == (array, number):
            return process
    raise LookupError(job_id)


@contextmanager
def _time_is_up(cluster: Slurm, job_id: str) -> Iterator[None]:
    """Have SLURM send to a job, at the beginning of the block, what it sends before the job's time limit.

    The command finds the job in the queue again before it is done, and tries again for a minute.
    """
    command = ["scancel", "--signal=USR1", job_id]
    with subprocess.Popen(command, env=os.environ | cluster.environment, stderr=subprocess.DEVNULL):
        yield


def _numbers(uri: str) -> dict[tuple[str, str], dict[str, list[tuple[int, str]]]]:
    """Every point of the series by epoch and by step, by arm and seed, of runs that are finished; NaN equals NaN."""
    client = mlflow.MlflowClient(uri)
    found = {}
    for run in client.search_runs(["0"], "tags.study = 'jobs' and attributes.status = 'FINISHED'"):
        if "arm" not in run.data.tags:
            continue
        key = run.data.tags["arm"], run.data.tags["seed"]
        assert key not in found, "trained twice"
        names = [name for name in run.data.metrics if name.startswith(("train/", "val/", "grad/", "test/", "best"))]
        history = {name: client.get_metric_history(run.info.run_id, name) for name in names}
        found[key] = {name: sorted((m.step, repr(m.value)) for m in points) for name, points in history.items()}
    return found


def test_a_study_of_jobs_that_are_killed_preempted_and_cancelled_loses_and_doubles_nothing(
    folder, cluster, tmp_path_factory, fault_report
):
    study = _Study(folder, cluster, "first", "--launcher", "slurm")
    study.wait_for(r"^\[1/6\] .*: epoch 1/12")
    array = re.search(r"SLURM job (\d+)_0 is queued", study.log.read_text())[1]
    _process_of(f"{array}_0").kill()
    study.wait_for(r"^\[2/6\] .*: epoch 1/12")
    with _time_is_up(cluster, f"{array}_1"):
        study.wait_for(r"^\[[3-6]/6\] .*: epoch 1/12")
        sbatch = ("sbatch", "--parsable", "--partition=urgent", "--cpus-per-task=2", "--wrap=sleep 3")
        urgent = cluster.call(*sbatch).strip()
        study.wait_for(rf"^\[2/6\] .*: stopped by SIGUSR1, SLURM job {array}_1 is queued again")
    study.wait_for(r"^\[1/6\] .*: failed: its SLURM job .* ended \(FAILED\): .*Killed")
    study.wait_for(r"^\[[3-6]/6\] .*: stopped by SIGTERM")
    wait_until(lambda: urgent not in cluster.states(), "the urgent job stays", _LONG_S, every_s=1)
    begins = r"SLURM job \d+_(\d+) begins on"
    study.wait_for(rf"{begins}[\s\S]*SLURM job \d+_\1 begins on")  # one that was stopped goes on

    study.process.send_signal(signal.SIGINT)
    assert study.end() == 128 + signal.SIGINT
    assert f"to cancel them: scancel {array}\n" in study.log.read_text()
    states = cluster.states()
    assert states
    again = _Study(folder, cluster, "second", "--launcher", "slurm")
    again.wait_for(rf"SLURM job {array}_\d+ goes on")
    again.process.kill()
    again.process.wait()
    cluster.call("scancel", f"--user={os.getuid()}")
    wait_until(lambda: not cluster.states(), "jobs stay", _LONG_S, every_s=1)

    last = _Study(folder, cluster, "third", "--launcher", "slurm")
    assert last.end() == 0
    assert "6 of 6 runs have a result" in last.log.read_text()
    found = _numbers(f"sqlite:///{folder / 'mlflow.db'}")
    assert len(found) == 6

    unbroken = tmp_path_factory.mktemp("unbroken")
    (unbroken / "jobs.yaml").write_text(_TABLE)
    assert _Study(unbroken, cluster, "inline", "--launcher", "inline").end() == 0
    assert found == _numbers(f"sqlite:///{unbroken / 'mlflow.db'}")
    fault = "SLURM jobs of a study, of which one is killed, one out of time, others preempted, all cancelled"
    note = "the study's command was interrupted and killed, too; given again, the same numbers, each once"
    fault_report.record(fault, 6, len(found), note)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--slurm.partition", "moon"), r"`slurm.partition` \(=moon\) must be one of debug, urgent"),
        (("--slurm.cpus", "99"), r"must ask for jobs that the cluster takes: sbatch: .*not available"),
        (("--slurm.sbatch.moon", "full"), r"must ask for jobs that the cluster takes: sbatch: .*unrecognized option"),
        (("--slurm.sbatch.licenses", "moon:1"), r"must ask for jobs that the cluster takes: sbatch: .*license"),
    ],
)
def test_what_slurm_would_refuse_is_refused_before_anything_is_written(folder, cluster, options, message):
    study = _Study(folder, cluster, "refused", "--launcher", "slurm", *options)
    assert study.end() == 2
    said = study.log.read_text()
    assert re.search(f"^fnostab: error: .*{message}", said)
    assert said.count("\n") == 1
    assert sorted(path.name for path in folder.iterdir()) == ["jobs.yaml", "refused.log"]


def test_the_script_for_one_run_of_the_docs_goes_on_after_its_time_is_up(folder, cluster, fault_report):
    page = (_ROOT / "docs" / "clusters.md").read_text()
    script = re.search(r"^## One run\n\n```bash\n(.*?)^```", page, re.DOTALL | re.MULTILINE)[1]
    script = script.replace("--time=04:00:00 --gpus-per-node=1 --cpus-per-task=4 --mem=16G", "--cpus-per-task=1")
    command = "python -m fnostab train --config one.yaml"
    script = script.replace("fnostab train --preset stage_a --arch hybrid --clip_algo agc", command)
    assert command in script
    (folder / "one.yaml").write_text(
        "{preset: smoke, width: 4, epochs: 4, train.artifacts: numbers, train.checkpoint_every_s: 1}"
    )
    (folder / "one.sh").write_text(script)
    environment = _environment(folder, cluster)
    sbatch = ["sbatch", "--parsable", "--output=one.log", "one.sh"]
    made = subprocess.run(sbatch, cwd=folder, env=environment, check=True, capture_output=True, text=True)
    job_id, log = made.stdout.strip(), folder / "one.log"

    def said(text: str) -> bool:
        return log.exists() and text in log.read_text(errors="replace")

    wait_until(lambda: said("epoch 1/4"), "it does not train", _LONG_S, every_s=0.1, log=log)
    with _time_is_up(cluster, job_id):
        wait_until(lambda: said("stopped by SIGUSR1"), "it does not stop", _LONG_S, every_s=0.1, log=log)
    wait_until(lambda: job_id not in cluster.states(), "it does not end", _LONG_S, every_s=1, log=log)
    text = log.read_text()
    assert text.count("epoch 4/4") == 1
    assert text.count("epoch 1/4") == 1
    client = mlflow.MlflowClient(environment["MLFLOW_TRACKING_URI"])
    (run,) = client.search_runs(["0"])
    assert run.info.status == "FINISHED"
    steps = [point.step for point in client.get_metric_history(run.info.run_id, "train/loss")]
    assert sorted(steps) == list(range(len(steps)))
    fault_report.record("a SLURM job's time is up", 1, 1, "queued itself again; went on from its checkpoint")
