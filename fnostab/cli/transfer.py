"""`fnostab export` and `fnostab import`: runs of a study in a file."""

import argparse
from pathlib import Path
from typing import Any

from fnostab.cli.common import add_command, say, unless_open
from fnostab.config import ConfigError, check_name
from fnostab.io.garbage import lasting_imports


def add(commands: Any) -> None:
    """Add the commands."""
    export = add_command(commands, "export", "write the numbers of a study's runs to a file", _export)
    export.add_argument("--study", default="stage_a", help="tag of the runs (default stage_a)")
    export.add_argument("--out", type=unless_open, metavar="FILE", help="default: STUDY.jsonl.gz")
    export.add_argument("--steps", action="store_true", help="with the series of single optimizer steps")
    bring = add_command(commands, "import", "put runs that were exported into the tracking store, once", _import)
    what = "file that `fnostab export` wrote, or several joined by `cat`"
    bring.add_argument("files", nargs="+", metavar="FILE", help=what)


def _export(arguments: argparse.Namespace) -> int:
    study = arguments.study
    check_name("study", study)
    out = Path(arguments.out or f"{study}.jsonl.gz")
    if out.is_dir() or not out.parent.is_dir():
        raise ConfigError(f"`out` (={out}) must be a file in a folder that exists")
    with lasting_imports():
        from fnostab.tracking.store import open_store
        from fnostab.tracking.transfer import export_study

    open_store(must_exist=True)
    count = export_study(study, out, steps=arguments.steps)
    say(f"{count} runs of study {study}: {out.absolute()}")
    return 0


def _import(arguments: argparse.Namespace) -> int:
    paths = [Path(name) for name in arguments.files]
    for path in paths:
        if not path.is_file():
            raise ConfigError(f"`file` (={path}) must be a file")
    with lasting_imports():
        from fnostab.tracking.store import open_store
        from fnostab.tracking.transfer import import_runs, read_exported

    files = [(path, exported) for path in paths for exported in read_exported(path)]
    open_store()
    for path, exported in files:
        new, changed = import_runs(exported)
        say(f"study {exported.study}: {new} runs are new, {len(exported.runs) - new} were there; {path}")
        if changed:
            kept = "the tag verdict_before keeps the one they had"
            say(f"today's rules give {changed} of the new runs another verdict; {kept}")
    return 0
