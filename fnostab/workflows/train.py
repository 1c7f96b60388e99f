"""Train one arm, everything logged: the entry point `main` of `MLproject`, and `fnostab train`."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from fnostab.config import ArmConfig, namesake, with_sources
from fnostab.dataset import common_sha256
from fnostab.health import judge, measure_stability
from fnostab.health.history import History
from fnostab.io.endings import Interrupted
from fnostab.tracking.artifacts import read_run
from fnostab.tracking.errors import redacted
from fnostab.tracking.run import NOTE, RunState, find_claimed, how_to_open, open_run, resume_into, run_state
from fnostab.tracking.store import check_store, open_store
from fnostab.tracking.studies import find_results
from fnostab.training.callbacks import Interruption
from fnostab.training.checks import check_arm
from fnostab.training.denormals import denormals_are_zero
from fnostab.training.precision import set_matrix_precision, settle_precision, slower_than_single
from fnostab.training.processes import find_environment
from fnostab.training.together import Member
from fnostab.training.trainer import quieten_libraries, set_threads
from fnostab.workflows import PrintLine, build_dataset, follow
from fnostab.workflows.arm_training import ArmResult, ArmTraining, Watch
from fnostab.workflows.logbook import Logbook
from fnostab.workflows.runfolder import RunFolder
from fnostab.workflows.warm_start import warm_start


def train_arm(
    config: ArmConfig,
    report: PrintLine,
    data_progress: Callable[[int, int], None] | None = None,
    *,
    watch: Watch | None = None,
    tags: Mapping[str, str] | None = None,
    again: bool = True,
    run_name: str | None = None,
    description: str | None = None,
) -> ArmResult:
    """Train `config`, log everything to MLflow, and return where it is and what was learnt.

    `report` takes lines for people, `data_progress` (done, total) patterns while a dataset is built, `watch` an
    `EpochSummary` an epoch, and may stop the run; `tags` are set besides the run's own. An unfinished run of the same
    identity is continued where its last checkpoint stands; one that has its result, or was stopped by `watch`, is
    trained anew, or, without `again`, returned as it is. `run_name` and `description` are the MLflow run's, if given.
    Raises `ConfigError` for bad input, before anything is written; `AlreadyRunning` if another process trains the same
    identity; `Interrupted` after a stop signal, once everything recorded is stored. With several devices, this process
    starts one more for each and leads them; where torchrun or SLURM started all of them, those that do not lead train
    along and end here: `SystemExit`.
    """
    config = _checked(config, report)
    if find_environment(config).global_rank() > 0:
        follow.follow(config)
        raise SystemExit(0)
    with denormals_are_zero(), Interruption() as interruption:
        noted = {NOTE: description} if description else {}
        with _begun(config, report, data_progress, tags or {}, noted, again=again, run_name=run_name) as begun:
            return begun if isinstance(begun, ArmResult) else begun.run(interruption, watch)


class Along(NamedTuple):
    """How a run trains along with others: its place there, the signals that came, and how many runs there are."""

    member: Member
    signals: Sequence[int]
    runs: int


def train_along(
    config: ArmConfig, report: PrintLine, along: Along, *, watch: Watch | None = None, tags: Mapping[str, str]
) -> None:
    """Train `config` in step with others as far as that goes; for a thread of its own.

    Everything but the training is left to `train_arm` with the same arguments, which goes on from the last checkpoint;
    a run that has its result is left alone. Raises what `train_arm` does.
    """
    config = _checked(config, report)
    with denormals_are_zero(), Interruption(caught=along.signals) as interruption:
        interruption.check()
        with _begun(config, report, None, tags, {"seeds_at_once": str(along.runs)}, again=False) as begun:
            if not isinstance(begun, ArmResult):
                begun.train(interruption, watch, along.member)


def _checked(config: ArmConfig, report: PrintLine) -> ArmConfig:
    """`config` with the hashes of its source files, if it can be trained here; raises `ConfigError` if not."""
    quieten_libraries()
    config = with_sources(settle_precision({config.arm: config})[config.arm])
    check_arm(config)
    for line in (namesake(config.model.arch), slower_than_single(config)):
        if line:
            report(line)
    return config


@contextmanager
def _begun(
    config: ArmConfig,
    report: PrintLine,
    data_progress: Callable[[int, int], None] | None,
    tags: Mapping[str, str],
    further_tags: Mapping[str, str],
    *,
    again: bool,
    run_name: str | None = None,
) -> Iterator["ArmTraining | ArmResult"]:
    """A training with its folder and its MLflow run, both held inside the block; or its result, if it has one.

    At the end of the block the run ends as its tracker says; if it is finished, nothing is left of the folder, which
    remembers `tags` for those who go on with the run.
    """
    store_uri = check_store(for_new_run=True)
    start = warm_start(config)
    config = start.config
    dataset = build_dataset(config.dataset, data_progress)
    config = set_threads(config)
    set_matrix_precision(config)
    open_store()
    with RunFolder(config, dataset.sha256, redacted(store_uri)) as folder:
        run_id, state = _earlier_run(config, dataset.sha256, folder, again)
        if run_id and state == "finished":
            yield _finished_result(run_id, report)
        else:
            opened = open_run(config, folder.path, first_run_id=run_id, claim=folder.claim, run_name=run_name)
            with opened as tracker:
                tags = {**tags, **start.tags}
                folder.begin(tracker.run_id, tags)
                tracker.set_tags({**tags, **further_tags})
                logbook = Logbook(config, dataset, tracker, folder.path, report)
                try:
                    yield ArmTraining(config, dataset, tracker, logbook, folder.path, report, start.weights)
                except Interrupted as interrupt:
                    logbook.log_interrupted(interrupt)
                    raise
            if tracker.status != "FINISHED":
                return
        folder.finish()  # everything is in the store, and the run is closed


def _earlier_run(config: ArmConfig, dataset_sha256: str, folder: RunFolder, again: bool) -> tuple[str | None, RunState]:
    """The run of this identity and how it stands: it is to be continued, or finished, or gone and a new one is made."""
    run_id = folder.first_run_id or find_claimed(folder.claim)
    if run_id is None and not again:
        data_sha256 = common_sha256(config.data, dataset_sha256)
        results = find_results(config.study, data_sha256, config_sha256=config.sha256())
        found = results.get((config.arm, config.seed, config.sha256()))
        run_id = found.run_id if found else None
    state = run_state(run_id) if run_id else "gone"
    if run_id and state in ("gone", "deleted"):
        folder.start_over()
        run_id = None
    return run_id, state


def _finished_result(run_id: str, report: PrintLine) -> ArmResult:
    """The result of a run that another process finished; it may have been killed after its last word to the store."""
    resume_into(run_id)
    found, stored = read_run(run_id)
    report(f"MLflow run {run_id} was finished already")
    history = History()
    history.load(stored or {})
    where = how_to_open(run_id, found.experiment_id)
    series = history.to_mapping()
    return ArmResult(run_id, where, judge(series), measure_stability(series), dict(found.metrics), history)
