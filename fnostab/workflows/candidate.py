"""Which run of a ranked study is to be registered, or why none is."""

import math
from collections.abc import Sequence

from fnostab.ranking import RANKED_BY
from fnostab.study.champion import Candidate, why_not_eligible
from fnostab.study.names import METRIC
from fnostab.study.result import StudyResult, in_order
from fnostab.study.stored_run import NO_DATASET, StoredRun
from fnostab.tracking.model_registry import has_logged_model
from fnostab.tracking.transfer import CAME_FROM


def find_candidate(result: StudyResult, compared: Sequence[StoredRun]) -> tuple[Candidate | None, str]:
    """Find the best run of the first arm that may be registered among the runs that were `compared`.

    Returns None if there is none or it has no model; and, in words, why none or not the best one is registered.
    """
    if result.ranking.decision.winner is None:
        return None, "Nothing registered: every run failed."
    first, by = result.ranking.table[0]["arm"], result.ranking.by
    stored = {run.run_id: run for run in compared}
    faults: list[str] = []
    for run in in_order(result.of_arm(first), by):
        if run.verdict != "converged" or not math.isfinite(run.best_val_loss):
            continue
        fault = why_not_eligible(stored[run.run_id])
        if fault is None:
            return _with_model(stored[run.run_id], result, faults)
        faults.append(f"run {run.run_id}, because {fault}")
    return None, f"Nothing registered: no run of {first}, the first arm, may be: {'; '.join(faults)}."


def _with_model(run: StoredRun, result: StudyResult, faults: Sequence[str]) -> tuple[Candidate | None, str]:
    """The candidate if the run has a model; `faults` says why better runs are none."""
    if run.params.get("train.artifacts") == "numbers" or CAME_FROM in run.tags:
        lack = "the numbers are here, but no model"
    elif not has_logged_model(run.run_id):
        lack = "there is no logged model named `model` that is whole"
    else:
        stitched = run.metrics.get(METRIC["r_stitched"], math.nan)
        candidate = Candidate(
            study=result.study,
            arm=run.arm,
            seed=run.seed,
            run_id=run.run_id,
            best_val_loss=run.metrics["best_val_loss"],
            dataset_sha256="" if result.dataset_sha256 == NO_DATASET else result.dataset_sha256,
            r_stitched=stitched if math.isfinite(stitched) else None,
            by=result.ranking.by,
            own_metric=None if result.ranking.by in RANKED_BY else run.metrics[result.ranking.by],
        )
        return candidate, f"Better, but not registered: {'; '.join(faults)}." if faults else ""
    how = "one that is trained with `train.artifacts=all` into this store has one"
    if run.is_foreign:
        how = "log the network as one, such as by `mlflow.pytorch.log_model(network, name='model')`"
    return None, f"Nothing registered: of the best run, {run.run_id}, {lack}; {how}."
