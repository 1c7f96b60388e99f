"""The trained network as a model of its run: a pt2 export that needs torch and MLflow, and not this package."""

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import mlflow
import numpy as np
import torch
from mlflow.models import Model, ModelSignature
from mlflow.types import Schema, TensorSpec
from numpy.typing import NDArray

from fnostab.tracking.errors import translated_store_errors
from fnostab.tracking.tracker import Tracker

#: What a run calls its model, of the best epoch, and the one from before an accident.
MODEL: Final = "model"
BEFORE_ACCIDENT: Final = "before_accident"
#: Key of the metadata of an ensemble's `MLmodel` file: the runs whose networks it holds.
MEMBERS: Final = "members"


def signature(N: int, gridsize: int = 1, *, has_deviation: bool = False) -> ModelSignature:
    """Counts, float32 (-1, N, N), to patches, float32 (-1, N, N, 2): real and imaginary part.

    With `gridsize` 2, groups of four: (-1, 4, N, N) to (-1, 4, N, N, 2). The patches of an ensemble have a deviation as
    third value: (..., 3).
    """
    float32 = np.dtype(np.float32)
    shape = (-1, N, N) if gridsize == 1 else (-1, gridsize**2, N, N)
    return ModelSignature(
        inputs=Schema([TensorSpec(float32, shape)]),
        outputs=Schema([TensorSpec(float32, (*shape, 3 if has_deviation else 2))]),
    )


@translated_store_errors()
def log_model(
    tracker: Tracker,
    model: torch.nn.Module,
    example_counts: NDArray[np.float32],
    extra_files: Sequence[Path] = (),
    *,
    name: str = MODEL,
    step: int = 0,
    try_it: bool = True,
    members: Sequence[str] = (),
) -> str:
    """Log `model`, which lies on the CPU, as `name` of the run, with all that the run measured at `step`; gives its ID.

    `example_counts` is (B, N, N), or of groups of patterns (B, C, N, N); `extra_files` lie beside the network in
    `extra_files/`. What an earlier process of the run logged is deleted. With `try_it`, MLflow loads the model
    again, predicts the example, and warns if that fails; of this package's own networks the tests show that it works.
    `members` are the runs whose networks an ensemble holds, `models.ensemble.Ensemble`.
    """
    client = mlflow.MlflowClient()
    gridsize = 1 if example_counts.ndim == 3 else math.isqrt(example_counts.shape[1])
    if tracker.resumed:
        of_run = f"source_run_id = '{tracker.run_id}' AND name = '{name}'"
        for earlier in client.search_logged_models([tracker.experiment_id], of_run):
            client.delete_logged_model(earlier.model_id)
    logged = mlflow.pytorch.log_model(
        model,
        name=name,
        step=step,
        serialization_format="pt2",
        signature=signature(example_counts.shape[-1], gridsize, has_deviation=bool(members)),
        # For people: `models.load_model` reads the gridsize off the signature.
        metadata={"gridsize": gridsize, **({MEMBERS: list(members)} if members else {})},
        input_example=example_counts,
        extra_files=[str(path) for path in extra_files],
        validate_serving_input=try_it,
        pip_requirements=[
            f"mlflow=={mlflow.__version__}",
            f"numpy=={np.__version__}",
            f"torch=={torch.__version__.split('+')[0]}",
        ],
    )
    # Exported on the CPU, it runs there; MLflow would otherwise take a GPU that it finds, and refuse to load it.
    description = Model.load(logged.model_uri)
    description.flavors["python_function"]["config"] = {"device": "cpu"}
    with tempfile.TemporaryDirectory() as folder:
        description.save(str(Path(folder) / "MLmodel"))
        client.log_model_artifact(logged.model_id, str(Path(folder) / "MLmodel"))
    return str(logged.model_id)
