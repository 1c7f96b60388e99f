"""The command line: parses, calls, prints. Heavy modules are imported by the command that needs them."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from fnostab import __version__
from fnostab.config import (
    CONFIG_KEYS,
    FLAT_KEYS,
    PRESETS,
    ArmConfig,
    ConfigError,
    DataConfig,
    read_config_file,
    resolve_config,
)

if TYPE_CHECKING:
    from fnostab.dataset import Dataset
    from fnostab.mlproject.train import ArmResult

_DESCRIPTION = "Train Fourier-neural-operator networks on ptychography data, tracked by MLflow."


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, 1 for trouble, 2 for bad input, 128 + n for signal n."""
    try:
        arguments, unknown = _parser().parse_known_args(argv)
        if unknown:
            _refuse(unknown)
        code: int = arguments.run(arguments)
        return code
    except ConfigError as error:
        _say_error(error)
        return 2


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, like all others."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)


def _refuse(unknown: Sequence[str]) -> NoReturn:
    """Refuse arguments that no option takes, with a suggestion for a mistyped key."""
    key, _, value = unknown[0].partition("=")
    if key.startswith("--"):
        resolve_config({key[2:]: value or " ".join(unknown[1:2])})
    raise ConfigError(f"`{key}` is no argument of this command")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="fnostab", description=_DESCRIPTION, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"fnostab {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    train = _add(commands, "train", "train one arm and log it to MLflow", _train)
    _add_config_arguments(train)
    train.add_argument("--print-config", action="store_true", help="print the resolved config as YAML and stop")

    look = _add(commands, "inspect", "print a run's verdict, its evidence and its metrics", _inspect)
    look.add_argument("run_id", metavar="RUN_ID", help="of a run in the tracking store (MLFLOW_TRACKING_URI)")
    look.add_argument("--json", action="store_true", help="as JSON instead of a table")

    data = commands.add_parser("data", help="build, import or show a dataset", allow_abbrev=False)
    actions = data.add_subparsers(title="actions", metavar="ACTION", required=True)
    build = _add(actions, "build", "build the dataset of a config into the cache", _data_build)
    show = _add(actions, "show", "summarise a dataset and draw object, probe and patterns", _data_show)
    for command in (build, show):
        _add_config_arguments(command)
    show.add_argument("--out", type=Path, default=Path("dataset.png"), metavar="PNG", help="default: dataset.png")
    scan = _add(actions, "import", "check a measured scan (.npz, .npz.bz2) and put it into the cache", _data_import)
    scan.add_argument("scan", help="tike, PtychoPINN/ptychodus or fnostab layout")
    scan.add_argument("--N", default="64", help="pattern size; smaller than measured: central crop (default 64)")
    scan.add_argument("--quantity", default="auto", help="counts or amplitude, for PtychoPINN-style files")
    scan.add_argument("--probe", default="auto", help="NPZ file with another probe")
    scan.add_argument("--out", type=Path, metavar="NPZ", help="also write the scan in this package's own layout")
    return parser


