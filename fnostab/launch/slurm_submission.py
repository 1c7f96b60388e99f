"""Jobs of a study as one SLURM array: what it runs, which jobs SLURM made of it, and what those say of themselves.

An array has a folder, which belongs to the user alone. `array.json` in it says what each task runs and, once SLURM has
taken the array, the IDs of its jobs; task 3 appends what it says to `3.jsonl`. The other files are submitit's: the
script, the logs, and for each task a pickle of a function's name and of text (docs/reliability.md).
"""

import contextlib
import io
import json
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from fnostab.io.endings import CommandFailed
from fnostab.io.files import atomic_write_text
from fnostab.io.untrusted import first_line, shown
from fnostab.launch.jobs import Job, Update
from fnostab.launch.slurm_cluster import clean_environment, submitit
from fnostab.launch.slurm_task import RunTask, run_task

_RECORD: Final = "array.json"
#: Lines at the end of a job's stderr that are kept, for the case that it dies.
_KEPT_LINES: Final = 20


@dataclass(frozen=True)
class Unit:
    """What one task of an array runs: a job, or those of a group; it was begun `restarts` times before this array."""

    jobs: Sequence[Job]
    restarts: int = 0


@dataclass(frozen=True)
class SlurmArray:
    """An array of one task for each of `units`; `job_ids` are those of SLURM, none if it has not taken the array."""

    folder: Path
    name: str
    units: Sequence[Unit]
    job_ids: Sequence[str] = ()

    def said_by(self, number: int) -> Path:
        """The file that a task of this array appends to."""
        return self.folder / f"{number}.jsonl"

    def last_words(self, number: int) -> str:
        """The end of what a task of this array, and SLURM on its behalf, wrote to stderr."""
        log = self.folder / f"{self.job_ids[number]}_0_log.err"
        try:
            lines = log.read_text(errors="replace").strip().splitlines()
        except OSError:
            return ""
        return "\n".join(lines[-_KEPT_LINES:])

    def remove(self) -> None:
        """Remove all files of the array, none of whose jobs may be there any more."""
        shutil.rmtree(self.folder, ignore_errors=True)


def submit_array(
    study_folder: Path,
    label: str,
    units: Sequence[Unit],
    run: RunTask,
    flags: Mapping[str, str | bool],
    requeues: int,
    at_once: int,
) -> SlurmArray:
    """Have SLURM take an array of `units`, of which `at_once` may run at a time, with these flags of `sbatch`.

    What it runs is written down before, and the IDs of its jobs right after: an array without IDs is one whose
    submission was cut off. Raises `CommandFailed` in the words of `sbatch` if that refuses.
    """
    name = f"{re.sub(r'[^A-Za-z0-9_.-]+', '_', label)[:40]}-{uuid.uuid4().hex[:8]}"
    array = SlurmArray(own_folder(study_folder) / name, name, units)
    array.folder.mkdir(mode=0o700)
    _write(array)
    package = submitit()
    executor = package.SlurmExecutor(folder=array.folder)
    executor.update_parameters(
        job_name=name,
        time=None,  # what the flags do not say is the cluster's to decide, and not submitit's
        wckey=None,
        array_parallelism=at_once,
        srun_args=[f"--cpus-per-task={flags['cpus-per-task']}"],  # srun does not take it from the job
        additional_parameters=dict(flags),
    )
    numbers = [str(number) for number in range(len(units))]
    settings = [(str(array.folder), number, *run, str(requeues)) for number in numbers]
    try:
        # What sbatch says is in the error too, and submitit prints it.
        with clean_environment(), contextlib.redirect_stderr(io.StringIO()):
            made = executor.map_array(run_task, *zip(*settings, strict=True))
    except RuntimeError as error:  # submitit's, with the words of sbatch
        array.remove()
        raise CommandFailed(f"SLURM did not take the runs: {shown(first_line(error))}") from None
    except BaseException:
        array.remove()
        raise
    array = SlurmArray(array.folder, name, units, [job.job_id for job in made])
    _write(array)
    return array


def _write(array: SlurmArray) -> None:
    units = [asdict(unit) for unit in array.units]
    content = {"name": array.name, "job_ids": list(array.job_ids), "units": units}
    atomic_write_text(array.folder / _RECORD, json.dumps(content))


def read_array(folder: Path) -> SlurmArray:
    """The array whose folder this is; raises OSError or ValueError if its record cannot be read."""
    try:
        content = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
        units = [Unit([Job(**job) for job in unit["jobs"]], unit["restarts"]) for unit in content["units"]]
        return SlurmArray(folder, content["name"], units, content["job_ids"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"no record of an array: {error}") from None


def known_arrays(study_folder: Path) -> list[SlurmArray]:
    """The arrays that were submitted from this folder and not removed."""
    found = []
    for folder in sorted(study_folder.glob("*/")):
        try:
            found.append(read_array(folder))
        except FileNotFoundError:  # cut off before anything was submitted
            shutil.rmtree(folder, ignore_errors=True)
        except (OSError, ValueError) as error:
            raise CommandFailed(
                f"the record of a study's SLURM jobs cannot be read, {folder / _RECORD}: {error}"
            ) from None
    return found


def own_folder(path: Path) -> Path:
    """The folder at `path`, made if it is not there, which this user alone may enter: what is in it is run.

    Raises `CommandFailed` for a folder of somebody else.
    """
    path.mkdir(parents=True, exist_ok=True)
    try:
        path.chmod(0o700)
    except PermissionError:
        raise CommandFailed(f"the folder {path} must be this user's own: SLURM jobs run what is in it") from None
    return path


@dataclass
class TaskNews:
    """What a task says of itself, read from its file as it grows."""

    array: SlurmArray
    number: int
    #: How often the task was begun; whether it asked to be begun again since; whether a signal stopped its run.
    begun: int = 0
    wants_again: bool = False
    was_stopped: bool = False
    _read: int = field(default=0, repr=False)

    @property
    def unit(self) -> Unit:
        """What the task runs."""
        return self.array.units[self.number]

    @property
    def job_id(self) -> str:
        """SLURM's ID of the task."""
        return self.array.job_ids[self.number]

    def new(self) -> Iterator[tuple[int, Update]]:
        """What the task has said since the last call: for a place in its unit an update."""
        for line in self._new_lines():
            if "update" in line:
                update = Update(**line["update"])
                self.was_stopped = update.state == "interrupted"
                yield line["place"], update
            elif "begun" in line:
                self.begun += 1
                self.wants_again = self.was_stopped = False
                for place in range(len(self.unit.jobs)):
                    yield place, Update("running", f"SLURM job {self.job_id} begins on {line['begun']}")
            elif "again" in line:
                self.wants_again = True
                for place in range(len(self.unit.jobs)):
                    yield place, Update("running", f"{line['again']}, SLURM job {self.job_id} is queued again")

    def _new_lines(self) -> Iterator[Mapping[str, Any]]:
        """The whole lines at the end of the file; opened anew each time, so that network file systems look."""
        try:
            with self.array.said_by(self.number).open("rb") as file:
                file.seek(self._read)
                content = file.read()
        except FileNotFoundError:
            return
        whole = content[: content.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in whole.splitlines():
            try:
                yield json.loads(line)
            except ValueError:  # empty, or cut off: its process was killed
                continue
