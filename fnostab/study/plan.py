"""Studies: which arms over which seeds, and the config of every run. Stage A, Stage B, and any table of arms.

A study has one dataset. Its runs differ in the arm's own keys, in what the study varies, and in the seed.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Final

import fnostab.config
from fnostab.config import (
    PHYSICS_KEYS,
    ArmConfig,
    ConfigError,
    dotted_keys,
    is_left_open,
    read_config_file,
    resolve_config,
    standard_arms,
    with_sources,
)
from fnostab.io.untrusted import shown
from fnostab.study.selection import is_own

#: Seeds of a study if nobody says how many, by preset.
SEEDS: Final[Mapping[str, int]] = {"seed_study": 1, "stage_a": 5, "quick": 3, "scan": 3, "smoke": 1}
#: Seeds of the first look of a study until decided, if nobody says how many.
FIRST_LOOK: Final = 5
#: Depth of Stage B if nobody says.
STAGE_B_BLOCKS: Final = 8
#: Tables of arms that come with the package.
SHIPPED_ARMS: Final = Path(fnostab.config.__file__).parent / "arms"
#: A study with more runs is a mistake in a grid.
MOST_RUNS: Final = 10_000
#: One thread a run, unless the config says otherwise: results then do not depend on how many runs go on at once.
THREADS: Final = 1

#: What one arm cannot have for itself: the data are common, the seed is the study's, and names come from the table.
_COMMON: Final = ("data.", "seed", "study", "arm", "preset")
#: Of the data's keys the one that leaves the patterns as they are: how many of them a network takes at once.
_OF_THE_NETWORK: Final = "data.gridsize"


@dataclass(frozen=True)
class Planned:
    """One run of a study."""

    arm: str
    seed: int
    config: ArmConfig

    @property
    def name(self) -> str:
        """As people call it."""
        return f"{self.arm}, seed {self.seed}"


@dataclass(frozen=True)
class StudyPlan:
    """The arms and seeds of a study; `varied` are the dotted keys, besides an arm's own, in which arms may differ.

    `stage_a` is the study whose winner a Stage B takes deeper, else None.
    """

    study: str
    arms: Mapping[str, ArmConfig]
    seeds: Sequence[int]
    varied: Sequence[str] = ()
    stage_a: str | None = None

    def __post_init__(self) -> None:
        _check_number(len(self.arms) * len(self.seeds))

    @property
    def runs(self) -> list[Planned]:
        """Every run, a seed after the other, so that a study that is cut short has compared its arms fairly."""
        return [self.run(arm, seed) for seed in self.seeds for arm in self.arms]

    def run(self, arm: str, seed: int) -> Planned:
        """The run of an arm with any seed."""
        return Planned(arm, seed, self.arms[arm].model_copy(update={"seed": seed}))

    @property
    def common(self) -> ArmConfig:
        """A config whose data are those of all arms, and whose loss is that of all that are not supervised."""
        physics = (config for config in self.arms.values() if config.train.mode == "physics")
        return next(physics, next(iter(self.arms.values())))

    def identity(self, dataset_sha256: str) -> str:
        """Hash of study, dataset and all that the arms share: more seeds and more arms belong to the same study.

        What `ArmConfig.sha256` leaves out for runs from before is left out, and so is how often runs are watched.
        """
        own = {"seed", "study", "arm", "data.path", "train.watch_every_steps", *self.varied, *self.common.left_out}
        shared = {key: value for key, value in self.common.flat().items() if key not in own and not is_own(key)}
        parts = [self.study, dataset_sha256, shared]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def to_mapping(self) -> dict[str, Any]:
        """The plan as JSON takes it."""
        return {
            "study": self.study,
            "runs": [[run.arm, run.seed] for run in self.runs],
            "varied": list(self.varied),
            "stage_a": self.stage_a,
            "configs": {arm: config.model_dump(mode="json", exclude={"seed"}) for arm, config in self.arms.items()},
        }


def read_seeds(text: str, first: int, default: int) -> tuple[int, ...]:
    """The seeds that `text` means: a number of them from `first` on, or the seeds themselves with commas between.

    `auto` or nothing means `default` of them. `5,` is the one seed 5. Raises `ConfigError`.
    """
    text = text.strip()
    try:
        if "," in text:
            seeds = tuple(int(part) for part in text.split(",") if part.strip())
        else:
            count = default if is_left_open(text) else int(text)
            seeds = tuple(range(first, first + min(count, MOST_RUNS + 1)))
    except ValueError:
        seeds = ()
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0 or max(seeds) >= 2**32 or len(seeds) > MOST_RUNS:
        raise ConfigError(
            f"`seeds` (={shown(text)}) must be how many there are (1 to {MOST_RUNS}),"
            " or different seeds with commas between"
        )
    return seeds


def plan_stage_a(
    overrides: Mapping[str, Any], base: Mapping[str, Any], seeds: str = "auto", default: int | None = None
) -> StudyPlan:
    """Stage A: control, stable and agc; `overrides` and `base` as `resolve_config` takes them, for all arms alike.

    `default` is the number of seeds if `seeds` leaves it open; None: that of the preset.
    """
    preset = str(dotted_keys(overrides).get("preset", dotted_keys(base).get("preset", "stage_a")))
    arms = [{"name": name, **keys} for name, keys in standard_arms(preset).items()]
    return plan_table(arms, {}, overrides, base, seeds, default)


def plan_file(path: Path, overrides: Mapping[str, Any], seeds: str = "auto", default: int | None = None) -> StudyPlan:
    """A study by a YAML file: `arms`, and if wanted `grid`, `seeds`, and keys of the config for all arms.

    `arms` lists mappings with a `name` and the arm's keys, flat or dotted; `grid` gives each of its keys a list of
    values, and every arm is trained with every combination, called `<arm>-<key><value>`. The study is called like the
    file unless it says `study`. Where there is no file of that name, one of `SHIPPED_ARMS` is taken. Raises
    `ConfigError`.
    """
    path = _existing(path)
    values = {"study": path.stem, **read_config_file(path, "arms")}
    arms, in_file = values.pop("arms", None), values.pop("seeds", "auto")
    grid = {key.removeprefix("grid."): values.pop(key) for key in list(values) if key.startswith("grid.")}
    if not isinstance(arms, list) or not arms or not all(isinstance(arm, Mapping) for arm in arms):
        raise ConfigError(f"`arms` (={path}) must hold a list `arms`, each with a name and keys")
    for key, axis in grid.items():
        if not isinstance(axis, list) or not axis:
            raise ConfigError(f"`grid.{key}` (={axis}) must be a list of values, in {path}")
    if isinstance(in_file, list):
        in_file = ",".join(map(str, in_file)) + ","
    return plan_table(arms, grid, overrides, values, str(in_file) if is_left_open(seeds) else seeds, default)


def _existing(path: Path) -> Path:
    """`path`, or the table of that name that comes with the package."""
    shipped = {table.name: table for table in sorted(SHIPPED_ARMS.glob("*.yaml"))}
    if not path.exists() and path.name == str(path):
        if path.name in shipped:
            return shipped[path.name]
        raise ConfigError(f"`arms` (={path}) must be a readable file or one that is shipped: {', '.join(shipped)}")
    return path


def plan_table(
    arms: Sequence[Mapping[str, Any]],
    grid: Mapping[str, Sequence[Any]],
    overrides: Mapping[str, Any],
    base: Mapping[str, Any],
    seeds: str = "auto",
    default: int | None = None,
) -> StudyPlan:
    """A study of `arms`, each with a `name` and its keys, times `grid`; see `plan_file`."""
    given = {**base, **overrides}
    for key in ("arch", "clip_algo", "clip_val", "model.arch", "clip.algo", "clip.val", "train.mode", "arm"):
        if not is_left_open(given.get(key, "auto")):
            raise ConfigError(f"`{key}` (={given[key]}) belongs to the arms of a study: give a table of arms with it")
    _check_number(len(arms) * math.prod(map(len, grid.values())))
    table: dict[str, dict[str, Any]] = {}
    for name, keys in _combined(arms, grid):
        if name in table:
            raise ConfigError(f"`arms` (={name}) must have each name once")
        table[name] = keys
    varied = sorted({key for keys in table.values() for key in keys if not is_own(key)})
    overrides, base = dotted_keys(overrides), dotted_keys(base)
    for key in overrides.keys() & set(varied):
        raise ConfigError(f"`{key}` (={overrides[key]}) is what the arms of this study vary: change the table")
    configs = {name: _settled(_resolved(name, keys, overrides, base)) for name, keys in table.items()}
    common = next(iter(configs.values()))
    numbers = read_seeds(seeds, common.seed, default or SEEDS[common.preset])
    return StudyPlan(common.study, configs, numbers, varied)


def plan_stage_b(
    stage_a: str, winner: ArmConfig, seeds: str = "auto", *, fno_blocks: int = STAGE_B_BLOCKS, study: str = "auto"
) -> StudyPlan:
    """Stage B: Stage A's winner with `fno_blocks` blocks, all else equal."""
    if fno_blocks <= winner.model.fno_blocks:
        raise ConfigError(
            f"`fno_blocks` (={fno_blocks}) must be > {winner.model.fno_blocks}, the depth of study {stage_a}"
        )
    name = stage_b_name(stage_a) if is_left_open(study) else study
    if name == stage_a:
        raise ConfigError(f"`study` (={name}) must differ from that of Stage A")
    model = winner.model.model_copy(update={"fno_blocks": fno_blocks})
    config = winner.model_copy(update={"model": model, "study": name})
    numbers = read_seeds(seeds, winner.seed, SEEDS[winner.preset])
    return StudyPlan(name, {winner.arm: _settled(config)}, numbers, stage_a=stage_a)


