"""Fourier ring correlation: at which detail two complex images still agree."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Complex128, Float64
from numpy.typing import ArrayLike, NDArray
from scipy import fft, ndimage

Image = Complex128[NDArray[np.complex128], "H W"]
Mask = Bool[NDArray[np.bool_], "H W"]
Plane = Float64[NDArray[np.float64], "H W"]

#: A ring without more amplitude than this, per coefficient and over that of the whole image, holds rounding alone.
_ROUNDING = 10 * np.finfo(np.float64).eps


@dataclass(frozen=True, eq=False)
class FRC:
    """Correlation of two images ring by ring: `frequency` in cycles per pixel, and `correlation`.

    `coefficients` is the number of independent Fourier coefficients in each ring, as complex images have them; real
    ones have half as many.
    """

    frequency: Float64[NDArray[np.float64], " rings"]
    correlation: Float64[NDArray[np.float64], " rings"]
    coefficients: Float64[NDArray[np.float64], " rings"]

    def crossing(self, threshold: float | Float64[NDArray[np.float64], " rings"]) -> float:
        """Frequency, in cycles per pixel, at which the curve, once above `threshold`, first falls below it.

        `threshold` is a number, or a curve with a value for each ring. Linear between rings; 0 if it is not above on
        any of the lowest tenth of the rings, 0.5 (Nyquist) if it stays above, NaN if a correlation is NaN or there is
        no ring. The lowest rings may be under it: they hold a few coefficients each, and a slow phase error of an
        otherwise sharp object spoils them.

        Which threshold belongs to what: 0.5 where an image is compared with the truth; 1/7 (0.143: Rosenthal and
        Henderson 2003, J. Mol. Biol. 333, 721) or `half_bit_threshold` where two images, each from half of the data,
        are compared. An FRC of 1/7 between halves lets one expect sqrt(2/7 / (1 + 1/7)) = 0.5 between the image from
        all data and the truth.
        """
        if not len(self.correlation) or np.isnan(self.correlation).any():
            return float("nan")
        margin = self.correlation - threshold
        above = margin >= 0
        if not above[: math.ceil(len(above) / 10)].any():
            return 0.0
        first = int(np.argmax(above))
        if above[first:].all():
            return 0.5
        below = first + int(np.argmin(above[first:]))
        pair = slice(below - 1, below + 1)
        return float(np.interp(0, -margin[pair], self.frequency[pair]))


def half_bit_threshold(coefficients: Float64[NDArray[np.float64], " rings"]) -> Float64[NDArray[np.float64], " rings"]:
    """FRC between two half data sets at which both together hold half a bit of information per Fourier coefficient.

    `coefficients` is the number of independent ones in a ring, n. Returns (s + (2 sqrt s + 1) / sqrt n) / (s + 1 + 2
    sqrt s / sqrt n), where s = (sqrt 2 - 1) / 2 is the signal-to-noise ratio of each half: (0.2071 + 1.9102 / sqrt n)
    / (1.2071 + 0.9102 / sqrt n), 0.172 for large n (van Heel and Schatz 2005, J. Struct. Biol. 151, 250).
    """
    snr = (math.sqrt(2) - 1) / 2
    root = np.sqrt(coefficients)
    return np.asarray((snr + (2 * math.sqrt(snr) + 1) / root) / (snr + 1 + 2 * math.sqrt(snr) / root))


def fourier_ring_correlation(first: ArrayLike, second: ArrayLike, mask: ArrayLike | None = None) -> FRC:
    """Correlate the spectra of two images on rings of equal frequency.

    `first` and `second` are real or complex (H, W), `mask` bool (H, W), everywhere if None; both images lose their mean
    and are tapered by `tapered_window`, and values outside of the mask do not count. Rings are 1 / min(H, W) cycles per
    pixel wide, from the first past zero to Nyquist; the correlation is Re sum F1 conj(F2) / sqrt(sum |F1|^2 sum |F2|^2)
    (Saxton and Baumeister 1982, J. Microsc. 127, 127), and 0 on a ring where an image has no power. A global phase
    between the images counts as a difference: align them first. The window w correlates neighbouring coefficients: of
    all, a share (sum w^2)^2 / (H W sum w^4) is independent, and of those on a ring, which is a line, its square root.
    Raises ValueError as `checked_pair` does.
    """
    two, one, inside = checked_pair(second, first, mask, names=("second", "first"))
    window = tapered_window(inside)
    spectra = [fft.fft2(windowed(image, window)) for image in (one, two)]
    height, width = inside.shape
    size = min(height, width)
    radius = np.hypot(fft.fftfreq(height)[:, None], fft.fftfreq(width))
    ring = np.rint(radius * size).astype(np.intp).ravel()
    n_rings = size // 2

    def ring_sums(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(np.bincount(ring, values.ravel(), n_rings + 1)[1 : n_rings + 1], dtype=np.float64)

    members = ring_sums(np.ones(inside.shape))
    powers = [ring_sums(np.abs(spectrum) ** 2) for spectrum in spectra]
    common = ring_sums((spectra[0] * spectra[1].conj()).real)
    noise = [_ROUNDING**2 * members * np.sum(np.abs(window * image) ** 2) for image in (one, two)]
    known = (powers[0] > noise[0]) & (powers[1] > noise[1])
    norm = np.sqrt(powers[0]) * np.sqrt(powers[1])
    correlation = np.divide(common, norm, out=np.zeros(n_rings), where=known)
    independent = np.sum(window**2) / np.sqrt(window.size * np.sum(window**4))
    return FRC(np.arange(1, n_rings + 1) / size, correlation, independent * members)


def tapered_window(mask: Mask) -> Plane:
    """Window that rises from 0 outside of `mask` to 1 inside, as sin^2 of the distance to the nearest outside.

    The rise takes half of the largest such distance, with the image's border as an edge: a square mask becomes a Tukey
    window of parameter 0.5. A shorter rise would spill the strong low frequencies of an object, the same in both
    images, over the rings of the weak high ones, and their correlation would be the window's.
    """
    distance = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    rise = np.maximum(distance.max() / 2, 1)
    return np.asarray(np.sin(np.pi / 2 * np.minimum(distance / rise, 1)) ** 2)


def windowed(image: Image, window: Plane) -> Image:
    """`image` less its mean under `window`, times `window`."""
    return np.asarray(window * (image - np.sum(window * image) / np.sum(window)))


def checked_pair(
    first: ArrayLike, second: ArrayLike, mask: ArrayLike | None, *, names: tuple[str, str]
) -> tuple[Image, Image, Mask]:
    """Two images as complex (H, W), 0 outside of the mask, and the mask, all True if None.

    Raises ValueError with the `names` of the images, in one line, if they are not (H, W) and of one shape, if the mask
    has another shape or is empty, or if a value inside the mask is not finite.
    """
    images = [np.asarray(image, dtype=np.complex128) for image in (first, second)]
    shape = images[1].shape
    if len(shape) != 2:
        raise ValueError(f"`{names[1]}` (={shape}) must be an image, (H, W)")
    if images[0].shape != shape:
        raise ValueError(f"`{names[0]}` (={images[0].shape}) must have the {names[1]}'s shape, {shape}")
    inside = np.ones(shape, dtype=bool) if mask is None else np.asarray(mask, dtype=bool)
    if inside.shape != shape:
        raise ValueError(f"`mask` (={inside.shape}) must have the {names[1]}'s shape, {shape}")
    if not inside.any():
        raise ValueError("`mask` (=no pixel) must hold at least one pixel")
    for name, image in zip(names, images, strict=True):
        if bad := int(np.count_nonzero(~np.isfinite(image[inside]))):
            raise ValueError(f"`{name}` (={bad} values not finite) must be finite inside the mask")
    one, two = (np.where(inside, image, 0) for image in images)
    return one, two, inside
