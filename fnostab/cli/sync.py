"""`fnostab sync`."""

import argparse
from typing import Any

from fnostab.cli.common import add_command, say
from fnostab.io.garbage import lasting_imports


def add(commands: Any) -> None:
    """Add the command."""
    text = "bring runs that an outage or a kill left on this machine to the tracking store"
    sync = add_command(commands, "sync", text, _sync)
    sync.add_argument("--list", action="store_true", help="print the runs that wait, and stop")


def _sync(arguments: argparse.Namespace) -> int:
    from fnostab.workflows.runfolder import unfinished_runs

    runs = unfinished_runs()
    if not runs:
        say("nothing waits")
        return 0
    if arguments.list:
        for run in runs:
            say(f"{_name(run.config)}: run {run.run_id} in {run.store}")
        return 0
    with lasting_imports():
        from fnostab.workflows.sync import sync_runs

    done = sync_runs(runs, say)
    for run, (state, text) in zip(runs, done, strict=True):
        say(f"{_name(run.config)}: {state}: {text}")
    return 1 if any(state == "failed" for state, _ in done) else 0


def _name(config: Any) -> str:
    """A run's name, as other commands say it."""
    return f"{config['study']} {config['arm']}-seed{config['seed']}"
