"""Synthetic objects: complex transmission functions made from an amplitude image."""

from collections.abc import Callable, Mapping
from typing import Any, Final, Literal

import numpy as np
import skimage.data
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from skimage.color import rgb2gray
from skimage.draw import line
from skimage.transform import resize

ObjectKind = Literal["lines", "grf", "image"]
PhaseKind = Literal["tanh", "none"]

#: Pictures that scikit-image ships within its package, so that nothing is downloaded.
_PICTURES: Final = ("astronaut", "brick", "camera", "chelsea", "coffee", "coins", "grass", "gravel", "moon", "rocket")
_SEGMENTS: Final = 400
_CORRELATION_PX: Final = 16.0


def synthetic_object(kind: ObjectKind, size: int, phase: PhaseKind, rng: np.random.Generator) -> NDArray[np.complex64]:
    """Make one object, a pure function of its arguments and the generator's state.

    `kind`: `lines` (blurred random segments), `grf` (a Gaussian random field's exponential) or `image` (a piece of one
    of scikit-image's pictures). `phase`: `tanh`, pi * tanh((a - max(a) / 2) / (3 mean(a))) of the amplitude a, in
    radians; or `none`, a real object. Returns complex64 (size, size), not normalised. Raises ValueError for an unknown
    kind or phase and for a size under 1.
    """
    if kind not in _AMPLITUDES:
        raise ValueError(f"`objects` (={kind}) must be one of {', '.join(_AMPLITUDES)}")
    if phase not in ("tanh", "none"):
        raise ValueError(f"`phase` (={phase}) must be one of tanh, none")
    if size < 1:
        raise ValueError(f"`size` (={size}) must be >= 1")
    amplitude = _AMPLITUDES[kind](size, rng)
    if phase == "none":
        return amplitude.astype(np.complex64)
    angle = np.pi * np.tanh((amplitude - amplitude.max() / 2) / (3 * amplitude.mean()))
    return np.asarray(amplitude * np.exp(1j * angle), dtype=np.complex64)


def _lines(size: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """400 segments of value 1 with uniform ends on twice the canvas, blurred as G1 + 2 G5 + 5 G10, the centre cut out.

    The sum of Gaussians (sigma 1, 5 and 10 px) is taken before the crop, so that no edge shows. From PtychoPINN
    (Hoidn et al. 2023, Sci. Rep. 13, 22789).
    """
    canvas = np.zeros((2 * size, 2 * size))
    for start_row, start_col, end_row, end_col in rng.integers(0, 2 * size, (_SEGMENTS, 4)).tolist():
        canvas[line(start_row, start_col, end_row, end_col)] = 1  # type: ignore[no-untyped-call]
    blurred = sum(weight * gaussian_filter(canvas, sigma) for weight, sigma in ((1, 1), (2, 5), (5, 10)))
    centre = slice(size // 2, size // 2 + size)
    return np.asarray(blurred)[centre, centre]


def _gaussian_random_field(size: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """exp(g / 2) of a stationary Gaussian field g of unit variance, which is never negative, of median 1.

    g has the Matern spectrum (k0^2 + k^2)^-(nu + 1) with nu = 1 and k0 = sqrt(8 nu) / range, range 16 px, at which
    the correlation has fallen to about 0.15 (Lindgren, Rue and Lindstrom 2011, J. R. Stat. Soc. B 73, 423, section 2).
    """
    # Made on twice the canvas: the field is periodic, and opposite edges of the object should not match.
    k_rad_px = 2 * np.pi * np.fft.fftfreq(2 * size)
    spectrum = 1 / (8 / _CORRELATION_PX**2 + k_rad_px[:, None] ** 2 + k_rad_px**2) ** 2
    field = np.fft.ifft2(np.sqrt(spectrum / spectrum.mean()) * np.fft.fft2(rng.standard_normal((2 * size, 2 * size))))
    return np.asarray(np.exp(field.real[:size, :size] / 2))


def _image(size: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """A random piece of a random picture, turned at random, grey 0 to 1 mapped to 0.1 to 1; small pictures enlarged."""
    picture = getattr(skimage.data, _PICTURES[rng.integers(len(_PICTURES))])()
    grey: NDArray[Any] = rgb2gray(picture) if picture.ndim == 3 else picture / 255
    if min(grey.shape) < size:
        enlarged = [-(-side * size // min(grey.shape)) for side in grey.shape]
        grey = resize(grey, enlarged, order=3, anti_aliasing=False)  # type: ignore[no-untyped-call]
    row, col = (rng.integers(side - size + 1) for side in grey.shape)
    piece = np.rot90(grey[row : row + size, col : col + size], int(rng.integers(4)))
    return np.asarray(0.1 + 0.9 * piece.clip(0, 1))


_AMPLITUDES: Final[Mapping[str, Callable[[int, np.random.Generator], NDArray[np.float64]]]] = {
    "lines": _lines,
    "grf": _gaussian_random_field,
    "image": _image,
}
