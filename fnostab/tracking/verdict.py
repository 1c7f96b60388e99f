"""A verdict as the store has it: tags by which runs are compared, and what a run's page says first."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple
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


class StoredPicture(NamedTuple):
    """A picture among the artifacts of a run, and the address of the UI's page that shows it."""

    run_id: str
    path: str
    page: str


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
    picture: StoredPicture | None = None,
) -> str:
    """What the run's page in the MLflow UI says first, in Markdown.

    `numbers` are those that the run ended with, by their names in Python. The UI shows four lines and hides the rest
    until it is asked for more, so the `picture` itself comes last, and a link to it stands among the numbers.
    """
    found = {_VERDICT: verdict} | ({"Stability": stability} if stability else {})
    parts = [
        f"**{name}: {each.label}.** {markdown(f'{each.reason[:1].upper()}{each.reason[1:]}.')}"
        for name, each in found.items()
    ]
    known = {name: numbers[name] for name in _SHOWN if numbers and math.isfinite(numbers.get(name, math.nan))}
    line = ", ".join(f"{markdown(name)} **{number(value)}**" for name, value in known.items())
    if picture:
        name, address = Path(picture.path).stem, f"get-artifact?path={quote(picture.path, safe='')}"
        line += f"{', ' if line else ''}[{name}]({picture.page})"
        parts.append(f"![{name}]({address}&run_uuid={picture.run_id})")
    if line:  # no table, as the UI sets no space between cells
        parts.insert(1, line)
    return "\n\n".join(parts)


def with_description(before: str, ours: str) -> str:
    """The description `ours` of a run, below what somebody else said of it; `before` is what the run has."""
    theirs = re.split(rf"^\*\*{_VERDICT}: ", before, maxsplit=1, flags=re.MULTILINE)[0].strip()
    return f"{theirs}\n\n{ours}" if theirs else ours
