"""The converged runs of a study's best arm as one registered model: their mean, and how far they deviate from it."""

import hashlib
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fnostab.config import ConfigError
from fnostab.dataset import Dataset
from fnostab.io.cache import cache_folder
from fnostab.models.ensemble import Ensemble
from fnostab.optics import Beam
from fnostab.ranking import RANKED_BY
from fnostab.report.card import ensemble_card
from fnostab.study.champion import Candidate, why_not_eligible
from fnostab.study.members import choose_members
from fnostab.study.names import METRIC
from fnostab.study.stored_run import StoredRun
from fnostab.tracking.artifacts import read_config
from fnostab.tracking.ensembles import find_ensemble, open_ensemble
from fnostab.tracking.exports import log_model
from fnostab.tracking.model_registry import ensemble_name, has_logged_model, model_name as model_of, register_winner
from fnostab.tracking.models import ShippedModel, load_model
from fnostab.tracking.store import open_store
from fnostab.tracking.studies import MODEL_NAME
from fnostab.workflows import PrintLine, build_dataset
from fnostab.workflows.ensemble_quality import measure
from fnostab.workflows.ranked import Ranked, rank_study
from fnostab.workflows.runfolder import held_alone

#: MLflow's databases hold no longer name of a model.
_MAX_NAME = 256


@dataclass(frozen=True)
class Plan:
    """The runs that become one model, checked: they fit together, and nothing is written yet.

    `left_out` says why converged runs of the arm are no members. `earlier` is the run of an ensemble of the same
    members, which is registered as it is; without one, `shipped` are the members' models, and `dataset` is theirs.
    """

    ranked: Ranked
    model: str
    members: Sequence[StoredRun]
    left_out: Sequence[str]
    earlier: StoredRun | None
    shipped: Sequence[ShippedModel] = ()
    dataset: Dataset | None = None

    @property
    def member_ids(self) -> tuple[str, ...]:
        """The IDs of the members' runs, by seed."""
        return tuple(run.run_id for run in self.members)


def register_ensemble(
    study: str,
    *,
    dataset: str | None = None,
    parent: str | None = None,
    by: str = "best_val_loss",
    promote: bool = False,
    model_name: str | None = None,
    print_line: PrintLine = lambda line: None,
) -> str:
    """Register all converged runs of the best arm of `study` as one model; says in words what became of it.

    The arguments are those of `workflows.compare.compare_study`. The model is called `fnostab-<study>-ensemble`, or as
    the winner's with `-ensemble` behind. Raises `ConfigError`, in one line and before anything is written, where the
    runs cannot be compared or make no ensemble.
    """
    open_store(must_exist=True)
    ranked = rank_study(study, dataset=dataset, parent=parent, by=by)
    home = ranked.home
    plan = plan_ensemble(ranked, model_name)
    return carry_out(plan, home.run_id if home else None, promote=promote, print_line=print_line)


def plan_ensemble(ranked: Ranked, model_name: str | None = None) -> Plan:
    """Choose the members among the runs of the first arm, and check that they make one model.

    Raises `ConfigError`, in one line, if there are fewer than two, if they have no models, if what belongs to these
    differs, or if their dataset, on which the mean is measured, cannot be had.
    """
    study, home = ranked.study, ranked.home
    members, left_out = choose_members(study, ranked.ranking.table[0]["arm"], ranked.selection.runs)
    model = ensemble_name(model_name or (home and home.tags.get(MODEL_NAME)) or model_of(study))
    if len(model) > _MAX_NAME:
        raise ConfigError(f"`model_name` (={model}) must be at most {_MAX_NAME} characters, -ensemble included")
    plan = Plan(ranked, model, members, left_out, find_ensemble(study, [run.run_id for run in members]))
    if plan.earlier:
        return plan
    if bare := [run.run_id for run in members if not has_logged_model(run.run_id)]:
        rule = "must have runs with a logged model for an ensemble, as train.artifacts=all leaves one in this store"
        raise ConfigError(f"`study` (={study}) {rule}: run {bare[0]} has none")
    shipped = [load_model(f"runs:/{run.run_id}/model") for run in members]
    _check_alike(study, members, shipped)
    return replace(plan, shipped=shipped, dataset=_load_dataset(study, members[0]))


def carry_out(
    plan: Plan, parent_run_id: str | None, *, promote: bool, print_line: PrintLine = lambda line: None
) -> str:
    """Measure, log and register the planned ensemble, once; says in words what became of it.

    Its run is a child of `parent_run_id`. Where its stitched object is no better than one mean pattern everywhere,
    nothing is registered.
    """
    study, by = plan.ranked.study, plan.ranked.ranking.by
    run = plan.earlier
    with held_alone(_lock(plan), f"the ensemble of study {study} is being made"):
        run = run or find_ensemble(study, plan.member_ids)
        if run is None:
            print_line(f"measuring the mean of {len(plan.members)} networks on the data of study {study}")
            model = _combined(plan)
            assert plan.dataset is not None
            numbers = measure(model, plan.dataset)
            told = StoredRun("", "", "FINISHED", 0, {"verdict": "converged"}, {}, numbers)
            if fault := why_not_eligible(told):
                return f"No ensemble registered: {fault}."
            run = _log(plan, model, numbers, parent_run_id)
    stitched = run.metrics.get(METRIC["r_stitched"], math.nan)
    candidate = Candidate(
        study=study,
        arm=plan.members[0].arm,
        seed=None,
        run_id=run.run_id,
        best_val_loss=run.metrics[METRIC["best_val_loss"]],
        dataset_sha256=run.dataset_sha256,
        r_stitched=stitched if math.isfinite(stitched) else None,
        by=by if by in RANKED_BY else "best_val_loss",
        members=plan.member_ids,
    )
    card = ensemble_card(plan.model, run, plan.members)
    done = register_winner(candidate, card, promote=promote, model=plan.model)
    left_out = f"\nNot among its members: {'; '.join(plan.left_out)}." if plan.left_out else ""
    return done.text + left_out


