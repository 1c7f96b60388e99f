"""Run a study: one dataset, a parent run, a child per arm and seed; only what is missing is trained."""

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import fnostab
from fnostab import launch
from fnostab.config import ConfigError
from fnostab.dataset import OnPatterns, common_sha256
from fnostab.io.cache import cache_folder
from fnostab.launch import LaunchConfig, Update
from fnostab.study.plan import STAGE_B_BLOCKS, Planned, StudyPlan, plan_stage_b
from fnostab.study.sequential import Until, schedule_of
from fnostab.tracking.artifacts import read_config
from fnostab.tracking.checkout import git_commit
from fnostab.tracking.run import how_to_open
from fnostab.tracking.store import check_store, open_store, sqlite_file
from fnostab.tracking.studies import MODEL_NAME, StudyFolder, find_parent, find_runs, open_parent, results_by_data
from fnostab.training.checks import check_arm
from fnostab.training.precision import in_precision, settle_precision
from fnostab.workflows import build_dataset
from fnostab.workflows.arm_series import ArmSeries
from fnostab.workflows.looks import Looks
from fnostab.workflows.ranked import rank_study
from fnostab.workflows.runfolder import held_alone
from fnostab.workflows.runs import Runs, StudyDisplay, check_launcher, cluster, environment, trains_alone
from fnostab.workflows.warm_start import warm_start

#: What a study says whose jobs, on several machines, share a database that is one file.
_SQLITE: Final = (
    "warning: the tracking store is a sqlite file, which jobs on several nodes may damage unless its file system locks "
    "files for all of them (NFS often does not): better set MLFLOW_TRACKING_URI to a tracking server"
)


#: Runs with a result, by arm, seed and hash of the config.
_Results = Collection[tuple[str, int, str | None]]


@dataclass(frozen=True)
class StudyOutcome:
    """A study that has come to its end: how each run ended, and where its parent run is.

    `conclusion` is what a study until decided says in the end; nothing if a look is not complete.
    """

    plan: StudyPlan
    run_id: str
    how_to_open: str
    ends: Sequence[tuple[Planned, Update]]
    conclusion: str = ""

    @property
    def without_result(self) -> list[tuple[Planned, Update]]:
        """Runs that crashed or were not begun; failed verdicts are results."""
        return [(run, end) for run, end in self.ends if end.state != "done"]

    @property
    def results(self) -> str:
        """How many runs have a result, in words."""
        return f"{len(self.ends) - len(self.without_result)} of {len(self.ends)} runs have a result"


