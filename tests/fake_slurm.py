"""SLURM's commands, as far as the launcher calls them, which really run the jobs on this machine.

Called as `sbatch`, `squeue` and so on it plays that command; `install` puts them on PATH. The cluster's state is the
folder FAKE_SLURM: one folder for each job, whose files tests may write, too. `end_as` says how a job's process ends
(NODE_FAIL), `unknown` lets squeue forget the job, `down` in the cluster's folder lets every command fail, `accounts`
lets sacct answer, `refuse` is what sbatch says, or `refuse-mem` where that
flag is given, and `calls` are the commands that were called.
"""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

COMMANDS = ("sbatch", "srun", "squeue", "sacct", "scancel", "sinfo", "scontrol")
PARTITIONS = ("debug", "long")


def install(folder, monkeypatch):
    """Put the commands on PATH; returns the folder of the cluster's state."""
    cluster, programs = folder / "cluster", folder / "bin"
    cluster.mkdir(parents=True)
    programs.mkdir()
    for name in COMMANDS:
        program = programs / name
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S {shlex.quote(__file__)} {name} "$@"\n')
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_SLURM", str(cluster))
    return cluster


def job_folders(cluster):
    return sorted((path for path in cluster.glob("*_*")), key=lambda path: [int(n) for n in path.name.split("_")])


def calls(cluster, name):
    lines = (cluster / "calls").read_text().splitlines()
    return [call[1:] for call in map(json.loads, lines) if call[0] == name]


def state_of(job):
    return (job / "state").read_text()


def set_state(job, state):
    partial = job / ".state"
    partial.write_text(state)
    partial.replace(job / "state")


def stop(cluster):
    """End what is left of the jobs, and of the processes that wait for them."""
    for job in job_folders(cluster):
        (job / "cancelled").touch()
        for name in ("pid", "keeper"):
            try:
                os.killpg(int((job / name).read_text()), signal.SIGKILL)
            except (OSError, ValueError):
                continue


def options(arguments):
    """The flags with their values, and the rest."""
    flags = {}
    rest = list(arguments)
    while rest and rest[0].startswith("-"):
        name, equals, value = rest.pop(0).lstrip("-").partition("=")
        flags[name] = value if equals else True
        if not equals and name in ("output", "error", "signal", "jobs", "user", "name", "cpus-per-task"):
            flags[name] = rest.pop(0)
    return flags, rest


