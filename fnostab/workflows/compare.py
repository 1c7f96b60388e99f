"""Rank a study by the tags of its runs, write what is found to its parent run, and register the winner."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from fnostab.config import ConfigError
from fnostab.io.files import atomic_write
from fnostab.report.axes import Picture
from fnostab.report.card import model_card
from fnostab.report.figures import draw_figures
from fnostab.report.study import html_report, note_markdown, summary_markdown
from fnostab.study.result import StudyResult
from fnostab.study.selection import Selection
from fnostab.study.stored_run import NO_DATASET
from fnostab.tracking.arm_series import ArmSeriesWriter
from fnostab.tracking.model_registry import model_name as model_of, register_winner
from fnostab.tracking.run import artifact_page, how_to_open
from fnostab.tracking.store import open_store
from fnostab.tracking.studies import MODEL_NAME, StudyFolder, open_comparison, open_existing_parent
from fnostab.workflows import PrintLine
from fnostab.workflows.arm_series import series_of_result
from fnostab.workflows.candidate import find_candidate
from fnostab.workflows.ensemble import carry_out, plan_ensemble
from fnostab.workflows.ranked import rank_study
from fnostab.workflows.study_result import study_result

#: Characters that a note takes at least, however long the study's description is.
_LEAST_NOTE: Final = 1000


@dataclass(frozen=True)
class Comparison:
    """A ranked study, the run that holds its files, and what became of the winner in the registry."""

    result: StudyResult
    run_id: str
    how_to_open: str
    files: Sequence[str]
    registry: str  #: in words, also why nothing was registered
    unreadable: int  #: histories that must be there and could not be read


def compare_study(
    study: str,
    *,
    dataset: str | None = None,
    parent: str | None = None,
    promote: bool = False,
    register: bool = True,
    out: Path | None = None,
    by: str = "best_val_loss",
    model_name: str | None = None,
    ensemble: bool = False,
    print_line: PrintLine = lambda line: None,
) -> Comparison:
    """Rank the runs of `study`, write tables, figures and the report, and register the best run of the first arm.

    `study` may be several with commas between, see `rank_study`. `dataset` (the beginning of a content hash) and
    `parent` (a run) choose where a study has several. `out` is a folder for a copy of the files. `by` decides the
    order, and which run is the best: see `rank_study`. The registered model is `model_name`, else what the study was
    started with, else `fnostab-<study>`. With `ensemble` all converged runs of that arm are registered as one model
    besides, see `workflows.ensemble`; `print_line` takes a line when it is measured. Raises `ConfigError`, before
    anything is written, for what `by` cannot be, for runs that cannot be compared, and for an ensemble that cannot be.
    """
    if ensemble and not register:
        raise ConfigError("`ensemble` (=true) must be false where `register` is false: an ensemble is registered")
    open_store(must_exist=True)
    found = rank_study(study, dataset=dataset, parent=parent, by=by)
    plan = plan_ensemble(found, model_name) if ensemble else None
    study, selection, ranking, home = found.study, found.selection, found.ranking, found.home
    result, unreadable = study_result(study, selection, ranking, home)
    candidate, registry = find_candidate(result, selection.runs) if register else (None, "Nothing registered.")
    pictures, faults = draw_figures(result)
    result = replace(result, notes=[*result.notes, *faults])
    with tempfile.TemporaryDirectory(prefix="fnostab-compare-") as folder:
        names = _write(result, pictures, Path(folder))
        with open_comparison(study) if home is None else open_existing_parent(home) as run:
            run.log_files(Path(folder))
            ArmSeriesWriter(run.run_id).write(series_of_result(result, selection.runs))
            if candidate is not None:
                winner = next(run for run in selection.runs if run.run_id == candidate.run_id)
                model = model_name or (home and home.tags.get(MODEL_NAME)) or model_of(study)
                card = model_card(model, winner)
                done = register_winner(candidate, f"{card}\n{summary_markdown(result)}", promote=promote, model=model)
                registry = f"{done.text}\n{registry}".rstrip()
            run.set_tags(
                {
                    "decision": ranking.decision.label,
                    "winner": ranking.decision.winner or "",
                    **_dataset_tag(selection),
                }
            )
            run.set_note(_note(result, run, names[0]))
        if out is not None:
            out.mkdir(exist_ok=True)
            for name in names:
                _copy(Path(folder) / name, out / name)
    if plan is not None:
        registry += f"\n{carry_out(plan, run.run_id, promote=promote, print_line=print_line)}"
    return Comparison(result, run.run_id, how_to_open(run.run_id, run.experiment_id), names, registry, unreadable)


def _note(result: StudyResult, run: StudyFolder, report: str) -> str:
    """What the page of the comparison's run says first."""
    link = f"[The report]({artifact_page(run.run_id, run.experiment_id, report)})"
    return f"{note_markdown(result, max(_LEAST_NOTE, run.room_for_note - len(link) - 2))}\n\n{link}"


def _dataset_tag(selection: Selection) -> dict[str, str]:
    known = selection.dataset_sha256
    return {} if known == NO_DATASET else {"dataset_sha256": known}


def _write(result: StudyResult, pictures: Mapping[str, Picture], folder: Path) -> list[str]:
    """Write all files of the comparison; returns their names, the report first."""
    study = result.study
    texts = {
        f"{study}_report.html": html_report(result, pictures),
        f"{study}_summary.md": summary_markdown(result),
        f"{study}_metrics.json": json.dumps(result.ranking.to_json_rows(), indent=2, allow_nan=False) + "\n",
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "figures").mkdir()
    for name, picture in pictures.items():
        (folder / "figures" / f"{study}_{name}.png").write_bytes(picture.png)
    return [*texts, *(f"figures/{study}_{name}.png" for name in pictures)]


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(exist_ok=True)
    with atomic_write(target) as partial:
        partial.write_bytes(source.read_bytes())
