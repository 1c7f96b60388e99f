"""What is told of a run, a study and a comparison once they have come to their result; see `workflows.notify`."""

from fnostab.workflows.arm_training import ArmResult
from fnostab.workflows.compare import Comparison
from fnostab.workflows.notify import Notice
from fnostab.workflows.study import StudyOutcome


def notice_of_run(result: ArmResult, study: str, arm: str, seed: int) -> Notice:
    """The verdict of a run and its final numbers, by their names in the store."""
    verdict, stability = result.verdict, result.stability
    told = {
        **{"arm": arm, "seed": seed, "verdict": verdict.label, "verdict_reason": verdict.reason},
        "stability": stability.label if stability else None,
        "metrics": dict(result.metrics),
        "how_to_open": result.how_to_open,
    }
    return Notice("verdict", verdict.label, study, result.run_id, told)


def notice_of_study(outcome: StudyOutcome) -> Notice:
    """How the runs of a study ended, and what it says if it was to be decided."""
    runs = [
        {"arm": run.arm, "seed": run.seed, "run_id": end.run_id, "verdict": end.verdict, "best_val_loss": end.val_loss}
        for run, end in outcome.ends
    ]
    told = {"results": outcome.results, "conclusion": outcome.conclusion, "runs": runs}
    label = "incomplete" if outcome.without_result else "complete"
    return Notice("study", label, outcome.plan.study, outcome.run_id, {**told, "how_to_open": outcome.how_to_open})


def notice_of_comparison(found: Comparison) -> Notice:
    """The decision of a comparison, its ranking, and what became of the winner in the registry."""
    ranking = found.result.ranking
    columns = ("arm", "runs", "failures", f"median_{ranking.by}")
    told = {
        **{"decision": ranking.decision.label, "why": ranking.decision.text, "winner": ranking.decision.winner},
        "ranking": [{column: row[column] for column in columns} for row in ranking.table],
        **{"registry": found.registry, "report": found.files[0], "how_to_open": found.how_to_open},
    }
    return Notice("decision", ranking.decision.label, found.result.study, found.run_id, told)
