import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from fnostab.objects import synthetic_object

KINDS = ["lines", "grf", "image"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("phase", ["tanh", "none"])
def test_an_object_is_complex64_finite_and_positive_in_amplitude(kind, phase):
    obj = synthetic_object(kind, 96, phase, np.random.default_rng(0))
    assert (obj.shape, obj.dtype) == ((96, 96), np.complex64)
    assert np.isfinite(obj).all()
    assert np.abs(obj).min() > 0
    assert np.abs(obj).std() > 0.02 * np.abs(obj).mean()


@pytest.mark.parametrize("kind", KINDS)
def test_the_generator_alone_decides_the_object(kind):
    first, again, other = (synthetic_object(kind, 64, "tanh", np.random.default_rng(seed)) for seed in (5, 5, 6))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.parametrize("kind", KINDS)
def test_the_next_object_of_a_generator_is_another_one(kind):
    rng = np.random.default_rng(0)
    first, second = (synthetic_object(kind, 64, "none", rng) for _ in range(2))
    assert np.abs(first - second).max() > 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_the_phase_is_the_tanh_of_the_amplitude_or_none(kind):
    real = synthetic_object(kind, 128, "none", np.random.default_rng(1))
    obj = synthetic_object(kind, 128, "tanh", np.random.default_rng(1))
    amplitude = real.real.astype(np.float64)
    np.testing.assert_array_equal(real.imag, 0)
    np.testing.assert_allclose(np.abs(obj), amplitude, rtol=1e-6)
    expected = np.pi * np.tanh((amplitude - amplitude.max() / 2) / (3 * amplitude.mean()))
    np.testing.assert_allclose(np.angle(obj), expected, atol=1e-5)
    assert np.ptp(expected) > 0.5


def test_lines_are_the_blurred_segments_without_an_edge():
    """The blur is at least G1, and the border is no darker than the middle, as it would be without the crop."""
    objects = [synthetic_object("lines", 128, "none", np.random.default_rng(seed)).real for seed in range(8)]
    for obj in objects:
        assert np.abs(np.diff(obj, axis=0)).max() < 0.5  # G1 of a line of 1 has slope 0.24 at most, crossings add
        assert obj.max() < 8
    border = np.mean([np.r_[obj[:4].ravel(), obj[-4:].ravel()].mean() for obj in objects])
    middle = np.mean([obj[62:66].mean() for obj in objects])
    assert border > 0.6 * middle


def test_lines_weight_the_blurs_one_two_five(monkeypatch):
    seen = []

    def record(canvas, sigma):
        seen.append((sigma, canvas.shape, set(np.unique(canvas))))
        return np.full(canvas.shape, 10.0**-sigma)

    monkeypatch.setattr("fnostab.objects.gaussian_filter", record)
    obj = synthetic_object("lines", 100, "none", np.random.default_rng(0))
    assert seen == [(sigma, (200, 200), {0.0, 1.0}) for sigma in (1, 5, 10)]
    np.testing.assert_allclose(obj.real, 0.1 + 2e-5 + 5e-10)


def test_the_random_field_is_correlated_over_its_range_only():
    logs = [2 * np.log(synthetic_object("grf", 256, "none", np.random.default_rng(seed)).real) for seed in range(6)]

    def correlation(lag):
        return np.mean([(g[:-lag] * g[lag:]).mean() for g in logs])

    assert np.mean([g.var() for g in logs]) == pytest.approx(1, abs=0.15)
    assert correlation(1) > 0.95
    assert correlation(16) == pytest.approx(0.15, abs=0.1)
    assert abs(correlation(100)) < 0.1
    opposite_edges = np.mean([(g[0] * g[-1]).mean() for g in logs])
    assert abs(opposite_edges) < 0.3


def test_images_show_several_pictures_in_the_promised_range():
    means = set()
    for seed in range(12):
        amplitude = synthetic_object("image", 64, "none", np.random.default_rng(seed)).real
        assert 0.0999 < amplitude.min() <= amplitude.max() <= 1.0001
        means.add(round(float(amplitude.mean()), 3))
    assert len(means) >= 6


def test_a_picture_smaller_than_the_object_is_enlarged_smoothly():
    for seed in range(20):
        obj = synthetic_object("image", 600, "none", np.random.default_rng(seed)).real
        assert obj.shape == (600, 600)
    # The last seeds cover enlarged pictures: no row or column is padding.
    assert min(obj.std(axis=0).min(), obj.std(axis=1).min()) > 0
    assert np.abs(obj - gaussian_filter(obj, 0.5)).max() < 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("dots", 64, "none"), r"^`objects` \(=dots\) must be one of lines, grf, image$"),
        (("lines", 64, "ramp"), r"^`phase` \(=ramp\) must be one of tanh, none$"),
        (("lines", 0, "none"), r"^`size` \(=0\) must be >= 1$"),
    ],
)
def test_unknown_kinds_and_sizes_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        synthetic_object(*arguments, np.random.default_rng(0))
