import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar

from fnostab import metrics
from fnostab.config import resolve_config
from fnostab.dataset import load_or_build
from fnostab.optics import curved_disk, disk, far_field_amplitude

_TINY = {
    "preset": "smoke",
    "data.N": 32,
    "data.object_size": 96,
    "data.max_train_patches": 4,
    "data.max_val_patches": 24,
    "data.val_choice": "random",
    "data.probe_radius_px": 8,
}


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def _patches(rng, n=5, size=32):
    return (rng.normal(size=(n, size, size)) + 1j * rng.normal(size=(n, size, size))).astype(np.complex64)


def test_r_factor_is_zero_for_equal_and_one_for_no_amplitudes(rng):
    measured = rng.random((3, 8, 8))
    assert metrics.r_factor(measured, measured) == 0
    assert metrics.r_factor(0 * measured, measured) == pytest.approx(1)


def test_best_constant_object_is_no_worse_than_any_other_constant(rng):
    illumination = rng.random((16, 16))
    amplitudes = illumination * rng.lognormal(size=(4, 16, 16))
    found = metrics.constant_object_r_factor(illumination, amplitudes)
    best = minimize_scalar(lambda c: metrics.r_factor(c * illumination, amplitudes), bounds=(0, 10), method="bounded")
    assert found <= best.fun + 1e-9
    assert found == pytest.approx(best.fun, rel=1e-4)


def test_a_constant_object_explains_the_empty_beam():
    illumination = np.abs(np.fft.fft2(curved_disk(16)))
    assert metrics.constant_object_r_factor(illumination, 3 * illumination[None]) == pytest.approx(0, abs=1e-6)


def test_pixels_that_the_empty_beam_leaves_dark_do_not_choose_the_constant():
    illumination = np.array([[0.0, 1e-40, 2.0, 1.0]], dtype=np.float32)
    amplitudes = np.array([[[5.0, 4.0, 6.0, 3.0]]], dtype=np.float32)
    expected = metrics.r_factor(3 * illumination, amplitudes)
    assert metrics.constant_object_r_factor(illumination, amplitudes) == pytest.approx(expected)


def test_orientation_tells_the_object_from_its_twin_whatever_the_global_phase_and_scale(rng):
    truth, probe = _patches(rng), curved_disk(32)
    ours, other = metrics.orientation(2 * np.exp(1j) * truth, truth, probe)
    assert ours == pytest.approx(1, abs=1e-5)
    assert ours > other
    twin = truth[:, ::-1, ::-1].conj()
    ours, other = metrics.orientation(twin, truth, probe)
    assert other == pytest.approx(1, abs=1e-5)
    assert other > ours


def test_the_twin_explains_a_flat_probes_patterns_and_not_a_curved_ones(rng):
    truth = _patches(rng)
    twin = truth[:, ::-1, ::-1].conj()

    def misfit(probe):
        light = torch.from_numpy(probe)
        patterns = [far_field_amplitude(torch.from_numpy(field.copy()), light).numpy() for field in (twin, truth)]
        return metrics.r_factor(*patterns)

    assert misfit(disk(32)) < 1e-5
    assert misfit(curved_disk(32)) > 0.1


def test_orientation_of_a_constant_is_zero(rng):
    truth = _patches(rng)
    assert metrics.orientation(np.ones_like(truth), truth, curved_disk(32)) == (0, 0)


def test_lit_region_is_where_the_probe_has_a_tenth_of_its_peak():
    probe = np.sqrt(np.array([[1.0, 0.11], [0.09, 0.0]])).astype(np.complex64)
    assert metrics.lit_region(probe).tolist() == [[True, True], [False, False]]


@pytest.mark.parametrize("rate", [1e-3, 0.03, 0.7, 1.0, 4.4, 30.0, 255.5, 256.5, 3e3, 1e9])
def test_photon_noise_r_factor_is_that_of_sampled_counts(rng, rate):
    counts = rng.poisson(rate, 200_000)
    sampled = metrics.r_factor(np.sqrt(np.full(counts.shape, rate)), np.sqrt(counts))
    spread = 4 / np.sqrt(max(counts.sum(), 1) if rate < 1 else len(counts))
    assert metrics.photon_noise_r_factor(np.full((4, 4), rate)) == pytest.approx(sampled, rel=spread)


def test_photon_noise_r_factor_sums_over_pixels_before_it_divides():
    rates = np.full((2, 4, 4), 1e4)
    rates[:, ::2] = 0
    alone = metrics.photon_noise_r_factor(rates[:, 1::2])
    assert metrics.photon_noise_r_factor(rates) == pytest.approx(alone)
    rates[0] = 0.5
    assert metrics.photon_noise_r_factor(rates) > 2 * alone


