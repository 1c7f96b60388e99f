"""The command line: parses, calls, prints. Heavy modules are imported by the command that needs them."""

import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from fnostab import __version__
from fnostab.cli import (
    check_arch,
    compare,
    data,
    export_model,
    mlproject,
    reconstruct,
    registry,
    study,
    sync,
    train,
    transfer,
)
from fnostab.cli.common import Parser, fail, take_options
from fnostab.config import ConfigError, resolve_config
from fnostab.io.endings import CommandFailed, Interrupted
from fnostab.io.environment import kept_environment
from fnostab.io.files import is_disk_full
from fnostab.io.openmp import wait_passively_if_busy

_DESCRIPTION = "Train Fourier-neural-operator networks on ptychography data, tracked by MLflow."
_COMMANDS = (train, check_arch, sync, study, compare, reconstruct, export_model, registry, data, transfer, mlproject)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, 1 for trouble, 2 for bad input, 128 + n for signal n."""
    try:
        left, options = take_options(sys.argv[1:] if argv is None else argv)
        arguments, unknown = _parser().parse_known_args(left)
        if unknown:
            _refuse(unknown)
        if options and "config" not in arguments:  # it takes no keys
            raise ConfigError(f"`--{next(iter(options))}` is no argument of this command")
        vars(arguments).update({f"key:{key}": value for key, value in options.items()})
        wait_passively_if_busy()  # before the command imports torch
        # What `guest_values` sets ends with the command: the next one may be in this process.
        with kept_environment("MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"):
            code: int = arguments.run(arguments)
        return code
    except ConfigError as error:
        return fail(2, error)
    except CommandFailed as error:
        return fail(1, error)
    except Interrupted as error:
        return fail(128 + error.signum, error)
    except BrokenPipeError:  # whoever read the output has seen enough
        return 128 + signal.SIGPIPE
    except OSError as error:
        if not is_disk_full(error):
            raise
        return fail(1, f"the disk is full ({error}); what was stored stays, and the same command goes on")
    except MemoryError as error:  # NumPy's message says how much was asked for
        return fail(1, f"the memory does not suffice: {error}")
    except KeyboardInterrupt:  # where nothing is trained, and nothing half-written stays
        return 130


def _refuse(unknown: Sequence[str]) -> NoReturn:
    """Refuse arguments that no option takes, with a suggestion for a mistyped key."""
    key, _, value = unknown[0].partition("=")
    if key.startswith("--"):
        resolve_config({key[2:]: value or " ".join(unknown[1:2])})
    raise ConfigError(f"`{key}` is no argument of this command")


def _parser() -> Parser:
    parser = Parser(prog="fnostab", description=_DESCRIPTION, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"fnostab {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in _COMMANDS:
        module.add(commands)
    return parser
