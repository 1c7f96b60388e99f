"""`fnostab registry show`, `rollback` and `ensemble`."""

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import datetime
from itertools import groupby
from typing import TYPE_CHECKING, Any

from fnostab.cli.common import (
    add_command,
    add_group,
    add_guest_arguments,
    add_model_name_argument,
    guest_values,
    model_name_value,
    say,
    truth,
    unless_open,
)
from fnostab.config import ConfigError, check_name
from fnostab.io.garbage import lasting_imports

if TYPE_CHECKING:
    from fnostab.study.champion import RegistryVersion

_COLUMNS = ("version", "aliases", "arm", "seed", "val_loss", "r_stitched", "dataset", "registered", "run")


def add(commands: Any) -> None:
    """Add the commands."""
    actions = add_group(commands, "registry", "registered models: show, roll back, make an ensemble")
    show = add_command(actions, "show", "list registered versions with their aliases and losses", _show)
    show.add_argument("model", nargs="?", metavar="MODEL", help="default: all models of this package")
    show.add_argument("--study", help="instead of MODEL: the model of this study")
    show.add_argument("--json", action="store_true", help="as JSON instead of a table")
    back = add_command(actions, "rollback", "make the previous champion of a model champion again", _rollback)
    back.add_argument("model", metavar="MODEL", help="fnostab-<study>, as `fnostab registry show` names it")
    text = "register all converged runs of a study's best arm as one model"
    ensemble = add_command(actions, "ensemble", text, _ensemble)
    ensemble.add_argument("--study", required=True, help="tag of the runs")
    ensemble.add_argument("--by", default="best_val_loss", help="what ranks the arms, as for compare")
    ensemble.add_argument("--dataset", type=unless_open, metavar="HASH", help="which dataset, if there are several")
    ensemble.add_argument("--parent", type=unless_open, metavar="RUN", help="take only the runs of this parent run")
    ensemble.add_argument("--promote", default="false", nargs="?", const="true", help="always make it champion")
    add_model_name_argument(ensemble)
    add_guest_arguments(ensemble)


def _show(arguments: argparse.Namespace) -> int:
    if arguments.model and arguments.study:
        raise ConfigError(f"`study` (={arguments.study}) must not be given together with a model")
    with lasting_imports():
        from fnostab.tracking.model_registry import model_name, read_registry

    versions = read_registry(model_name(arguments.study) if arguments.study else arguments.model)
    if arguments.json:
        say(json.dumps(list(map(asdict, versions)), indent=2, default=datetime.isoformat))
    elif versions:
        say("\n\n".join(_table(model, list(group)) for model, group in groupby(versions, key=lambda each: each.model)))
    else:
        say("no model version is registered")
    return 0


def _rollback(arguments: argparse.Namespace) -> int:
    with lasting_imports():
        from fnostab.tracking.model_registry import rollback

    say(rollback(arguments.model))
    return 0


def _ensemble(arguments: argparse.Namespace) -> int:
    check_name("study", arguments.study)
    promote = truth("promote", arguments.promote)
    guest_values(arguments)
    name = model_name_value(arguments)
    with lasting_imports():
        from fnostab.workflows.ensemble import register_ensemble

    options = {key: getattr(arguments, key) for key in ("dataset", "parent", "by")}
    say(register_ensemble(arguments.study, **options, promote=promote, model_name=name, print_line=say))
    return 0


def _table(model: str, versions: Sequence["RegistryVersion"]) -> str:
    """The model's name, then a line a version; a dash where a version has no such tag."""
    rows = [_COLUMNS, *(tuple(_cells(version)) for version in versions)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([model, *(f"  {line}" for line in lines)])


def _cells(version: "RegistryVersion") -> Iterator[str]:
    marks = [*version.aliases, *(["rolled back"] if version.is_rolled_back else [])]
    yield str(version.version)
    yield ", ".join(marks) or "-"
    yield version.tags.get("arm", "-")
    yield version.tags.get("seed") or (f"{version.tags['members']} members" if "members" in version.tags else "-")
    for tag in ("val_loss", "r_stitched"):
        value = version.number(tag)
        yield "-" if value is None else f"{value:.6g}"
    yield (version.dataset_sha256 or "-")[:12]
    yield version.created.astimezone().strftime("%Y-%m-%d %H:%M")
    yield version.run_id or "-"
