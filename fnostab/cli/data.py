"""`fnostab data build`, `show` and `import`."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fnostab.cli.common import (
    add_command,
    add_config_arguments,
    add_group,
    add_scan_arguments,
    arm_config,
    pattern_bar,
    say,
    scan_values,
)
from fnostab.config import ConfigError, DataConfig, resolve_config
from fnostab.io.garbage import lasting_imports

if TYPE_CHECKING:
    from fnostab.dataset import Dataset


def add(commands: Any) -> None:
    """Add the commands."""
    actions = add_group(commands, "data", "build, import or show a dataset")
    build = add_command(actions, "build", "build the dataset of a config into the cache", _data_build)
    show = add_command(actions, "show", "summarise a dataset and draw object, probe and patterns", _data_show)
    for command in (build, show):
        add_config_arguments(command)
    show.add_argument("--out", type=Path, default=Path("dataset.png"), metavar="PNG", help="default: dataset.png")
    scan = add_command(actions, "import", "check a measured scan and put it into the cache", _data_import)
    scan.add_argument("scan", help="file in one of the formats that `fnostab data formats` lists")
    scan.add_argument("--N", default="64", help="pattern size; smaller than measured: central crop (default 64)")
    add_scan_arguments(scan)
    scan.add_argument("--strict", action="store_true", help="refuse a scan with warnings")
    scan.add_argument("--out", type=Path, metavar="NPZ", help="also write the scan in this package's own layout")
    add_command(actions, "formats", "list the formats of scan files that can be read", _data_formats)


def _data_build(arguments: argparse.Namespace) -> int:
    dataset = _dataset(arm_config(arguments).data)
    say(
        f"dataset {dataset.sha256}: {len(dataset.train.counts)} training, {len(dataset.val.counts)} validation, "
        f"{len(dataset.test.counts)} test patterns"
    )
    return 0


def _data_show(arguments: argparse.Namespace) -> int:
    config = arm_config(arguments)
    _check_out(arguments.out, (".png", ".pdf", ".svg"))
    dataset = _dataset(config.dataset)
    _describe(dataset)
    from fnostab.report.run import dataset_figure

    dataset_figure(dataset).savefig(arguments.out, dpi=120)
    say(f"picture: {arguments.out.absolute()}")
    return 0


def _data_import(arguments: argparse.Namespace) -> int:
    values = {**scan_values(arguments), "data.path": arguments.scan, "data.N": arguments.N}
    search = values.get("data.orient") == "auto"
    if search:
        del values["data.orient"]
    # No network is made; with its default modes, the config would be refused at a small N.
    config = resolve_config({**values, "model.modes": 1}).dataset
    if arguments.out is not None:
        _check_out(arguments.out, (".npz", ".npz.bz2"))
    with lasting_imports():
        from fnostab.workflows.scan import find_orientation, import_measured

    if search:
        config = find_orientation(config, say)
    dataset = import_measured(config, arguments.out, arguments.strict, say, pattern_bar)
    _describe(dataset)
    if arguments.out is not None:
        say(f"scan: {arguments.out.absolute()}")
    return 0


def _data_formats(arguments: argparse.Namespace) -> int:
    from fnostab.workflows.scan import known_formats

    for format in known_formats():
        say(f"{format.name} ({format.container}): {format.title}\n    {format.holds}\n    source: {format.source}")
    return 0


def _check_out(path: Path, endings: tuple[str, ...]) -> None:
    """Raise `ConfigError` for an output file of another kind, or in a folder that is not there."""
    if not path.name.endswith(endings):
        raise ConfigError(f"`out` (={path}) must end in {' or '.join(endings)}")
    if not path.parent.is_dir():
        raise ConfigError(f"`out` (={path}) must lie in a folder that exists")


def _dataset(config: DataConfig) -> "Dataset":
    """The dataset of `config`, with a bar while it is built."""
    with lasting_imports():
        from fnostab.workflows import build_dataset

    with pattern_bar() as progress:
        return build_dataset(config, progress)


def _describe(dataset: "Dataset") -> None:
    from fnostab.dataset import describe

    summary = describe(dataset)
    width = max(map(len, summary))
    for key, value in summary.items():
        say(f"{key:<{width}}  {value:.6g}" if isinstance(value, float) else f"{key:<{width}}  {value}")