def sbatch(cluster, arguments):
    flags, rest = options(arguments)
    for refusal in [cluster / "refuse", *(cluster / f"refuse-{name}" for name in flags)]:
        if refusal.exists():
            print(f"sbatch: error: {refusal.read_text()}", file=sys.stderr)
            return 1
    if "test-only" in flags:
        print("sbatch: Job 1 to start at some time", file=sys.stderr)
        return 0
    script = Path(rest[0]).read_text()
    asked, _ = options(shlex.split(" ".join(re.findall(r"^#SBATCH (.*)$", script, re.MULTILINE))))
    number = 1 + max((int(path.name.split("_")[0]) for path in job_folders(cluster)), default=0)
    first, last, at_once = 0, 0, 1
    if "array" in asked:
        first, last, at_once = map(int, re.fullmatch(r"(\d+)-(\d+)%(\d+)", asked["array"]).groups())
    for index in range(first, last + 1):
        job = cluster / f"{number}_{index}"
        job.mkdir()
        (job / "script").write_text(script)
        (job / "asked").write_text(json.dumps(asked))
        (job / "environment").write_text("\0".join(f"{name}={value}" for name, value in os.environ.items()))
        set_state(job, "PENDING")
    command = [sys.executable, "-I", "-S", __file__, "keep", str(number), str(at_once)]
    subprocess.Popen(
        command, start_new_session=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    print(f"Submitted batch job {number}")
    return 0


def keep(cluster, arguments):
    """Run the jobs of an array, so many at a time, until all have ended."""
    number, at_once = map(int, arguments)
    jobs = [job for job in job_folders(cluster) if job.name.startswith(f"{number}_")]
    running = {}
    for job in jobs:
        (job / "keeper").write_text(str(os.getpid()))
    while any(state_of(job) in ("PENDING", "RUNNING") for job in jobs):
        for job in jobs:
            state = state_of(job)
            if state == "PENDING" and (job / "cancelled").exists():
                set_state(job, "CANCELLED")
            elif state == "PENDING" and len(running) < at_once and not (job / "held").exists():
                running[job] = begin(job)
            elif state == "RUNNING" and job in running and (code := running[job].poll()) is not None:
                del running[job]
                set_state(job, ended(job, code))
        time.sleep(0.02)
    return 0


def begin(job):
    number, index = job.name.split("_")
    restarts = int((job / "restarts").read_text()) if (job / "restarts").exists() else 0
    known = {"SLURM_JOB_ID": number, "SLURM_RESTART_COUNT": str(restarts)}
    if "array" in json.loads((job / "asked").read_text()):
        known |= {"SLURM_ARRAY_JOB_ID": number, "SLURM_ARRAY_TASK_ID": index}
    process = subprocess.Popen(["bash", job / "script"], env=os.environ | known, start_new_session=True)
    (job / "pid").write_text(str(process.pid))
    set_state(job, "RUNNING")
    return process


def ended(job, code):
    if (job / "cancelled").exists():
        return "CANCELLED"
    if (job / "end_as").exists():
        return (job / "end_as").read_text()
    if (job / "requeue").exists():
        (job / "requeue").unlink()
        restarts = int((job / "restarts").read_text()) if (job / "restarts").exists() else 0
        (job / "restarts").write_text(str(restarts + 1))
        return "PENDING"
    return "FAILED" if code else "COMPLETED"


def srun(cluster, arguments):
    flags, command = options(arguments)
    known = {"%t": "0", "%j": os.environ["SLURM_JOB_ID"]}
    known |= {"%A": os.environ.get("SLURM_ARRAY_JOB_ID", ""), "%a": os.environ.get("SLURM_ARRAY_TASK_ID", "")}
    for stream, name in ((1, "output"), (2, "error")):
        path = flags[name]
        for pattern, value in known.items():
            path = path.replace(pattern, value)
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    os.execvp(command[0], command)


def shown(job):
    """The job as squeue and sacct call it: one that is no array has no number."""
    return job.name if "array" in json.loads((job / "asked").read_text()) else job.name.split("_")[0]


def squeue(cluster, arguments):
    for job in job_folders(cluster):
        if not (job / "unknown").exists():
            print(f"{shown(job)}|{state_of(job)}")
    return 0


def sacct(cluster, arguments):
    if not (cluster / "accounts").exists():
        print("Slurm accounting storage is disabled", file=sys.stderr)
        return 1
    for job in job_folders(cluster):
        state = state_of(job)
        print(f"{shown(job)}|{'CANCELLED by 0' if state == 'CANCELLED' else state}")
    return 0


def scancel(cluster, arguments):
    flags, wanted = options(arguments)
    for job in job_folders(cluster):
        named = json.loads((job / "asked").read_text()).get("job-name") == flags.get("name")
        if (named or job.name in wanted or job.name.split("_")[0] in wanted) and state_of(job) in (
            "PENDING",
            "RUNNING",
        ):
            (job / "cancelled").touch()
            if state_of(job) == "RUNNING":
                os.killpg(int((job / "pid").read_text()), signal.SIGTERM)
    return 0


def sinfo(cluster, arguments):
    print("\n".join(PARTITIONS))
    return 0


def scontrol(cluster, arguments):
    job = cluster / (arguments[1] if "_" in arguments[1] else f"{arguments[1]}_0")
    (job / "requeue").touch()
    return 0


def main():
    cluster, name = Path(os.environ["FAKE_SLURM"]), sys.argv[1]
    if name != "keep":
        with (cluster / "calls").open("a") as file:
            file.write(json.dumps(sys.argv[1:]) + "\n")
    if (cluster / "down").exists() and name not in ("keep", "srun"):
        print(f"{name}: error: Unable to contact slurm controller (connect failure)", file=sys.stderr)
        return 1
    return globals()[name](cluster, sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
