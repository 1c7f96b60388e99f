"""The run that holds an ensemble: its numbers, its model, and the runs that are its members."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import mlflow
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

import fnostab
from fnostab.study.stored_run import StoredRun
from fnostab.tracking.checkout import git_commit
from fnostab.tracking.errors import HOW_TO_REPEAT, translated_store_errors
from fnostab.tracking.model_registry import has_logged_model
from fnostab.tracking.run import end_run
from fnostab.tracking.store import search_runs
from fnostab.tracking.studies import ROLE
from fnostab.tracking.target import target_experiment_id
from fnostab.tracking.tracker import Tracker

#: Tag that tells ensembles of different members apart.
_IDENTITY: Final = "members_sha256"


def find_ensemble(study: str, members: Sequence[str]) -> StoredRun | None:
    """The newest whole run of an ensemble of these runs; None if there is none."""
    found = search_runs(study=study, **{ROLE: "ensemble", _IDENTITY: _sha256(members)})
    return next((run for run in found if run.status == "FINISHED" and has_logged_model(run.run_id)), None)


@contextmanager
def open_ensemble(
    study: str, members: Sequence[str], tags: Mapping[str, str], parent_run_id: str | None, folder: Path
) -> Iterator[Tracker]:
    """Open a new run for an ensemble of the runs `members`, beside its parent if it has one.

    It ends FINISHED when the block does, KILLED after an interrupt or exit, and FAILED after an error. What the store
    does not take for a while waits in `folder`.
    """
    with translated_store_errors(HOW_TO_REPEAT):
        client = mlflow.MlflowClient()
        parent = client.get_run(parent_run_id) if parent_run_id else None
        own = {MLFLOW_PARENT_RUN_ID: parent_run_id} if parent_run_id else {}
        own |= {"study": study, ROLE: "ensemble", _IDENTITY: _sha256(members), **tags}
        own |= {"fnostab_version": fnostab.__version__, "git_commit": git_commit()}
        experiment = parent.info.experiment_id if parent else target_experiment_id()
        run_id = client.create_run(experiment, tags=own, run_name=f"{study}-ensemble").info.run_id
    try:
        with translated_store_errors(HOW_TO_REPEAT):
            mlflow.start_run(run_id, nested=True)
        tracker = Tracker(run_id, folder, resumed=False)
        tracker.set_tags({"runs": ",".join(members), "members": len(members)})
        yield tracker
        tracker.finish()
    except BaseException as error:
        end_run(run_id, "FAILED" if isinstance(error, Exception) else "KILLED")
        raise
    end_run(run_id, "FINISHED")


def _sha256(members: Sequence[str]) -> str:
    return hashlib.sha256(",".join(sorted(members)).encode()).hexdigest()
