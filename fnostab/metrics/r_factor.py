"""The R-factor of crystallography, R = sum |A_predicted - A| / sum A of far-field amplitudes, and its baselines."""

import functools
import math

import numpy as np
from jaxtyping import Bool, Complex, Float
from numpy.typing import ArrayLike, NDArray
from scipy.special import gammaln, xlogy

Patches = Complex[NDArray[np.complexfloating], "n N N"]
Probe = Complex[NDArray[np.complexfloating], "N N"]
Patterns = Float[NDArray[np.floating], "_ H W"]

#: A pixel is lit if there is more than this share of the largest intensity.
LIT_SHARE = 0.1
#: Poisson rates, in counts, up to this one are looked up; beyond it an asymptotic form is right to 5e-4.
_TABLE_END = 256


def r_factor(
    predicted: Float[NDArray[np.floating], "*#shape"], measured: Float[NDArray[np.floating], "*#shape"]
) -> float:
    """R-factor of amplitudes: sum |predicted - measured| / sum measured; one pattern is compared with all measured."""
    return float(np.abs(predicted - measured).sum(dtype=np.float64) / measured.sum(dtype=np.float64))


def constant_object_r_factor(illumination: Float[NDArray[np.floating], "H W"], amplitudes: Patterns) -> float:
    """R-factor of the best constant object, whose pattern is the empty beam's times a number.

    `illumination` is the far-field amplitude of the probe alone, `amplitudes` are the measured ones. The number
    minimises R exactly: it is the median of A / illumination weighted by the illumination.
    """
    beam = np.broadcast_to(illumination, amplitudes.shape).astype(np.float64).ravel()
    lit = beam > 0  # the rest has no weight
    beam = beam[lit]
    ratio = amplitudes.ravel()[lit] / beam
    order = np.argsort(ratio)
    cumulated = np.cumsum(beam[order])
    best = ratio[order[np.searchsorted(cumulated, cumulated[-1] / 2)]]
    return r_factor(best * illumination, amplitudes)


def mean_pattern_r_factor(amplitudes: Patterns, training: Patterns) -> float:
    """R-factor of one pattern everywhere, the mean amplitude of `training`, against `amplitudes`."""
    return r_factor(training.mean(axis=0, dtype=np.float64), amplitudes)


def photon_noise_r_factor(rates: ArrayLike, *, fitted: bool = False) -> float:
    """R-factor that photon noise alone gives on average, if the amplitudes of `rates` were the exact ones.

    `rates` (..., N, N) are expected counts per pixel. Returns sum E|sqrt k - sqrt rate| / sum E sqrt k over all pixels,
    k ~ Poisson(rate), without sampling; NaN if all rates are 0. Raises ValueError if one is negative or not finite.
    Rates up to 256 are looked up in a table of exact sums; beyond it E|sqrt k - sqrt rate| is (1 + 1 / (6 rate)) /
    sqrt(2 pi) and E sqrt k is sqrt rate (1 - 1 / (8 rate)), the expansions about a normal k, right to 5e-4 in a pixel
    and closer on average.

    Where less than one count is expected, this is no lower bound: an amplitude of 0 is closer to the counts than sqrt
    rate, and a fit may come out under it. With `fitted`, sqrt rate gives way to the amplitude that is closest to the
    counts, the median of sqrt k: that is a lower bound, and what a model that was fitted to counts can reach.
    """
    rates = np.asarray(rates)
    nodes, values = _poisson_amplitudes(fitted)
    noise = total = 0.0
    for pattern in rates.reshape(-1, *rates.shape[-2:]):  # one at a time: the copies stay small
        if not (pattern.min() >= 0 and pattern.max() < np.inf):
            raise ValueError(f"`rates` (=from {pattern.min():g} to {pattern.max():g}) must be >= 0 and finite")
        rate = pattern.astype(np.float64).ravel()
        small = rate <= _TABLE_END
        table = np.interp(np.sqrt(rate[small]), nodes, values)
        large = rate[~small]
        noise += table.real.sum() + (1 + 1 / (6 * large)).sum() / math.sqrt(2 * math.pi)
        total += table.imag.sum() + (np.sqrt(large) * (1 - 1 / (8 * large))).sum()
    return float(noise / total) if total > 0 else math.nan


