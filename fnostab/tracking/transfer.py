"""Runs of a study in a file: out of one tracking store, and into another, where they are compared like its own."""

import gzip
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple, NoReturn, TypeVar

import mlflow
from mlflow.entities import Metric
from pydantic import BaseModel, ConfigDict, ValidationError

from fnostab.config import ConfigError
from fnostab.health import VERDICT_VERSION, judge, measure_stability
from fnostab.health.history import STEP_SERIES
from fnostab.io.files import DAMAGE, atomic_write
from fnostab.io.untrusted import shown
from fnostab.study.names import tracked
from fnostab.study.stored_run import StoredRun, are_foreign, has_identity
from fnostab.tracking.artifacts import Unreadable, read_artifacts
from fnostab.tracking.batches import log_batches
from fnostab.tracking.errors import HOW_TO_REPEAT, translated_store_errors
from fnostab.tracking.studies import find_runs
from fnostab.tracking.target import target_experiment_id

T = TypeVar("T")

#: The first line of a file says so.
_FORMAT: Final = {"format": "fnostab runs", "version": 1}
#: Tag of a run that came from a file: its run where it was trained.
CAME_FROM: Final = "exported_from"
#: Tags that say where a run was trained and what it waits for: of no use elsewhere.
_LOCAL: Final = ("mlflow.", "run_folder", CAME_FROM)
#: Most bytes of a file, unpacked, that are read: some 100,000 runs, or a thousand long ones with all their steps.
_MAX_BYTES: Final = 2**30


class _PortableRun(BaseModel):
    """A line of the file; JSON has no infinities, so a metric that is not finite is null, and known by name."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    run_id: str
    name: str
    ended_ms: int
    tags: dict[str, str]
    params: dict[str, str]
    metrics: dict[str, float | None]
    history: dict[str, Any] | None
    config: str | None


@dataclass(frozen=True)
class ExportedStudy:
    """One study of what a file holds that `export_study` wrote."""

    study: str
    runs: list[_PortableRun]


def export_study(study: str, path: Path, *, steps: bool = False) -> int:
    """Write the finished runs of `study` to `path`, gzipped JSON lines; returns how many.

    Of each run its tags, parameters, final metrics, config, and its history: the series of epochs, with `steps` those
    of optimizer steps as well. Raises `ConfigError`, and writes nothing, if there is no such run or what it logged
    cannot be read.
    """
    runs = sorted((run for run in find_runs(study) if run.is_result), key=lambda run: (run.arm, run.seed, run.run_id))
    if not runs:
        raise ConfigError(f"`study` (={study}) must have finished runs in the tracking store: there is none")
    histories = _readable(study, read_artifacts(runs, "history.json", lambda content: _history(content, steps)))
    configs = _readable(study, read_artifacts(runs, "config.yaml", bytes.decode))
    with (
        atomic_write(path) as partial,
        open(partial, "wb") as file,
        gzip.GzipFile("", "wb", 9, file, mtime=0) as packed,
    ):
        packed.write(json.dumps(_FORMAT | {"study": study}).encode() + b"\n")
        for run, history, config in zip(runs, histories, configs, strict=True):
            packed.write(_portable(run, history, config).model_dump_json().encode() + b"\n")
    return len(runs)


def _history(content: bytes, steps: bool) -> dict[str, Any]:
    """What is kept of a `history.json`; raises ValueError if it is none."""
    history = json.loads(content, parse_constant=_refuse_constant)
    if not isinstance(history, dict):
        raise ValueError("it is no JSON object")
    return {key: value for key, value in history.items() if steps or key not in STEP_SERIES}


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"it has {name} as a number")


def _readable(study: str, contents: Sequence[T | Unreadable | None]) -> list[T | None]:
    """The contents, if all that must be there could be read."""
    unreadable = [content for content in contents if isinstance(content, Unreadable)]
    if unreadable:
        how_many = f"those of {len(unreadable)} of {len(contents)} cannot"
        raise ConfigError(f"`study` (={study}) must have runs whose artifacts can be read: {how_many}: {unreadable[0]}")
    return [content for content in contents if not isinstance(content, Unreadable)]


def read_exported(path: Path) -> list[ExportedStudy]:
    """Read a file that `export_study` wrote, or several of them one after the other in one file.

    gzip's files may be joined by `cat`. Studies come in the order of the file. Raises `ConfigError` for any other file.
    """
    try:
        studies: list[ExportedStudy] = []
        for line in _lines(path):
            if (study := _study_of(line)) is not None:
                studies.append(ExportedStudy(study, []))
            elif not studies:
                break
            else:
                studies[-1].runs.append(_read_run(line, studies[-1].study))
        if not studies:
            raise ValueError("its first line says otherwise")
    except ValidationError as error:
        first = error.errors()[0]
        fault = f"`{'.'.join(map(str, first['loc']))}`: {first['msg']}"
    except RecursionError:
        fault = "it is nested too deeply"
    except DAMAGE as error:
        fault = str(error)
    else:
        return studies
    raise ConfigError(f"`file` (={path}) must be runs that were exported: {fault}")


def _study_of(line: bytes) -> str | None:
    """The study whose runs follow after `line`; None if it is no such line."""
    if not line.startswith(b'{"format":'):
        return None
    header = json.loads(line)
    study = header.get("study")
    return study if isinstance(study, str) and header == _FORMAT | {"study": study} else None


def _read_run(line: bytes, study: str) -> _PortableRun:
    run = _PortableRun.model_validate_json(line)
    if run.tags.get("study") != study or "verdict" not in run.tags or not has_identity(run.tags):
        raise ValueError(f"run {shown(run.run_id)} has not the tags of one of study {shown(study)}")
    return run


class Imported(NamedTuple):
    """How many runs were new to the store, and how many of those have another verdict than before."""

    new: int
    judged_otherwise: int


def import_runs(exported: ExportedStudy) -> Imported:
    """Put those runs into the tracking store that are not there yet.

    One that an earlier import left half-written is written anew. Verdict and stability are decided from the history by
    today's rules, as the runs are ranked with today's; where the verdict is another, the tag `verdict_before` keeps the
    one that the run had. A run without a history keeps what it had.
    """
    client = mlflow.MlflowClient()
    there = find_runs(exported.study)
    known = {run.run_id for run in there} | {run.tags.get(CAME_FROM) for run in there if run.is_result}
    missing = [run for run in exported.runs if run.run_id not in known]
    with translated_store_errors(HOW_TO_REPEAT):
        for run in there:
            if CAME_FROM in run.tags and not run.is_result:
                client.delete_run(run.run_id)
        judged = [judged_anew(portable) for portable in missing]
        for portable in judged:
            _create(client, portable)
    changed = sum(now.tags["verdict"] != then.tags["verdict"] for now, then in zip(judged, missing, strict=True))
    return Imported(len(missing), changed)


def judged_anew(run: _PortableRun) -> _PortableRun:
    """The run with verdict and stability by today's rules; a verdict that this package did not decide stays."""
    if run.history is None or (are_foreign(run.params) and "verdict_version" not in run.tags):
        return run
    verdict, stability = judge(run.history), measure_stability(run.history)
    tags = {key: value for key, value in run.tags.items() if key != "stability"}
    tags |= {"verdict_version": str(VERDICT_VERSION)} | ({"stability": stability.label} if stability else {})
    if verdict.label != run.tags["verdict"]:  # else its reason stays: it may tell of steps, which need not be here
        tags |= {"verdict": verdict.label, "verdict_reason": verdict.reason, "verdict_before": run.tags["verdict"]}
    metrics = run.metrics | (tracked(stability.numbers) if stability else {})
    return run.model_copy(update={"tags": tags, "metrics": metrics})


