"""A predicted object compared with the true one: aligned first; then amplitude, phase and FRC."""

import math
from collections.abc import Mapping
from typing import Literal, TypedDict, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from fnostab.metrics.alignment import Aligned, align, free_phase, wrapped
from fnostab.metrics.frc import Image, Mask, Plane, checked_pair, fourier_ring_correlation

#: An amplitude is constant if its standard deviation is at most this share of its mean, a phase if its standard
#: deviation is under this many radians. Metrics of a constant mean nothing.
FLAT = 1e-3

#: Side of the SSIM's square window in pixels, scikit-image's default.
_SSIM_WINDOW = 7

#: The entries of a `Comparison` that are numbers.
Scalar = Literal["amp_ssim", "phase_ssim", "amp_mae", "phase_mae", "amp_psnr", "phase_psnr", "frc50", "frc_one_seventh"]
SCALARS: tuple[Scalar, ...] = get_args(Scalar)


class Comparison(TypedDict):
    """Metrics of `compare_objects`; those that mean nothing are NaN."""

    amp_ssim: float
    phase_ssim: float
    amp_mae: float
    phase_mae: float  #: radians
    amp_psnr: float  #: decibels
    phase_psnr: float
    frc50: float  #: cycles per pixel at which the FRC falls below 0.5
    frc_one_seventh: float  #: below 1/7, which is meant for half scans: kept for comparisons with earlier runs
    frc: list[float]  #: correlation of each ring
    frc_frequency: list[float]  #: cycles per pixel of each ring


def compare_objects(
    predicted: ArrayLike, truth: ArrayLike, mask: ArrayLike | None = None, *, ramp: bool = True, shift: bool = False
) -> Comparison:
    """Compare a predicted object with the true one, after `align`.

    `predicted` and `truth` are complex or real (H, W), `mask` bool (H, W), everywhere if None; nothing outside of it
    counts. The metrics are those of `compare_aligned`; raises ValueError as `frc.checked_pair` does.
    """
    return compare_aligned(align(predicted, truth, mask, ramp=ramp, shift=shift), truth)


def compare_aligned(aligned: Aligned, truth: ArrayLike) -> Comparison:
    """Compare what `align` gave with the `truth` (H, W) that it was given.

    SSIM (Wang et al. 2004, IEEE Trans. Image Process. 13, 600) is scikit-image's, averaged over the pixels whose whole
    window lies in the mask. The data range is max - min of the true amplitude, and 2 pi for phases; the predicted phase
    is the true one plus the wrapped error, so that it does not jump against it.

    NaN is what means nothing: the phase metrics if the truth has no phase or the prediction is 0 everywhere; SSIM if
    either image is constant in that part or no window fits into the mask; `amp_psnr` if the true amplitude is constant;
    the FRC if either image is constant. Phases are judged after removing what `align` left free.
    """
    inside = aligned.mask
    image, target = aligned.object, np.where(inside, np.asarray(truth, dtype=np.complex128), 0)
    amplitude, true_amplitude, true_phase = np.abs(image), np.abs(target), np.angle(target)
    phase = true_phase + wrapped(np.angle(image) - true_phase)
    span = float(np.ptp(true_amplitude[inside]))

    constant, constant_truth = (_is_constant(values[inside]) for values in (amplitude, true_amplitude))
    phaseless, phaseless_truth = (_is_phaseless(values, inside, aligned.ramp) for values in (image, target))
    no_phase_error = phaseless_truth or not amplitude.any()

    frc = fourier_ring_correlation(image, target, inside)
    curve, frc50, frc_one_seventh = frc.correlation, frc.crossing(0.5), frc.crossing(1 / 7)
    if (constant and phaseless) or (constant_truth and phaseless_truth):
        curve, frc50, frc_one_seventh = np.full_like(curve, np.nan), math.nan, math.nan
    return Comparison(
        amp_ssim=math.nan if constant or constant_truth else _ssim(amplitude, true_amplitude, inside, span),
        phase_ssim=math.nan if phaseless or no_phase_error else _ssim(phase, true_phase, inside, 2 * np.pi),
        amp_mae=_mae(amplitude[inside], true_amplitude[inside]),
        phase_mae=math.nan if no_phase_error else _mae(phase[inside], true_phase[inside]),
        amp_psnr=math.nan if constant_truth else _psnr(amplitude[inside], true_amplitude[inside], span),
        phase_psnr=math.nan if no_phase_error else _psnr(phase[inside], true_phase[inside], 2 * np.pi),
        frc50=frc50,
        frc_one_seventh=frc_one_seventh,
        frc=curve.tolist(),
        frc_frequency=frc.frequency.tolist(),
    )


def amplitude_ssim(predicted: ArrayLike, truth: ArrayLike, mask: ArrayLike | None = None) -> float:
    """`amp_ssim` of `compare_objects` by itself, in a fraction of its time: no phase is looked at.

    `predicted` and `truth` are amplitudes (H, W), `mask` bool (H, W), everywhere if None. Raises ValueError as
    `frc.checked_pair` does.
    """
    one, two, inside = checked_pair(predicted, truth, mask, names=("predicted", "truth"))
    amplitude, true_amplitude = np.abs(one), np.abs(two)
    if _is_constant(amplitude[inside]) or _is_constant(true_amplitude[inside]):
        return math.nan
    amplitude *= true_amplitude[inside].mean() / amplitude[inside].mean()
    return _ssim(amplitude, true_amplitude, inside, float(np.ptp(true_amplitude[inside])))


def vacuous(metrics: Mapping[str, object]) -> list[str]:
    """Sorted names of the numbers in `metrics` that are NaN; lists are not looked into."""
    return sorted(name for name, value in metrics.items() if isinstance(value, float) and np.isnan(value))


def _is_constant(amplitude: NDArray[np.float64]) -> bool:
    return bool(amplitude.std() <= FLAT * amplitude.mean())


def _is_phaseless(image: Image, inside: Mask, ramp: bool) -> bool:
    """Whether the phase, weighted by the amplitude, varies by less than `FLAT` but for what `align` leaves free."""
    amplitude = np.abs(image)
    rest = wrapped(np.angle(image) - free_phase(image, amplitude.astype(np.complex128), inside, ramp))
    total = amplitude[inside].sum()
    return bool(total == 0 or (amplitude * rest**2)[inside].sum() < FLAT**2 * total)


def _ssim(image: Plane, target: Plane, inside: Mask, data_range: float) -> float:
    whole_window = ndimage.binary_erosion(inside, np.ones((_SSIM_WINDOW, _SSIM_WINDOW)))
    if not whole_window.any():
        return math.nan
    _, ssim = structural_similarity(  # type: ignore[no-untyped-call]
        target, image, win_size=_SSIM_WINDOW, data_range=data_range, full=True
    )
    return float(ssim[whole_window].mean())


def _mae(values: NDArray[np.float64], target: NDArray[np.float64]) -> float:
    return float(np.abs(values - target).mean())


def _psnr(values: NDArray[np.float64], target: NDArray[np.float64], data_range: float) -> float:
    with np.errstate(divide="ignore"):  # infinite for identical images
        return float(peak_signal_noise_ratio(target, values, data_range=data_range))  # type: ignore[no-untyped-call]
