"""The studies of why it came out as it did that want a GPU, in the order of their value, until the minutes are over.

    python -m results.gpu --minutes 10            # on one GPU: trains, and writes results-gpu.jsonl.gz
    python -m results.gpu --minutes 10            # again, or elsewhere with that file: only what is missing from it
    fnostab import results-gpu.jsonl.gz           # into any store, where runs are merged by the tag `study`
    python -m results.gpu --minutes 5 --device cpu --small        # does it run at all; no number means anything

The tables of arms are those of docs/results/studies; many runs go on at once, each in a process (`--workers`), or
several seeds as one network (`--seeds_at_once`). When the minutes are over, a little before so that the file is
written by then, runs that have not ended store what they have: in the same `--folder` they go on from there. The file
holds every run that has ended, of all the studies; it is written after each study. What `fnostab study` says is in
the folder, a log a study. The exit code is 1 if a study failed for another reason than the time.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import torch

from fnostab.io.files import atomic_write
from fnostab.launch import collected_signals
from fnostab.study.stored_run import StoredRun
from fnostab.tracking.store import open_store
from fnostab.tracking.studies import find_runs
from fnostab.tracking.transfer import export_study, import_runs, read_exported

_ROOT: Final = Path(__file__).resolve().parent.parent
_STUDIES: Final = _ROOT / "docs" / "results" / "studies"
#: Seconds before the end at which runs are stopped, so that they and the file can be written; never over a fifth.
_MARGIN_S: Final = 45.0
#: Seconds that a study has to store what its runs have, before it is killed; what is lost then is since a checkpoint.
_PATIENCE_S: Final = 30.0
#: A training that ends in a second on a CPU.
_SMALL: Final = (
    *("--preset", "smoke", "--seeds", "2", "--epochs", "1", "--model.width", "4", "--data.object_size", "96"),
    *("--data.max_train_patches", "48", "--data.max_val_patches", "16"),
)


class Task(NamedTuple):
    """A study: its table of arms, what else `fnostab study` is told, and whether series of single steps are kept."""

    table: Path
    arguments: Sequence[str] = ()
    steps: bool = False


#: By study, what matters most first: who dies at the original's width, block and clipping at full size, five seeds.
TASKS: Final[Mapping[str, Task]] = {
    "w1_survival_width32": Task(_STUDIES / "w1_survival_width32.yaml", steps=True),
    "w1_survival_width32_3e3": Task(_STUDIES / "w1_survival_width32_3e3.yaml", steps=True),
    "w2_block_clip_full": Task(_STUDIES / "w2_block_clip_full.yaml"),
    "full_size": Task(_STUDIES / "full_size.yaml", ("--seeds", "1,2,3,4,5")),
}


@dataclass(frozen=True)
class Setting:
    """The device, whether at tiny sizes, how many runs at once, where all is kept, and the end by `time.monotonic`."""

    device: str
    small: bool
    workers: int
    seeds_at_once: int
    folder: Path
    file: Path
    deadline: float

    @property
    def seconds_left(self) -> float:
        """Seconds until runs are stopped."""
        return self.deadline - time.monotonic()

    def study(self, name: str) -> str:
        """The tag of the runs: those of tiny sizes are never taken for others."""
        return f"{name}_small" if self.small else name

    def command(self, name: str) -> list[str]:
        """How the study is trained, or what is missing of it."""
        task = TASKS[name]
        accelerator = "gpu" if self.device == "cuda" else "cpu"
        told = ["--arms", str(task.table), "--study", self.study(name), "--accelerator", accelerator]
        told += ["--workers", str(self.workers), "--seeds_at_once", str(self.seeds_at_once), *task.arguments]
        return [sys.executable, "-m", "fnostab", "study", *told, *(_SMALL if self.small else ())]


def train_all(names: Sequence[str], setting: Setting) -> bool:
    """Train what is missing of the studies as far as the time allows; returns whether none failed for another reason.

    The file is written after each, and a line printed that says how many of its runs have a result.
    """
    well = True
    with collected_signals() as caught:
        for name in names:
            if caught or setting.seconds_left <= 0:
                _say(f"{name}: not begun, as there is no time left")
                continue
            stopped, code = _train(name, setting, caught)
            write_file(setting)
            ends = {(run.arm, run.seed) for run in _results(setting.study(name))}
            if stopped:
                how = f"stopped when {'a signal came' if caught else 'the minutes were over'}; the same command goes on"
            else:
                how = "complete" if code == 0 else f"exit code {code}: {_last_line(_log(name, setting))}"
                well = well and code == 0
            _say(f"{name}: {len(ends)} runs have a result; {how}")
    return well and not caught


def _train(name: str, setting: Setting, caught: Sequence[int]) -> tuple[bool, int]:
    """Run the study until it ends or is stopped; returns whether it was stopped, and its exit code."""
    stopped = False
    with (
        open(_log(name, setting), "ab") as log,
        subprocess.Popen(setting.command(name), cwd=setting.folder, stdout=log, stderr=subprocess.STDOUT) as process,
    ):
        while process.poll() is None:
            if caught or setting.seconds_left <= 0:
                stopped = True
                process.terminate()
                try:
                    process.wait(_PATIENCE_S)
                except subprocess.TimeoutExpired:
                    process.kill()  # its runs notice, and end by themselves
            else:
                time.sleep(0.2)
    return stopped, process.returncode


def write_file(setting: Setting) -> int:
    """Write all runs of all studies that have ended to the one file; returns how many. No run, no file."""
    count = 0
    with tempfile.TemporaryDirectory() as folder:
        pieces = []
        for name, task in TASKS.items():
            if _results(study := setting.study(name)):
                pieces.append(Path(folder) / name)
                count += export_study(study, pieces[-1], steps=task.steps)
        if pieces:
            with atomic_write(setting.file) as partial:
                partial.write_bytes(b"".join(piece.read_bytes() for piece in pieces))
    return count


def read_file(setting: Setting) -> None:
    """Put what an earlier call wrote to the file, perhaps on another machine, into the store, so that it counts."""
    if setting.file.exists():
        new = sum(import_runs(exported).new for exported in read_exported(setting.file))
        _say(f"{setting.file}: {new} runs are taken over from it")


def _results(study: str) -> list[StoredRun]:
    return [run for run in find_runs(study) if run.is_result]


def _log(name: str, setting: Setting) -> Path:
    return setting.folder / f"{name}.log"


def _last_line(log: Path) -> str:
    return (log.read_text(encoding="utf-8", errors="replace").strip() or "it said nothing").splitlines()[-1]


def _use(folder: Path) -> None:
    """Let this process and those that it starts keep all in `folder`, and import this checkout."""
    folder.mkdir(parents=True, exist_ok=True)
    path = os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    os.environ |= {"FNOSTAB_CACHE": str(folder / "cache"), "PYTHONPATH": path}
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder / 'mlflow.db'}"
    os.chdir(folder)  # where the store keeps its artifacts


def _say(line: str) -> None:
    print(line, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, train, write; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = list(TASKS)
    parser.add_argument("--minutes", type=float, default=10.0, help="all is stopped and written by then")
    parser.add_argument("--file", type=Path, default=Path("results-gpu.jsonl.gz"), help="the runs, for fnostab import")
    parser.add_argument("--folder", type=Path, default=Path("results-gpu"), help="store, checkpoints and logs")
    parser.add_argument("--studies", nargs="+", choices=names, default=names, metavar="STUDY", help=", ".join(names))
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) - 1), help="runs at once")
    parser.add_argument("--seeds_at_once", type=int, default=1, help="seeds of an arm that are trained as one network")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--small", action="store_true", help="tiny sizes")
    options = parser.parse_args(arguments)
    seconds = 60 * options.minutes
    deadline = time.monotonic() + seconds - min(_MARGIN_S, 0.2 * seconds)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("`device` (=cuda) must be there: this machine has no CUDA device")
    folder, file = options.folder.resolve(), options.file.resolve()
    _use(folder)
    setting = Setting(options.device, options.small, options.workers, options.seeds_at_once, folder, file, deadline)
    open_store()
    read_file(setting)
    well = train_all(options.studies, setting)
    count = write_file(setting)
    _say(f"{count} runs: {file}" if count else "no run has ended: there is no file")
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
