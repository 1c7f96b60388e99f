"""Whether the deviation of an ensemble is its error: measured on simulated objects, of which the truth is known.

    fnostab study --arms docs/results/studies/ensemble.yaml
    python -m results.ensemble_run                # writes docs/results/data/ensemble.json

The members are all converged runs of the study's first arm, in the store that MLFLOW_TRACKING_URI names. The factor by
which deviations are multiplied is fitted on the study's own validation patterns, and tried on other objects, other
kinds of objects, other beams, and fewer photons.
"""

import argparse
import json
import multiprocessing
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr

from fnostab import metrics
from fnostab.config import ArmConfig, resolve_config
from fnostab.dataset import Dataset, Split, load_or_build
from fnostab.evaluation import reconstruct
from fnostab.models.ensemble import Ensemble
from fnostab.scan import reassemble
from fnostab.study.members import choose_members
from fnostab.tracking.artifacts import read_config
from fnostab.tracking.checkout import git_commit
from fnostab.tracking.models import ShippedModel, load_model
from fnostab.tracking.store import open_store
from fnostab.workflows.ranked import rank_study
from results.ensemble import DATA

#: Objects that no member saw, and what else differs from the training, by name. Counts are brought to the exposure that
#: the networks know, so that an object of ones is as bright as there, unless they are shown `as_counted`.
SETTINGS: Final[Mapping[str, Mapping[str, Any]]] = {
    "new objects": {},
    "random fields": {"data.objects": "grf"},
    "photographs": {"data.objects": "image"},
    "1e6 photons": {"data.nphotons": 1e6},
    "1e4 photons": {"data.nphotons": 1e4},
    "1e6 photons, not rescaled": {"data.nphotons": 1e6, "as_counted": True},
    "beam of 9 rad": {"data.probe_curvature_rad": 9.0},
    "beam of 12 rad": {"data.probe_curvature_rad": 12.0},
    "defocused beam": {"data.probe": "defocused"},
}
#: A seed of data that no study has, and how many objects of each kind are taken.
_SEED: Final = 7001
_OBJECTS: Final = 2
#: So far apart a beam of 15 px still overlaps its neighbours, and an object takes 441 patterns.
_STRIDE_PX: Final = 16
_BINS: Final = 12
_AT_ONCE: Final = 64


class Members:
    """The networks of an ensemble, and what each of them and all together give."""

    def __init__(self, models: list[ShippedModel], dataset: Dataset) -> None:
        self._models, self.dataset = models, dataset
        self.light = np.abs(dataset.beam.weight.numpy()) ** 2
        self.lit = metrics.lit_region(dataset.beam.weight.numpy())
        networks = [model.network for model in models]
        self._network = Ensemble(networks, torch.from_numpy(self.light))

    @torch.inference_mode()
    def predict(self, counts: NDArray[np.float32]) -> tuple[NDArray[np.complex64], NDArray[np.float32]]:
        """Patches of each member and, last, of their mean, complex (K + 1, n, N, N); and the deviations (n, N, N)."""
        patches, deviations = [], []
        for start in range(0, len(counts), _AT_ONCE):
            given = torch.from_numpy(np.array(counts[start : start + _AT_ONCE], np.float32))
            predicted = torch.stack([model.network(given) for model in self._models])
            mean = self._network.combine(predicted)
            parts = torch.cat([predicted, mean[None, ..., :2]]).contiguous()
            patches.append(torch.view_as_complex(parts).numpy())
            deviations.append(mean[..., 2].numpy())
        return np.concatenate(patches, axis=1), np.concatenate(deviations)


