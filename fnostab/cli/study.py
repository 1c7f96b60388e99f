"""`fnostab study`: Stage A, Stage B, or any table of arms, over seeds."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

from fnostab.cli.common import (
    add_command,
    add_config_arguments,
    add_guest_arguments,
    add_model_name_argument,
    add_notify_argument,
    given_values,
    guest_values,
    model_name_value,
    notifier,
    pattern_bar,
    say,
    unless_open,
    warn,
    whole_number,
)
from fnostab.config import ConfigError, check_name, is_left_open
from fnostab.io.garbage import lasting_imports
from fnostab.io.untrusted import shown
from fnostab.launch import LaunchConfig, Launcher, SlurmConfig, slurm_config
from fnostab.launch.slurm_config import PREFIX, SBATCH_PREFIX
from fnostab.study.plan import FIRST_LOOK, STAGE_B_BLOCKS, StudyPlan, plan_file, plan_stage_a

if TYPE_CHECKING:
    from fnostab.study.sequential import Until
    from fnostab.workflows.study import StudyOutcome

_LAUNCHERS = get_args(Launcher)
#: What Stage B takes from Stage A, but for these.
_STAGE_B_KEYS = ("study", "preset", "fno_blocks")
#: An arm's own keys are for the table of arms.
_ARM_KEYS = frozenset({"arch", "clip_algo", "clip_val", "arm"})


def add(commands: Any) -> None:
    """Add the command."""
    study = add_command(
        commands, "study", "train every arm over several seeds; only what is missing is trained", _study
    )
    study.add_argument("--stage", choices=("a", "b"), default="a", help="b: train Stage A's winner in a deeper network")
    study.add_argument("--seeds", default="auto", help="number of seeds, or the seeds themselves: 1,2,5")
    study.add_argument("--until", type=unless_open, metavar="decided", help="add seeds until the arms are told apart")
    study.add_argument("--alpha", type=unless_open, help="error rate of all that is then decided (default 0.05)")
    study.add_argument("--max_seeds", type=unless_open, help="seeds an arm that are never exceeded (default 30)")
    study.add_argument("--arms", type=unless_open, metavar="FILE", help="YAML file of arms, instead of Stage A's")
    study.add_argument("--stage_a", type=unless_open, metavar="STUDY", help="study whose winner Stage B trains")
    study.add_argument("--launcher", type=unless_open, help=f"{', '.join(_LAUNCHERS)} (default processes)")
    study.add_argument("--workers", type=unless_open, help="runs at a time (default: as cores and memory allow)")
    study.add_argument("--seeds_at_once", type=unless_open, help="seeds of an arm that are trained as one (default 1)")
    study.add_argument("--gpus_per_run", type=unless_open, help="share of a GPU that a run takes (launcher ray)")
    study.add_argument("--ray_address", type=unless_open, help="a Ray cluster; default: RAY_ADDRESS, or this machine")
    slurm = study.add_argument_group("jobs of launcher slurm")
    for name, field in SlurmConfig.model_fields.items():
        option, words = (
            (f"{PREFIX}{name}", field.description) if name != "sbatch" else (f"{SBATCH_PREFIX}NAME", field.description)
        )
        slurm.add_argument(f"--{option}", dest=f"{PREFIX}{name}", type=unless_open, metavar="VALUE", help=words)
    study.add_argument("--plan", action="store_true", help="print the runs of the study, and stop")
    add_guest_arguments(study, "the parent run")
    add_notify_argument(study)
    add_model_name_argument(study)
    add_config_arguments(study, without=_ARM_KEYS)


def _study(arguments: argparse.Namespace) -> int:
    where, until = _where(arguments), _until(arguments)
    guest, model_name, told = guest_values(arguments), model_name_value(arguments), notifier(arguments)
    plan = _plan(arguments, min(FIRST_LOOK, until.max_seeds or FIRST_LOOK) if until else None)
    if arguments.plan:
        return _say_plan(plan, until)
    with lasting_imports():
        from fnostab.cli.table import study_view
        from fnostab.workflows.notices import notice_of_study
        from fnostab.workflows.study import run_study

    with pattern_bar() as progress, study_view(plan.study, say) as view:
        outcome = run_study(plan, where, view, progress, until=until, model_name=model_name, **guest)
    say(_summary(outcome))
    if told:
        told.send(notice_of_study(outcome), warn)
    return 1 if outcome.without_result else 0


def _say_plan(plan: StudyPlan, until: "Until | None") -> int:
    if until:
        from fnostab.study.sequential import schedule_of

        looks = schedule_of(until, plan).design.looks
        say(f"looks with {', '.join(map(str, looks))} seeds an arm; the runs of the first one:")
    for run in plan.runs:
        say(f"{run.name}: config {run.config.sha256()[:12]}")
    return 0


def _until(arguments: argparse.Namespace) -> "Until | None":
    alpha, most = arguments.alpha, arguments.max_seeds
    if arguments.until is None:
        if alpha or most:
            name, value = ("alpha", alpha) if alpha else ("max_seeds", most)
            raise ConfigError(f"`{name}` (={shown(value)}) is for a study with `until`")
        return None
    if arguments.until != "decided":
        raise ConfigError(f"`until` (={shown(arguments.until)}) must be decided")
    from fnostab.study.sequential import Until

    try:
        rate = float(alpha) if alpha else None
    except ValueError:
        raise ConfigError(f"`alpha` (={shown(alpha)}) must be a number") from None
    return Until(rate, whole_number("max_seeds", most, 1) if most else None)


def _where(arguments: argparse.Namespace) -> LaunchConfig:
    launcher = arguments.launcher or "processes"
    if launcher not in _LAUNCHERS:
        raise ConfigError(f"`launcher` (={launcher}) must be one of {', '.join(_LAUNCHERS)}")
    workers = whole_number("workers", arguments.workers, 1) if arguments.workers else None
    gpus_per_run = _share(arguments.gpus_per_run) if arguments.gpus_per_run else 0.0
    address = arguments.ray_address
    if launcher != "ray" and (gpus_per_run or address):
        name, value = ("gpus_per_run", gpus_per_run) if gpus_per_run else ("ray_address", address)
        raise ConfigError(f"`{name}` (={value}) is for launcher ray")
    slurm = _slurm_values(arguments)
    if launcher != "slurm" and slurm:
        name, value = next(iter(slurm.items()))
        raise ConfigError(f"`{PREFIX}{name}` (={shown(value)}) is for launcher slurm")
    at_once = whole_number("seeds_at_once", arguments.seeds_at_once, 1) if arguments.seeds_at_once else 1
    jobs = slurm_config(slurm)
    return LaunchConfig(cast(Launcher, launcher), workers, at_once, gpus_per_run, address, jobs)


def _slurm_values(arguments: argparse.Namespace) -> dict[str, Any]:
    """What was given of `SlurmConfig`; the flags of sbatch, which `take_options` found, are no keys of a run."""
    given = {name: vars(arguments)[f"{PREFIX}{name}"] for name in SlurmConfig.model_fields}
    values = {name: value for name, value in given.items() if value is not None}
    prefix = f"key:{SBATCH_PREFIX}"
    found = [name for name in vars(arguments) if name.startswith(prefix)]
    flags = {name.removeprefix(prefix): vars(arguments).pop(name) for name in found}
    return values | ({"sbatch": flags} if flags else {})


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not (0 <= share <= 1 or share in range(2, 1025)):
        raise ConfigError(f"`gpus_per_run` (={text}) must lie between 0 and 1, or be a whole number")
    return share


def _plan(arguments: argparse.Namespace, seeds: int | None) -> StudyPlan:
    """The plan; `seeds` is how many there are if nothing says so, None: as the preset has it."""
    given, base = given_values(arguments)
    if arguments.stage == "a":
        if arguments.stage_a:
            raise ConfigError(f"`stage_a` (={arguments.stage_a}) is for Stage B")
        if not arguments.arms:
            return plan_stage_a(given, base, arguments.seeds, seeds)
        if base:
            raise ConfigError(f"`config` (={arguments.config}) must be given within the table of arms")
        return plan_file(Path(arguments.arms), given, arguments.seeds, seeds)
    return _stage_b(arguments, given, base)


def _stage_b(arguments: argparse.Namespace, given: dict[str, Any], base: dict[str, Any]) -> StudyPlan:
    if arguments.arms:
        raise ConfigError(f"`arms` (={arguments.arms}) is for Stage A: Stage B has the winner alone")
    values = {**base, **given}
    study = str(values.get("study", "auto"))
    check_name("study", study)
    for key, value in values.items():
        if key not in _STAGE_B_KEYS and not is_left_open(value):
            raise ConfigError(f"`{key}` (={value}) must be that of Stage A: Stage B changes the depth alone")
    stage_a = arguments.stage_a
    if stage_a is None:
        preset = values.get("preset", "stage_a")
        stage_a = preset if preset in ("stage_a", "scan") else f"stage_a_{preset}"
    check_name("stage_a", stage_a)  # the study is named after it
    fno_blocks = whole_number("fno_blocks", str(values.get("fno_blocks", STAGE_B_BLOCKS)), 1)
    with lasting_imports():
        from fnostab.workflows.study import stage_b_of

    return stage_b_of(stage_a, arguments.seeds, fno_blocks=fno_blocks, study=study)


def _summary(outcome: "StudyOutcome") -> str:
    """What ended how, and what to do next."""
    lines = [f"{run.name}: no result: {end.text}" for run, end in outcome.without_result]
    lines.append(f"study {outcome.plan.study}: {outcome.results}")
    if outcome.conclusion:
        lines.append(f"study {outcome.plan.study}: {outcome.conclusion}")
    if outcome.without_result:
        lines.append("the same command trains what is missing")
    lines.append(f"to rank the arms: fnostab compare --study {outcome.plan.study}")
    return "\n".join([*lines, f"run {outcome.run_id}; to see it: {outcome.how_to_open}"])
