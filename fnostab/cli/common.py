"""What every command shares: arguments, the config they make, and how things are said."""

import argparse
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from fnostab.config import (
    CONFIG_KEYS,
    FLAT_KEYS,
    FREE_KEYS,
    PRESETS,
    ArmConfig,
    ConfigError,
    ReadingConfig,
    check_name,
    is_left_open,
    is_option,
    read_config_file,
    resolve_config,
)
from fnostab.io.garbage import lasting_imports
from fnostab.io.untrusted import printable, shown
from fnostab.launch.slurm_config import SBATCH_PREFIX

if TYPE_CHECKING:
    from fnostab.workflows.notify import Notifier


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, like all others."""

    def error(self, message: str) -> NoReturn:
        """Raise `ConfigError`."""
        raise ConfigError(message)


def add_command(commands: Any, name: str, text: str, run: Callable[[argparse.Namespace], int]) -> Parser:
    """Add the command `name`, which `run` carries out."""
    parser: Parser = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
    parser.set_defaults(run=run)
    return parser


def add_group(commands: Any, name: str, text: str) -> Any:
    """Add a command that has commands of its own; returns what they are added to."""
    parser = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
    return parser.add_subparsers(title="actions", metavar="ACTION", required=True)


def add_config_arguments(parser: argparse.ArgumentParser, without: frozenset[str] = frozenset()) -> None:
    """Every flat and dotted key as `--key VALUE`; keys that are not there are refused with a suggestion."""
    parser.usage = "%(prog)s [OPTION ...] [--KEY VALUE ...]"
    parser.add_argument("--config", metavar="FILE", help="YAML file of nested or dotted keys; options override it")
    short, other = parser.add_argument_group("parameters"), parser.add_argument_group("any other key")
    texts = {**CONFIG_KEYS, **{key: CONFIG_KEYS[dotted] for key, dotted in FLAT_KEYS.items()}}
    texts["preset"] = f"one of {', '.join(PRESETS)}"
    for key in dict.fromkeys([*FLAT_KEYS, *CONFIG_KEYS]):
        if key in without:
            continue
        group, kind = (short, unless_open) if key in FLAT_KEYS else (other, str)
        option = f"{key}.NAME" if key in FREE_KEYS else key  # in the help alone: `take_options` comes first
        group.add_argument(f"--{option}", dest=f"key:{key}", type=kind, metavar="VALUE", help=texts[key])


def take_options(argv: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Take the keys that users name themselves, `--model.options.depth 3`, out of `argv`; returns the rest, and them.

    A parser cannot know such keys. Raises `ConfigError` for one without a value.
    """
    left: list[str] = []
    taken: dict[str, str] = {}
    arguments = iter(argv)
    for argument in arguments:
        name, equals, value = argument.removeprefix("--").partition("=")
        if not argument.startswith("--") or not (is_option(name) or name.startswith(SBATCH_PREFIX)):
            left.append(argument)
            continue
        taken[name] = value if equals else next(arguments, "--")
        if not equals and taken[name].startswith("--"):
            raise ConfigError(f"argument --{name}: expected one argument")
    return left, taken


def add_guest_arguments(parser: argparse.ArgumentParser, what: str = "") -> None:
    """`--experiment`, where runs go in the user's MLflow; and `--run_name` and `--description` of `what`, if any."""
    name = "experiment that new runs go to, made if it is new (default: MLFLOW_EXPERIMENT_NAME or _ID)"
    parser.add_argument("--experiment", type=unless_open, metavar="NAME", help=name)
    if what:
        parser.add_argument("--run_name", type=unless_open, metavar="NAME", help=f"what MLflow calls {what}")
        parser.add_argument("--description", type=unless_open, metavar="TEXT", help=f"what MLflow says of {what}")


def add_model_name_argument(parser: argparse.ArgumentParser) -> None:
    """The name of the registered model."""
    text = "registered model that the winner becomes a version of (default fnostab-STUDY)"
    parser.add_argument("--model_name", type=unless_open, metavar="NAME", help=text)


def add_notify_argument(parser: argparse.ArgumentParser) -> None:
    """Who is told of the result."""
    text = "tell of the result: a URL that gets it as JSON (POST), or a command that gets it on stdin"
    parser.add_argument("--notify", type=unless_open, metavar="URL|COMMAND", help=text)


def notifier(arguments: argparse.Namespace) -> "Notifier | None":
    """What `add_notify_argument` was given; raises `ConfigError` for what is neither a URL nor a command."""
    if arguments.notify is None:
        return None
    with lasting_imports():
        from fnostab.workflows.notify import Notifier

    return Notifier(arguments.notify)


def guest_values(arguments: argparse.Namespace) -> dict[str, Any]:
    """What `add_guest_arguments` was given of a run; MLflow's variables hold the experiment until the command ends."""
    named = {"experiment": 256, "run_name": 250, "description": 8000}  # MLflow's databases hold no more
    for key, most in named.items():
        value = getattr(arguments, key, None)
        if value is None:
            continue
        is_line = value.isprintable() or (key == "description" and value.replace("\n", "").isprintable())
        if not value.strip() or not is_line or len(value) > most:
            rule = f"must be text{'' if key == 'description' else ' on one line'} of at most {most} characters"
            raise ConfigError(f"`{key}` (={shown(value)}) {rule}")
    if arguments.experiment is not None:
        if os.environ.get("MLFLOW_RUN_ID"):
            rule = "must be given to MLflow, which has made this run already: `mlflow run --experiment-name`"
            raise ConfigError(f"`experiment` (={shown(arguments.experiment)}) {rule}")
        os.environ["MLFLOW_EXPERIMENT_NAME"] = arguments.experiment
        os.environ.pop("MLFLOW_EXPERIMENT_ID", None)
    return {key: getattr(arguments, key) for key in ("run_name", "description") if hasattr(arguments, key)}