def main() -> None:
    """Measure, and write the data file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", default="ensemble")
    parser.add_argument("--workers", type=int, default=1, help="settings that are measured at once")
    options = parser.parse_args()
    members, config, found = _members(options.study)
    factor, validation = _calibrate(members)
    found |= {"factor": factor, "validation": validation, "settings": {}}
    with ProcessPoolExecutor(options.workers, multiprocessing.get_context("spawn")) as pool:
        jobs = {name: pool.submit(_measure_setting, options.study, name, factor) for name in SETTINGS}
        reference: NDArray[np.float64] | None = None
        for name, job in jobs.items():
            said, of_patches = job.result()
            reference = of_patches if reference is None else reference
            found["settings"][name] = said | {"told_apart": _told_apart(of_patches, reference)}
            print(
                name, json.dumps({key: value for key, value in said.items() if not isinstance(value, list)}), flush=True
            )
    DATA.write_text(json.dumps(_rounded(found), indent=1) + "\n", encoding="utf-8")


def _members(study: str) -> tuple[Members, ArmConfig, dict[str, Any]]:
    """The networks of the study's first arm, their config, and what the data file says of them."""
    open_store(must_exist=True)
    ranked = rank_study(study)
    runs, _ = choose_members(study, ranked.ranking.table[0]["arm"], ranked.selection.runs)
    config = read_config(runs[0].run_id)
    dataset = load_or_build(config.data)
    assert dataset.sha256 == runs[0].dataset_sha256
    of_runs = {"seeds": [run.seed for run in runs], "val_loss": [run.metrics["best_val_loss"] for run in runs]}
    said = {"commit": git_commit(), "study": study, **of_runs, "dataset_sha256": dataset.sha256}
    return Members([load_model(f"runs:/{run.run_id}/model") for run in runs], dataset), config, said


def _measure_setting(study: str, name: str, factor: float) -> tuple[dict[str, Any], NDArray[np.float64]]:
    """What a process measures of one of the `SETTINGS`."""
    torch.set_num_threads(1)
    members, config, _ = _members(study)
    return _measure(members, config, dict(SETTINGS[name]), factor)


def _calibrate(members: Members) -> tuple[float, dict[str, Any]]:
    """The factor between deviation and error on the validation patterns of the study, and what it is fitted to."""
    split, objects = members.dataset.val, members.dataset.val_objects
    assert objects is not None
    patches, deviations = members.predict(np.asarray(split.counts))
    errors = metrics.patch_errors(patches[-1], split.patches_of(objects), members.light)
    lit = members.lit
    factor = metrics.error_over_deviation(errors[:, lit], deviations[:, lit])
    return factor, _of_pixels(errors[:, lit], deviations[:, lit], factor)


def _measure(
    members: Members, config: ArmConfig, changes: dict[str, Any], factor: float
) -> tuple[dict[str, Any], NDArray[np.float64]]:
    """All numbers of a setting; and the deviation of each patch, against which others are told apart."""
    as_counted = changes.pop("as_counted", False)
    keys = {key: value for key, value in config.flat().items() if key.startswith("data.") and value is not None}
    keys |= {
        "data.nimgs_test": _OBJECTS,
        "data.stride_test_px": _STRIDE_PX,
        "data.seed": _SEED,
        "preset": config.preset,
        **changes,
    }
    dataset = load_or_build(resolve_config(keys).data)
    test = dataset.test
    assert dataset.test_objects is not None
    exposure = 1.0 if as_counted else (members.dataset.scale / dataset.scale) ** 2
    patches, deviations = members.predict(np.asarray(test.counts) * np.float32(exposure))
    errors = metrics.patch_errors(patches[-1], test.patches_of(dataset.test_objects), members.light)
    lit = members.lit
    of_patches = np.sqrt(np.square(deviations[:, lit], dtype=np.float64).mean(axis=1))
    errors_of_patches = np.sqrt(np.square(errors[:, lit], dtype=np.float64).mean(axis=1))
    said = _of_pixels(errors[:, lit], deviations[:, lit], factor)
    said["patch_correlation"] = float(spearmanr(of_patches, errors_of_patches).statistic)
    said["bins"] = _bins(errors[:, lit], deviations[:, lit])
    # The patches are stitched with the beam that the networks know, whatever beam made the patterns.
    shown = replace(dataset, scale=dataset.scale, modes=members.dataset.modes)
    objects = [_stitched(patches, deviations, test, shown, index, factor) for index in range(_OBJECTS)]
    said["objects"] = objects
    return said, of_patches


