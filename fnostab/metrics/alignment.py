"""Two complex images of one object, one laid over the other: phase plane, scale and shift taken out."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64
from numpy.typing import ArrayLike, NDArray
from scipy import fft, ndimage
from skimage.registration import phase_cross_correlation

from fnostab.metrics.frc import Image, Mask, Plane, checked_pair, tapered_window, windowed

Shift = Float64[NDArray[np.float64], "2"]

#: Registration sees hundredths of a pixel, and usually ends after three rounds.
_UPSAMPLING = 100
_ROUNDS = 10
#: Shifts that leave less than this share of the mask are taken for accidents of an unlike pair.
_LEAST_KEPT = 0.5
#: Nothing is registered if, less its mean, an image has no more than this share left.
_ROUNDING = 1e-12
#: Least-squares steps on the wrapped phase error; from a start within a quarter turn the second one changes little.
_PHASE_STEPS = 5


@dataclass(frozen=True, eq=False)
class Aligned:
    """An object laid over another by `align`."""

    object: Image  #: 0 outside of the mask
    mask: Mask  #: the pixels to compare
    shift_px: tuple[float, float]  #: (row, column) by which its content was moved
    ramp: bool  #: whether a phase ramp was free


def align(
    predicted: ArrayLike, truth: ArrayLike, mask: ArrayLike | None = None, *, ramp: bool = True, shift: bool = False
) -> Aligned:
    """Take out of `predicted` (H, W) what diffraction leaves free against `truth` (H, W), over `mask` (H, W).

    Phase: the plane, with `ramp`, or else the constant that fits angle(predicted * conj(truth)), in least squares
    weighted by |predicted * truth|. It starts from the peak of the product's spectrum, so planes may wrap many times.
    Shift, if asked for: by the peak of the cross-correlation, to a hundredth of a pixel; pixels moved in from outside
    of the mask leave it. Amplitude: scaled to the truth's mean. Ramps and joint shifts of object and probe are free
    only where the probe is not known. Raises ValueError as `frc.checked_pair` does.
    """
    image, target, inside = checked_pair(predicted, truth, mask, names=("predicted", "truth"))
    shift_px = np.zeros(2)
    if shift:
        image, inside, shift_px = _registered(image, target, inside, ramp)
    factor = np.exp(-1j * free_phase(image, target, inside, ramp))
    mean, true_mean = np.abs(image[inside]).mean(), np.abs(target[inside]).mean()
    if mean > 0 and true_mean > 0:
        factor *= true_mean / mean
    return Aligned(np.where(inside, image * factor, 0), inside, (float(shift_px[0]), float(shift_px[1])), ramp)


def free_phase(image: Image, target: Image, inside: Mask, ramp: bool) -> Plane:
    """Fit the plane, or without `ramp` the constant, by which the phase of `image` is off, in radians.

    Both images are 0 outside of `inside`, as `frc.checked_pair` gives them.
    """
    height, width = inside.shape
    error = np.angle(image) - np.angle(target)
    weight = np.abs(image) * np.abs(target)
    phase = np.zeros(inside.shape)
    # In fractions of the image, for a well-conditioned fit.
    rows, cols = np.meshgrid(np.arange(height) / height - 0.5, np.arange(width) / width - 0.5, indexing="ij")
    terms = [np.ones(inside.shape), rows, cols] if ramp else [np.ones(inside.shape)]
    if ramp:
        # Padded to twice the size, so that the peak is within an eighth of a cycle at the corners.
        padded = [fft.next_fast_len(2 * length) for length in inside.shape]
        spectrum = np.abs(fft.fft2(weight * np.exp(1j * error), s=padded))
        peak = np.unravel_index(np.argmax(spectrum), spectrum.shape)
        per_px = [fft.fftfreq(length)[index] for length, index in zip(padded, peak, strict=True)]
        phase = 2 * np.pi * (per_px[0] * height * rows + per_px[1] * width * cols)
    phase = phase + np.angle(np.sum(weight * np.exp(1j * (error - phase))))
    basis = np.stack([term[inside] for term in terms])
    matrix = (basis * weight[inside]) @ basis.T
    for _ in range(_PHASE_STEPS):
        right = basis @ (weight * wrapped(error - phase))[inside]
        # The shortest solution, where a mask of one row leaves a slope open.
        step = np.linalg.lstsq(matrix, right, rcond=None)[0]
        phase = phase + sum(value * term for value, term in zip(step, terms, strict=True))
    return np.asarray(phase)


def _registered(image: Image, target: Image, inside: Mask, ramp: bool) -> tuple[Image, Mask, Shift]:
    """`image` shifted onto `target`, the mask that is left, and the shift; with `ramp` free, `image` loses its own.

    A ramp displaces the spectrum and spoils the cross-correlation, and it cannot be fitted before the shift is known
    roughly. So the first guess compares each image times the conjugate of its neighbour, in which a ramp is a constant
    factor; then ramp and shift are improved in turn.
    """
    nearest = ndimage.distance_transform_edt(~inside, return_distances=False, return_indices=True)
    flat = image[tuple(nearest)]  # no step at the mask's edge, which would ring when shifted
    total = _offset(_neighbours(flat), _neighbours(target), tapered_window(inside))
    if not _is_enough(_shifted_mask(inside, total), inside):
        total = np.zeros(2)
    for _ in range(_ROUNDS):
        kept = _shifted_mask(inside, total)
        moved = _shifted(flat, total)
        if ramp:
            plane = np.exp(-1j * free_phase(np.where(kept, moved, 0), target, kept, ramp))
            flat, moved = flat * plane, moved * plane
        step = _offset(moved, target, tapered_window(kept))
        if not step.any() or not _is_enough(_shifted_mask(inside, total + step), inside):
            break
        total = total + step
    kept = _shifted_mask(inside, total)
    return np.where(kept, _shifted(flat, total), 0), kept, total


def _is_enough(kept: Mask, inside: Mask) -> bool:
    return bool(kept.sum() >= _LEAST_KEPT * inside.sum())


def _offset(moving: Image, fixed: Image, window: Plane) -> Shift:
    """Shift (row, column) in pixels that takes `moving` onto `fixed` under `window`; 0 if either is constant."""
    pair = [windowed(image, window) for image in (fixed, moving)]
    left = [np.abs(rest).max() for rest in pair]
    if left[0] <= _ROUNDING * np.abs(fixed).max() or left[1] <= _ROUNDING * np.abs(moving).max():
        return np.zeros(2)
    found = phase_cross_correlation(*pair, upsample_factor=_UPSAMPLING, normalization=None)  # type: ignore[no-untyped-call]
    return np.asarray(found[0])


def _neighbours(image: Image) -> Image:
    """Each pixel's conjugate times the pixel below and to the right of it."""
    return np.asarray(np.roll(image, (-1, -1), axis=(0, 1)) * image.conj())


def _shifted(image: Image, shift_px: Shift) -> Image:
    """`image` shifted by Fourier interpolation; it goes on mirrored at its edges, without a step that rings."""
    height, width = image.shape
    mirrored = np.pad(image, ((0, height), (0, width)), mode="symmetric")
    return np.asarray(fft.ifft2(ndimage.fourier_shift(fft.fft2(mirrored), shift_px))[:height, :width])


def _shifted_mask(inside: Mask, shift_px: Shift) -> Mask:
    """Pixels of `inside` whose neighbours before the shift, one a whole pixel and up to four else, were inside too."""
    share = ndimage.shift(inside.astype(np.float64), shift_px, order=1, mode="grid-constant")
    return np.asarray(inside & (share > 1 - 1e-6))


def wrapped(angle: Plane) -> Plane:
    """`angle` in radians brought to [-pi, pi)."""
    return np.asarray(np.remainder(angle + np.pi, 2 * np.pi) - np.pi)
