"""A verdict as the store has it: tags by which runs are compared, and what a run's page says first."""

from fnostab.health import VERDICT_VERSION, Stability, Verdict


def verdict_tags(verdict: Verdict, stability: Stability | None) -> dict[str, str]:
    """The tags that say how a run went, and how steadily if it learnt."""
    tags = {"verdict": verdict.label, "verdict_reason": verdict.reason, "verdict_version": str(VERDICT_VERSION)}
    return tags | ({"stability": stability.label} if stability else {})


def description(verdict: Verdict, stability: Stability | None) -> str:
    """What the run's page in the MLflow UI says first."""
    found = {"Verdict": verdict} | ({"Stability": stability} if stability else {})
    sentences = {name: f"{each.reason[:1].upper()}{each.reason[1:]}." for name, each in found.items()}
    return "\n\n".join(f"**{name}: {each.label}.** {sentences[name]}" for name, each in found.items())
