"""Which runs of a study are compared: the newest finished one per arm and seed, and only what may be compared."""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from fnostab.config import CONFIG_KEYS, PHYSICS_KEYS, REMOVED_KEYS, ConfigError, auto_max_channels, is_option
from fnostab.io.foreign import portable
from fnostab.study.stored_run import StoredRun, has_identity

K = TypeVar("K", bound=Hashable)

#: The size of a network, which the arms of a study have in common unless it varies them.
_SIZES: Final = frozenset(
    f"model.{name}" for name in ("width", "fno_blocks", "modes", "min_resolution", "max_channels")
)
#: What makes an arm: architecture, block, clipping, whether it is supervised. What else a study varies is in the tag
#: `varied` of its runs.
OWN_KEYS: Final = (
    frozenset(key for key in CONFIG_KEYS if key.startswith(("model.", "clip."))) - _SIZES
    | REMOVED_KEYS
    | {"train.mode"}
)


def is_own(key: str) -> bool:
    """Whether the dotted `key` is an arm's own."""
    return key in OWN_KEYS or is_option(key)


#: Keys that may name a user's file, whose folder does not matter.
_FOREIGN: Final = frozenset({"model.arch", "clip.algo"})
#: Names, and what changes no result by more than the last bits or not at all.
_IRRELEVANT: Final = frozenset(
    {
        *("seed", "preset", "study", "arm"),
        *("train.accelerator", "train.threads", "train.devices", "train.nodes", "train.strategy"),
        *("train.checkpoint_every_s", "train.layer_norms_every_steps", "train.picture_every_epochs"),
        *("train.watch_every_steps", "train.artifacts", "train.cuda_graph"),
        "data.path",  # the content hash says it better
    }
)


@dataclass(frozen=True)
class Selection:
    """The runs that are compared, by arm and seed; `notes` says what is missing besides them.

    `dataset_sha256` is the `StoredRun.data_sha256` of all.
    """

    runs: Sequence[StoredRun]
    dataset_sha256: str
    notes: Sequence[str]


def select_runs(
    study: str,
    found: Iterable[StoredRun],
    *,
    dataset: str | None = None,
    parent: str | None = None,
    planned: Iterable[tuple[str, int]] = (),
) -> Selection:
    """Choose among the runs `found` of `study` those that are compared.

    `dataset` keeps the runs whose content hash begins so, `parent` those of one parent run. `planned` are the arms and
    seeds that a result is expected of. Raises `ConfigError` where nothing is left, where runs have different datasets,
    and where their configs differ in more than the arms may, with the difference.
    """
    trained = [run for run in found if has_identity(run.tags)]
    if not trained:
        raise ConfigError(f"`study` (={study}) must be the tag of runs in the tracking store: there is none")
    runs = [run for run in trained if parent is None or run.tags.get("mlflow.parentRunId") == parent]
    if not runs:
        raise ConfigError(f"`parent` (={parent}) must be the parent of runs of study {study}: it is of none")
    if dataset is not None:
        known = sorted({run.data_sha256 for run in runs})
        runs = [run for run in runs if run.data_sha256.startswith(dataset)]
        if len({run.data_sha256 for run in runs}) != 1:
            raise ConfigError(f"`dataset` (={dataset}) must be the beginning of one of {', '.join(known)}")
    newest = newest_results(runs, lambda run: (run.arm, run.seed))
    if not newest:
        states = ", ".join(sorted({_state(run) for run in runs}))
        raise ConfigError(f"`study` (={study}) must have a finished run: its {len(runs)} are {states}")
    chosen = [newest[key] for key in sorted(newest)]
    _check_datasets(study, chosen)
    _check_configs(study, chosen)
    notes = _dataset_notes(chosen) + _notes(runs, newest, planned)
    return Selection(chosen, chosen[0].data_sha256, notes)


def newest_results(runs: Iterable[StoredRun], identity: Callable[[StoredRun], K]) -> dict[K, StoredRun]:
    """Of the runs that have a result the newest of each `identity`: the one that is compared, and not trained again."""
    finished = [run for run in runs if run.is_result]
    return {identity(run): run for run in sorted(finished, key=lambda run: (run.ended_ms, run.run_id))}


def _check_datasets(study: str, runs: Sequence[StoredRun]) -> None:
    by_hash: dict[str, list[StoredRun]] = defaultdict(list)
    for run in runs:
        by_hash[run.data_sha256].append(run)
    of_seed: dict[int, StoredRun] = {}
    for run in runs:
        other = of_seed.setdefault(run.seed, run)
        if len(by_hash) == 1 and other.dataset_sha256 != run.dataset_sha256:
            raise ConfigError(
                f"`study` (={study}) must have one dataset for each seed, and has two for seed {run.seed}: "
                f"{other.dataset_sha256} of {_who([other])}; {run.dataset_sha256} of {_who([run])}"
            )
    if len(by_hash) > 1:
        who = "; ".join(f"{sha256} of {_who(of_hash)}" for sha256, of_hash in sorted(by_hash.items()))
        raise ConfigError(
            f"`study` (={study}) must have one dataset, and has {len(by_hash)}: {who}; "
            "choose with --dataset or --parent"
        )


