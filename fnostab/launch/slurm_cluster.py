"""SLURM, by its commands: whether it takes such jobs, how they stand, and how they are cancelled and queued again."""

import logging
import os
import re
import shutil
import subprocess
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

from fnostab.config import ConfigError
from fnostab.io.environment import kept_environment
from fnostab.io.untrusted import shown
from fnostab.launch.slurm_config import PREFIX, SlurmConfig

logger = logging.getLogger(__name__)

#: States of jobs that have ended; whatever else SLURM says of a job, it waits, runs or will run again.
ENDED: Final = frozenset(
    {
        *("BOOT_FAIL", "NODE_FAIL", "PREEMPTED", "TIMEOUT"),
        *("CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "LAUNCH_FAILED", "OUT_OF_MEMORY", "RECONFIG_FAIL", "REVOKED"),
    }
)
#: Those that are no fault of the job.
LOST: Final = frozenset({"BOOT_FAIL", "NODE_FAIL", "PREEMPTED", "TIMEOUT"})
#: The state of a job that SLURM does not know, or no longer.
UNKNOWN: Final = "UNKNOWN"
#: A command of SLURM that has no answer by then finds no controller; SLURM's own limit is about as long.
_TIMEOUT_S: Final = 60.0
#: Variables that tell SLURM's commands which cluster they belong to, and who calls: jobs need them, too.
_WHICH_CLUSTER: Final = ("SLURM_CONF", "SLURM_JWT")
#: What `sbatch --test-only` says of jobs that would wait in the queue until a node is there; and what it says also of
#: those for which there is no such node.
_WOULD_WAIT: Final = re.compile(r"node(s are| is)? (not available|busy)|nodes are busy|are DOWN", re.IGNORECASE)
_NO_SUCH_NODE: Final = "node configuration is not available"
#: Flags that say where a job runs, and not what it takes.
_PLACE: Final = ("partition", "account", "qos", "reservation")


def check_cluster(config: SlurmConfig, cpus: int) -> None:
    """Raise `ConfigError`, with one line, if SLURM would not take the jobs of `config`.

    That is without the extra `slurm`, without SLURM's commands, where its controller does not answer, for a partition
    that it does not have, and for whatever else `sbatch --test-only` refuses. Nothing is submitted.
    """
    submitit()
    for program in ("sbatch", "srun", "squeue", "scancel", "sinfo", "scontrol"):
        if shutil.which(program) is None:
            raise ConfigError(f"`launcher` (=slurm) needs SLURM's commands on PATH: there is no {program}")
    known = _ask("sinfo", "--noheader", "--format=%R")
    if known.returncode:
        raise ConfigError(f"`launcher` (=slurm) needs a SLURM controller that answers: {_words(known)}")
    partitions = list(dict.fromkeys(known.stdout.split()))
    for name in (config.partition or "").split(","):
        if name and name not in partitions:
            raise ConfigError(f"`{PREFIX}partition` (={name}) must be one of {', '.join(partitions)}")
    flags = config.flags(cpus)
    refused = _refusal(flags)
    # Where every node is down or drained, SLURM says so of any job, and would take it all the same.
    if _NO_SUCH_NODE in refused and _NO_SUCH_NODE in _refusal({name: flags[name] for name in _PLACE if name in flags}):
        return
    if refused:
        raise ConfigError(f"`launcher` (=slurm) must ask for jobs that the cluster takes: {refused}")


def _refusal(flags: Mapping[str, str | bool]) -> str:
    """Why `sbatch` would refuse a job with these flags; nothing if it would not, or would let it wait."""
    arguments = [f"--{name}" if value is True else f"--{name}={value}" for name, value in flags.items()]
    with clean_environment():
        tried = _ask("sbatch", "--test-only", *arguments, "--wrap=true")
    return _words(tried) if tried.returncode and not _WOULD_WAIT.search(tried.stderr) else ""


def submitit() -> Any:
    """The package that submits jobs, imported; raises `ConfigError` without the extra `slurm`."""
    with kept_environment("SUBMITIT_LOG_LEVEL"):
        os.environ["SUBMITIT_LOG_LEVEL"] = "NOCONFIG"  # it would send its messages to stdout
        try:
            import submitit
        except ModuleNotFoundError:
            raise ConfigError("`launcher` (=slurm) needs submitit: pip install fnostab[slurm]") from None
    return submitit


@contextmanager
def clean_environment() -> Iterator[None]:
    """Hide what SLURM said to this process, if it runs in a job itself, and the user's defaults for `sbatch`.

    Those would go before the flags in a job's script, among them those that the launcher relies on. Nor is a job to
    write to the run that `mlflow run` made for this process.
    """
    kept = {name: os.environ[name] for name in _WHICH_CLUSTER if name in os.environ}
    with kept_environment("MLFLOW_RUN_ID"), submitit().helpers.clean_env():
        os.environ.pop("MLFLOW_RUN_ID", None)
        os.environ.update(kept)
        yield


def job_states(job_ids: Collection[str]) -> dict[str, str]:
    """The state of each of `job_ids`, as SLURM calls it; empty if SLURM does not answer.

    `squeue` knows the jobs that wait and run, and for some minutes those that have ended; `sacct` is asked of others,
    where the cluster keeps accounts. A job that neither knows is `UNKNOWN`.
    """
    answer = _ask("squeue", "--noheader", "--array", "--states=all", f"--user={os.getuid()}", "--format=%i|%T")
    if answer.returncode:
        logger.warning("SLURM's queue cannot be asked, and is asked again: %s", _words(answer))
        return {}
    listed = dict(line.strip().split("|", 1) for line in answer.stdout.splitlines() if "|" in line)
    states = {job_id: listed[job_id] for job_id in job_ids if job_id in listed}
    return states | _accounted(sorted(set(job_ids) - states.keys()))


def has_ended(state: str) -> bool:
    """Whether a job in this state of SLURM neither waits nor runs, nor will."""
    return state in ENDED or state == UNKNOWN


def _accounted(job_ids: Sequence[str]) -> dict[str, str]:
    """What `sacct` says of jobs, the newest word of each."""
    if not job_ids:
        return {}
    states = dict.fromkeys(job_ids, UNKNOWN)
    if shutil.which("sacct"):
        arrays = ",".join(dict.fromkeys(array_of(job_id) for job_id in job_ids))
        command = ("--noheader", "--parsable2", "--allocations", "--format=JobID,State", f"--jobs={arrays}")
        answer = _ask("sacct", *command)  # without accounts it fails, and nothing is known
        for line in answer.stdout.splitlines():
            job_id, _, state = line.partition("|")
            if job_id in states and state:
                states[job_id] = state.split()[0]  # CANCELLED by 1000
    return states


def array_of(job_id: str) -> str:
    """The job of which `job_id`, 12_3 for the fourth of an array, is one."""
    return job_id.partition("_")[0]


def cancel_named(name: str) -> None:
    """Cancel this user's jobs of that name."""
    _ask("scancel", f"--user={os.getuid()}", f"--name={name}")


def requeue_this_job() -> str:
    """Have SLURM end the job that this process runs in, and put it into the queue again; returns why not, if not."""
    array, number = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    job_id = f"{array}_{number}" if array else os.environ["SLURM_JOB_ID"]
    answer = _ask("scontrol", "requeue", job_id)
    return _words(answer) if answer.returncode else ""


def _ask(program: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """The answer of one of SLURM's commands; one that does not come in time is a failure."""
    command = [program, *arguments]
    try:
        return subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT_S, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        said = "it does not answer" if isinstance(error, subprocess.TimeoutExpired) else str(error)
        return subprocess.CompletedProcess(command, 1, "", f"{program}: error: {said}")


def _words(answer: "subprocess.CompletedProcess[str]") -> str:
    """What a command of SLURM said went wrong, on one line."""
    lines = [line.strip() for line in answer.stderr.splitlines() if line.strip()]
    # SLURM's advice to read its help is none.
    told = [re.sub(r"^\w+: (error: )?", "", line) for line in lines if not line.startswith("Try ")]
    program = answer.args[0]
    return shown(f"{program}: {'; '.join(told) or f'exit code {answer.returncode}'}")
