"""What the report of a comparison is made from: the ranked runs with their curves and pictures, facts and notes."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from fnostab.config import ConfigError
from fnostab.health import FAILED
from fnostab.ranking import STABILITY_COLUMNS, Ranking
from fnostab.ranking.claims import Design
from fnostab.study.curves import Curves
from fnostab.study.depth import DepthComparison, compare_depth
from fnostab.study.notes import foreign_facts, notes_of
from fnostab.study.result import StudyResult, StudyRun, best_and_worst
from fnostab.study.selection import Selection, varied_settings
from fnostab.study.sequential import looks_of
from fnostab.study.stored_run import StoredRun, to_rows
from fnostab.tracking.artifacts import Unreadable, read_artifacts
from fnostab.tracking.run import run_url
from fnostab.workflows.arm_series import MOST_CURVES
from fnostab.workflows.ranked import rank_study

#: The picture of a run that the report shows, and its caption.
_PICTURE, _CAPTION = "recon/object_0.png", "first test object"
#: Facts of the report and the tags and parameters that they are.
_TAGS: Final = {"device": "device", "precision": "precision", "fnostab": "fnostab_version", "commit": "git_commit"}
_PARAMS: Final = {
    **{"preset": "preset", "blocks": "model.fno_blocks", "width": "model.width"},
    **{"epochs": "train.epochs", "threads": "train.threads"},
}


def study_result(study: str, selection: Selection, ranking: Ranking, home: StoredRun | None) -> tuple[StudyResult, int]:
    """What the files are made from, and how many histories that must be there could not be read."""
    stage_a = home.tags.get("stage_a") if home else None
    depths, notes = _depths(stage_a, selection, ranking) if stage_a else ([], [])
    rows = to_rows(selection.runs, ranking.by)[0]
    result = StudyResult(
        study=study,
        ranking=ranking,
        runs=[_study_run(run, row, ranking.by) for run, row in zip(selection.runs, rows, strict=True)],
        dataset_sha256=selection.dataset_sha256,
        facts={**_facts(selection.runs), **_design_facts(ranking.design), **foreign_facts(selection.runs)},
        notes=[*selection.notes, *notes_of(selection.runs), *notes],
        depths=depths,
        is_foreign=any(run.is_foreign for run in selection.runs),
        supervised=sorted({run.arm for run in selection.runs if run.is_supervised}),
        settings=varied_settings(selection.runs),
        looks=looks_of(rows, ranking.design, ranking.by),
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
    """`result` with the curves of its runs, and a picture of the best and the worst run of each arm.

    Curves that cannot be read are left out and counted, and a note says so. In a study of very many runs, those that
    are not drawn have none.
    """
    read = result.runs if len(result.runs) <= MOST_CURVES else result.drawn_runs
    drawn, by = [stored[run.run_id] for run in read], result.ranking.by
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
