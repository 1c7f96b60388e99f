import json

import numpy as np
import pytest
from hypothesis import given, strategies as st
from scipy.ndimage import binary_erosion
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from fnostab.metrics import SCALARS, align, amplitude_ssim, compare_objects, vacuous
from fnostab.metrics.frc import fourier_ring_correlation

_PHASE = {"phase_ssim", "phase_mae", "phase_psnr"}
_FRC = {"frc50", "frc_one_seventh"}


def _smooth(rng, size, cutoff):
    radius = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.fftfreq(size))
    field = np.fft.ifft2(np.fft.fft2(rng.normal(size=(size, size))) * np.exp(-((radius / cutoff) ** 2))).real
    return field / field.std()


def _object(seed=0, size=64, cutoff=0.1):
    rng = np.random.default_rng(seed)
    return (1 + 0.2 * _smooth(rng, size, cutoff)) * np.exp(0.6j * _smooth(rng, size, cutoff))


def _disk(size=64, radius=25):
    middle = size // 2
    return np.hypot(*np.mgrid[-middle:middle, -middle:middle]) < radius


def _spoilt(truth, seed=1, strength=0.1):
    noise = np.random.default_rng(seed).normal(size=(2, *truth.shape))
    return truth + strength * (noise[0] + 1j * noise[1])


def _ramp(size, cycles=5.3):
    return np.exp(2j * np.pi * cycles * (np.arange(size) / size)[:, None] * np.ones(size))


def _same(found, expected, **tolerance):
    return all(np.asarray(found[key]) == pytest.approx(expected[key], nan_ok=True, **tolerance) for key in expected)


def test_identical_images_get_the_best_value_of_every_metric():
    truth = _object()
    found = compare_objects(truth, truth)
    assert {key: found[key] for key in SCALARS} == {
        "amp_ssim": pytest.approx(1),
        "phase_ssim": pytest.approx(1),
        "amp_mae": 0,
        "phase_mae": 0,
        "amp_psnr": np.inf,
        "phase_psnr": np.inf,
        "frc50": 0.5,
        "frc_one_seventh": 0.5,
    }
    assert found["frc"] == pytest.approx([1] * 32)
    assert found["frc_frequency"] == pytest.approx(np.arange(1, 33) / 64)


@pytest.mark.parametrize("factor", [_ramp(64), np.exp(2j), 7.0, 1e-9 * np.exp(1j) * _ramp(64, -0.4)])
def test_ramp_global_phase_and_scale_cost_nothing(factor):
    truth = _object()
    found = compare_objects(factor * truth, truth)
    assert found["amp_ssim"] == pytest.approx(1)
    assert found["phase_ssim"] == pytest.approx(1)
    assert max(found["amp_mae"], found["phase_mae"]) < 1e-12
    assert min(found["amp_psnr"], found["phase_psnr"]) > 200
    assert found["frc"] == pytest.approx([1] * 32)


def test_without_ramp_a_phase_plane_costs_phase_and_correlation():
    truth = _object()
    found = compare_objects(_ramp(64, 0.5) * truth, truth, ramp=False)
    assert found["amp_ssim"] == pytest.approx(1)
    assert found["phase_mae"] > 0.5
    assert found["frc"][0] < 0.9


def test_a_shift_costs_nothing_if_it_is_free():
    whole = _object(size=96)
    predicted, truth = whole[5:70, 8:73], whole[:65, :65]
    found = compare_objects(predicted, truth, shift=True)
    assert found["amp_ssim"] == pytest.approx(1)
    assert found["frc50"] == 0.5
    assert compare_objects(predicted, truth)["amp_ssim"] < 0.5


def test_ssim_of_a_full_mask_is_that_of_scikit_image():
    truth = _object()
    predicted = align(_spoilt(truth), truth).object
    found = compare_objects(predicted, truth)
    amplitude, phase = np.abs(truth), np.angle(truth)
    # The phases here stay within (-pi, pi), so that nothing jumps.
    assert found["amp_ssim"] == pytest.approx(
        structural_similarity(amplitude, np.abs(predicted), data_range=np.ptp(amplitude)), rel=1e-9
    )
    error = np.angle(predicted * truth.conj())
    assert found["phase_ssim"] == pytest.approx(
        structural_similarity(phase, phase + error, data_range=2 * np.pi), rel=1e-9
    )


def test_mae_and_psnr_are_those_of_the_masked_pixels():
    truth, mask = _object(), _disk()
    predicted = align(_spoilt(truth), truth, mask).object[mask]
    found, truth = compare_objects(_spoilt(truth), truth, mask), truth[mask]
    error = np.angle(predicted * truth.conj())
    assert found["amp_mae"] == pytest.approx(np.abs(np.abs(predicted) - np.abs(truth)).mean())
    assert found["phase_mae"] == pytest.approx(np.abs(error).mean())
    amplitudes = np.abs(truth), np.abs(predicted)
    assert found["amp_psnr"] == pytest.approx(peak_signal_noise_ratio(*amplitudes, data_range=np.ptp(amplitudes[0])))
    assert found["phase_psnr"] == pytest.approx(10 * np.log10((2 * np.pi) ** 2 / np.mean(error**2)))