def run_study(
    plan: StudyPlan,
    where: LaunchConfig,
    view: StudyDisplay,
    data_progress: OnPatterns | None = None,
    *,
    until: Until | None = None,
    run_name: str | None = None,
    description: str | None = None,
    model_name: str | None = None,
) -> StudyOutcome:
    """Train what is missing of `plan`, or what it takes `until` the study is decided; return how every run ended.

    Finished runs of the same study, arm, seed, config and dataset are not trained again. `run_name` and `description`
    are those of the parent run, `model_name` the registered model that `compare_study` then takes. Raises `ConfigError`
    for bad input before anything is written, `AlreadyRunning` if another process runs this study, and `Interrupted`
    after SIGTERM or Ctrl-C, once the runs have stored what they had; the same call then goes on.
    """
    asked, plan = plan, replace(plan, arms=settle_precision(plan.arms))
    for config in plan.arms.values():
        check_arm(config)
    if until is not None:
        schedule_of(until, plan)
    check_launcher(plan, where)
    store_uri = check_store(for_new_run=True)
    plan = replace(plan, arms={arm: warm_start(config).config for arm, config in plan.arms.items()})
    data_sha256 = _build_datasets(plan, data_progress)
    open_store()
    by_data = results_by_data(find_runs(plan.study))
    stored = by_data.pop(data_sha256, {})
    plan, words = _in_the_precision_of(stored, plan, asked)
    identity = plan.identity(data_sha256)
    locks = cache_folder() / "studies"
    locks.mkdir(parents=True, exist_ok=True)
    key = hashlib.sha256(f"{identity}-{store_uri}".encode()).hexdigest()[:32]
    with held_alone(locks / f"{key}.lock", f"study {plan.study} is being run"):
        looks = None if until is None else Looks(plan, until, data_sha256, find_parent(identity))
        runs = Runs(plan, where, view, stored, locks / f"{key}.slurm")
        may_run = looks.all_runs if looks else plan.runs
        runs.plan_more(may_run, only_finished=looks is not None)
        again = _on_other_data(may_run, asked, stored, by_data, data_sha256)
        for line in (words, *again, *_warnings(plan, where, store_uri)):
            if line:
                view.look(line)
        tags = _tags(plan, data_sha256, model_name) | (looks.tags if looks else {})
        said: dict[str, Any] = {"run_name": run_name, "description": description}
        params = {"arms": ", ".join(plan.arms), "launcher": where.launcher}
        planned = plan.to_mapping() | ({"runs": [], "until": looks.tags} if looks else {})
        with (
            cluster(plan, where, needed=looks is not None or bool(runs.missing)),
            launch.collected_signals(),  # from before there is a parent run, so that no signal leaves it RUNNING
            open_parent(plan.study, identity, planned, tags, params, **said) as parent,
        ):
            conclusion = ""
            series = ArmSeries(parent.run_id)
            runs.on_end = lambda: series.update(runs.all, runs.ends.values())
            with environment(store_uri, parent.experiment_id):
                if looks:
                    conclusion = _train_until_decided(looks, runs, parent)
                else:
                    runs.train(parent.run_id)
            series.update(runs.all, runs.ends.values(), at_the_end=True)
            opened = how_to_open(parent.run_id, parent.experiment_id)
            ends = [(run, runs.ends[place]) for place, run in enumerate(runs.all)]
            outcome = StudyOutcome(plan, parent.run_id, opened, ends, conclusion)
            _log_failures(outcome, parent)
    return outcome


def _on_other_data(
    runs: Sequence[Planned], asked: StudyPlan, stored: _Results, by_data: Mapping[str, _Results], here: str
) -> Iterator[str]:
    """Of `runs` that are not `stored` but have results on other data than those `here`, a line for each such data.

    Those of an arm that was `asked` for in whatever precision count in each.
    """

    def identities(run: Planned) -> set[tuple[str, int, str | None]]:
        is_open = asked.arms[run.arm].train.precision == "auto"
        precisions = ("32-true", "bf16-mixed") if is_open else (run.config.train.precision,)
        return {(run.arm, run.seed, in_precision(run.config, precision).sha256()) for precision in precisions}

    for other, results in by_data.items():
        if number := sum(any(one in results and one not in stored for one in identities(run)) for run in runs):
            yield (
                f"warning: {number} finished of these runs do not count and are trained again: they have dataset "
                f"{other[:12]}, this study has {here[:12]} (another version of fnostab made it, or a file has changed)"
            )


def _warnings(plan: StudyPlan, where: LaunchConfig, store_uri: str) -> Iterator[str]:
    """What may go otherwise than the user of a study expects, a line each."""
    if where.launcher == "slurm" and sqlite_file(store_uri):
        yield _SQLITE
    if where.seeds_at_once > 1:
        for arm, config in plan.arms.items():
            if reason := trains_alone(config):
                yield f"the seeds of {arm} are trained one by one: {reason}"


def _tags(plan: StudyPlan, data_sha256: str, model_name: str | None) -> dict[str, str]:
    """Tags of the parent run."""
    tags = {"stage": "b" if plan.stage_a else "a", "dataset_sha256": data_sha256, "preset": plan.common.preset}
    tags |= {"fnostab_version": fnostab.__version__, "git_commit": git_commit()}
    tags |= {"stage_a": plan.stage_a} if plan.stage_a else {}
    return tags | ({MODEL_NAME: model_name} if model_name else {})


