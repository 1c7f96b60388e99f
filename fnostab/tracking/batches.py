"""Writing to a run within MLflow's limits: how much one call takes, and how long a tag may be."""

from collections.abc import Mapping, Sequence
from typing import Final

import mlflow
from mlflow.entities import Metric, Param, RunTag

#: MLflow's limits for one `log_batch` call.
METRICS_A_CALL: Final = 1000
_PARAMS_A_CALL: Final = 100
#: Characters of a tag: MLflow cuts longer ones, or refuses them.
MAX_TAG: Final = 8000


def log_batches(
    client: mlflow.MlflowClient,
    run_id: str,
    *,
    params: Mapping[str, object] | None = None,
    metrics: Sequence[Metric] = (),
    tags: Mapping[str, object] | None = None,
) -> None:
    """Log all of it in as many calls as it takes; tags that are too long are cut."""
    entries = [Param(key, str(value)) for key, value in (params or {}).items()]
    for start in range(0, len(entries), _PARAMS_A_CALL):
        client.log_batch(run_id, params=entries[start : start + _PARAMS_A_CALL])
    for start in range(0, len(metrics), METRICS_A_CALL):
        client.log_batch(run_id, metrics=metrics[start : start + METRICS_A_CALL], synchronous=True)
    if tags:
        client.log_batch(run_id, tags=[RunTag(key, str(value)[:MAX_TAG]) for key, value in tags.items()])