def test_ssim_looks_at_windows_inside_of_the_mask_alone():
    truth, mask = _object(), _disk()
    predicted = align(_spoilt(truth), truth, mask).object
    amplitude, harmless = np.abs(truth), np.abs(truth)
    harmless[mask] = np.abs(predicted)[mask]
    span = np.ptp(amplitude[mask])
    _, ssim = structural_similarity(amplitude, harmless, data_range=span, full=True)
    expected = ssim[binary_erosion(mask, np.ones((7, 7)))].mean()
    assert compare_objects(predicted, truth, mask)["amp_ssim"] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("shift", [False, True])
def test_values_outside_of_the_mask_change_nothing(shift):
    truth, mask = _object(), _disk()
    predicted = _spoilt(truth)
    expected = compare_objects(predicted, truth, mask, shift=shift)
    predicted[~mask], truth[~mask] = 1e6 * np.random.default_rng(3).normal(size=(~mask).sum()), np.nan
    assert compare_objects(predicted, truth, mask, shift=shift) == expected


def test_phases_that_wrap_are_compared_without_jumps():
    truth = _object() * np.exp(3.1j)  # up to pi and over
    assert np.ptp(np.angle(truth)) > 6
    predicted = truth * np.exp(0.05j * np.random.default_rng(1).normal(size=truth.shape))
    found = compare_objects(predicted, truth)
    assert found["phase_mae"] == pytest.approx(0.05 * np.sqrt(2 / np.pi), rel=0.05)
    assert found["phase_ssim"] > 0.9


def test_a_coarser_image_has_its_resolution_at_its_cutoff():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(128, 128)) + 1j * rng.normal(size=(128, 128)) + 3
    radius = np.hypot(np.fft.fftfreq(128)[:, None], np.fft.fftfreq(128))
    noise = np.fft.fft2(_spoilt(np.zeros((128, 128))))
    predicted = np.fft.ifft2(np.where(radius < 0.25, np.fft.fft2(truth), noise))
    assert compare_objects(predicted, truth, ramp=False)["frc50"] == pytest.approx(0.25, abs=2 / 128)


def test_the_resolutions_are_the_curves_crossings_of_a_half_and_a_seventh():
    truth = _object()
    predicted = _spoilt(truth, strength=0.3)
    found = compare_objects(predicted, truth)
    frc = fourier_ring_correlation(align(predicted, truth).object, truth)
    assert found["frc"] == frc.correlation.tolist()
    assert found["frc50"] == frc.crossing(0.5)
    assert found["frc_one_seventh"] == frc.crossing(1 / 7)
    assert 0 < found["frc50"] < found["frc_one_seventh"] < 0.5


def test_noise_resolves_nothing():
    rng = np.random.default_rng(0)
    predicted, truth = rng.normal(size=(2, 128, 128)) + 1j * rng.normal(size=(2, 128, 128))
    found = compare_objects(predicted, truth)
    assert abs(np.mean(found["frc"])) < 0.05
    assert found["frc50"] < 0.05
    assert abs(found["amp_ssim"]) < 0.05


@pytest.mark.parametrize("ramp", [False, True])
def test_a_constant_prediction_has_no_ssim_and_no_correlation(ramp):
    found = compare_objects(np.full((64, 64), 0.3 - 0.2j), _object(), ramp=ramp)
    assert set(vacuous(found)) == {"amp_ssim", "phase_ssim"} | _FRC
    assert np.isnan(found["frc"]).all()
    assert found["amp_mae"] > 0.1
    assert found["phase_mae"] > 0.1


def test_a_prediction_constant_but_for_a_free_ramp_is_constant():
    found = compare_objects(_ramp(64), _object())
    assert set(vacuous(found)) == {"amp_ssim", "phase_ssim"} | _FRC


@pytest.mark.parametrize("factor", [1, -1, np.exp(3.14159j), _ramp(64)])
def test_a_truth_without_phase_has_no_phase_metrics(factor):
    """Not 1.0, even for a prediction without phase; and -1 +- rounding, whose angles are +-pi, has no phase either."""
    rounding = 1 + 1e-7j * np.random.default_rng(0).normal(size=(64, 64))
    truth = np.abs(_object()) * factor * rounding
    for predicted in (truth, _spoilt(truth)):
        assert set(vacuous(compare_objects(predicted, truth))) == _PHASE


def test_a_plane_is_a_phase_where_the_ramp_is_not_free():
    truth = _ramp(64) * np.abs(_object())
    assert vacuous(compare_objects(_spoilt(truth), truth, ramp=False)) == []


def test_the_angles_of_dark_pixels_are_no_phase():
    truth = np.where(_disk(), np.abs(_object()), 1e-9 * _spoilt(_object(), strength=1))
    assert set(vacuous(compare_objects(_spoilt(truth), truth))) == _PHASE


