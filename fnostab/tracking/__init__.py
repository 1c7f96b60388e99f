"""Everything that fnostab says to MLflow, and hears from it; no other package imports MLflow."""

from fnostab.tracking.run import (
    RunRecord,
    Tracker,
    fail_projects_run,
    how_to_open,
    open_run,
    read_run,
    run_is_unfinished,
    run_tags,
)
from fnostab.tracking.store import StoreAway, check_store, connect

__all__ = [
    "RunRecord",
    "StoreAway",
    "Tracker",
    "check_store",
    "connect",
    "fail_projects_run",
    "how_to_open",
    "open_run",
    "read_run",
    "run_is_unfinished",
    "run_tags",
]
