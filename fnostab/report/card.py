"""The model card of a registered version: what it does, what it was trained on, how good it is, and its limits."""

import re
from collections.abc import Sequence
from typing import Any, Final

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
        return _card("foreign_card", name=name, run=run, stability=stability, **quality)
    of_run = {"run": run, "params": run.params, "N": int(run.params["data.N"]), "stability": stability}
    return _card("card", name=name, **of_run, **quality)


def ensemble_card(name: str, run: StoredRun, members: Sequence[StoredRun]) -> str:
    """Markdown for a version of the registered model `name`, an ensemble of `members` whose numbers are in `run`."""
    quality = {key: run.metrics.get(METRIC[key]) for key in _QUALITY}
    quality |= {key: run.metrics.get(f"val/{key}") for key in ("deviation", "error_over_deviation")}
    params = members[0].params
    of_run = {"run": run, "params": params, "N": int(params["data.N"]), "members": members}
    return _card("ensemble_card", name=name, **of_run, **quality)


def _card(template: str, **data: Any) -> str:
    """The filled template, each paragraph and each point of a list on one line: MLflow shows every end of a line."""
    return re.sub(r"(?<=\S)\n(?: {2})?(?=[^\s#|-])", " ", render(f"{template}.md.j2", **data)) + "\n"
