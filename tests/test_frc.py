import numpy as np
import pytest
from hypothesis import given, strategies as st

from fnostab.metrics.frc import FRC, fourier_ring_correlation, half_bit_threshold, tapered_window


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def _noise(rng, shape=(96, 96)):
    return rng.normal(size=shape) + 1j * rng.normal(size=shape)


def _radius(shape):
    return np.hypot(np.fft.fftfreq(shape[0])[:, None], np.fft.fftfreq(shape[1]))


def _low_pass(image, cutoff):
    return np.fft.ifft2(np.fft.fft2(image) * (_radius(image.shape) < cutoff))


def test_identical_images_correlate_fully_up_to_nyquist(rng):
    frc = fourier_ring_correlation(*[_noise(rng)] * 2)
    assert frc.correlation == pytest.approx(1)
    assert frc.crossing(0.5) == 0.5


def test_an_image_and_its_negative_correlate_to_minus_one(rng):
    image = _noise(rng)
    assert fourier_ring_correlation(image, -image).correlation == pytest.approx(-1)


def test_independent_noise_does_not_correlate(rng):
    frc = fourier_ring_correlation(_noise(rng, (256, 256)), _noise(rng, (256, 256)))
    assert abs(frc.correlation.mean()) < 0.02
    assert frc.crossing(1 / 7) < 0.05


def test_equal_noise_on_two_images_halves_the_correlation(rng):
    """Power 1 in common and 1 of noise in each: 1 / (1 + 1)."""
    common = _noise(rng, (256, 256))
    frc = fourier_ring_correlation(common + _noise(rng, (256, 256)), common + _noise(rng, (256, 256)))
    assert frc.correlation.mean() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("cutoff", [0.1, 0.2, 0.35])
@pytest.mark.parametrize("shape", [(128, 128), (160, 128), (127, 128)])
def test_correlation_ends_at_the_frequency_where_the_images_stop_agreeing(rng, shape, cutoff):
    first, second = _noise(rng, shape), _noise(rng, shape)
    second += _low_pass(first - second, cutoff)
    assert fourier_ring_correlation(first, second).crossing(0.5) == pytest.approx(cutoff, abs=0.3 / min(shape))


def test_correlation_ends_where_one_image_has_no_more_detail(rng):
    image, noise = _noise(rng, (128, 128)), 0.1 * _noise(rng, (128, 128))
    coarse = _low_pass(image, 0.2) + noise - _low_pass(noise, 0.2)
    assert fourier_ring_correlation(coarse, image).crossing(0.5) == pytest.approx(0.2, abs=2 / 128)


def test_rings_are_one_bin_wide_and_end_at_nyquist(rng):
    frequency = fourier_ring_correlation(*[_noise(rng, (40, 64))] * 2).frequency
    assert frequency == pytest.approx(np.arange(1, 21) / 40)


def test_a_wave_shared_by_both_images_shows_on_its_ring_alone(rng):
    wave = 10 * np.exp(2j * np.pi * 0.2 * np.arange(128))[:, None]
    frc = fourier_ring_correlation(_noise(rng, (128, 128)) + wave, _noise(rng, (128, 128)) + wave)
    assert frc.frequency[np.argmax(frc.correlation)] == pytest.approx(0.2, abs=0.5 / 128)
    assert abs(frc.correlation[np.abs(frc.frequency - 0.2) > 4 / 128].mean()) < 0.05


def test_a_constant_image_counts_as_no_correlation(rng):
    frc = fourier_ring_correlation(np.full((32, 32), 0.3 + 0.1j), _noise(rng, (32, 32)))
    assert not frc.correlation.any()
    assert frc.crossing(0.5) == 0


def test_values_outside_of_the_mask_do_not_count(rng):
    mask = np.hypot(*np.mgrid[-32:32, -32:32]) < 20
    first, second = _noise(rng, (64, 64)), _noise(rng, (64, 64))
    expected = fourier_ring_correlation(first, second, mask)
    first[~mask], second[~mask] = np.nan, 1e6
    assert np.array_equal(fourier_ring_correlation(first, second, mask).correlation, expected.correlation)


def test_a_mask_edge_does_not_correlate_what_differs(rng):
    """Without a taper the images' means and low frequencies, alike, spill over every ring."""
    mask = np.zeros((128, 128), dtype=bool)
    mask[20:100, 30:110] = True
    smooth = 100 * _low_pass(_noise(rng, mask.shape), 0.01) + 50
    frc = fourier_ring_correlation(smooth + 0.1 * _noise(rng, mask.shape), smooth + 0.1 * _noise(rng, mask.shape), mask)
    assert np.abs(frc.correlation[frc.frequency > 0.2].mean()) < 0.05


def test_the_window_is_zero_outside_of_the_mask_and_one_deep_inside():
    mask = np.hypot(*np.mgrid[-32:32, -32:32]) < 30
    window = tapered_window(mask)
    assert not window[~mask].any()
    assert window[32, 32] == 1
    assert np.abs(np.diff(window, axis=0)).max() < np.pi / 2 / 15  # steepest slope of sin^2 over a rise of 15 px


