"""Where the runs of a study execute: in this process, in several on this machine, or as Ray tasks.

This package starts runs, hears how they stand, and stops them; what a run does is handed in. A run is a `Job`, carried
out by a function `(Job, Send) -> None`, which sends `Update`s: `running` ones, then one that says how the run ended.
Whatever happens to one run, the others go on. A signal, or an exception of whoever watches, stops all of them: they
store what they have, and only then the launcher raises.
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
from fnostab.launch.workers import run_processes, serve_jobs

__all__ = [
    "Job",
    "LaunchConfig",
    "Launcher",
    "OnUpdate",
    "Run",
    "RunTogether",
    "Send",
    "Update",
    "collected_signals",
    "ray_cluster",
    "run_inline",
    "run_processes",
    "run_ray",
    "serve_jobs",
]
