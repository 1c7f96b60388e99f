"""Everything that fnostab says to MLflow, and hears from it; no other package imports MLflow."""

import logging

from fnostab.tracking.run import (
    RunState,
    Tracker,
    fail_projects_run,
    find_claimed,
    how_to_open,
    open_run,
    resume_into,
    run_state,
    run_tags,
)

# Of MLflow 3.17, `mlflow.pytorch` sets the root logger to ERROR when it is first used; what we warn of is said even so.
logging.getLogger("fnostab").setLevel(logging.WARNING)

__all__ = [
    "RunState",
    "Tracker",
    "fail_projects_run",
    "find_claimed",
    "how_to_open",
    "open_run",
    "resume_into",
    "run_state",
    "run_tags",
]
