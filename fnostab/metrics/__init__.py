"""Reconstruction quality: R-factors, comparison with a truth, alignment, Fourier ring correlation, calibration.

Everything here is a pure function of arrays.
"""

from fnostab.metrics.alignment import align as align
from fnostab.metrics.calibration import (
    coverage as coverage,
    error_over_deviation as error_over_deviation,
    patch_errors as patch_errors,
)
from fnostab.metrics.comparison import (
    FLAT as FLAT,
    SCALARS as SCALARS,
    Comparison as Comparison,
    amplitude_ssim as amplitude_ssim,
    compare_aligned as compare_aligned,
    compare_objects as compare_objects,
    vacuous as vacuous,
)
from fnostab.metrics.frc import (
    FRC as FRC,
    fourier_ring_correlation as fourier_ring_correlation,
    half_bit_threshold as half_bit_threshold,
)
from fnostab.metrics.r_factor import (
    LIT_SHARE as LIT_SHARE,
    constant_object_r_factor as constant_object_r_factor,
    is_lit as is_lit,
    lit_region as lit_region,
    mean_pattern_r_factor as mean_pattern_r_factor,
    orientation as orientation,
    photon_noise_r_factor as photon_noise_r_factor,
    progress as progress,
    r_factor as r_factor,
)
