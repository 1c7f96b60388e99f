"""`fnostab compare`: rank the arms of a study, write the report, register the winner."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fnostab.cli.common import (
    add_command,
    add_guest_arguments,
    add_model_name_argument,
    add_notify_argument,
    guest_values,
    model_name_value,
    notifier,
    say,
    truth,
    unless_open,
    warn,
)
from fnostab.config import ConfigError, check_name
from fnostab.io.garbage import lasting_imports

if TYPE_CHECKING:
    from fnostab.workflows.compare import Comparison

#: Of more runs the terminal does not list each.
_MOST_RUNS_TOLD = 100


def add(commands: Any) -> None:
    """Add the command."""
    compare = add_command(commands, "compare", "rank the arms of a study and register the winner", _compare)
    compare.add_argument(
        "--study",
        default="stage_a",
        help="tag of the runs (default stage_a), or several: a,b",
    )
    compare.add_argument(
        "--by", default="best_val_loss", help="what ranks the arms: best_val_loss, r_stitched, or a metric of your own"
    )
    compare.add_argument("--dataset", type=unless_open, metavar="HASH", help="which dataset, if there are several")
    compare.add_argument("--parent", type=unless_open, metavar="RUN", help="compare only the runs of this parent run")
    compare.add_argument("--promote", default="false", nargs="?", const="true", help="always make the winner champion")
    compare.add_argument("--register", default="true", help="false: rank and report only")
    text = "also register all converged runs of the first arm as one model, their mean and its deviation"
    compare.add_argument("--ensemble", default="false", nargs="?", const="true", help=text)
    add_model_name_argument(compare)
    add_guest_arguments(compare)
    add_notify_argument(compare)
    compare.add_argument("--out", type=unless_open, metavar="FOLDER", help="also write all files to this folder")


def _compare(arguments: argparse.Namespace) -> int:
    out = Path(arguments.out) if arguments.out else None
    if out is not None and not (out.is_dir() or (out.parent.is_dir() and not out.exists())):
        raise ConfigError(f"`out` (={out}) must be a folder, or a new one in a folder that exists")
    check_name("study", arguments.study)  # the files are named after it
    promote, register, ensemble = (
        truth(name, getattr(arguments, name)) for name in ("promote", "register", "ensemble")
    )
    guest_values(arguments)
    name, told = model_name_value(arguments), notifier(arguments)
    with lasting_imports():
        from fnostab.workflows.compare import compare_study
        from fnostab.workflows.notices import notice_of_comparison

    found = compare_study(
        arguments.study,
        dataset=arguments.dataset,
        parent=arguments.parent,
        promote=promote,
        register=register,
        out=out,
        by=arguments.by,
        model_name=name,
        ensemble=ensemble,
        print_line=say,
    )
    say(_told(found))
    if out is not None:
        say(f"copies of all files: {out.absolute()}")
    if told:
        told.send(notice_of_comparison(found), warn)
    return 1 if found.unreadable else 0


def _told(found: "Comparison") -> str:
    from fnostab.report.study import summary_markdown

    study, runs = found.result.study, len(found.result.all_runs)
    brief = runs > _MOST_RUNS_TOLD
    return "\n".join(
        [
            summary_markdown(found.result, brief=brief),
            *([f"the {runs} runs, and every pair of arms: {study}_summary.md, beside the report"] if brief else []),
            found.registry,
            f"report: {found.files[0]}, among the artifacts of run {found.run_id}; to see it: {found.how_to_open}",
        ]
    )