def stage_b_name(stage_a: str) -> str:
    """`stage_b_quick` for `stage_a_quick`."""
    return f"stage_b{stage_a.removeprefix('stage_a')}" if stage_a.startswith("stage_a") else f"{stage_a}_stage_b"


def _check_number(runs: int) -> None:
    if runs > MOST_RUNS:
        raise ConfigError(f"`seeds` and `grid` (={runs} runs) must make at most {MOST_RUNS} runs")


def _combined(
    arms: Sequence[Mapping[str, Any]], grid: Mapping[str, Sequence[Any]]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and dotted keys of every arm in every combination of the grid."""
    axes = [[(key, value) for value in values] for key, values in grid.items()]
    for arm in arms:
        name = arm.get("name")
        if not isinstance(name, str) or is_left_open(name):
            raise ConfigError(f"`name` (={name}) of an arm must be a name")
        keys = {key: value for key, value in arm.items() if key != "name"}
        for combination in product(*axes):
            suffix = "".join(f"-{key.rpartition('.')[2]}{value}" for key, value in combination)
            yield name + suffix, _own_keys(name, {**keys, **dict(combination)})


def _own_keys(name: str, keys: Mapping[str, Any]) -> dict[str, Any]:
    """Return an arm's keys, dotted; refuses those that one arm cannot have for itself."""
    own = dotted_keys(keys)
    for key, value in own.items():
        if key.startswith(_COMMON) and key != _OF_THE_NETWORK:
            raise ConfigError(
                f"`{key}` (={value}) of arm {name} must be the same for all arms: give it outside of them"
            )
    return own


def _resolved(name: str, keys: Mapping[str, Any], overrides: Mapping[str, Any], base: Mapping[str, Any]) -> ArmConfig:
    """The config of the arm `name` with its own `keys`, over what is given for all arms."""
    if keys.get("train.mode") == "supervised":
        overrides, base = ({key: of[key] for key in of if key not in PHYSICS_KEYS} for of in (overrides, base))
    return resolve_config({**overrides, **keys, "arm": name}, base)


def _settled(config: ArmConfig) -> ArmConfig:
    """`config` with its number of threads, and with paths and source files that are the same for every run."""
    config = with_sources(config)
    train = config.train.model_copy(update={"threads": config.train.threads or THREADS})
    path = str(Path(config.data.path).resolve()) if config.data.path else ""
    data = config.data.model_copy(update={"path": path})
    return config.model_copy(update={"train": train, "data": data})
