"""Studies in the store: their runs found by tag, their parent runs, and what is written to those."""

import json
import logging
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, Final

import mlflow

from fnostab.config import ConfigError
from fnostab.io.untrusted import shown
from fnostab.ranking.claims import ONE_LOOK, Design
from fnostab.study.selection import newest_results
from fnostab.study.stored_run import StoredRun, has_identity
from fnostab.tracking.artifacts import read_artifact
from fnostab.tracking.batches import MAX_TAG, log_batches
from fnostab.tracking.errors import HOW_TO_REPEAT, StoreUnavailable, translated_store_errors
from fnostab.tracking.run import NOTE, own_or_new_run, resume_into, unless_named
from fnostab.tracking.store import search_runs
from fnostab.tracking.target import named_run

logger = logging.getLogger(__name__)

#: The tag that tells a study's own runs, `parent` and `comparison`, from those that trained something.
ROLE: Final = "study_role"
#: The parent's tag with what somebody said of the study, which stays where its note tells how the study stands.
_DESCRIPTION: Final = "description"
#: The parent's tag with the name of the registered model that its winner belongs to.
MODEL_NAME: Final = "model_name"
#: The parent's artifact that says which arms and seeds were planned.
_PLAN: Final = "study.json"


def find_runs(study: str, **tags: str) -> list[StoredRun]:
    """All runs of `study`, and with these `tags`, that trained something, in every experiment, newest first.

    Runs that cannot be compared, because they do not say their arm and seed, are left out with a warning.
    """
    found = [run for run in search_runs(study=study, **tags) if ROLE not in run.tags and "resumed_into" not in run.tags]
    if strangers := [run.run_id for run in found if not has_identity(run.tags)]:
        lack = "runs without the tags arm and seed (a number) are left out"
        logger.warning("study %s: %d %s, such as %s", study, len(strangers), lack, strangers[0])
    return [run for run in found if has_identity(run.tags)]


def find_results(study: str, data_sha256: str, **tags: str) -> dict[tuple[str, int, str | None], StoredRun]:
    """The newest finished run on these data, `StoredRun.data_sha256`, of each arm, seed and hash of the config."""
    return results_by_data(find_runs(study, **tags)).get(data_sha256, {})


def results_by_data(runs: Iterable[StoredRun]) -> dict[str, dict[tuple[str, int, str | None], StoredRun]]:
    """What `find_results` gives of `runs`, for each of the data that they were trained on."""
    found = defaultdict(list)
    for run in runs:
        found[run.data_sha256].append(run)
    return {
        data_sha256: newest_results(on_these, lambda run: (run.arm, run.seed, run.tags.get("config_sha256")))
        for data_sha256, on_these in found.items()
    }


def find_parents(study: str) -> list[StoredRun]:
    """The parent runs of `study`, newest first."""
    return list(search_runs(study=study, **{ROLE: "parent"}))


def find_parent(identity: str) -> StoredRun | None:
    """The newest parent run of the study with this `StudyPlan.identity`."""
    return next(iter(search_runs(study_sha256=identity, **{ROLE: "parent"})), None)


def design_tags(design: Design) -> dict[str, str]:
    """The tags by which a parent run says that its study looks several times, and when."""
    looks = ",".join(map(str, design.looks))
    return {"until": "decided", "alpha": repr(design.alpha), "looks": looks, "max_seeds": str(design.looks[-1])}


def stored_design(parent: StoredRun | None) -> Design:
    """How often the study of `parent` looks at its runs, by its `design_tags`; once without those.

    Raises `ConfigError` for tags that somebody has changed into none.
    """
    tags = parent.tags if parent else {}
    if parent is None or "looks" not in tags:
        return ONE_LOOK
    looks, alpha = tags["looks"], tags.get("alpha", "")
    try:
        return Design(float(alpha), tuple(map(int, looks.split(","))))
    except ValueError:
        raise ConfigError(
            f"`looks` (={shown(looks)}) and `alpha` (={shown(alpha)}), tags of run {parent.run_id}, must be ascending"
            " numbers of seeds and an error rate"
        ) from None


def planned_runs(parent: StoredRun) -> list[tuple[str, int]]:
    """The arms and seeds that the study of `parent` was to train; none where it does not say."""
    return _pairs(_read_plan(parent))


def _read_plan(parent: StoredRun) -> dict[str, Any]:
    content = read_artifact(parent.run_id, _PLAN)
    try:
        return {} if content is None else dict(json.loads(content))
    except (ValueError, TypeError) as error:
        raise ConfigError(f"`parent` (={parent.run_id}) must have a {_PLAN} that can be read: {error}") from None


def _pairs(plan: Mapping[str, Any]) -> list[tuple[str, int]]:
    # Once, each arm had all seeds.
    pairs = plan["runs"] if "runs" in plan else product(plan.get("arms", ()), plan.get("seeds", ()))
    return [(str(arm), int(seed)) for arm, seed in pairs]


