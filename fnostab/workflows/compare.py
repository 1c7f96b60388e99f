"""Rank a study by the tags of its runs, write what is found to its parent run, and register the winner."""

import json
import tempfile
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from fnostab import tracking
from fnostab.config import ConfigError
from fnostab.io.files import atomic_write
from fnostab.ranking import BOOTSTRAP_SEED, FAILED, Ranking, rank_arms
from fnostab.report.card import model_card
from fnostab.report.curves import condensed
from fnostab.report.study import figures, html_report, short_summary, summary_markdown
from fnostab.study.depth import DepthComparison, compare_depth
from fnostab.study.result import StudyResult, StudyRun, best_and_worst
from fnostab.study.selection import Selection, StoredRun, select_runs
from fnostab.tracking import Candidate, Registration, StudyFolder
from fnostab.tracking.studies import Unreadable, read_artifacts

#: Pixels per inch of the figures that are files.
_DPI: Final = 150
#: Pictures of a run that the report shows: artifact and caption.
_PICTURES: Final = {"recon/object_0.png": "first test object"}


@dataclass(frozen=True)
class Comparison:
    """A ranked study, the run that holds its files, and what became of the winner in the registry."""

    result: StudyResult
    run_id: str
    how_to_open: str
    files: Sequence[str]
    registration: Registration | None
    registry: str  #: in words, also why nothing was registered


def compare_study(
    study: str,
    *,
    dataset: str | None = None,
    parent: str | None = None,
    promote: bool = False,
    register: bool = True,
    out: Path | None = None,
) -> Comparison:
    """Rank the runs of `study`, write tables, figures and the report, and register the best run of the first arm.

    `dataset` (the beginning of a content hash) and `parent` (a run) choose where a study has several. `out` is a folder
    for a copy of the files. Raises `ConfigError`, before anything is written, for runs that cannot be compared.
    """
    tracking.open_store(must_exist=True)
    selection, ranking = rank_study(study, dataset=dataset, parent=parent)
    home = _parent_of(study, selection, parent)
    result = _result(study, selection, ranking, home)
    with tempfile.TemporaryDirectory(prefix="fnostab-compare-") as folder:
        names = _write(result, Path(folder))
        with _opened(study, home) as run:
            run.log_files(Path(folder))
            registration, words = _register(result, selection, promote) if register else (None, "Nothing registered.")
            decision = ranking.decision
            run.set_tags(
                {
                    "decision": decision.label,
                    "winner": decision.winner or "",
                    "dataset_sha256": selection.dataset_sha256,
                    "mlflow.note.content": short_summary(result),
                }
            )
        if out is not None:
            out.mkdir(exist_ok=True)
            for name in names:
                _copy(Path(folder) / name, out / name)
    how_to_open = tracking.how_to_open(run.run_id, run.experiment_id)
    return Comparison(result, run.run_id, how_to_open, names, registration, words)


def rank_study(study: str, *, dataset: str | None = None, parent: str | None = None) -> tuple[Selection, Ranking]:
    """The runs of `study` that are compared, and their ranking."""
    found = tracking.find_runs(study)
    parents = [run for run in tracking.find_parents(study) if parent in (None, run.run_id)]
    planned = [
        key
        for run in parents
        if dataset is None or run.tags.get("dataset_sha256", "").startswith(dataset)
        for key in tracking.planned_runs(run)
    ]
    selection = select_runs(study, found, dataset=dataset, parent=parent, planned=planned)
    return selection, rank_arms([run.to_row() for run in selection.runs], BOOTSTRAP_SEED)


def _parent_of(study: str, selection: Selection, parent: str | None) -> StoredRun | None:
    """The newest parent run of the study on this dataset, if there is one."""
    for run in tracking.find_parents(study):
        if parent in (None, run.run_id) and run.tags.get("dataset_sha256") == selection.dataset_sha256:
            return run
    return None


def _opened(study: str, home: StoredRun | None) -> AbstractContextManager[StudyFolder]:
    return tracking.open_comparison(study) if home is None else tracking.open_existing_parent(home)


def _result(study: str, selection: Selection, ranking: Ranking, home: StoredRun | None) -> StudyResult:
    result = StudyResult(
        study=study,
        ranking=ranking,
        runs=[_study_run(run) for run in selection.runs],
        dataset_sha256=selection.dataset_sha256,
        facts=_facts(selection.runs),
        notes=selection.notes,
        depth=_depth(selection, ranking, home),
    )
    return _with_pictures(_with_histories(result, selection), selection)


def _study_run(run: StoredRun) -> StudyRun:
    verdict = run.tags["verdict"]
    loss = run.metrics.get("best_val_loss", float("inf"))
    return StudyRun(
        arm=run.arm,
        seed=run.seed,
        run_id=run.run_id,
        verdict=verdict,
        verdict_reason=run.tags.get("verdict_reason", ""),
        best_val_loss=float("inf") if verdict in FAILED else loss,
        url=tracking.run_url(run),
    )