def _lock(plan: Plan) -> Path:
    folder = cache_folder() / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"ensemble-{hashlib.sha256(','.join(plan.member_ids).encode()).hexdigest()[:16]}.lock"


def _check_alike(study: str, members: Sequence[StoredRun], shipped: Sequence[ShippedModel]) -> None:
    """Raise `ConfigError` with the first thing that has to be one in all members, and is not."""
    first = shipped[0]
    if first.modes is None:
        rule = "must have models that bring their probe for an ensemble"
        raise ConfigError(f"`study` (={study}) {rule}: that of run {members[0].run_id} does not")
    for run, other in zip(members[1:], shipped[1:], strict=True):
        fault = None
        if (first.N, first.gridsize) != (other.N, other.gridsize):
            fault = "patterns of one size, and groups of one size"
        elif other.modes is None or not np.array_equal(first.modes, other.modes):
            fault = "one probe"
            fault += ", and each has learnt its own" if other.start_probe is not None else ""
        elif not _equal(first.mask, other.mask):
            fault = "one detector mask"
        elif (first.scale, first.mean_counts) != (other.scale, other.mean_counts):
            fault = "one scale of their counts"
        if fault:
            who = f"runs {members[0].run_id} (seed {members[0].seed}) and {run.run_id} (seed {run.seed})"
            raise ConfigError(f"`study` (={study}) must have members with {fault}, for an ensemble: {who} differ")


def _equal(one: Any, two: Any) -> bool:
    return (one is None and two is None) or (one is not None and two is not None and np.array_equal(one, two))


def _load_dataset(study: str, run: StoredRun) -> Dataset:
    """The dataset of the members; raises `ConfigError` if it cannot be had as it was."""
    rule = f"`study` (={study}) must have its dataset at hand, on which the ensemble is measured"
    try:
        dataset = build_dataset(read_config(run.run_id).data)
    except ConfigError as error:
        raise ConfigError(f"{rule}: {error}") from error
    if dataset.sha256 != run.dataset_sha256:
        hashes = f"{dataset.sha256[:12]}, and run {run.run_id} saw {run.dataset_sha256[:12]}"
        raise ConfigError(f"{rule}: its config gives the dataset {hashes}")
    return dataset


def _combined(plan: Plan) -> ShippedModel:
    """The members as one network, with what belongs to all of them."""
    first = plan.shipped[0]
    light = Beam.of(np.asarray(first.modes)).weight.abs().square()
    network = Ensemble([model.network for model in plan.shipped], light)
    for module in network.modules():  # `eval` is refused by what torch.export made, which is in no other mode
        module.training = False
    return replace(first, network=network, run_id=None, has_deviation=True, members=plan.member_ids)


def _log(plan: Plan, model: ShippedModel, numbers: dict[str, float], parent_run_id: str | None) -> StoredRun:
    """Write the ensemble to a run of its own; returns that run as the store has it."""
    assert plan.dataset is not None
    first = plan.members[0]
    tags = {key: first.tags[key] for key in ("arm", "arch", "dataset_sha256", "probe_sha256") if key in first.tags}
    with tempfile.TemporaryDirectory(prefix="fnostab-ensemble-") as folder:
        beside = Path(folder) / "probe.npz"
        mask = None if model.mask is None else np.asarray(model.mask)
        arrays: dict[str, Any] = dict(Beam.of(np.asarray(model.modes), mask).to_arrays())
        arrays |= {"mean_counts": model.mean_counts, "scale": model.scale}
        np.savez(beside, **{key: value for key, value in arrays.items() if value is not None})
        example = model.example if model.example is not None else _example(plan.dataset, model.gridsize)
        with open_ensemble(plan.ranked.study, model.members, tags, parent_run_id, Path(folder)) as tracker:
            tracker.log_metrics(numbers, step=0)
            tracker.flush()
            log_model(tracker, model.network, example, [beside], try_it=False, members=model.members)
    found = find_ensemble(plan.ranked.study, model.members)
    assert found is not None
    return found


def _example(dataset: Dataset, gridsize: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Two patterns, or groups of them, that the model is exported with."""
    members = dataset.test.groups(gridsize).members[:2]
    counts = dataset.test.counts[np.resize(members, (2, members.shape[1]))]
    return np.array(counts[:, 0] if gridsize == 1 else counts)