@dataclass
class StudyFolder:
    """A run that holds what belongs to a study as a whole; `status` is how it ends if the block does in peace.

    `description` is what somebody said of the study.
    """

    run_id: str
    experiment_id: str
    status: str = "FINISHED"
    plan: Mapping[str, Any] = field(default_factory=dict)
    description: str = ""

    @translated_store_errors()
    def log_files(self, folder: Path) -> None:
        """Log every file of `folder` as an artifact."""
        mlflow.MlflowClient().log_artifacts(self.run_id, str(folder))

    @translated_store_errors()
    def log_text(self, text: str, name: str) -> None:
        """Log `text` as the artifact `name`."""
        mlflow.MlflowClient().log_text(self.run_id, text, name)

    def add_runs(self, runs: Iterable[tuple[str, int]]) -> None:
        """Log that these pairs of arm and seed are planned as well."""
        self.plan = {**self.plan, "runs": list(dict.fromkeys([*_pairs(self.plan), *runs]))}
        self.log_text(json.dumps(self.plan, indent=2), _PLAN)

    @translated_store_errors()
    def set_tags(self, tags: Mapping[str, object]) -> None:
        """Set tags of the run."""
        log_batches(mlflow.MlflowClient(), self.run_id, tags=tags)

    @property
    def room_for_note(self) -> int:
        """Characters that a note can have, below the description."""
        return MAX_TAG - len(self.description) - 2

    def set_note(self, text: str) -> None:
        """Let the UI show `text`, below the description if there is one."""
        self.set_tags({NOTE: f"{self.description}\n\n{text}" if self.description else text})


@contextmanager
def open_parent(
    study: str,
    identity: str,
    plan: Mapping[str, Any],
    tags: Mapping[str, str],
    params: Mapping[str, str],
    *,
    run_name: str | None = None,
    description: str | None = None,
) -> Iterator[StudyFolder]:
    """Open the parent run of a study: the one that has its `identity`, else that of `mlflow run`, else a new one.

    `plan` has `runs`, pairs of arm and seed; the runs of all plans of one parent add up, and what an earlier plan says
    and this one does not stays. A run that `mlflow run` made for a study that has its parent already gets the tag
    `resumed_into`, and no study tags. `run_name` and `description` are the parent's, if given. The parent ends with its
    `status` when the block does, KILLED after an interrupt or exit, and FAILED after an error.
    """
    with translated_store_errors():
        earlier = find_parent(identity)
        client = mlflow.MlflowClient()
        if earlier:
            resume_into(earlier.run_id)
        run = client.get_run(earlier.run_id) if earlier else own_or_new_run()
    run_id = run.info.run_id
    folder = StudyFolder(run_id, run.info.experiment_id)
    folder.description = description or run.data.tags.get(_DESCRIPTION, "")
    try:
        with translated_store_errors():
            client.update_run(run_id, status="RUNNING", name=run_name or unless_named(run, study))
            if description:
                folder.set_tags({_DESCRIPTION: description, NOTE: description})
            folder.set_tags({"study": study, ROLE: "parent", "study_sha256": identity, **tags})
            new = {key: value for key, value in params.items() if key not in run.data.params}
            log_batches(client, run_id, params=new)
            known = _read_plan(earlier) if earlier else {}
            folder.plan = {**known, **plan, "runs": _pairs(known)}
            folder.add_runs(_pairs(plan))
        yield folder
    except BaseException as error:
        _end(run_id, "FAILED" if isinstance(error, Exception) else "KILLED")
        raise
    _end(run_id, folder.status)


def end_runs(study: str, parent_run_id: str, statuses: Mapping[tuple[str, int], str]) -> None:
    """Let those runs of a parent end that are RUNNING though nobody trains them any more.

    Their processes died, or could not reach the store at their end. `statuses` says for arm and seed how they end.
    """
    try:
        for run in find_runs(study) if statuses else ():
            mine = run.tags.get("mlflow.parentRunId") == parent_run_id and (run.arm, run.seed) in statuses
            if mine and run.status == "RUNNING":
                _end(run.run_id, statuses[run.arm, run.seed])
    except StoreUnavailable as away:
        logger.warning("runs of study %s may stay RUNNING in the store: %s", study, away)


@contextmanager
def open_comparison(study: str) -> Iterator[StudyFolder]:
    """Open a run for what is said of a study that has no parent: that of `mlflow run`, or a new one."""
    with translated_store_errors(HOW_TO_REPEAT):
        run = own_or_new_run()
        name = unless_named(run, f"{study}-comparison")
        mlflow.MlflowClient().update_run(run.info.run_id, status="RUNNING", name=name)
        folder = StudyFolder(run.info.run_id, run.info.experiment_id)
        folder.set_tags({"study": study, ROLE: "comparison"})
    try:
        yield folder
    except BaseException:
        _end(folder.run_id, "FAILED")
        raise
    _end(folder.run_id, "FINISHED")


@contextmanager
def open_existing_parent(parent: StoredRun) -> Iterator[StudyFolder]:
    """The parent run as it stands; a run that `mlflow run` made for this process gets the tag `compared_into`."""
    with translated_store_errors(HOW_TO_REPEAT):
        run = named_run()
        if run is not None and run.info.run_id != parent.run_id:
            mlflow.MlflowClient().set_tag(run.info.run_id, "compared_into", parent.run_id)
    os.environ.pop("MLFLOW_RUN_ID", None)
    yield StudyFolder(parent.run_id, parent.experiment_id, description=parent.tags.get(_DESCRIPTION, ""))


def _end(run_id: str, status: str) -> None:
    try:
        with translated_store_errors():
            mlflow.MlflowClient().set_terminated(run_id, status)
    except StoreUnavailable as away:
        logger.warning("the status of run %s could not be stored: %s", run_id, away)
