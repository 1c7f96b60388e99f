"""Sentences that a comparison must be read with: how its runs were judged, and what those of others do not say."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Final

from fnostab.health import VERDICT_VERSION
from fnostab.study.stored_run import NO_DATASET, StoredRun

#: Of more params that differ, a sentence names so many.
_MOST_PARAMS: Final = 10
#: How a run of somebody else's loop comes to a verdict.
HOW_TO_JUDGE: Final = (
    "give the monitor a baseline, the val_loss of the best constant prediction, or set the tag verdict by hand"
)


def notes_of(runs: Sequence[StoredRun]) -> list[str]:
    """What is to be said of the runs that are compared."""
    return [
        *_version_notes(runs),
        *_rules_notes(runs),
        *_unknown_notes(runs),
        *_foreign_notes([run for run in runs if run.is_foreign]),
    ]


def _version_notes(runs: Sequence[StoredRun]) -> list[str]:
    versions = sorted({run.tags["fnostab_version"] for run in runs if "fnostab_version" in run.tags})
    return [f"Trained by several versions of fnostab: {', '.join(versions)}."] if len(versions) > 1 else []


def _rules_notes(runs: Sequence[StoredRun]) -> list[str]:
    """A sentence if runs were judged by other rules than today's, and one if by others than this package's."""
    versions = [run.tags.get("verdict_version", "" if run.is_foreign else "1") for run in runs]
    other = sum(version not in ("", str(VERDICT_VERSION)) for version in versions)
    by_hand = versions.count("")
    notes = []
    if other:
        rules = f"{other} of {len(runs)} runs were judged by other rules than today's (tag verdict_version)"
        notes.append(f"{rules}: `fnostab inspect --judge RUN_ID` decides anew.")
    if by_hand:
        notes.append(
            f"The verdicts of {by_hand} of {len(runs)} runs were not decided by fnostab (no tag verdict_version)."
        )
    return notes


def _unknown_notes(runs: Sequence[StoredRun]) -> list[str]:
    unknown = sum(run.tags["verdict"] == "unknown" for run in runs)
    if not unknown:
        return []
    return [f"Whether {unknown} of {len(runs)} runs learnt is unknown, so they count nowhere: {HOW_TO_JUDGE}."]


def _foreign_notes(runs: Sequence[StoredRun]) -> list[str]:
    """What is not known of runs that something else than `fnostab train` made, and cannot be checked."""
    notes = []
    if any(run.dataset_sha256 == NO_DATASET for run in runs):
        notes.append(
            "The runs do not say which data they saw (tag dataset_sha256): that it was the same is not checked."
        )
    by_arm: dict[str, list[StoredRun]] = defaultdict(list)
    for run in runs:
        by_arm[run.arm].append(run)
    for arm, of_arm in by_arm.items():
        if different := differing_params(of_arm):
            notes.append(f"The runs of arm {arm} differ in more than their seed, in the params {_listed(different)}.")
    return notes


def foreign_facts(runs: Sequence[StoredRun]) -> Mapping[str, str]:
    """The params in which the arms of foreign runs differ."""
    found = differing_params([run for run in runs if run.is_foreign])
    return {"params that differ": _listed(found)} if found else {}


def differing_params(runs: Sequence[StoredRun]) -> list[str]:
    """The params that have several values among those of the `runs` that have them, but for a run's seed."""
    values = defaultdict(set)
    for run in runs:
        for key, value in run.params.items():
            values[key].add("its seed" if value == str(run.seed) else value)
    return sorted(key for key, of_key in values.items() if len(of_key) > 1)


def _listed(params: Sequence[str]) -> str:
    more = len(params) - _MOST_PARAMS
    return ", ".join(params[:_MOST_PARAMS]) + (f" and {more} more" if more > 0 else "")
