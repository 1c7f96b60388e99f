"""`fnostab train` and `fnostab inspect`."""

import argparse
import json
from typing import TYPE_CHECKING, Any

from fnostab.cli.common import (
    add_command,
    add_config_arguments,
    add_guest_arguments,
    add_notify_argument,
    arm_config,
    guest_values,
    notifier,
    pattern_bar,
    say,
    warn,
)
from fnostab.io.garbage import lasting_imports

if TYPE_CHECKING:
    from fnostab.workflows.arm_training import ArmResult


def add(commands: Any) -> None:
    """Add both commands."""
    train = add_command(commands, "train", "train one arm and log it to MLflow", _train)
    add_config_arguments(train)
    add_guest_arguments(train, "the run")
    add_notify_argument(train)
    train.add_argument("--print-config", action="store_true", help="print the resolved config as YAML and stop")

    look = add_command(commands, "inspect", "print a run's verdict, its evidence and its metrics", _inspect)
    look.add_argument("run_id", metavar="RUN_ID", help="of a run in the tracking store (MLFLOW_TRACKING_URI)")
    look.add_argument("--judge", action="store_true", help="decide anew, by today's rules; nothing is written")
    look.add_argument("--json", action="store_true", help="as JSON instead of a table")


def _train(arguments: argparse.Namespace) -> int:
    config = arm_config(arguments)
    if arguments.print_config:
        say(config.to_yaml().rstrip())
        return 0
    guest, told = guest_values(arguments), notifier(arguments)
    with lasting_imports():
        from fnostab.workflows.notices import notice_of_run
        from fnostab.workflows.train import train_arm

    with pattern_bar() as progress:
        result = train_arm(config, say, progress, **guest)
    say(_summary(result))
    if told:
        told.send(notice_of_run(result, config.study, config.arm, config.seed), warn)
    return 0


def _summary(result: "ArmResult") -> str:
    """The verdict, the stability, what was learnt, where the run is, how to open the UI: one line each."""
    from fnostab.study.names import METRIC

    lines = [f"verdict: {result.verdict.label}: {result.verdict.reason}"]
    if result.stability:
        lines.append(f"stability: {result.stability.label}: {result.stability.reason}")
    if METRIC["r_factor"] in result.metrics:
        names = ("best_val_loss", "val_loss_constant", "val_loss_floor", "r_factor")
        best, constant, floor, stitched = (result.metrics[METRIC[name]] for name in names)
        lines.append(
            f"R-factor: {best:.4f} on validation patches (constant object {constant:.4f}, photon noise {floor:.4f}), "
            f"{stitched:.4f} for the stitched test object"
        )
    return "\n".join([*lines, f"run {result.run_id}; to see it: {result.how_to_open}"])


def _inspect(arguments: argparse.Namespace) -> int:
    with lasting_imports():
        from fnostab.workflows.inspect import as_table, inspect_run

    found = inspect_run(arguments.run_id, judged=arguments.judge)
    say(json.dumps(found, indent=2, allow_nan=False) if arguments.json else as_table(found))
    return 0
