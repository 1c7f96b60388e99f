"""The model card of a registered version: what it does, what it was trained on, how good it is, and its limits."""

from collections.abc import Sequence
from typing import Final

from fnostab.report.templates import render
from fnostab.study.names import METRIC
from fnostab.study.stored_run import StoredRun

#: The numbers that the card tells.
_QUALITY: Final = ("best_val_loss", "r_stitched", "r_stitched_mean_pattern", "r_factor", "amp_ssim", "phase_ssim")


def model_card(name: str, run: StoredRun) -> str:
    """Markdown for a version of the registered model `name` that `run` trained."""
    quality = {name: run.metrics.get(METRIC[name]) for name in _QUALITY}
    stability = run.tags.get("stability")
    if run.is_foreign:
        return render("foreign_card.md.j2", name=name, run=run, stability=stability, **quality)
    of_run = {"run": run, "params": run.params, "N": int(run.params["data.N"]), "stability": stability}
    return render("card.md.j2", name=name, **of_run, **quality)


def ensemble_card(name: str, run: StoredRun, members: Sequence[StoredRun]) -> str:
    """Markdown for a version of the registered model `name`, an ensemble of `members` whose numbers are in `run`."""
    quality = {key: run.metrics.get(METRIC[key]) for key in _QUALITY}
    quality |= {key: run.metrics.get(f"val/{key}") for key in ("deviation", "error_over_deviation")}
    params = members[0].params
    of_run = {"run": run, "params": params, "N": int(params["data.N"]), "members": members}
    return render("ensemble_card.md.j2", name=name, **of_run, **quality)