def model_name_value(arguments: argparse.Namespace) -> str | None:
    """The name that `add_model_name_argument` was given; raises `ConfigError` for one that no URI can hold."""
    name: str | None = arguments.model_name
    if name is not None:
        check_name("model_name", name)
        if "@" in name or len(name) > 256:
            raise ConfigError(f"`model_name` (={shown(name)}) must be at most 256 characters, and no @ among them")
    return name


def add_scan_arguments(parser: argparse.ArgumentParser) -> None:
    """What is said of a scan's file besides its name: `--quantity`, `--probe`, and every key of `ReadingConfig`."""
    parser.add_argument("--quantity", default="auto", help="counts or amplitude, where the file leaves it open")
    parser.add_argument("--probe", default="auto", metavar="FILE", help="file with another probe")
    for key, field in ReadingConfig.model_fields.items():
        names = dict.fromkeys([f"--{key.replace('_', '-')}", f"--{key}"])
        parser.add_argument(*names, dest=f"reading:{key}", metavar="VALUE", help=field.description)


def scan_values(arguments: argparse.Namespace) -> dict[str, Any]:
    """What `add_scan_arguments` was given, by dotted key."""
    options = {name.partition(":")[2]: value for name, value in vars(arguments).items() if name.startswith("reading:")}
    given = {f"data.{key}": value for key, value in options.items() if value}  # "" leaves an option open
    return {"data.quantity": arguments.quantity, "data.probe": arguments.probe, **given}


def reading_config(arguments: argparse.Namespace) -> ReadingConfig:
    """What `add_scan_arguments` was given of the file, without a run's config; raises `ConfigError`."""
    values = {"data.path": "scan", **scan_values(arguments), "data.probe": "auto", "model.modes": 1}
    data = resolve_config(values).data
    return ReadingConfig(**{key: getattr(data, key) for key in ReadingConfig.model_fields})


def given_values(arguments: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    """The keys that were given as options, and those of the `--config` file."""
    options = ((name.partition(":"), value) for name, value in vars(arguments).items() if value is not None)
    given = {key: value for (kind, _, key), value in options if kind == "key"}
    return given, read_config_file(Path(arguments.config)) if arguments.config else {}


def arm_config(arguments: argparse.Namespace) -> ArmConfig:
    """The config of one arm."""
    given, base = given_values(arguments)
    return resolve_config(given, base=base)


def unless_open(text: str) -> str | None:
    """The type of an option that may be left open: its value is None then, as if it were not there."""
    return None if is_left_open(text) else text


def whole_number(name: str, value: str, at_least: int) -> int:
    """The number that `value`, given for the option `name`, means; raises `ConfigError`."""
    try:
        number = int(value)
    except ValueError:
        number = at_least - 1
    if number < at_least:
        raise ConfigError(f"`{name}` (={shown(value)}) must be a whole number >= {at_least}")
    return number


def positive_number(name: str, value: str) -> float:
    """The finite number > 0 that `value`, given for the option `name`, means; raises `ConfigError`."""
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise ConfigError(f"`{name}` (={shown(value)}) must be a finite number > 0")
    return number


def truth(name: str, value: str) -> bool:
    """Whether `value`, given for the option `name`, is true; raises `ConfigError` unless it is true or false."""
    if value.lower() not in ("true", "false"):
        raise ConfigError(f"`{name}` (={value}) must be true or false")
    return value.lower() == "true"


def say(line: str) -> None:
    """One line, or several, on stdout, at once; raises `BrokenPipeError` once if nobody reads it any more."""
    try:
        print(line, flush=True)
    except BrokenPipeError:
        with open(os.devnull, "w") as nowhere:  # else Python complains at its end of what it cannot flush
            os.dup2(nowhere.fileno(), 1)
        raise


def warn(line: str) -> None:
    """One line on stderr."""
    print(f"fnostab: {printable(line)}", file=sys.stderr, flush=True)


def fail(code: int, error: BaseException | str) -> int:
    """Say what went wrong and return the exit code.

    One line goes to stderr; under `mlflow run` it also goes onto the run that MLflow made for this process.
    """
    line = printable(str(error))
    print(f"fnostab: error: {line}", file=sys.stderr, flush=True)
    if os.environ.get("MLFLOW_RUN_ID"):
        from fnostab.tracking.run import fail_projects_run

        fail_projects_run(line)
    return code


@contextmanager
def pattern_bar(name: str = "dataset", unit: str = "pattern") -> Iterator[Callable[[int, int], None]]:
    """A function that shows on a terminal how many of how many patterns are done; the bar opens when it is called.

    `unit` is what is counted, if not patterns.
    """
    with ExitStack() as opened:
        bar: Any = None

        def show(done: int, total: int) -> None:
            nonlocal bar
            if bar is None:
                from tqdm import tqdm

                bar = opened.enter_context(tqdm(total=total, unit=unit, desc=name, disable=None, leave=False))
            bar.update(done - bar.n)
            if done == total:
                bar.close()

        yield show
