"""Reconstruction quality: R-factors, the comparison with a truth, alignment, and Fourier ring correlation.

Everything here is a pure function of arrays.
"""

from fnostab.metrics.alignment import Aligned, align
from fnostab.metrics.comparison import SCALARS, Comparison, amplitude_ssim, compare_aligned, compare_objects, vacuous
from fnostab.metrics.r_factor import (
    LIT_SHARE,
    constant_object_r_factor,
    lit_region,
    mean_pattern_r_factor,
    orientation,
    photon_noise_r_factor,
    progress,
    r_factor,
)

__all__ = [
    "LIT_SHARE",
    "SCALARS",
    "Aligned",
    "Comparison",
    "align",
    "amplitude_ssim",
    "compare_aligned",
    "compare_objects",
    "constant_object_r_factor",
    "lit_region",
    "mean_pattern_r_factor",
    "orientation",
    "photon_noise_r_factor",
    "progress",
    "r_factor",
    "vacuous",
]
