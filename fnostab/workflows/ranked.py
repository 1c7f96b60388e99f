"""The runs of a study, or of several together, as the store has them: which are compared, and how their arms rank."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from fnostab.config import ConfigError, check_name
from fnostab.io.untrusted import shown
from fnostab.ranking import BOOTSTRAP_SEED, RANKED_BY, Ranking, rank_arms
from fnostab.ranking.claims import ONE_LOOK
from fnostab.study.names import NUMBERS
from fnostab.study.notes import HOW_TO_JUDGE
from fnostab.study.selection import Selection, select_runs
from fnostab.study.stored_run import StoredRun, to_rows
from fnostab.tracking.studies import find_parents, find_runs, planned_runs, stored_design

#: What arms are not ranked by, though runs have it.
_OURS: Final = {name for number in NUMBERS for name in (number.metric, number.name)} - set(RANKED_BY)


@dataclass(frozen=True)
class Found:
    """What the store has of a study: its runs, its parent runs, what was planned, and what is to be said of it."""

    runs: Sequence[StoredRun]
    parents: Sequence[StoredRun] = ()
    planned: Sequence[tuple[str, int]] = ()
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Ranked:
    """The runs that are compared, their ranking, and the parent run that the comparison belongs to, if there is one.

    `study` is the name of the study, or those of several with commas between.
    """

    study: str
    selection: Selection
    ranking: Ranking
    home: StoredRun | None


def rank_study(
    study: str, *, dataset: str | None = None, parent: str | None = None, by: str = "best_val_loss"
) -> Ranked:
    """Rank the arms of `study`, at the looks of its newest parent run on this dataset.

    They are ranked by the column `by`: one of `RANKED_BY`, or a metric that the user logged to the runs, of which lower
    values are better.

    Several studies, with commas between, are ranked together, at one look; they have no parent run in common. An arm
    of a name that another one of them has too is called `arm (study)`. A study whose own name has commas goes before.
    Raises `ConfigError` where the runs cannot be compared.
    """
    names = [name.strip() for name in study.split(",")]
    alone = find_runs(study)
    is_one = bool(alone) or len(names) == 1
    study = study if is_one else ",".join(names)
    found = _of_one(study, alone, dataset, parent) if is_one else _of_several(names, dataset, parent)
    selection = select_runs(study, found.runs, dataset=dataset, parent=parent, planned=found.planned)
    rows, notes = to_rows(selection.runs, by)
    if by not in RANKED_BY:
        _check_own_metric(by, rows)
    home = next((run for run in found.parents if run.dataset_sha256 == selection.dataset_sha256), None)
    try:
        ours = not any(run.is_foreign for run in selection.runs)
        ranking = rank_arms(rows, BOOTSTRAP_SEED, by=by, design=stored_design(home), has_stage_b=ours)
    except ValueError as error:  # such as: no verdict of a run is a result
        is_unknown = all(row["verdict"] == "unknown" for row in rows)
        hint = f"; every verdict is unknown: {HOW_TO_JUDGE}" if is_unknown else ""
        raise ConfigError(f"`study` (={study}) must have runs that can be ranked: {error}{hint}") from None
    return Ranked(study, replace(selection, notes=[*selection.notes, *notes, *found.notes]), ranking, home)


def _check_own_metric(by: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Raise `ConfigError` if `by` is one of our numbers, of which some are better if larger, or not in every run."""
    converged = [row for row in rows if row["verdict"] == "converged"]
    have = sum(isinstance(row[by], float) and math.isfinite(row[by]) for row in converged)
    if by in _OURS or have < len(converged):
        rule = f"must be {' or '.join(RANKED_BY)}, or a metric of yours that every converged run has"
        has = "" if by in _OURS else f": {have} of {len(converged)} have it"
        raise ConfigError(f"`by` (={shown(by)}) {rule}{has}")


def _of_one(study: str, runs: Sequence[StoredRun], dataset: str | None, parent: str | None) -> Found:
    parents = [run for run in find_parents(study) if parent in (None, run.run_id)]
    planned = [
        key for run in parents if dataset is None or run.dataset_sha256.startswith(dataset) for key in planned_runs(run)
    ]
    return Found(runs, parents, planned)


def _of_several(names: Sequence[str], dataset: str | None, parent: str | None) -> Found:
    """The runs of all studies, and what was planned of each, arms of one name told apart."""
    label = ",".join(names)
    if len(set(names)) < len(names):
        raise ConfigError(f"`study` (={label}) must have each study once")
    if parent is not None:
        raise ConfigError(f"`parent` (={parent}) is for one study, not for {len(names)}")
    found = {}
    for name in names:
        check_name("study", name)
        found[name] = _of_one(name, find_runs(name), dataset, None)
        if not found[name].runs:
            raise ConfigError(f"`study` (={name}) must be the tag of runs in the tracking store: there is none")
    studies_of = defaultdict(set)
    for name, of in found.items():
        for arm in {run.arm for run in of.runs} | {arm for arm, _ in of.planned}:
            studies_of[arm].add(name)

    def called(arm: str, study: str) -> str:
        return arm if len(studies_of[arm]) == 1 else f"{arm} ({study})"

    looked = [name for name, of in found.items() if any(stored_design(run) != ONE_LOOK for run in of.parents)]
    together = ", ".join(names)
    notes = [f"The studies {together} are compared as one; which runs belong together was not planned before."]
    if looked:
        several = f"Study {' and '.join(looked)} looked at its runs several times"
        notes.append(f"{several}: p-values here do not pay for that.")
    runs = [(name, run) for name, of in found.items() for run in of.runs]
    return Found(
        [replace(run, tags={**run.tags, "arm": called(run.arm, name)}) for name, run in runs],
        planned=[(called(arm, name), seed) for name, of in found.items() for arm, seed in of.planned],
        notes=notes,
    )
