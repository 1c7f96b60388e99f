"""Rank a study by the tags of its runs, write what is found to its parent run, and register the winner."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from fnostab.config import ConfigError
from fnostab.health import FAILED
from fnostab.io.files import atomic_write
from fnostab.ranking import STABILITY_COLUMNS, Ranking
from fnostab.ranking.claims import Design
from fnostab.report.axes import Picture
from fnostab.report.card import model_card
from fnostab.report.figures import draw_figures
from fnostab.report.study import html_report, short_summary, summary_markdown
from fnostab.study.curves import Curves
from fnostab.study.depth import DepthComparison, compare_depth
from fnostab.study.notes import foreign_facts, notes_of
from fnostab.study.result import StudyResult, StudyRun, best_and_worst
from fnostab.study.selection import Selection
from fnostab.study.stored_run import NO_DATASET, StoredRun, to_rows
from fnostab.tracking.artifacts import Unreadable, read_artifacts
from fnostab.tracking.model_registry import model_name as model_of, register_winner
from fnostab.tracking.run import how_to_open, run_url
from fnostab.tracking.store import open_store
from fnostab.tracking.studies import (
    MODEL_NAME,
    open_comparison,
    open_existing_parent,
)
from fnostab.workflows.candidate import find_candidate
from fnostab.workflows.ranked import rank_study

#: The picture of a run that the report shows, and its caption.
_PICTURE, _CAPTION = "recon/object_0.png", "first test object"
#: Facts of the report and the tags and parameters that they are.
_TAGS: Final = {"device": "device", "precision": "precision", "fnostab": "fnostab_version", "commit": "git_commit"}
_PARAMS: Final = {
    **{"preset": "preset", "blocks": "model.fno_blocks", "width": "model.width"},
    **{"epochs": "train.epochs", "threads": "train.threads"},
}


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
) -> Comparison:
    """Rank the runs of `study`, write tables, figures and the report, and register the best run of the first arm.

    `study` may be several with commas between, see `rank_study`. `dataset` (the beginning of a content hash) and
    `parent` (a run) choose where a study has several. `out` is a folder for a copy of the files. `by` decides the
    order, and which run is the best: see `rank_study`. The registered model is `model_name`, else what the study was
    started with, else `fnostab-<study>`. Raises `ConfigError`, before anything is written, for what `by` cannot be and
    for runs that cannot be compared.
    """
    open_store(must_exist=True)
    found = rank_study(study, dataset=dataset, parent=parent, by=by)
    study, selection, ranking, home = found.study, found.selection, found.ranking, found.home
    result, unreadable = _result(study, selection, ranking, home)
    candidate, registry = find_candidate(result, selection.runs) if register else (None, "Nothing registered.")
    pictures, faults = draw_figures(result)
    result = replace(result, notes=[*result.notes, *faults])
    with tempfile.TemporaryDirectory(prefix="fnostab-compare-") as folder:
        names = _write(result, pictures, Path(folder))
        with open_comparison(study) if home is None else open_existing_parent(home) as run:
            run.log_files(Path(folder))
            if candidate is not None:
                winner = next(run for run in selection.runs if run.run_id == candidate.run_id)
                model = model_name or (home and home.tags.get(MODEL_NAME)) or model_of(study)
                card = model_card(model, winner)
                done = register_winner(candidate, card + summary_markdown(result), promote=promote, model=model)
                registry = f"{done.text}\n{registry}".rstrip()
            run.set_tags(
                {
                    "decision": ranking.decision.label,
                    "winner": ranking.decision.winner or "",
                    **_dataset_tag(selection),
                }
            )
            run.set_note(short_summary(result))
        if out is not None:
            out.mkdir(exist_ok=True)
            for name in names:
                _copy(Path(folder) / name, out / name)
    return Comparison(result, run.run_id, how_to_open(run.run_id, run.experiment_id), names, registry, unreadable)


def _result(study: str, selection: Selection, ranking: Ranking, home: StoredRun | None) -> tuple[StudyResult, int]:
    """What the files are made from, and how many histories that must be there could not be read."""
    stage_a = home.tags.get("stage_a") if home else None
    depths, notes = _depths(stage_a, selection, ranking) if stage_a else ([], [])
    result = StudyResult(
        study=study,
        ranking=ranking,
        runs=[
            _study_run(run, row, ranking.by)
            for run, row in zip(selection.runs, to_rows(selection.runs, ranking.by)[0], strict=True)
        ],
        dataset_sha256=selection.dataset_sha256,
        facts={**_facts(selection.runs), **_design_facts(ranking.design), **foreign_facts(selection.runs)},
        notes=[*selection.notes, *notes_of(selection.runs), *notes],
        depths=depths,
        is_foreign=any(run.is_foreign for run in selection.runs),
        supervised=sorted({run.arm for run in selection.runs if run.is_supervised}),
    )
    return _with_artifacts(result, {run.run_id: run for run in selection.runs})


def _study_run(run: StoredRun, row: Mapping[str, Any], by: str) -> StudyRun:
    verdict = run.tags["verdict"]
    loss = run.metrics.get("best_val_loss", float("inf"))
    return StudyRun(
        arm=run.arm,
        seed=run.seed,
        run_id=run.run_id,
        verdict=verdict,
        verdict_reason=run.tags.get("verdict_reason", ""),
        best_val_loss=float("inf") if verdict in FAILED else loss,
        stability=run.tags.get("stability", ""),
        numbers={name: row.get(name) for name in ("r_stitched", *STABILITY_COLUMNS, by)},
        url=run_url(run.run_id, run.experiment_id),
    )


def _with_artifacts(result: StudyResult, stored: Mapping[str, StoredRun]) -> tuple[StudyResult, int]:
    """`result` with the curves of the runs that are drawn, and a picture of the best and the worst run of each arm.

    Curves that cannot be read are left out and counted, and a note says so.
    """
    drawn, by = [stored[run.run_id] for run in result.drawn_runs], result.ranking.by
    shown = [stored[run.run_id] for arm in result.drawn_arms for run in best_and_worst(result.of_arm(arm), by)]
    histories = read_artifacts(drawn, "history.json", lambda content: Curves.of(json.loads(content)))
    pngs = read_artifacts(shown, _PICTURE, bytes)
    curves = {run.run_id: found for run, found in zip(drawn, histories, strict=True) if isinstance(found, Curves)}
    pictures = {run.run_id: {_CAPTION: png} for run, png in zip(shown, pngs, strict=True) if isinstance(png, bytes)}
    runs = [
        replace(run, curves=curves.get(run.run_id, run.curves), pictures=pictures.get(run.run_id, {}))
        for run in result.runs
    ]
    unreadable = [found for found in histories if isinstance(found, Unreadable)]
    notes = [*result.notes, *_unreadable_notes(unreadable, len(drawn))]
    return replace(result, runs=runs, notes=notes), len(unreadable)


def _unreadable_notes(unreadable: Sequence[Unreadable], of: int) -> list[str]:
    """A note for each history that is damaged, and one for all that are not where the store says."""
    notes = [
        f"{each.run.arm}, seed {each.run.seed}: {each}; its curves are not drawn." for each in unreadable if each.damage
    ]
    missing = [each for each in unreadable if not each.damage]
    if missing:
        notes.append(f"The curves of {len(missing)} of {of} runs that would be drawn cannot be read: {missing[0]}.")
    return notes


def _facts(runs: Sequence[StoredRun]) -> dict[str, str]:
    """What the runs were made with, as far as any says so; several values where they differ."""
    found = {name: {run.tags[key] for run in runs if key in run.tags} for name, key in _TAGS.items()}
    found |= {name: {run.params[key] for run in runs if key in run.params} for name, key in _PARAMS.items()}
    return {name: ", ".join(sorted(values)) for name, values in found.items() if values}


def _dataset_tag(selection: Selection) -> dict[str, str]:
    known = selection.dataset_sha256
    return {} if known == NO_DATASET else {"dataset_sha256": known}


def _design_facts(design: Design) -> dict[str, str]:
    """How often the study looked, where that was planned."""
    if not design.looks:
        return {}
    looks = f"with {', '.join(map(str, design.looks))} seeds an arm"
    return {"until": "decided", "alpha": f"{design.alpha:g}", "looks": looks}


def _depths(stage_a: str, deep: Selection, after: Ranking) -> tuple[list[DepthComparison], list[str]]:
    """Each arm against the same arm of Stage A, and a sentence for each that cannot be compared."""
    try:
        found = rank_study(stage_a, dataset=deep.dataset_sha256)
        shallow, before = found.selection, found.ranking
    except ConfigError as error:
        return [], [f"There is no comparison with Stage A: {error}."]
    earlier = {row["arm"]: row for row in before.table}
    depths, notes = [], []
    for row in after.table:
        arm = row["arm"]
        if arm not in earlier:
            notes.append(f"{arm} is not compared with Stage A: study {stage_a} has no result of it.")
            continue
        blocks_a, blocks_b = (
            int(next(run.params["model.fno_blocks"] for run in of.runs if run.arm == arm)) for of in (shallow, deep)
        )
        try:
            depths.append(compare_depth(earlier[arm], row, depth_a=blocks_a, depth_b=blocks_b))
        except ValueError as error:
            notes.append(f"{arm} is not compared with Stage A: {error}.")
    return depths, notes


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