def test_a_real_image_is_one_without_phase():
    truth = np.abs(_object())
    assert set(vacuous(compare_objects(truth**2, truth))) == _PHASE


def test_a_truth_without_contrast_has_no_amplitude_metrics_that_need_its_range():
    truth = np.exp(1j * np.angle(_object()))
    found = compare_objects(_spoilt(truth), truth)
    assert vacuous(found) == ["amp_psnr", "amp_ssim"]
    assert found["phase_ssim"] > 0.5


def test_a_prediction_of_zero_is_wrong_and_not_vacuously_right():
    truth = _object()
    for shift in (False, True):
        found = compare_objects(np.zeros((64, 64)), truth, shift=shift)
        assert set(vacuous(found)) == {"amp_ssim"} | _PHASE | _FRC
        assert found["amp_mae"] == pytest.approx(np.abs(truth).mean())


def test_an_image_of_zero_as_truth_is_no_reason_to_raise():
    found = compare_objects(_object(), np.zeros((64, 64)))
    assert set(vacuous(found)) == {"amp_ssim", "amp_psnr"} | _PHASE | _FRC
    assert found["amp_mae"] > 0.5


@pytest.mark.parametrize("mask", [_disk(radius=3), np.eye(64, dtype=bool)])
def test_there_is_no_ssim_where_no_window_fits(mask):
    truth = _object()
    assert vacuous(compare_objects(_spoilt(truth), truth, mask)) == ["amp_ssim", "phase_ssim"]


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (3, 4), (6, 6)])
def test_tiny_images_are_compared(shape):
    rng = np.random.default_rng(0)
    predicted, truth = rng.normal(size=(2, *shape)) + 1j * rng.normal(size=(2, *shape))
    for shift in (False, True):
        assert np.isfinite(compare_objects(predicted, truth, shift=shift)["amp_mae"])


def test_a_comparison_is_plain_data():
    found = compare_objects(_spoilt(_object()), _object())
    assert json.loads(json.dumps(found)) == found


def test_single_precision_is_enough():
    truth = _object()
    predicted = _spoilt(truth)
    expected = compare_objects(predicted, truth)
    found = compare_objects(predicted.astype(np.complex64), truth.astype(np.complex64))
    assert _same(found, {key: expected[key] for key in SCALARS}, rel=1e-4)


@given(st.integers(0, 2**16), st.floats(1e-6, 1e6), st.floats(-4, 4), st.floats(-2, 2))
def test_what_is_free_changes_no_metric(seed, scale, phase, cycles):
    truth = _object(seed, size=24)
    predicted = _spoilt(truth, seed + 1)
    found = compare_objects(scale * np.exp(1j * phase) * _ramp(24, cycles) * predicted, truth)
    assert _same(found, compare_objects(predicted, truth), rel=1e-6, abs=1e-6)


def test_amplitude_ssim_is_that_of_the_whole_comparison():
    truth, mask = _object(), _disk()
    predicted = _spoilt(truth)
    expected = compare_objects(predicted, truth, mask)["amp_ssim"]
    assert amplitude_ssim(5 * np.abs(predicted), np.abs(truth), mask) == pytest.approx(expected)
    assert np.isnan(amplitude_ssim(np.zeros((64, 64)), np.abs(truth), mask))


def test_vacuous_names_the_numbers_that_are_nan():
    metrics = {"phase_ssim": np.nan, "frc50": float("nan"), "amp_mae": 0.1, "amp_psnr": np.inf, "frc": [np.nan], "n": 3}
    assert vacuous(metrics) == ["frc50", "phase_ssim"]


@pytest.mark.parametrize(
    ("predicted", "truth", "mask", "message"),
    [
        (np.ones((3, 4)), np.ones((4, 4)), None, r"^`predicted` \(=\(3, 4\)\) must have the truth's shape, \(4, 4\)$"),
        (np.ones((4, 4, 1)), np.ones((4, 4, 1)), None, r"^`truth` \(=\(4, 4, 1\)\) must be an image, \(H, W\)$"),
        (np.ones((4, 4)), np.ones((4, 4)), np.ones(4), r"^`mask` \(=\(4,\)\) must have the truth's shape, \(4, 4\)$"),
        (np.ones((4, 4)), np.ones((4, 4)), np.zeros((4, 4)), r"^`mask` \(=no pixel\) must hold at least one pixel$"),
        (np.full((4, 4), np.inf), np.ones((4, 4)), None, r"^`predicted` \(=16 values not finite\) must be finite"),
        (np.ones((4, 4)), np.full((4, 4), 1j * np.nan), np.eye(4), r"^`truth` \(=4 values not finite\) must be finite"),
    ],
)
@pytest.mark.parametrize("function", [compare_objects, align, amplitude_ssim])
def test_images_that_do_not_fit_are_refused_in_one_line(function, predicted, truth, mask, message):
    with pytest.raises(ValueError, match=message):
        function(predicted, truth, mask)
