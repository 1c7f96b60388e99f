"""A verdict as the store has it: tags by which runs are compared, and what a run's page says first."""

from typing import Any, Final

from fnostab.health import VERDICT_VERSION, Stability, Verdict

#: What of a verdict's evidence is a metric as well, so that runs can be compared without reading their artifacts.
_EVIDENCE: Final = ("grad_norm_median", "grad_norm_max", "plateau_left_epoch")


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


def description(verdict: Verdict, stability: Stability | None) -> str:
    """What the run's page in the MLflow UI says first."""
    found = {"Verdict": verdict} | ({"Stability": stability} if stability else {})
    sentences = {name: f"{each.reason[:1].upper()}{each.reason[1:]}." for name, each in found.items()}
    return "\n\n".join(f"**{name}: {each.label}.** {sentences[name]}" for name, each in found.items())
