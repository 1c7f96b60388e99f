"""What the mean of an ensemble is worth on its dataset, and whether its deviation is the error that it makes."""

from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from fnostab import metrics
from fnostab.dataset import Dataset, Split
from fnostab.evaluation import baselines, evaluate, stitch_patches
from fnostab.optics import Beam
from fnostab.study.names import tracked
from fnostab.tracking.models import ShippedModel

#: Names in the store: root mean square deviation of validation patches where the light is, and what it has to be
#: multiplied by to be their error, which is there only if the truth is known.
DEVIATION: Final = "val/deviation"
ERROR_OVER_DEVIATION: Final = "val/error_over_deviation"
#: Patterns at once: a multiple of those in a group.
_AT_ONCE: Final = 64


def measure(model: ShippedModel, dataset: Dataset) -> dict[str, float]:
    """The numbers of an ensemble's run, by their names in the store: those that a run has at its end, of the mean.

    `best_val_loss` and `val/r_stitched` are measured as in a training, `test/...` as at its end.
    """
    assert model.modes is not None
    beam = Beam.of(model.modes, model.mask)
    patches, deviations = predict_split(model, dataset.val)
    assert deviations is not None
    amplitudes = np.sqrt(dataset.val.counts) / dataset.scale
    of_test, _ = predict_split(model, dataset.test)
    # Of a scan all patterns are stitched: its validation patterns are a few small blocks.
    stitched = (of_test, dataset.test) if dataset.measured else (patches, dataset.val)
    numbers = baselines(dataset, probe_learnt=False)
    numbers["best_val_loss"] = metrics.r_factor(beam.amplitude(torch.from_numpy(patches)).numpy(), amplitudes)
    numbers["r_stitched"] = stitch_patches(torch.from_numpy(stitched[0]), stitched[1], dataset.scale, beam).r
    numbers |= evaluate(of_test, dataset, beam, probe_learnt=False).metrics
    return tracked(numbers) | _calibration(patches, deviations, dataset, beam)


def predict_split(model: ShippedModel, split: Split) -> tuple[NDArray[np.complex64], NDArray[np.float32] | None]:
    """Predict every patch of `split`, complex64 (n, N, N), and of an ensemble the deviations, float32 (n, N, N)."""
    groups = split.groups(model.gridsize)
    order = groups.in_order
    starts = range(0, len(order), _AT_ONCE)
    found = [model.predict_with_deviation(split.counts[order[start : start + _AT_ONCE]]) for start in starts]
    patches = groups.once(np.concatenate([each for each, _ in found]))
    deviations = [each for _, each in found if each is not None]
    return patches, groups.once(np.concatenate(deviations)) if deviations else None


def _calibration(
    patches: NDArray[np.complex64], deviations: NDArray[np.float32], dataset: Dataset, beam: Beam
) -> dict[str, float]:
    weight = beam.weight.numpy()
    lit = metrics.lit_region(weight)
    found = {DEVIATION: float(np.sqrt(np.square(deviations[:, lit], dtype=np.float64).mean()))}
    if dataset.val_objects is not None:
        errors = metrics.patch_errors(patches, dataset.val.patches_of(dataset.val_objects), np.abs(weight) ** 2)
        found[ERROR_OVER_DEVIATION] = metrics.error_over_deviation(errors[:, lit], deviations[:, lit])
    return found
