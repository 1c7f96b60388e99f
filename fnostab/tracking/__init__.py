"""Everything that fnostab says to MLflow, and hears from it; no other package imports MLflow."""

import logging

from fnostab.study.champion import Candidate, RegistryVersion
from fnostab.tracking.checkout import git_commit, uncommitted_code
from fnostab.tracking.errors import StoreUnavailable, redacted
from fnostab.tracking.exports import log_model
from fnostab.tracking.model_registry import (
    Registration,
    has_logged_model,
    model_name,
    read_registry,
    register_winner,
    rollback,
)
from fnostab.tracking.run import (
    RunRecord,
    RunState,
    Tracker,
    fail_projects_run,
    find_claimed,
    how_to_open,
    open_run,
    read_run,
    resume_into,
    run_state,
    run_tags,
)
from fnostab.tracking.store import check_store, open_store
from fnostab.tracking.studies import (
    StudyFolder,
    Unreadable,
    end_runs,
    find_parents,
    find_results,
    find_runs,
    open_comparison,
    open_existing_parent,
    open_parent,
    planned_runs,
    read_artifact,
    read_artifacts,
    read_config,
    run_url,
)
from fnostab.tracking.transfer import CAME_FROM, ExportedStudy, export_study, import_runs, read_exported

# Of MLflow 3.17, `mlflow.pytorch` sets the root logger to ERROR when it is first used; what we warn of is said even so.
logging.getLogger("fnostab").setLevel(logging.WARNING)

__all__ = [
    "CAME_FROM",
    "Candidate",
    "ExportedStudy",
    "Registration",
    "RegistryVersion",
    "RunRecord",
    "RunState",
    "StoreUnavailable",
    "StudyFolder",
    "Tracker",
    "Unreadable",
    "check_store",
    "end_runs",
    "export_study",
    "fail_projects_run",
    "find_claimed",
    "find_parents",
    "find_results",
    "find_runs",
    "git_commit",
    "has_logged_model",
    "how_to_open",
    "import_runs",
    "log_model",
    "model_name",
    "open_comparison",
    "open_existing_parent",
    "open_parent",
    "open_run",
    "open_store",
    "planned_runs",
    "read_artifact",
    "read_artifacts",
    "read_config",
    "read_exported",
    "read_registry",
    "read_run",
    "redacted",
    "register_winner",
    "resume_into",
    "rollback",
    "run_state",
    "run_tags",
    "run_url",
    "uncommitted_code",
]
