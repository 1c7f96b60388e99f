"""Predicted deviations against errors: the factor between them, and how many errors lie within."""

import math

import numpy as np
import pytest

from fnostab.metrics import coverage, error_over_deviation, patch_errors


def normal(shape, deviation, seed=0):
    """Circular complex normal numbers with E|e|^2 = deviation^2."""
    rng = np.random.default_rng(seed)
    return deviation / math.sqrt(2) * (rng.normal(size=shape) + 1j * rng.normal(size=shape))


def test_the_phase_that_a_pattern_leaves_open_is_no_error():
    truth = normal((3, 8, 8), 1.0)
    turned = truth * np.exp(1j * np.array([0.5, -2.0, 3.0]))[:, None, None]
    np.testing.assert_allclose(patch_errors(turned, truth, np.ones((8, 8))), 0, atol=1e-12)


def test_the_phase_is_settled_where_the_light_is():
    truth, light = normal((2, 8, 8), 1.0), np.zeros((8, 8))
    light[4:] = 1
    predicted = truth * np.exp(1j)
    predicted[:, :4] *= -30
    errors = patch_errors(predicted, truth, light)
    np.testing.assert_allclose(errors[:, 4:], 0, atol=1e-12)
    np.testing.assert_allclose(errors[:, :4], 31 * np.abs(truth[:, :4]))


def test_errors_as_large_as_the_deviations_need_no_factor_and_lie_within_as_often_as_they_should():
    deviations = np.random.default_rng(1).uniform(0.1, 2.0, 200_000)
    errors = np.abs(normal(deviations.shape, deviations))
    assert error_over_deviation(errors, deviations) == pytest.approx(1, abs=0.01)
    assert coverage(errors, deviations, 1) == pytest.approx(1 - math.exp(-1), abs=0.005)
    assert coverage(errors, deviations, 2) == pytest.approx(1 - math.exp(-4), abs=0.002)


@pytest.mark.parametrize("members", [2, 5, 20])
def test_even_members_that_cannot_be_told_from_the_truth_deviate_less_than_their_mean_errs(members):
    draws = normal((members + 1, 200_000), 1.0)
    mean = draws[1:].mean(0)
    deviations = np.sqrt((np.abs(draws[1:] - mean) ** 2).mean(0))
    expected = math.sqrt((members + 1) / (members - 1))
    assert error_over_deviation(np.abs(draws[0] - mean), deviations) == pytest.approx(expected, rel=0.01)


def test_the_factor_brings_deviations_to_the_size_of_the_errors():
    deviations = np.full(100_000, 0.5)
    errors = np.abs(normal(deviations.shape, 2.0))
    factor = error_over_deviation(errors, deviations)
    assert factor == pytest.approx(4, rel=0.02)
    assert coverage(errors, factor * deviations, 1) == pytest.approx(0.632, abs=0.01)


def test_no_deviation_at_all_has_no_factor():
    assert math.isnan(error_over_deviation(np.ones(3), np.zeros(3)))