def _in_the_precision_of(stored: _Results, plan: StudyPlan, asked: StudyPlan) -> tuple[StudyPlan, str]:
    """`plan` in the precision that most of its runs in the store have, if it was `asked` for `auto`; and a line of it.

    So a study goes on as it began, on a machine that would begin it otherwise.
    """
    left_open = [arm for arm, config in asked.arms.items() if config.train.precision == "auto"]
    if not (left_open and stored):
        return plan, ""

    def finished(candidate: StudyPlan) -> int:
        return sum((run.arm, run.seed, run.config.sha256()) in stored for run in candidate.runs)

    now = plan.arms[left_open[0]].train.precision
    other = "32-true" if now == "bf16-mixed" else "bf16-mixed"
    changed = replace(plan, arms={**plan.arms, **{arm: in_precision(plan.arms[arm], other) for arm in left_open}})
    if finished(changed) <= finished(plan):
        return plan, ""
    return changed, f"train.precision (=auto) is {other}, as that of {finished(changed)} runs that the study has"


def _train_until_decided(looks: Looks, runs: Runs, parent: StudyFolder) -> str:
    """Train for one look after the other; returns what the study says in the end, nothing if a run has no result."""
    while True:
        found = looks.next(runs.trained, parent.run_id)
        text = looks.record(found, parent)
        if not found.runs:
            return text
        if text:
            runs.view.look(text)
        parent.add_runs(found.runs)
        runs.plan_more([runs.plan.run(arm, seed) for arm, seed in found.runs])
        runs.train(parent.run_id)
        if not runs.trained.issuperset(found.runs):
            return ""


def _log_failures(outcome: StudyOutcome, parent: StudyFolder) -> None:
    """Let the parent run say what has no result, and why."""
    if outcome.without_result:
        parent.status = "FAILED"
    parent.set_tags({"results": outcome.results})
    for run, end in outcome.without_result:
        if end.details:
            parent.log_text(end.details, f"failures/{run.arm}-seed{run.seed}.txt")


def stage_b_of(stage_a: str, seeds: str, *, fno_blocks: int = STAGE_B_BLOCKS, study: str = "auto") -> StudyPlan:
    """Plan Stage B from the winner of the study `stage_a` in the store, on the same dataset.

    Raises `ConfigError` if there is no such study, its runs cannot be compared, or every one of them failed.
    """
    open_store(must_exist=True)
    found = rank_study(stage_a)
    selection, ranking = found.selection, found.ranking
    winner = ranking.decision.winner
    if winner is None:
        raise ConfigError(f"`stage_a` (={stage_a}) must have an arm that converged: every run failed")
    run_id = next(row["best_run_id"] for row in ranking.table if row["arm"] == winner)
    config = read_config(run_id)
    first = min(run.seed for run in selection.runs if run.arm == winner)
    plan = plan_stage_b(stage_a, config.model_copy(update={"seed": first}), seeds, fno_blocks=fno_blocks, study=study)
    built = _build_datasets(plan)
    if built != selection.dataset_sha256:
        raise ConfigError(
            f"`stage_a` (={stage_a}) must have the dataset of Stage B, and has {selection.dataset_sha256} "
            f"against {built}"
        )
    return plan


def _build_datasets(plan: StudyPlan, progress: OnPatterns | None = None) -> str:
    """Build every dataset of `plan` before its runs ask for them; returns the `StoredRun.data_sha256` of those."""
    data = plan.common.data
    configs = {plan.run(next(iter(plan.arms)), seed).config.dataset for seed in range(data.seeds)}
    datasets = [build_dataset(config, progress) for config in sorted(configs, key=lambda config: config.seed)]
    try:
        for config in plan.arms.values():
            for dataset in datasets:
                dataset.check_groups(config.data.gridsize)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return common_sha256(data, datasets[0].sha256)
