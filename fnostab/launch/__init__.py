"""Where the runs of a study execute: in this process, in several on this machine, or as Ray tasks.

What one run does is somebody else's: this package starts runs, hears how they stand, and ends them. A run is a `Job`,
carried out by a function `(Job, Tell) -> None`; it tells how it stands by `Update`s, the last of which is not
`running`. Whatever happens to one run, the others go on.
"""

from fnostab.launch.jobs import Job, LaunchConfig, Launcher, OnUpdate, Run, Send, Update, run_inline
from fnostab.launch.tasks import run_ray
from fnostab.launch.workers import run_processes, serve_jobs

__all__ = [
    "Job",
    "LaunchConfig",
    "Launcher",
    "OnUpdate",
    "Run",
    "Send",
    "Update",
    "run_inline",
    "run_processes",
    "run_ray",
    "serve_jobs",
]