def _portable(run: StoredRun, history: dict[str, Any] | None, config: str | None) -> _PortableRun:
    return _PortableRun(
        run_id=run.tags.get(CAME_FROM, run.run_id),
        name=f"{run.arm}-seed{run.seed}",
        ended_ms=run.ended_ms,
        tags={key: value for key, value in run.tags.items() if not key.startswith(_LOCAL)},
        params=dict(run.params),
        metrics={key: value for key, value in run.metrics.items() if not key.startswith("system/")},
        history=history,
        config=config,
    )


def _lines(path: Path) -> Iterator[bytes]:
    left = _MAX_BYTES
    with gzip.open(path, "rb") as file:
        while line := file.readline(left + 1):
            left -= len(line)
            if left < 0:
                raise ValueError(f"unpacked, it has more than {_MAX_BYTES} bytes")
            if not line.endswith(b"\n"):
                raise ValueError("it ends in the middle of a line")
            yield line


def _create(client: mlflow.MlflowClient, run: _PortableRun) -> None:
    """Make the run, and its end last: until then it is no result."""
    tags = run.tags | {CAME_FROM: run.run_id}
    made = client.create_run(target_experiment_id(), start_time=run.ended_ms, tags=tags, run_name=run.name)
    run_id = made.info.run_id
    numbers = [(key, math.nan if value is None else value) for key, value in run.metrics.items()]
    metrics = [Metric(key, value, run.ended_ms, 0) for key, value in numbers]
    log_batches(client, run_id, params=run.params, metrics=metrics)
    if run.config is not None:
        client.log_text(run_id, run.config, "config.yaml")
    if run.history is not None:
        client.log_text(run_id, json.dumps(run.history), "history.json")
    client.set_terminated(run_id, "FINISHED", end_time=run.ended_ms)