@functools.cache
def _poisson_amplitudes(fitted: bool) -> tuple[NDArray[np.float64], NDArray[np.complex128]]:
    """Nodes sqrt(rate), and E|sqrt k - sqrt rate| + i E sqrt k there: complex, so that one search finds both.

    With `fitted`, the median of sqrt k stands for sqrt rate. The nodes are dense near 0, where both vanish, and include
    all whole rates, where the first has kinks.
    """
    roots = np.union1d(np.geomspace(1e-4, math.sqrt(_TABLE_END), 4001), np.sqrt(np.arange(4 * _TABLE_END + 1) / 4))
    k = np.arange(2 * _TABLE_END)
    rates = roots[:, None] ** 2
    chance = np.exp(xlogy(k, rates) - rates - gammaln(k + 1))
    amplitude = np.sqrt((np.cumsum(chance, axis=1) < 0.5).sum(axis=1)) if fitted else roots
    distance = (chance * np.abs(np.sqrt(k) - amplitude[:, None])).sum(axis=1)
    return roots, distance + 1j * (chance @ np.sqrt(k))


def progress(r: float, constant: float, floor: float) -> float:
    """Share of the way from the best constant object (0) to photon noise alone (1) that an R-factor has gone.

    `floor` NaN is an unknown noise, counted as 0: progress is understated then. NaN if `r` is NaN, or where the
    constant object is no worse than the noise and there is no way to go.
    """
    floor = 0.0 if math.isnan(floor) else floor
    if not constant > floor:
        return math.nan
    return (constant - r) / (constant - floor)


def lit_region(probe: Probe) -> Bool[NDArray[np.bool_], "N N"]:
    """Pixels where the probe has light: above `LIT_SHARE` of its largest intensity."""
    return is_lit(np.abs(probe) ** 2)


def is_lit(intensity: Float[NDArray[np.floating], "H W"]) -> Bool[NDArray[np.bool_], "H W"]:
    """Pixels where the intensity of a probe, or of all its positions, is above `LIT_SHARE` of the largest."""
    return np.asarray(intensity > LIT_SHARE * intensity.max())


def orientation(predicted: Patches, truth: Patches, probe: Probe) -> tuple[float, float]:
    """Correlate predicted patches with true ones, and with their twins, the conjugate flips conj(O(-r)).

    A far-field pattern of a real centrosymmetric probe cannot tell the two apart, patch by patch. Each value is the
    mean over patches of |<p, t>| / (|p| |t|), weighted by the probe's intensity, of patches less their weighted mean;
    it is free of the patches' global phases and scales, between 0 and 1, and 0 for a constant patch.
    """
    weight = (np.abs(probe) ** 2).astype(np.float64)
    weight /= weight.sum()
    twin = truth[..., ::-1, ::-1].conj()  # about the middle of the array, as `optics.disk` is centred
    return _correlation(predicted, truth, weight), _correlation(predicted, twin, weight)


def _correlation(first: Patches, second: Patches, weight: Float[NDArray[np.float64], "N N"]) -> float:
    axes = (-2, -1)
    a = first - (weight * first).sum(axis=axes, keepdims=True)
    b = second - (weight * second).sum(axis=axes, keepdims=True)
    inner = np.abs((weight * a.conj() * b).sum(axis=axes))
    norms = np.sqrt((weight * np.abs(a) ** 2).sum(axis=axes) * (weight * np.abs(b) ** 2).sum(axis=axes))
    return float(np.mean(np.divide(inner, norms, out=np.zeros_like(norms), where=norms > 1e-12)))
