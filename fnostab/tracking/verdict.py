"""A verdict as the store has it: tags by which runs are compared, and what a run's page says first."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from fnostab.health import VERDICT_VERSION, Stability, Verdict
from fnostab.study.text import markdown, number

#: What of a verdict's evidence is a metric as well, so that runs can be compared without reading their artifacts.
_EVIDENCE: Final = ("grad_norm_median", "grad_norm_max", "plateau_left_epoch")

#: What a run's page shows of its numbers, by their names in Python, if they are known.
_SHOWN: Final = (
    *("best_val_loss", "val_loss_constant", "val_loss_floor", "r_stitched", "r_factor", "amp_ssim", "phase_ssim"),
    *("frc50", "plateau_left_epoch", "grad_norm_max", "samples_per_s"),
)
#: What a description begins with.
_VERDICT: Final = "Verdict"


def evidence_numbers(verdict: Verdict) -> dict[str, float]:
    """What of the evidence is a metric as well, and known, by its name in Python."""
    numbers = {name: verdict.evidence.get(name) for name in _EVIDENCE}
    return {name: float(value) for name, value in numbers.items() if value is not None}


def verdict_layout(verdict: Verdict, stability: Stability | None) -> dict[str, Any]:
    """What `metrics.json` says of a verdict."""
    layout: dict[str, Any] = {"verdict": verdict.label, "verdict_reason": verdict.reason}
    return layout | {"evidence": verdict.evidence, "stability": stability.to_mapping() if stability else None}


def verdict_tags(verdict: Verdict, stability: Stability | None) -> dict[str, str]:
    """The tags that say how a run went, and how steadily if it learnt."""
    tags = {"verdict": verdict.label, "verdict_reason": verdict.reason, "verdict_version": str(VERDICT_VERSION)}
    return tags | ({"stability": stability.label} if stability else {})


def description(
    verdict: Verdict,
    stability: Stability | None,
    numbers: Mapping[str, float] | None = None,
    picture: tuple[str, str] | None = None,
) -> str:
    """What the run's page in the MLflow UI says first, in Markdown.

    `numbers` are those that the run ended with, by their names in Python; `picture` is the ID of the run and the path
    of its artifact.
    """
    found = {_VERDICT: verdict} | ({"Stability": stability} if stability else {})
    parts = [
        f"**{name}: {each.label}.** {markdown(f'{each.reason[:1].upper()}{each.reason[1:]}.')}"
        for name, each in found.items()
    ]
    known = {name: numbers[name] for name in _SHOWN if numbers and math.isfinite(numbers.get(name, math.nan))}
    if known:
        head, values = (" | ".join(cells) for cells in (known, map(number, known.values())))
        parts.append(f"| {head} |\n|{' ---: |' * len(known)}\n| {values} |")
    if picture:
        run_id, path = picture
        parts.append(f"![{Path(path).stem}](get-artifact?path={quote(path, safe='')}&run_uuid={run_id})")
    return "\n\n".join(parts)


def with_description(before: str, ours: str) -> str:
    """The description `ours` of a run, below what somebody else said of it; `before` is what the run has."""
    theirs = re.split(rf"^\*\*{_VERDICT}: ", before, maxsplit=1, flags=re.MULTILINE)[0].strip()
    return f"{theirs}\n\n{ours}" if theirs else ours
