"""What a trained network makes of the test patterns: ONE object each, and how good it is."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import ArpackError

from fnostab import metrics
from fnostab.dataset import Dataset, Split
from fnostab.optics import Beam, Illumination
from fnostab.scan import LEAST_SHARED, Reassembly, reassemble, stitched_r_factor

#: Objects are about 1; squares of numbers beyond this, and their sums, overflow in single precision.
_LARGEST = 1e12
#: A reference, or a scan's other half, that covers less than this share of the lit pixels is in a frame of its own, or
#: empty: none is better.
_LEAST_COVERED = 0.5
#: The numbers of a comparison that come in pairs in `metrics.json`, amplitude first.
_PAIRS = ("ssim", "mae", "psnr")


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """One object put together from patches, beside what it should be.

    `object` complex (H, W) is in the phase, and where it was compared also in the scale and place, of `truth`, complex
    (H, W) or None; `lit` bool (H, W) are the pixels with light enough to be looked at.
    """

    object: NDArray[np.complexfloating]
    lit: NDArray[np.bool_]
    stitched: Reassembly
    r_factor: float
    truth: NDArray[np.complexfloating] | None = None
    comparison: metrics.Comparison | None = None


@dataclass(frozen=True, eq=False)
class Evaluation:
    """All test objects of a run, and its final metrics."""

    reconstructions: list[Reconstruction]
    metrics: dict[str, float]

    @property
    def compared(self) -> bool:
        """Whether there was something to compare with."""
        return self.reconstructions[0].comparison is not None

    @property
    def vacuous(self) -> list[str]:
        """Names of the metrics that mean nothing here, and are NaN."""
        return metrics.vacuous(self.metrics)

    @property
    def summary(self) -> dict[str, Any]:
        """The final numbers in the layout of `metrics.json`: pairs are of amplitude and phase."""
        found = self.metrics
        pairs = {name: [found[f"amp_{name}"], found[f"phase_{name}"]] for name in _PAIRS} if self.compared else {}
        curves = [
            {"frequency": one.comparison["frc_frequency"], "correlation": one.comparison["frc"]}
            for one in self.reconstructions
            if one.comparison is not None
        ]
        return pairs | {"frc": curves} | found


def can_be_stitched(patches: NDArray[np.complex64] | torch.Tensor) -> bool:
    """Whether all `patches` are finite, and small enough for the sums of squares that stitching takes."""
    return bool(torch.as_tensor(patches).abs().max() < _LARGEST)


def evaluate(patches: NDArray[np.complex64], dataset: Dataset, probe: Illumination, probe_learnt: bool) -> Evaluation:
    """Evaluate the predicted `patches` (n, N, N) of all test patterns, with the beam, or `probe`, as it was learnt.

    Metrics that compare an object with the truth, or with a scan's reference, are means over the test objects.
    """
    test, beam = dataset.test, Beam.of(probe)
    amplitudes = np.sqrt(test.counts) / dataset.scale
    groups = [np.flatnonzero(test.object_index == index) for index in np.unique(test.object_index)]
    found = [reconstruct(patches[group], test.part(group), dataset, beam, probe_learnt) for group in groups]
    shares = [float(amplitudes[group].sum(dtype=np.float64)) for group in groups]
    predicted = beam.amplitude(torch.from_numpy(patches)).numpy()
    results = {
        "r_factor": float(np.average([one.r_factor for one in found], weights=shares)),
        "r_factor_patch": metrics.r_factor(predicted, amplitudes),
        "overlap_consistency": float(np.mean([one.stitched.consistency for one in found])),
    }
    comparisons = [one.comparison for one in found if one.comparison is not None]
    for key in metrics.SCALARS if comparisons else ():
        results[key] = float(np.mean([comparison[key] for comparison in comparisons]))
    if dataset.test_objects is not None:
        ours, twin = metrics.orientation(patches, test.patches_of(dataset.test_objects), beam.probe.numpy())
        results |= {"object_correlation": ours, "twin_correlation": twin}
    else:
        # The knowledge of nothing on the whole scan: what `r_factor` is to be compared with.
        nothing = _knowing_nothing(beam, amplitudes, amplitudes, probe_learnt=False)
        results["r_factor_constant"], results["r_factor_mean_pattern"] = nothing
    return Evaluation(found, results)


def reconstruct(
    patches: NDArray[np.complex64], split: Split, dataset: Dataset, probe: Illumination, probe_learnt: bool
) -> Reconstruction:
    """Put the predicted `patches` (n, N, N) of one object together and compare it with what it should be, if known.

    `split` holds their patterns. Where the probe is learnt, and against the reference object that came with a scan, a
    phase ramp and a common shift are free; else only the global phase and the scale are.
    """
    beam = Beam.of(probe)
    stitched = reassemble(patches, split.positions_px, beam.weight)
    r_factor = stitched_r_factor(stitched, split.positions_px, beam, np.sqrt(split.counts) / dataset.scale)
    lit = metrics.is_lit(stitched.light)
    whole = dataset.reference
    if dataset.test_objects is not None:
        whole = dataset.test_objects[split.object_index[0]]
    top, left = stitched.origin_px
    truth = None if whole is None else whole[top : top + lit.shape[0], left : left + lit.shape[1]]
    if truth is None or (lit & (truth != 0)).sum() < _LEAST_COVERED * lit.sum():
        return Reconstruction(in_mean_phase(stitched.object, lit), lit, stitched, r_factor)
    free = probe_learnt or dataset.measured
    aligned = metrics.align(stitched.object, truth, lit & (truth != 0), ramp=free, shift=free)
    comparison = metrics.compare_aligned(aligned, truth)
    return Reconstruction(aligned.object, aligned.mask, stitched, r_factor, truth, comparison)


def consistency_warning(stitched: Reassembly) -> str | None:
    """Say why the overlap consistency of `stitched` means nothing, in one line; None if it has a value."""
    if not math.isnan(stitched.consistency):
        return None
    if not stitched.shared_light >= LEAST_SHARED:
        return (
            f"warning: the patches share {100 * stitched.shared_light:.1f} % of their light, under "
            f"{100 * LEAST_SHARED:.0f} %, so whether they agree is unknown (overlap consistency NaN): are the "
            "positions in pixels of the object, and near enough to each other?"
        )
    return "warning: the patches are constant where they overlap, so overlap consistency says nothing (NaN)"


def half_scan_frc(
    patches: NDArray[np.complex64],
    positions_px: NDArray[np.floating],
    probe: NDArray[np.complex64],
    group_of: NDArray[np.int64] | None = None,
) -> metrics.FRC:
    """Correlate the two objects that every other patch, and the rest, make: what of an object can be repeated.

    `patches` (n, N, N), `positions_px` (n, 2), `probe` (N, N). Patches with the same number in `group_of` (n,) were
    predicted from the same patterns, so they go to one half: every other group's. The halves are compared where each
    has light enough, after taking a phase plane out; they lie at the same positions, so no shift is free. Thresholds
    are 1/7 and `metrics.half_bit_threshold`. What both halves have wrong, as their network does, shows in no such
    curve. It is empty, and crosses nothing (NaN), where a half leaves over half of the other's lit pixels without
    light, or where an object is constant.
    """
    groups = np.arange(len(patches)) if group_of is None else group_of
    return frc_of_halves(lambda part: reassemble(patches[part], positions_px[part], probe), groups)


def frc_of_halves(
    reassemble_part: Callable[[NDArray[np.int64]], Reassembly], group_of: NDArray[np.int64]
) -> metrics.FRC:
    """The curve of `half_scan_frc`, of objects that `reassemble_part` makes of the patches with given indices."""
    none = metrics.FRC(*np.empty((3, 0)))
    odd = group_of % 2 == 1
    if not odd.any():
        return none
    halves = [reassemble_part(np.flatnonzero(part)) for part in (~odd, odd)]
    start = np.max([half.origin_px for half in halves], axis=0)
    stop = np.min([np.add(half.origin_px, half.object.shape) for half in halves], axis=0)
    if (stop <= start).any():
        return none
    windows = [tuple(map(slice, start - half.origin_px, stop - half.origin_px)) for half in halves]
    lit = [metrics.is_lit(half.light) for half in halves]
    one, two = (half.object[window] for half, window in zip(halves, windows, strict=True))
    both = lit[0][windows[0]] & lit[1][windows[1]]
    if both.sum() < _LEAST_COVERED * max(part.sum() for part in lit):
        return none
    if any(image[both].std() <= metrics.FLAT * np.abs(image[both]).mean() for image in (one, two)):
        return none
    return metrics.fourier_ring_correlation(metrics.align(one, two, both).object, two, both)


class Stitched(NamedTuple):
    """The one object that patches make together: its R-factor, and how far its patches agree (see `Reassembly`)."""

    r: float = math.nan
    consistency: float = math.nan
    shared_light: float = math.nan


def stitch_patches(patches: torch.Tensor, split: Split, scale: float, probe: Illumination) -> Stitched:
    """Stitch the predicted `patches` (n, N, N) of each object in `split`, on their device, as `evaluate` does.

    R-factors of several objects are weighted by their light, the other numbers are means. NaN if the numbers are too
    large or too wild to be stitched.
    """
    beam = Beam.of(probe)
    if not all(map(can_be_stitched, (patches, *beam.modes))):
        return Stitched()
    found, shares = [], []
    for index in np.unique(split.object_index):
        group = np.flatnonzero(split.object_index == index)
        part = split.part(group)
        amplitudes = np.sqrt(part.counts) / scale
        try:
            stitched = reassemble(patches[torch.from_numpy(group).to(patches.device)], part.positions_px, beam.weight)
        except ArpackError:  # the phases of patches that have next to nothing in common
            return Stitched()
        r = stitched_r_factor(stitched, part.positions_px, beam, amplitudes)
        found.append((r, stitched.consistency, stitched.shared_light))
        shares.append(float(amplitudes.sum(dtype=np.float64)))
    r, *agreement = np.array(found).T
    return Stitched(float(np.average(r, weights=shares)), *(float(values.mean()) for values in agreement))


def baselines(dataset: Dataset, probe_learnt: bool) -> dict[str, float]:
    """R-factors on the validation patches of knowing nothing, and of photon noise alone.

    With a probe that is learnt, a constant object can show any one pattern everywhere, so it is no worse than the mean
    pattern. What knowing nothing gives is told for the stitched object as well: on the same patterns, or on all of a
    measured scan, of which all is stitched. The noise is that of the true objects' patterns; for a measured scan it is
    estimated from the mean training pattern, to some tens of per cent.
    """
    amplitudes = np.sqrt(dataset.val.counts) / dataset.scale
    training = np.sqrt(dataset.train.counts) / dataset.scale
    if dataset.val_objects is None:
        floor = metrics.photon_noise_r_factor(dataset.train.counts.mean(axis=0, dtype=np.float64), fitted=True)
    else:
        truth = torch.from_numpy(dataset.val.patches_of(dataset.val_objects))
        floor = metrics.r_factor(dataset.beam.amplitude(truth).numpy(), amplitudes)
    constant, mean_pattern = _knowing_nothing(dataset.beam, amplitudes, training, probe_learnt)
    stitched = constant, mean_pattern
    if dataset.measured:
        whole = np.sqrt(dataset.test.counts) / dataset.scale
        stitched = _knowing_nothing(dataset.beam, whole, whole, probe_learnt)
    return {
        "val_loss_constant": constant,
        "val_loss_mean_pattern": mean_pattern,
        "val_loss_floor": floor,
        "r_stitched_constant": stitched[0],
        "r_stitched_mean_pattern": stitched[1],
    }


def _knowing_nothing(
    beam: Beam, amplitudes: NDArray[np.floating], training: NDArray[np.floating], probe_learnt: bool
) -> tuple[float, float]:
    """R-factors against `amplitudes` of the best constant object, and of the mean of `training` everywhere."""
    constant = metrics.constant_object_r_factor(beam.alone().numpy(), amplitudes)
    mean_pattern = metrics.mean_pattern_r_factor(amplitudes, training)
    return min(constant, mean_pattern) if probe_learnt else constant, mean_pattern


def in_mean_phase(obj: NDArray[np.complex64], lit: NDArray[np.bool_]) -> NDArray[np.complex64]:
    """Turn the phase of `obj` (H, W) so that its mean over `lit` is real."""
    return np.asarray(obj * np.exp(-1j * np.angle(obj[lit].sum())))
