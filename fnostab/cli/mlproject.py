"""`fnostab mlproject`: a folder for `mlflow run` without a clone of the repository."""

import argparse
from pathlib import Path
from typing import Any

from fnostab.cli.common import add_command, say


def add(commands: Any) -> None:
    """Add the command."""
    parser = add_command(
        commands, "mlproject", "write the MLproject file, for `mlflow run` without a clone", _mlproject
    )
    text = "folder, made if it is new (default: fnostab-project)"
    parser.add_argument("--out", type=Path, default=Path("fnostab-project"), metavar="DIR", help=text)


def _mlproject(arguments: argparse.Namespace) -> int:
    from fnostab.workflows.project_folder import write_project

    path = write_project(arguments.out).absolute()
    say(
        f"MLproject: {path}\nmlflow run {path.parent} --env-manager local -P preset=quick   # uses the `python` on PATH"
    )
    return 0