def test_photon_noise_r_factor_of_a_repeated_pattern_is_that_of_the_pattern(rng):
    pattern = 10 * rng.random((16, 16)).astype(np.float32)
    repeated = np.broadcast_to(pattern, (2, 3, 16, 16))
    assert metrics.photon_noise_r_factor(repeated) == pytest.approx(metrics.photon_noise_r_factor(pattern))


def test_the_table_of_photon_noise_meets_the_asymptotic_form(rng):
    below, above = (metrics.photon_noise_r_factor(edge + rng.random((50, 50))) for edge in (255, 256))
    assert below / above == pytest.approx(np.sqrt(256.5 / 255.5), rel=1e-4)


def test_without_light_photon_noise_is_unknown():
    assert np.isnan(metrics.photon_noise_r_factor(np.zeros((4, 4))))


@pytest.mark.parametrize("rate", [-1.0, np.nan, np.inf])
def test_rates_that_are_none_are_refused(rate):
    with pytest.raises(ValueError, match=r"^`rates` \(=from \S+ to \S+\) must be >= 0 and finite$"):
        metrics.photon_noise_r_factor(np.array([[1.0, rate]]))


@pytest.fixture(params=[1e4, 1e6, 1e9])
def simulated(request):
    """A tiny simulated dataset, and the true amplitudes of its validation patterns in roots of counts."""
    config = resolve_config(_TINY | {"data.nphotons": request.param})
    dataset = load_or_build(config.data)
    patches = torch.from_numpy(dataset.val.patches_of(dataset.val_objects))
    field = far_field_amplitude(patches.to(torch.complex128), torch.from_numpy(np.array(dataset.probe)))
    return dataset, field.numpy() * dataset.scale


def test_the_true_object_has_the_r_factor_of_photon_noise_at_any_photon_count(simulated):
    dataset, truth = simulated
    found = metrics.r_factor(truth, np.sqrt(dataset.val.counts))
    assert metrics.photon_noise_r_factor(truth**2) == pytest.approx(found, rel=0.02)


def test_progress_of_the_truth_is_one_and_of_the_best_constant_object_zero_at_any_photon_count(simulated):
    dataset, truth = simulated
    measured = np.sqrt(dataset.val.counts)
    beam = far_field_amplitude(torch.ones(dataset.probe.shape), torch.from_numpy(np.array(dataset.probe))).numpy()
    constant = metrics.constant_object_r_factor(beam, measured)
    floor = metrics.photon_noise_r_factor(truth**2)
    best = minimize_scalar(lambda c: metrics.r_factor(c * beam, measured), bounds=(0, 2 * dataset.scale))
    assert metrics.progress(metrics.r_factor(truth, measured), constant, floor) == pytest.approx(1, abs=0.05)
    assert metrics.progress(best.fun, constant, floor) == pytest.approx(0, abs=0.01)


def test_progress_runs_from_the_constant_object_to_the_photon_noise():
    assert metrics.progress(0.4, constant=0.4, floor=0.1) == 0
    assert metrics.progress(0.1, constant=0.4, floor=0.1) == pytest.approx(1)
    assert metrics.progress(0.25, constant=0.4, floor=0.1) == pytest.approx(0.5)
    assert metrics.progress(0.7, constant=0.4, floor=0.1) == pytest.approx(-1)


def test_an_unknown_floor_counts_as_no_noise():
    assert metrics.progress(0.1, constant=0.4, floor=np.nan) == pytest.approx(0.75)


def test_progress_is_nan_where_there_is_no_way_to_go():
    for r, constant, floor in [(np.nan, 0.4, 0.1), (0.1, 0.1, 0.1), (0.1, 0.1, 0.2), (0.1, np.nan, 0.1)]:
        assert np.isnan(metrics.progress(r, constant, floor))


@pytest.mark.parametrize("rate", [0.05, 0.5, 0.7, 3.2, 40.0])
def test_no_amplitude_is_closer_to_the_counts_than_the_fitted_one(rate):
    k = np.random.default_rng(0).poisson(rate, 200_000)
    amplitudes = np.linspace(0, 2 * np.sqrt(rate) + 1, 200)
    least = min(np.abs(np.sqrt(k) - amplitude).mean() for amplitude in amplitudes) / np.sqrt(k).mean()
    fitted = metrics.photon_noise_r_factor(np.full((1, 1), rate), fitted=True)
    assert fitted == pytest.approx(least, rel=0.02)
    assert fitted <= metrics.photon_noise_r_factor(np.full((1, 1), rate)) + 1e-9
