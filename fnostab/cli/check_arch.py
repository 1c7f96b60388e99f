"""`fnostab check-arch`: whether a network is fit for training."""

import argparse
from typing import Any

from fnostab.cli.common import add_command, add_config_arguments, given_values, say
from fnostab.config import resolve_config
from fnostab.io.garbage import lasting_imports


def add(commands: Any) -> None:
    """Add the command."""
    check = add_command(
        commands, "check-arch", "try a network on random data: what learns, what is inert, how fast", _check
    )
    check.add_argument("arch", metavar="NAME", help="a built-in name, package.module:Class, or ./file.py:Class")
    add_config_arguments(check, without=frozenset({"arch", "model.arch"}))


def _check(arguments: argparse.Namespace) -> int:
    given, base = given_values(arguments)
    config = resolve_config({**given, "model.arch": arguments.arch}, base)
    with lasting_imports():
        from fnostab.workflows.check_arch import check_arch

    found = check_arch(config)
    say(found.text)
    return 1 if found.faults else 0