def _stitched(
    patches: NDArray[np.complex64],
    deviations: NDArray[np.float32],
    test: Split,
    dataset: Dataset,
    index: int,
    factor: float,
) -> dict[str, Any]:
    """One object: R-factors and SSIM of each member and of the mean, and the stitched deviation against the error."""
    of_object = np.flatnonzero(test.object_index == index)
    part, beam = test.part(of_object), dataset.beam
    found = [reconstruct(of[of_object], part, dataset, beam, probe_learnt=False) for of in patches]
    mean = found[-1].stitched
    variance = reassemble(np.square(deviations[of_object]), part.positions_px, beam.weight, n_sync=0).object.real
    deviation = np.sqrt(variance.clip(0))  # as `fnostab reconstruct` writes it
    (top, left), (height, width) = mean.origin_px, mean.object.shape
    assert dataset.test_objects is not None
    truth = dataset.test_objects[index][top : top + height, left : left + width]
    lit = found[-1].lit
    errors = metrics.patch_errors(mean.object[None], truth[None], np.where(lit, mean.light, 0))[0]
    said = _of_pixels(errors[lit][None], deviation[lit][None], factor)
    comparisons = [one.comparison for one in found]
    for key in ("amp_ssim", "phase_ssim"):
        said[key] = [float(each[key]) for each in comparisons if each is not None]  # type: ignore[literal-required]
    said["r_factor"] = [one.r_factor for one in found]
    said["bins"] = _bins(errors[lit][None], deviation[lit][None])
    return said


def _of_pixels(errors: NDArray[Any], deviations: NDArray[Any], factor: float) -> dict[str, Any]:
    """Errors and deviations (n, pixels) in a few numbers, before and after deviations are multiplied by `factor`."""
    return {
        "error": float(np.sqrt(np.square(errors, dtype=np.float64).mean())),
        "deviation": float(np.sqrt(np.square(deviations, dtype=np.float64).mean())),
        "error_over_deviation": metrics.error_over_deviation(errors, deviations),
        "within_1": metrics.coverage(errors, deviations, 1),
        "within_2": metrics.coverage(errors, deviations, 2),
        "scaled_within_1": metrics.coverage(errors, deviations, factor),
        "scaled_within_2": metrics.coverage(errors, deviations, 2 * factor),
        "pixel_correlation": float(spearmanr(np.ravel(deviations), np.ravel(errors)).statistic),
    }


def _bins(errors: NDArray[Any], deviations: NDArray[Any]) -> list[list[float]]:
    """Root mean square deviation and error of pixels in equally large groups, by ascending deviation."""
    groups = np.array_split(np.argsort(deviations, axis=None, kind="stable"), _BINS)
    squares = [np.square(np.ravel(values), dtype=np.float64) for values in (deviations, errors)]
    return [[float(np.sqrt(values[group].mean())) for values in squares] for group in groups]


def _told_apart(values: NDArray[np.float64], reference: NDArray[np.float64]) -> float:
    """The chance that a patch of this setting deviates more than one of the new objects: the area under the ROC."""
    ordered = np.sort(reference)
    below = np.searchsorted(ordered, values, side="left") + np.searchsorted(ordered, values, side="right")
    return float(below.mean() / (2 * len(reference)))


def _rounded(value: Any) -> Any:
    """Numbers with five digits: the file is read by people too."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, Mapping):
        return {key: _rounded(each) for key, each in value.items()}
    return [_rounded(each) for each in value] if isinstance(value, list) else value


if __name__ == "__main__":
    main()
