"""Whether the deviation that an ensemble predicts is the error that it makes."""

import math

import numpy as np
from jaxtyping import Complex, Float
from numpy.typing import NDArray

Patches = Complex[NDArray[np.complexfloating], "n N N"]
Values = Float[NDArray[np.floating], "..."]


def patch_errors(
    predicted: Patches, truth: Patches, light: Float[NDArray[np.floating], "N N"]
) -> Float[NDArray[np.floating], "n N N"]:
    """|predicted - truth| of each pixel, after the one phase that a pattern leaves open in each patch.

    That is the phase of least error weighted by `light`, the probe's intensity: arg of sum light predicted conj(truth).
    """
    overlap = (light * predicted * truth.conj()).sum(axis=(1, 2), keepdims=True)
    return np.asarray(np.abs(predicted * np.exp(-1j * np.angle(overlap)) - truth))


def error_over_deviation(errors: Values, deviations: Values) -> float:
    """Root mean square error over root mean square deviation: what deviations have to be multiplied by.

    1 says that they are as large as the errors on average. NaN if all deviations are 0. Even of an ensemble from whose
    members the truth is indistinguishable it is sqrt((K + 1) / (K - 1)), K the number of members, where deviations are
    sqrt(mean_k |o_k - mean|^2) (from Fortin et al. 2014, J. Hydrometeorol. 15, 1708): 1.22 for 5 members.
    """
    spread = float(np.square(deviations, dtype=np.float64).sum())
    return math.sqrt(float(np.square(errors, dtype=np.float64).sum()) / spread) if spread > 0 else math.nan


def coverage(errors: Values, deviations: Values, factor: float) -> float:
    """Share of `errors` that are at most `factor` deviations.

    For a circular complex normal error with E|e|^2 = deviation^2 that is 1 - exp(-factor^2): 63.2 % within one
    deviation, 98.2 % within two.
    """
    return float(np.mean(errors <= factor * deviations))
