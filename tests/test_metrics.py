import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar

from fnostab import metrics
from fnostab.optics import curved_disk, disk, far_field_amplitude


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


def test_orientation_tells_the_object_from_its_twin_whatever_the_global_phase_and_scale(rng):
    truth, probe = _patches(rng), curved_disk(32)
    right = metrics.orientation(2 * np.exp(1j) * truth, truth, probe)
    assert right.object == pytest.approx(1, abs=1e-5)
    assert not right.is_twin
    twin = truth[:, ::-1, ::-1].conj()
    assert metrics.orientation(twin, truth, probe).twin == pytest.approx(1, abs=1e-5)
    assert metrics.orientation(twin, truth, probe).is_twin


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
    assert metrics.orientation(np.ones_like(truth), truth, curved_disk(32)) == metrics.Orientation(0, 0)


def test_lit_region_is_where_the_probe_has_a_tenth_of_its_peak():
    probe = np.sqrt(np.array([[1.0, 0.11], [0.09, 0.0]])).astype(np.complex64)
    assert metrics.lit_region(probe).tolist() == [[True, True], [False, False]]
