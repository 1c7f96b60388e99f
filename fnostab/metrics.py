"""Reconstruction quality, and the R-factors of knowing nothing: pure functions of arrays.

The R-factor of crystallography compares far-field amplitudes: R = sum |A_predicted - A| / sum A.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

#: A pixel is lit if the probe has more than this share of its largest intensity there.
LIT_SHARE = 0.1


def r_factor(predicted: NDArray[np.floating], measured: NDArray[np.floating]) -> float:
    """R-factor of amplitudes of one shape: sum |predicted - measured| / sum measured."""
    return float(np.abs(predicted - measured).sum(dtype=np.float64) / measured.sum(dtype=np.float64))


def constant_object_r_factor(illumination: NDArray[np.floating], amplitudes: NDArray[np.floating]) -> float:
    """R-factor of the best constant object, whose pattern is the empty beam's times a number.

    `illumination` (N, N) is the far-field amplitude of the probe alone, `amplitudes` (n, N, N) the measured ones. The
    number minimises R exactly: it is the median of A / illumination weighted by the illumination.
    """
    beam = np.broadcast_to(illumination, amplitudes.shape).astype(np.float64).ravel()
    ratio = amplitudes.ravel() / np.maximum(beam, np.finfo(np.float64).tiny)
    order = np.argsort(ratio)
    cumulated = np.cumsum(beam[order])
    best = ratio[order[np.searchsorted(cumulated, cumulated[-1] / 2)]]
    return r_factor(best * illumination, amplitudes)


def mean_pattern_r_factor(amplitudes: NDArray[np.floating], training: NDArray[np.floating]) -> float:
    """R-factor of one pattern everywhere: the mean amplitude (N, N) of `training`, against `amplitudes` (n, N, N)."""
    return r_factor(training.mean(axis=0, dtype=np.float64), amplitudes)


def lit_region(probe: NDArray[np.complexfloating]) -> NDArray[np.bool_]:
    """Pixels (N, N) where the probe has light: above `LIT_SHARE` of its largest intensity."""
    intensity = np.abs(probe) ** 2
    return np.asarray(intensity > LIT_SHARE * intensity.max())


@dataclass(frozen=True)
class Orientation:
    """How well predicted patches agree with the object, and with its conjugate flip (the twin image)."""

    object: float
    twin: float

    @property
    def is_twin(self) -> bool:
        """Whether the twin is closer."""
        return self.twin > self.object


def orientation(
    predicted: NDArray[np.complexfloating],
    truth: NDArray[np.complexfloating],
    probe: NDArray[np.complexfloating],
) -> Orientation:
    """Correlate predicted patches (n, N, N) with true ones, and with their twins conj(O(-r)).

    A far-field pattern of a real centrosymmetric probe cannot tell the two apart, patch by patch. Each value is the
    mean over patches of |<p, t>| / (|p| |t|), weighted by the probe's intensity, of patches less their weighted mean;
    it is free of the patches' global phases and scales, between 0 and 1, and 0 for a constant patch.
    """
    weight = (np.abs(probe) ** 2).astype(np.float64)
    weight /= weight.sum()
    twin = truth[..., ::-1, ::-1].conj()  # about the middle of the array, as `optics.disk` is centred
    return Orientation(_correlation(predicted, truth, weight), _correlation(predicted, twin, weight))


def _correlation(
    first: NDArray[np.complexfloating], second: NDArray[np.complexfloating], weight: NDArray[np.float64]
) -> float:
    axes = (-2, -1)
    a = first - (weight * first).sum(axis=axes, keepdims=True)
    b = second - (weight * second).sum(axis=axes, keepdims=True)
    inner = np.abs((weight * a.conj() * b).sum(axis=axes))
    norms = np.sqrt((weight * np.abs(a) ** 2).sum(axis=axes) * (weight * np.abs(b) ** 2).sum(axis=axes))
    return float(np.mean(np.divide(inner, norms, out=np.zeros_like(norms), where=norms > 1e-12)))
