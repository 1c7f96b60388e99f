"""What a run costs besides its training, by phase: of a command, of the later runs of a study, after the last step.

    python -m benchmarks.fixed_cost                     # `--preset smoke`, five turns beside the bare imports
    python -m benchmarks.fixed_cost --before FOLDER     # beside another checkout of this package, by turns
    python -m benchmarks.fixed_cost --commands train    # `train` alone; also: study, demo

Each process is timed from outside (`benchmarks.phases`). Every number is a median over the turns, with wall and CPU
seconds; on a machine with other work, the CPU seconds are the better measure. `OMP_NUM_THREADS` is 1 unless it is set.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from benchmarks import phases
from benchmarks.table import Row, machine, multiple
from benchmarks.timing import ratio, spread

ROOT: Final = Path(__file__).parent.parent
BARE: Final = ("-c", "import torch, lightning, mlflow")
_SMOKE: Final = ("--preset", "smoke", "--study", "{study}")
#: The commands that are measured, as arguments of Python; of `demo` only what follows the last training step counts.
COMMANDS: Final = {
    "train": ("-m", "fnostab", "train", *_SMOKE),
    "study": ("-m", "fnostab", "study", *_SMOKE, "--seeds", "1", "--workers", "1", "--train.epochs", "1"),
    "demo": (
        *("-m", "mlflow", "run", "{root}", "--env-manager", "local", "-P", "arch=stable_hybrid"),
        *("-P", "clip_algo=agc", "-P", "preset=quick", "-P", "epochs=1"),
    ),
}
START_AND_EXIT: Final = "start and exit of Python"

Seconds = dict[str, list[float]]


class Measured(NamedTuple):
    """A command once: wall and CPU seconds in all and by phase, of its later runs, and after its last training step."""

    total: list[float]
    phases: Seconds
    later_runs: list[Seconds]
    after_s: float


def measure(command: tuple[str, ...], root: Path, folder: Path, study: str) -> Measured:
    """Carry out `command` with the package of the checkout `root`, in `folder`, where its store and cache lie."""
    hooks, found = folder / "hooks", folder / "phases"
    shutil.rmtree(found, ignore_errors=True)
    for place in (hooks, found):
        place.mkdir(exist_ok=True)
    shutil.copy(phases.__file__, hooks / "sitecustomize.py")
    variables = {
        "PHASES": str(found),
        "PYTHONPATH": os.pathsep.join([str(hooks), str(root)]),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        "FNOSTAB_CACHE": str(folder / "cache"),
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
    }
    arguments = [part.format(study=study, root=root) for part in command]
    began_at = time.time()
    with open(folder / "output", "w") as output:
        process = subprocess.Popen(
            [sys.executable, *arguments], cwd=folder, env={**os.environ, **variables}, stdout=output, stderr=output
        )
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    ended_at = time.time()
    if process.returncode:
        raise RuntimeError(f"{' '.join(arguments)} failed:\n{(folder / 'output').read_text()}")
    total = [ended_at - began_at, used.ru_utime + used.ru_stime]
    files = [json.loads(path.read_text()) for path in found.glob("*.json")]
    if not files:
        return Measured(total, {}, [], 0.0)
    (trained,) = files
    of_process = dict(trained["seconds"])
    inside = [sum(seconds[place] for seconds in of_process.values()) for place in (0, 1)]
    of_process[START_AND_EXIT] = [total[place] - inside[place] for place in (0, 1)]
    return Measured(total, of_process, trained["runs"][1:], ended_at - trained["trained_at"])


def by_turns(
    commands: dict[str, tuple[tuple[str, ...], Path]], repeats: int, folder: Path
) -> dict[str, list[Measured]]:
    """Measure each of `commands`, arguments and checkout, `repeats` times by turns; a first turn builds dataset, store.

    Each turn is of a study of its own, so that no run finds the result of an earlier one.
    """
    found: dict[str, list[Measured]] = {name: [] for name in commands}
    for turn in range(repeats + 1):
        for name, (command, root) in commands.items():
            measured = measure(command, root, folder, f"turn_{turn}_{name.replace(' ', '_')}")
            if turn:
                found[name].append(measured)
    return found


def fixed(of: Seconds, place: int) -> float:
    """Seconds (wall: 0, CPU: 1) besides the training."""
    return sum(seconds[place] for phase, seconds in of.items() if phase != phases.TRAINING)


def print_phases(title: str, runs: list[Seconds]) -> None:
    """Print the medians over `runs` by phase, and the sum besides the training."""
    print(f"\n{title}: medians of {len(runs)}", "\n| phase | wall s | CPU s |\n|---|---|---|", sep="\n")
    for phase in (*phases.PHASES, START_AND_EXIT):
        seconds = [of[phase] for of in runs if phase in of]
        if seconds:
            wall, cpu = (statistics.median(pair) for pair in zip(*seconds, strict=True))
            print(f"| {phase} | {wall:.2f} | {cpu:.2f} |")
    wall, cpu = (statistics.median(fixed(of, place) for of in runs) for place in (0, 1))
    print(f"| **besides training** | **{wall:.2f}** | **{cpu:.2f}** |")


def rows(repeats: int, *options: str) -> Iterator[Row]:
    """The row of `python -m benchmarks`: the smoke preset, with further `options`, beside the bare imports."""
    train = (*COMMANDS["train"], *options)
    with tempfile.TemporaryDirectory() as folder:
        found = by_turns({"bare": (BARE, ROOT), "train": (train, ROOT)}, repeats, Path(folder))
    of_bare, of_train = ([one.total[0] for one in found[name]] for name in ("bare", "train"))
    besides = spread([fixed(one.phases, 0) for one in found["train"]])
    value = ratio(of_train, of_bare)
    times = f"{spread(of_train)} s against {spread(of_bare)} s; besides training {besides} s"
    words = "`import torch, lightning, mlflow` alone"
    yield Row("`fnostab train --preset smoke`", words, "<= 1.6 x", multiple(value), value.median <= 1.6, times)


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commands", nargs="+", choices=COMMANDS, default=["train", "study"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--before", type=Path, metavar="FOLDER", help="another checkout, which takes turns")
    arguments = parser.parse_args()
    roots = {"": ROOT} | ({" before": arguments.before.absolute()} if arguments.before else {})
    commands: dict[str, tuple[tuple[str, ...], Path]] = {"bare": (BARE, ROOT)}
    for name in arguments.commands:
        commands |= {f"{name}{when}": (COMMANDS[name], root) for when, root in roots.items()}
    with tempfile.TemporaryDirectory() as folder:
        found = by_turns(commands, arguments.repeats, Path(folder))
    print(machine())
    for name, measured in found.items():
        for place, kind in enumerate(("wall", "CPU")):
            value = [one.total[place] for one in measured]
            of_bare = ratio(value, [one.total[place] for one in found["bare"]])
            print(f"{name}: {spread(value)} s {kind}, {multiple(of_bare)} the bare imports")
        if name.startswith("demo"):
            print(f"{name}: {spread([one.after_s for one in measured])} s from the last training step to the exit")
    for name, measured in found.items():
        if name.startswith("study"):
            print_phases(f"{name}: a later run of a process", [run for one in measured for run in one.later_runs])
        elif name != "bare":
            print_phases(name, [one.phases for one in measured])


if __name__ == "__main__":
    main()
