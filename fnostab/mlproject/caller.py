"""`mlflow run` starts commands in the project's folder or its clone; here they move to the folder of the caller."""

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import psutil

from fnostab.cli import main
from fnostab.cli.common import say
from fnostab.io.huge_pages import start_again_with_huge_pages

#: Options that may name code in a file: `./file.py:name`.
_CODE: Final = ("--arch", "--model.arch", "--clip_algo", "--clip.algo")
#: Options that name a file or folder to read, which may also be one of the project's.
_INPUTS: Final = (
    *("--data", "--data.path", "--data.probe", "--probe", "--arms", "--model", "--config"),
    *("--data.positions", "--positions", "--data.mask", "--mask", "--data.paths", "--paths"),
    *_CODE,
)


def run_for_caller(command: str) -> int:
    """Run `fnostab COMMAND` with this process's arguments in the caller's folder; returns the exit code.

    Relative paths, that of the tracking store included, then mean what they mean for `fnostab` itself. An input that
    is not there is taken from the project's folder, where it may be: MLflow clones projects of a git URI.
    """
    start_again_with_huge_pages()
    project, caller = Path.cwd(), callers_folder()
    arguments = sys.argv[1:]
    if caller != project:
        # The processes of a study import this package from the project's folder as this one did.
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(project), os.environ.get("PYTHONPATH")]))
        os.chdir(caller)
        arguments = list(_located(arguments, project))
    return main([command, *arguments])


def callers_folder() -> Path:
    """The working directory of the process that called MLflow; this process's own if that cannot be found.

    MLflow does not hand that directory on, but only processes that it starts have its run's ID in their environment.
    """
    folder, run_id = Path.cwd(), os.environ.get("MLFLOW_RUN_ID")
    try:
        for process in psutil.Process().parents() if run_id else ():
            is_caller = process.environ().get("MLFLOW_RUN_ID") != run_id
            folder = Path(process.cwd())
            if is_caller:
                break
    except psutil.Error:  # that process has ended, or is another user's
        pass
    return folder if folder.is_dir() else Path.cwd()


def _located(arguments: Sequence[str], project: Path) -> Iterator[str]:
    """`arguments`, inputs that only the project has as absolute paths; an input that both have is named."""
    for option, value in zip(["", *arguments], arguments, strict=False):
        place, colon, name = value.rpartition(":") if option in _CODE else (value, "", "")
        path = Path(place)
        if option in _INPUTS and place and not path.is_absolute() and (project / path).exists():
            if not path.exists():
                value = f"{project / path}{colon}{name}"
            elif not path.samefile(project / path):
                say(f"`{option[2:]}` is {path.absolute()}, not the project's file of that name")
        yield value