@given(st.integers(0, 2**16), st.floats(1e-6, 1e6), st.floats(-1e6, 1e6), st.integers(4, 20))
def test_scales_and_offsets_of_the_images_do_not_count(seed, scale, offset, size):
    rng = np.random.default_rng(seed)
    first, second = _noise(rng, (8, size)), _noise(rng, (8, size))
    expected = fourier_ring_correlation(first, second).correlation
    found = fourier_ring_correlation(scale * (first + offset), second).correlation
    assert found == pytest.approx(expected, abs=1e-6)
    assert np.abs(found).max() <= 1 + 1e-9


def _curve(*correlation):
    correlation = np.array(correlation, dtype=np.float64)
    n = len(correlation)
    return FRC(np.arange(1, n + 1) / (2 * n), correlation, 2 * np.pi * np.arange(1, n + 1))


def test_a_crossing_lies_on_the_line_between_two_rings():
    assert _curve(1, 0.8, 0.2, 0).crossing(0.5) == pytest.approx((0.25 + 0.375) / 2)


def test_the_first_crossing_counts():
    assert _curve(1, 0, 1, 0).crossing(0.5) == pytest.approx((0.125 + 0.25) / 2)


def test_a_curve_that_never_falls_crosses_at_nyquist_and_one_that_starts_low_at_zero():
    assert _curve(1, 0.9, 0.5).crossing(0.5) == 0.5
    assert _curve(0.4, 0.9, 0.9).crossing(0.5) == 0


def test_a_dip_on_the_lowest_rings_is_no_crossing():
    curve = [0.3] + 30 * [0.9] + 19 * [0.1]
    assert _curve(*curve).crossing(0.5) == pytest.approx(0.5 * (31 + 0.5) / 50)
    assert _curve(*[0.3] * 6, *curve).crossing(0.5) == 0  # lost on all of them


def test_a_curve_is_crossed_on_the_line_between_two_rings_too():
    curve = _curve(1, 0.8, 0.2, 0)
    assert curve.crossing(np.full(4, 0.5)) == pytest.approx(curve.crossing(0.5))
    assert curve.crossing(np.array([1, 0.9, 0.9, 0.9])) == pytest.approx(0.125 + 0.125 * 0 / 0.1)
    assert curve.crossing(np.array([0.9, 0.7, 0.4, 0.4])) == pytest.approx(0.25 + 0.125 * 0.1 / 0.3)


def test_the_half_bit_curve_has_the_numbers_of_its_source():
    n = np.array([1, 10, 1000.0])
    expected = (0.2071 + 1.9102 / np.sqrt(n)) / (1.2071 + 0.9102 / np.sqrt(n))
    assert half_bit_threshold(n) == pytest.approx(expected, abs=1e-4)
    assert half_bit_threshold(np.array([1e12])) == pytest.approx(0.2071 / 1.2071, abs=1e-4)


def test_two_halves_with_more_than_half_a_bit_are_above_the_curve_and_with_less_below(rng):
    common = _noise(rng, (256, 256))
    for snr, above in ((0.5, 1), (0.1, 0)):
        halves = [common + _noise(rng, common.shape) / np.sqrt(snr) for _ in range(2)]
        frc = fourier_ring_correlation(*halves)
        high = frc.frequency > 0.2
        assert (frc.correlation > half_bit_threshold(frc.coefficients))[high].mean() == pytest.approx(above, abs=0.1)


@pytest.mark.parametrize("radius", [30, 60])
def test_the_independent_coefficients_of_a_ring_foretell_how_far_noise_correlates(rng, radius):
    """The real part of the correlation of n independent complex pairs has variance 1 / (2 n)."""
    mask = np.hypot(*np.mgrid[-64:64, -64:64]) < radius
    found = [fourier_ring_correlation(_noise(rng, mask.shape), _noise(rng, mask.shape), mask) for _ in range(40)]
    high = found[0].frequency > 0.2
    variance = np.mean([frc.correlation[high] ** 2 for frc in found], axis=0)
    assert np.mean(2 * found[0].coefficients[high] * variance) == pytest.approx(1, abs=0.15)


def test_the_crossing_of_an_unknown_or_empty_curve_is_nan():
    assert np.isnan(_curve(1, np.nan).crossing(0.5))
    assert np.isnan(_curve().crossing(0.5))


@pytest.mark.parametrize(
    ("second", "mask", "message"),
    [
        (np.ones((3, 4)), None, r"^`second` \(=\(3, 4\)\) must have the first's shape, \(4, 4\)$"),
        (np.ones((4, 4)), np.ones((4, 3), bool), r"^`mask` \(=\(4, 3\)\) must have the first's shape, \(4, 4\)$"),
        (np.ones((4, 4)), np.zeros((4, 4), bool), r"^`mask` \(=no pixel\) must hold at least one pixel$"),
        (np.full((4, 4), np.nan), None, r"^`second` \(=16 values not finite\) must be finite inside the mask$"),
    ],
)
def test_images_that_do_not_fit_are_refused(second, mask, message):
    with pytest.raises(ValueError, match=message):
        fourier_ring_correlation(np.ones((4, 4)), second, mask)
    with pytest.raises(ValueError, match=r"^`first` \(=\(4,\)\) must be an image, \(H, W\)$"):
        fourier_ring_correlation(np.ones(4), second, mask)
