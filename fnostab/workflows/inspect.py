"""What is known of one run: its verdict with the evidence, and its metrics, as a mapping or as a table."""

from collections.abc import Iterator, Mapping
from typing import Any

from fnostab.config import ConfigError
from fnostab.health import VERDICT_VERSION, judge, measure_stability
from fnostab.health.history import plain
from fnostab.study.names import DETAILS
from fnostab.tracking.artifacts import read_run

#: The tags that say which run it is, in the order of the table.
_IDENTITY = ("study", "arm", "seed", "device", "precision", "dataset_sha256", "fnostab_version", "git_commit")
#: Those of its verdict.
_JUDGED = ("verdict", "verdict_reason", "verdict_version", "stability")

#: Metrics that the table leaves out: too many to read, and the evidence sums them up. Earlier versions had the last.
_LEFT_OUT = (*DETAILS, "system/", "health/norm_weight_absmax/", "health/gate_absmax/")


def inspect_run(run_id: str, *, judged: bool = False) -> dict[str, Any]:
    """Everything that says how the run `run_id` went, ready for JSON.

    `verdict`, its reason and version, and `stability` are what the run was tagged with, None while it has no verdict;
    `evidence` comes from its recorded series, None while there are none. With `judged`, `judged_anew` holds verdict and
    stability by today's rules, decided from the series. Raises `ConfigError` if there is no such run or store, or
    nothing to judge.
    """
    run, history = read_run(run_id)
    if judged and history is None:
        raise ConfigError(f"`run` (={run_id}) must have the artifact history.json to be judged by")
    known = {name: run.tags.get(name) for name in (*_IDENTITY, *_JUDGED)}
    return {
        "run_id": run.run_id,
        "status": run.status,
        **known,
        **({"judged_anew": _judge_anew(history, known["verdict"])} if judged and history is not None else {}),
        "vacuous": [name for name in run.tags.get("vacuous", "").split(",") if name],
        "evidence": None if history is None else judge(history).evidence,
        "metrics": {name: plain(value) for name, value in sorted(run.metrics.items())},
    }


def _judge_anew(history: Mapping[str, Any], before: str | None) -> dict[str, Any]:
    """Verdict and stability by today's rules, and whether the verdict is another than `before`."""
    verdict, stability = judge(history), measure_stability(history)
    return {
        "verdict": verdict.label,
        "changed": verdict.label != before,
        "verdict_reason": verdict.reason,
        "verdict_version": str(VERDICT_VERSION),
        "stability": stability.to_mapping() if stability else None,
    }


def as_table(found: Mapping[str, Any]) -> str:
    """Lines of name and value for people: what `inspect_run` gave, less the metrics of single layers and the system."""
    shown = {name: value for name, value in found["metrics"].items() if not name.startswith(_LEFT_OUT)}
    rows = list(_rows({**found, "metrics": shown}))
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:<{width}}  {value}".rstrip() for name, value in rows]
    if hidden := len(found["metrics"]) - len(shown):
        lines.append(f"  and {hidden} of single layers and of the system: --json, or the MLflow UI")
    return "\n".join(lines)


def _rows(found: Mapping[str, Any], indent: str = "") -> Iterator[tuple[str, str]]:
    for name, value in found.items():
        if isinstance(value, Mapping) and (not indent or any(isinstance(item, Mapping) for item in value.values())):
            yield f"{indent}{name}", ""
            yield from _rows(value, indent + "  ")
        else:
            yield f"{indent}{name}", _shown(value)


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_shown(item)}" for name, item in value.items())
    if isinstance(value, list):
        return ", ".join(map(_shown, value)) or "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
