"""Where the runs of a study execute: in this process, in several on this machine, as Ray tasks, or as SLURM jobs.

This package starts runs, hears how they stand, and stops them; what a run does is handed in. A run is a `Job`, carried
out by a function `(Job, Send) -> None`, which sends `Update`s: `running` ones, then one that says how the run ended.
Whatever happens to one run, the others go on. A signal, or an exception of whoever watches, stops all of them: they
store what they have, and only then the launcher raises. (SLURM jobs go on, and the next call waits for them.)
"""

from fnostab.launch.jobs import (
    Job,
    LaunchConfig,
    Launcher,
    OnUpdate,
    Run,
    RunTogether,
    Send,
    Update,
    collected_signals,
    run_inline,
)
from fnostab.launch.ray_tasks import ray_cluster, run_ray
from fnostab.launch.slurm_config import SlurmConfig, slurm_config
from fnostab.launch.slurm_jobs import check_slurm, run_slurm
from fnostab.launch.slurm_task import RunTask
from fnostab.launch.workers import run_processes, serve_jobs

__all__ = [
    "Job",
    "LaunchConfig",
    "Launcher",
    "OnUpdate",
    "Run",
    "RunTask",
    "RunTogether",
    "Send",
    "SlurmConfig",
    "Update",
    "check_slurm",
    "collected_signals",
    "ray_cluster",
    "run_inline",
    "run_processes",
    "run_ray",
    "run_slurm",
    "serve_jobs",
    "slurm_config",
]
