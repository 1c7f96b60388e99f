"""Everything that fnostab says to MLflow, and hears from it; no other package imports MLflow."""

from fnostab.tracking.promotion import Candidate, RegistryVersion
from fnostab.tracking.registry import Registration, Rollback, model_name, read_registry, register_winner, rollback
from fnostab.tracking.run import (
    RunRecord,
    Tracker,
    fail_projects_run,
    find_claimed,
    git_commit,
    how_to_open,
    open_run,
    read_run,
    run_is_unfinished,
    run_tags,
)
from fnostab.tracking.store import StoreAway, check_store, connect, redacted
from fnostab.tracking.studies import (
    StudyFolder,
    find_parents,
    find_runs,
    open_comparison,
    open_existing_parent,
    open_parent,
    planned_runs,
    read_artifact,
    read_config,
    run_url,
)

__all__ = [
    "Candidate",
    "Registration",
    "RegistryVersion",
    "Rollback",
    "RunRecord",
    "StoreAway",
    "StudyFolder",
    "Tracker",
    "check_store",
    "connect",
    "fail_projects_run",
    "find_claimed",
    "find_parents",
    "find_runs",
    "git_commit",
    "how_to_open",
    "model_name",
    "open_comparison",
    "open_existing_parent",
    "open_parent",
    "open_run",
    "planned_runs",
    "read_artifact",
    "read_config",
    "read_registry",
    "read_run",
    "redacted",
    "register_winner",
    "rollback",
    "run_is_unfinished",
    "run_tags",
    "run_url",
]
