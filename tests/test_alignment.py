import numpy as np
import pytest
from hypothesis import given, strategies as st
from scipy.ndimage import fourier_shift

from fnostab.metrics.alignment import align


def _object(size, seed=0, cutoff=0.15, phase_rad=0.6):
    """A smooth complex object: band-limited but for its exponential."""
    rng = np.random.default_rng(seed)
    radius = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.fftfreq(size))
    field = np.fft.ifft2(np.fft.fft2(rng.normal(size=(2, size, size))) * np.exp(-((radius / cutoff) ** 2) * 4)).real
    amplitude, phase = field / field.std(axis=(1, 2), keepdims=True)
    return (1 + 0.2 * amplitude) * np.exp(1j * phase_rad * phase)


def _plane(shape, rows, cols):
    """exp(i plane) with so many cycles over the image along each axis."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    return np.exp(2j * np.pi * (rows * y / shape[0] + cols * x / shape[1]))


def _shifted_views(shift_px, size=80, margin=40, **kind):
    """The middle of an object, once with the content displaced by `-shift_px` and once as it is."""
    whole = _object(size + 2 * margin, **kind)
    displaced = np.fft.ifft2(fourier_shift(np.fft.fft2(whole), [-step for step in shift_px]))
    view = slice(margin, margin + size)
    return displaced[view, view], whole[view, view]


def _error(aligned, truth):
    return np.abs(aligned.object - truth)[aligned.mask]


@pytest.mark.parametrize("cycles", [(0, 0), (0.3, -0.2), (0.5, 0.5), (6.4, -9.7), (20.5, 3)])
def test_a_phase_plane_is_undone_however_often_it_wraps(cycles):
    truth = _object(64)
    aligned = align(np.exp(2j) * _plane(truth.shape, *cycles) * truth, truth)
    assert aligned.object == pytest.approx(truth, abs=1e-12)


def test_a_plane_is_undone_on_a_rectangle_and_a_small_mask():
    truth = _object(80)[:48]
    mask = np.zeros(truth.shape, dtype=bool)
    mask[5:20, 30:50] = True
    predicted = _plane(truth.shape, 13.3, -21.7) * truth
    assert _error(align(predicted, truth), truth).max() < 1e-12
    assert _error(align(predicted, truth, mask), truth).max() < 1e-12


def test_without_ramp_only_the_constant_phase_goes():
    truth, plane = _object(64), _plane((64, 64), 0.2, 0)
    aligned = align(np.exp(1j) * truth, truth, ramp=False)
    assert aligned.object == pytest.approx(truth, abs=1e-12)
    assert _error(align(plane * truth, truth, ramp=False), truth).mean() > 0.1


def test_a_ramp_in_noise_is_the_least_squares_plane():
    """Not the peak of the spectrum, which lies on a grid."""
    rng = np.random.default_rng(1)
    truth = _object(64)
    noisy = truth * np.exp(1j * rng.normal(size=truth.shape))
    aligned = align(_plane(truth.shape, 2.31, -1.17) * noisy, truth)
    error = np.angle(aligned.object / truth)
    weight = np.abs(noisy * truth)
    y, x = np.mgrid[:64, :64]
    for term in (np.ones_like(y), y, x):
        assert np.sum(weight * error * term) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_a_ramp_is_found_under_phase_noise_of_two_radians(seed):
    rng = np.random.default_rng(seed)
    truth = _object(48, seed)
    noisy = truth * np.exp(2j * rng.normal(size=truth.shape))
    aligned = align(_plane(truth.shape, 5.5, -3.5) * noisy, truth)
    assert np.abs(np.angle(aligned.object / noisy)).max() < 1


def test_the_mean_amplitude_becomes_the_truths():
    truth = _object(32)
    mask = np.arange(32) < 20
    mask = mask[:, None] & mask
    aligned = align(7 * truth**2, truth, mask)
    assert np.abs(aligned.object[mask]).mean() == pytest.approx(np.abs(truth[mask]).mean())


def test_an_identical_image_is_left_bit_for_bit():
    truth = _object(50)
    assert np.array_equal(align(truth, truth).object, truth)


@pytest.mark.parametrize("shift_px", [(1.3, -2.6), (0, 0), (10.4, -9.7), (-0.5, 12), (0.25, 0)])
@pytest.mark.parametrize("cycles", [(0, 0), (7.3, -4.6)])
def test_a_shift_is_undone_to_a_hundredth_of_a_pixel_whatever_the_ramp(shift_px, cycles):
    predicted, truth = _shifted_views(shift_px)
    aligned = align(_plane(truth.shape, *cycles) * predicted, truth, shift=True)
    assert aligned.shift_px == pytest.approx(shift_px, abs=0.011)
    assert _error(aligned, truth).mean() < 2e-3
    assert _error(aligned, truth).max() < 0.05


def test_a_shift_is_found_without_a_ramp_and_in_noise():
    predicted, truth = _shifted_views((3.3, -1.8))
    noise = np.random.default_rng(2).normal(size=(2, *truth.shape))
    aligned = align(predicted + 0.2 * (noise[0] + 1j * noise[1]), truth, ramp=False, shift=True)
    assert aligned.shift_px == pytest.approx((3.3, -1.8), abs=0.1)


def test_a_shift_is_found_of_an_object_that_has_phase_alone():
    predicted, truth = (np.exp(1j * np.angle(image)) for image in _shifted_views((5, -7)))
    aligned = align(_plane(truth.shape, 3.2, 4.1) * predicted, truth, shift=True)
    assert aligned.shift_px == pytest.approx((5, -7), abs=0.011)


def test_a_shift_and_a_ramp_are_told_apart_where_the_object_has_no_mean():
    """Then neither the ramp shows in the unregistered product nor the shift in the correlation with the ramp in it."""
    predicted, truth = _shifted_views((9.4, -7.7), cutoff=0.08, phase_rad=3)
    aligned = align(_plane(truth.shape, 3.3, -24.6) * predicted, truth, shift=True)
    assert aligned.shift_px == pytest.approx((9.4, -7.7), abs=0.011)
    assert _error(aligned, truth).mean() < 0.01


def test_a_shift_is_interpolated_well_up_to_the_edge_of_the_mask():
    predicted, truth = _shifted_views((1.5, -2.5))
    aligned = align(_plane(truth.shape, 9.3, -24.6) * predicted, truth, shift=True)
    assert _error(aligned, truth).max() < 0.05
    mask = np.hypot(*np.mgrid[-40:40, -40:40]) < 30
    assert np.sqrt((_error(align(predicted, truth, mask, shift=True), truth) ** 2).mean()) < 0.015


def test_pixels_moved_in_from_outside_leave_the_mask():
    predicted, truth = _shifted_views((3.4, -5))
    mask = np.ones(truth.shape, dtype=bool)
    mask[50:60, 20:30] = False
    kept = align(predicted, truth, mask, shift=True).mask
    expected = mask.copy()
    expected[:4] = expected[:, -5:] = False
    expected[53:64, 15:25] = False  # where the hole of the prediction went
    assert np.array_equal(kept, expected)


def test_without_shift_the_mask_is_kept_and_the_shift_zero():
    predicted, truth = _shifted_views((3, 3))
    mask = np.abs(truth) > 1
    aligned = align(predicted, truth, mask)
    assert np.array_equal(aligned.mask, mask)
    assert aligned.shift_px == (0, 0)


@pytest.mark.parametrize("shift", [False, True])
def test_values_outside_of_the_mask_do_not_count(shift):
    predicted, truth = _shifted_views((1.3, -2.6))
    mask = np.hypot(*np.mgrid[-40:40, -40:40]) < 30
    expected = align(predicted, truth, mask, shift=shift)
    predicted[~mask], truth[~mask] = 1e6, np.nan
    assert np.array_equal(align(predicted, truth, mask, shift=shift).object, expected.object)


def test_images_that_nothing_registers_are_not_shifted_away():
    """The best match of noise is an accident: most of the mask stays."""
    mask = np.hypot(*np.mgrid[-16:16, -16:16]) < 4
    for seed, scale in [(0, 0), (6, 1), (24, 1), (27, 1)]:
        noise = np.random.default_rng(seed).normal(size=(4, 32, 32))
        aligned = align(scale * (noise[0] + 1j * noise[1]), noise[2] + 1j * noise[3], mask, shift=True)
        assert aligned.mask.sum() >= mask.sum() / 2


@given(st.integers(0, 2**16), st.floats(1e-6, 1e6), st.floats(-4, 4), st.floats(-3, 3), st.floats(-3, 3))
def test_global_phase_scale_and_ramp_of_the_prediction_change_nothing(seed, scale, phase, rows, cols):
    predicted, truth = _object(24, seed), _object(24, seed + 1)
    truth = predicted + 0.3 * truth
    same = scale * np.exp(1j * phase) * _plane(truth.shape, rows, cols) * predicted
    assert align(same, truth).object == pytest.approx(align(predicted, truth).object, abs=1e-6)