def _add(commands: Any, name: str, text: str, run: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
    parser.set_defaults(run=run)
    return parser


def _add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Every flat and dotted key as `--key VALUE`; keys that are not there are refused with a suggestion."""
    parser.add_argument("--config", metavar="FILE", help="YAML file of nested or dotted keys; options override it")
    short = parser.add_argument_group("parameters")
    for key, dotted in FLAT_KEYS.items():
        text = f"one of {', '.join(PRESETS)}" if key == "preset" else CONFIG_KEYS[dotted]
        short.add_argument(f"--{key}", dest=f"key:{key}", metavar="VALUE", help=text.replace("%", "%%"))
    dotted_keys = parser.add_argument_group("any other key")
    for key, text in CONFIG_KEYS.items():
        if key not in FLAT_KEYS:
            dotted_keys.add_argument(f"--{key}", dest=f"key:{key}", metavar="VALUE", help=text.replace("%", "%%"))


def _config(arguments: argparse.Namespace) -> ArmConfig:
    values: dict[str, Any] = read_config_file(Path(arguments.config)) if arguments.config else {}
    given = {
        name.removeprefix("key:"): value
        for name, value in vars(arguments).items()
        if name.startswith("key:") and value is not None
    }
    return resolve_config(given, base=values)


def _train(arguments: argparse.Namespace) -> int:
    config = _config(arguments)
    if arguments.print_config:
        _print(config.to_yaml().rstrip())
        return 0
    from fnostab.callbacks import Interrupted
    from fnostab.mlproject.train import train_arm
    from fnostab.runfolder import AlreadyRunning
    from fnostab.tracking import StoreAway

    try:
        with _DataBar() as bar:
            result = train_arm(config, _print, bar.update)
    except (AlreadyRunning, StoreAway) as error:
        _say_error(error)
        return 1
    except Interrupted as error:
        _say_error(error)
        return 128 + error.signum
    _print(_summary(result))
    return 0


def _summary(result: "ArmResult") -> str:
    """The verdict, what was learnt, where the run is, how to open the UI: one line each."""
    numbers = result.metrics
    lines = [f"verdict: {result.verdict.label}: {result.verdict.reason}"]
    if "test/r_factor" in numbers:
        lines.append(
            f"R-factor: {numbers['best_val_loss']:.4f} on validation patches (constant object "
            f"{numbers['val/loss_constant']:.4f}, photon noise {numbers['val/loss_floor']:.4f}), "
            f"{numbers['test/r_factor']:.4f} for the stitched test object"
        )
    return "\n".join([*lines, f"run {result.run_id}; to see it: {result.how_to_open}"])


def _inspect(arguments: argparse.Namespace) -> int:
    from fnostab.inspection import as_table, inspect_run

    found = inspect_run(arguments.run_id)
    _print(json.dumps(found, indent=2, allow_nan=False) if arguments.json else as_table(found))
    return 0


def _data_build(arguments: argparse.Namespace) -> int:
    dataset = _dataset(_config(arguments).data)
    _print(
        f"dataset {dataset.sha256}: {len(dataset.train.counts)} training, {len(dataset.val.counts)} validation, "
        f"{len(dataset.test.counts)} test patterns"
    )
    return 0


def _data_show(arguments: argparse.Namespace) -> int:
    config = _config(arguments)
    _check_out(arguments.out, (".png", ".pdf", ".svg"))
    dataset = _dataset(config.data)
    _describe(dataset)
    from fnostab.report import dataset_figure

    dataset_figure(dataset).savefig(arguments.out, dpi=120)
    _print(f"picture: {arguments.out}")
    return 0


def _data_import(arguments: argparse.Namespace) -> int:
    values = {"data.path": arguments.scan, "data.N": arguments.N, "data.quantity": arguments.quantity}
    config = resolve_config({**values, "data.probe": arguments.probe})
    if arguments.out is not None:
        _check_out(arguments.out, (".npz", ".npz.bz2"))
    dataset = _dataset(config.data)
    _describe(dataset)
    if arguments.out is not None:
        from fnostab.npz import write_scan

        write_scan(
            arguments.out, counts=dataset.test.counts, probe=dataset.probe, positions_px=dataset.test.positions_px
        )
        _print(f"scan: {arguments.out}")
    return 0


def _check_out(path: Path, endings: tuple[str, ...]) -> None:
    """Refuse an output file of another kind, or in a folder that is not there, before anything is computed."""
    if not path.name.endswith(endings):
        raise ConfigError(f"`out` (={path}) must end in {' or '.join(endings)}")
    if not path.parent.is_dir():
        raise ConfigError(f"`out` (={path}) must lie in a folder that exists")


def _dataset(config: DataConfig) -> "Dataset":
    """The dataset of `config`, with a bar while it is built; bad input becomes a `ConfigError`."""
    from fnostab.dataset import load_or_build

    try:
        with _DataBar() as bar:
            return load_or_build(config, progress=bar.update)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _describe(dataset: "Dataset") -> None:
    from fnostab.dataset import describe

    summary = describe(dataset)
    width = max(map(len, summary))
    for key, value in summary.items():
        _print(f"{key:<{width}}  {value:.6g}" if isinstance(value, float) else f"{key:<{width}}  {value}")


class _DataBar:
    """A bar of patterns on a terminal, opened by the first `update`."""

    def __init__(self) -> None:
        self._bar: Any = None

    def __enter__(self) -> "_DataBar":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self, done: int, total: int) -> None:
        """Show `done` of `total` patterns."""
        if self._bar is None:
            from tqdm import tqdm

            self._bar = tqdm(total=total, unit="pattern", desc="dataset", disable=None, leave=False)
        self._bar.update(done - self._bar.n)
        if done == total:
            self._bar.close()


def _print(line: str) -> None:
    print(line, flush=True)


def _say_error(error: BaseException) -> None:
    """One line on stderr; under `mlflow run` also on the run that MLflow made for this process."""
    print(f"fnostab: error: {error}", file=sys.stderr, flush=True)
    if os.environ.get("MLFLOW_RUN_ID"):
        from fnostab import tracking

        tracking.fail_projects_run(str(error))