def _dataset_notes(runs: Sequence[StoredRun]) -> list[str]:
    """Say that the runs' datasets differ, if they do."""
    number = len({run.dataset_sha256 for run in runs})
    if number == 1:
        return []
    return [f"The seeds share {number} datasets, with objects of their own: intervals and tests include their chance."]


def _check_configs(study: str, runs: Sequence[StoredRun]) -> None:
    """Runs of an arm differ in the seed alone; arms in their own keys and in those that the study varies."""
    varied = {key for run in runs for key in run.tags.get("varied", "").split(",") if key}
    runs = [run for run in runs if not run.is_foreign]
    options = {key for run in runs for key in run.params if is_option(key)}
    for key in sorted((CONFIG_KEYS.keys() | REMOVED_KEYS | options) - _IRRELEVANT):
        without = key in PHYSICS_KEYS
        # An earlier version may not have known the key, and a supervised run makes no use of some.
        with_key = [run for run in runs if key in run.params.keys() | options and not (without and run.is_supervised)]
        by_value: dict[object, list[StoredRun]] = defaultdict(list)
        for run in with_key:
            by_value[_comparable(run, key)].append(run)
        if len(by_value) < 2:
            continue
        by_arm: dict[str, set[object]] = defaultdict(set)
        for value, of_value in by_value.items():
            for run in of_value:
                by_arm[run.arm].add(value)
        for arm in sorted(by_arm):
            if len(by_arm[arm]) > 1:
                raise ConfigError(_difference(study, key, by_value, f"be one in all runs of arm {arm}"))
        if not is_own(key) and key not in varied:
            raise ConfigError(_difference(study, key, by_value, "be one in all arms"))


def varied_settings(runs: Iterable[StoredRun]) -> dict[str, dict[str, str]]:
    """By arm, the values of the keys in which the arms differ; nothing if a study varies none but the arms' own."""
    ours = [run for run in runs if not run.is_foreign]
    of_arm = {run.arm: run.params for run in sorted(ours, key=lambda run: run.seed, reverse=True)}
    varied = {key for run in ours for key in run.tags.get("varied", "").split(",") if key}
    keys = sorted(CONFIG_KEYS.keys() | {key for params in of_arm.values() for key in params if is_option(key)})
    values = {key: {params.get(key, "") for params in of_arm.values()} for key in keys if key not in _IRRELEVANT}
    differing = [key for key, of_key in values.items() if len(of_key) > 1]
    if len(differing) < 2 or not varied & set(differing):
        return {}
    return {arm: {key: params.get(key, "") or "none" for key in differing} for arm, params in of_arm.items()}


def _difference(study: str, key: str, by_value: Mapping[object, Sequence[StoredRun]], rule: str) -> str:
    values = "; ".join(f"{value} of {_who(runs)}" for value, runs in by_value.items())
    if key.endswith(".source_sha256"):
        rule += ", as a source file that changes makes another arm"
    return (
        f"`{key}` of study {study} must {rule}, and is {values}; choose with --parent, or give the runs another study"
    )


def _who(runs: Sequence[StoredRun]) -> str:
    """`control (seeds 1, 2), agc (seed 1)`."""
    seeds: dict[str, list[str]] = defaultdict(list)
    for run in runs:
        seeds[run.arm].append(str(run.seed))
    return ", ".join(f"{arm} (seed{'s' if len(of) > 1 else ''} {', '.join(of)})" for arm, of in seeds.items())


def _comparable(run: StoredRun, key: str) -> object:
    """A parameter's value: numbers are equal however they are spelt, and each architecture has its own usual limit."""
    if key not in run.params:  # an option
        return "left out"
    text = run.params[key]
    if key.endswith(".source_sha256"):
        return text or "none"
    try:
        value = float(text)
    except ValueError:
        return portable(text) if key in _FOREIGN else text
    # Before `train.loss_scale` was known, the limit was the same for all architectures.
    arch = run.params.get("model.arch", "") if "train.loss_scale" in run.params else ""
    usual = key == "model.max_channels" and auto_max_channels(arch) == value
    return "auto" if usual else value


def _notes(
    runs: Sequence[StoredRun], newest: Mapping[tuple[str, int], StoredRun], planned: Iterable[tuple[str, int]]
) -> list[str]:
    """What the code of some runs was, and what has no result: runs that did not end, what was planned and not begun."""
    unfinished = {(run.arm, run.seed): run for run in sorted(runs, key=lambda run: run.ended_ms) if not run.is_result}
    missing = {key: run for key, run in unfinished.items() if key not in newest}
    notes = [f"{arm}, seed {seed}: run {run.run_id} is {_state(run)}." for (arm, seed), run in sorted(missing.items())]
    never = sorted(set(planned) - newest.keys() - missing.keys())
    notes += [f"{arm}, seed {seed}: planned, and not begun." for arm, seed in never]
    changed = [run for run in newest.values() if run.tags.get("git_commit", "").endswith("-dirty")]
    return notes + ([f"Trained with code that was not committed: {_who(changed)}."] if changed else [])


def _state(run: StoredRun) -> str:
    """`interrupted`, or what MLflow says, RUNNING, FAILED or KILLED, or what a run that ended lacks."""
    if run.status == "FINISHED":
        return "FINISHED without the tag verdict"
    return "interrupted" if run.tags.get("verdict") == "interrupted" else run.status