def _with_histories(result: StudyResult, selection: Selection) -> StudyResult:
    """`result` with what is drawn of each run's `history.json`; what cannot be read is left out and said."""
    drawn = {run.run_id for arm in result.drawn_arms for run in result.drawn(arm)}
    stored = [run for run in selection.runs if run.run_id in drawn]
    found = read_artifacts(stored, "history.json", lambda content: condensed(json.loads(content)))
    histories = {run.run_id: history for run, history in zip(stored, found, strict=True)}
    unreadable = [history for history in found if isinstance(history, Unreadable)]
    runs = [
        replace(run, history=None if isinstance(history := histories.get(run.run_id), Unreadable) else history)
        for run in result.runs
    ]
    return replace(result, runs=runs, notes=[*result.notes, *_unreadable_notes(unreadable, len(stored))])


def _unreadable_notes(unreadable: Sequence[Unreadable], of: int) -> list[str]:
    """A note for each history that is damaged, and one for all that are not where the store says."""
    notes = [
        f"{each.run.arm}, seed {each.run.seed}: {each}; its curves are not drawn." for each in unreadable if each.damage
    ]
    missing = [each for each in unreadable if not each.damage]
    if missing:
        notes.append(f"The curves of {len(missing)} of {of} runs that would be drawn cannot be read: {missing[0]}.")
    return notes


def _with_pictures(result: StudyResult, selection: Selection) -> StudyResult:
    """`result` with the pictures of the best and the worst run of each arm that is drawn."""
    shown = {run.run_id for arm in result.drawn_arms for run in best_and_worst(result.of_arm(arm))}
    stored = [run for run in selection.runs if run.run_id in shown]
    pictures: dict[str, dict[str, bytes]] = {run.run_id: {} for run in stored}
    for path, caption in _PICTURES.items():
        for run, png in zip(stored, tracking.read_artifacts(stored, path, bytes), strict=True):
            if isinstance(png, bytes):
                pictures[run.run_id][caption] = png
    return replace(result, runs=[replace(run, pictures=pictures.get(run.run_id, {})) for run in result.runs])


def _facts(runs: Sequence[StoredRun]) -> dict[str, str]:
    """What the runs were made with; several values where they differ."""
    facts = {}
    for name, key in (("device", "device"), ("fnostab", "fnostab_version"), ("commit", "git_commit")):
        values = sorted({run.tags[key] for run in runs if key in run.tags})
        facts[name] = ", ".join(values) or "unknown"
    for name, key in (
        ("preset", "preset"),
        ("blocks", "model.fno_blocks"),
        ("width", "model.width"),
        ("epochs", "train.epochs"),
        ("threads", "train.threads"),
    ):
        values = sorted({run.params[key] for run in runs if key in run.params})
        facts[name] = ", ".join(values) or "unknown"
    return facts


def _depth(selection: Selection, ranking: Ranking, home: StoredRun | None) -> DepthComparison | None:
    """The comparison with Stage A, for a study that says which it was."""
    stage_a = home.tags.get("stage_a") if home else None
    if stage_a is None:
        return None
    shallow, before = rank_study(stage_a, dataset=selection.dataset_sha256)
    (row,) = ranking.table
    earlier = next((other for other in before.table if other["arm"] == row["arm"]), None)
    if earlier is None:
        raise ConfigError(f"`stage_a` (={stage_a}) must have runs of arm {row['arm']}")
    blocks_a, blocks_b = (
        int(next(run.params["model.fno_blocks"] for run in of.runs if run.arm == row["arm"]))
        for of in (shallow, selection)
    )
    return compare_depth(earlier, row, depth_a=blocks_a, depth_b=blocks_b)


def _write(result: StudyResult, folder: Path) -> list[str]:
    """Write all files of the comparison; returns their names, the report first."""
    study, drawn = result.study, figures(result)
    texts = {
        f"{study}_report.html": html_report(result, drawn),
        f"{study}_summary.md": summary_markdown(result),
        f"{study}_metrics.json": json.dumps(result.ranking.to_json_rows(), indent=2, allow_nan=False) + "\n",
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    names = list(texts)
    (folder / "figures").mkdir()
    for name, figure in drawn.items():
        names.append(f"figures/{study}_{name}.png")
        figure.savefig(folder / names[-1], dpi=_DPI)
    return names


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(exist_ok=True)
    with atomic_write(target) as partial:
        partial.write_bytes(source.read_bytes())


def _register(result: StudyResult, selection: Selection, promote: bool) -> tuple[Registration | None, str]:
    """Register the best run of the first arm; what became of it, in words too."""
    first = result.ranking.table[0]
    if result.ranking.decision.winner is None:
        return None, "Nothing registered: every run failed."
    run = next(run for run in selection.runs if run.run_id == first["best_run_id"])
    if run.params.get("train.artifacts") == "numbers" or tracking.CAME_FROM in run.tags:
        how = "one that is trained with `train.artifacts=all` into this store has one"
        return None, f"Nothing registered: of the best run, {run.run_id}, the numbers are here, but no model; {how}."
    candidate = Candidate(result.study, run.arm, run.seed, run.run_id, first["best_val_loss"], selection.dataset_sha256)
    card = model_card(tracking.model_name(result.study), run)
    registration = tracking.register_winner(candidate, card + summary_markdown(result), promote=promote)
    return registration, registration.text
