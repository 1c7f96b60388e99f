"""Which runs of a study make an ensemble: the converged ones of its first arm."""

import math
from collections.abc import Sequence

from fnostab.config import ConfigError
from fnostab.study.champion import why_not_eligible
from fnostab.study.stored_run import StoredRun


def choose_members(study: str, arm: str, compared: Sequence[StoredRun]) -> tuple[list[StoredRun], list[str]]:
    """Choose the members among the runs that were `compared`, and say why others of `arm` that converged are none.

    Members, by seed, are runs that may be registered by themselves (`champion.why_not_eligible`). Raises `ConfigError`,
    in one line, for fewer than two of them, and where they saw different datasets.
    """
    members, left_out = [], []
    for run in sorted((run for run in compared if run.arm == arm), key=lambda run: run.seed):
        if run.tags["verdict"] != "converged" or not math.isfinite(run.metrics.get("best_val_loss", math.nan)):
            continue
        if fault := why_not_eligible(run):
            left_out.append(f"run {run.run_id}, because {fault}")
        else:
            members.append(run)
    if len(members) < 2:
        has = f"it has {len(members)}" + (f" (seed {members[0].seed})" if members else "")
        because = f"; {'; '.join(left_out)}" if left_out else ""
        rule = f"must have at least 2 converged runs of {arm}, its first arm, for an ensemble"
        raise ConfigError(f"`study` (={study}) {rule}: {has}{because}")
    first = members[0]
    for run in members[1:]:
        if run.dataset_sha256 != first.dataset_sha256:
            hashes = " and ".join(f"{each.dataset_sha256[:12]} of seed {each.seed}" for each in (first, run))
            raise ConfigError(f"`study` (={study}) must have members of one dataset for an ensemble: {hashes} differ")
    return members, left_out
