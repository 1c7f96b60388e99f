import bz2
import io
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from fnostab.optics import (
    crop_patterns,
    crop_probe,
    curved_disk,
    defocused,
    disk,
    far_field_amplitude,
    fourier_shift,
    from_npz,
    photon_scale,
    poisson_counts,
)

MEASURED = Path(__file__).resolve().parents[2] / "shared" / "data"
needs_measured_scan = pytest.mark.skipif(not MEASURED.is_dir(), reason=f"no measured scan in {MEASURED}")
seeds = st.integers(0, 2**32 - 1)


def complex_noise(shape, seed=0, dtype=torch.complex128):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def band_limited(N, cutoff, seed):
    """A periodic complex image with no frequency at or above `cutoff` (index units) along either axis."""
    index = torch.fft.fftfreq(N, d=1 / N).abs()
    keep = (index < cutoff)[:, None] & (index < cutoff)[None, :]
    return torch.fft.ifft2(complex_noise((N, N), seed) * keep, norm="ortho")


@given(seed=seeds, N=st.sampled_from([16, 31, 64]))
@settings(max_examples=20, deadline=None)
def test_the_pattern_holds_the_energy_of_the_exit_wave(seed, N):
    patches, probe = complex_noise((3, N, N), seed), complex_noise((N, N), seed + 1)
    pattern = far_field_amplitude(patches, probe).square().sum((1, 2))
    torch.testing.assert_close(pattern, (probe * patches).abs().square().sum((1, 2)))


@pytest.mark.parametrize("N", [15, 16])
def test_a_plane_wave_lands_at_its_frequency_from_the_centre(N):
    wave = torch.exp(2j * torch.pi * (3 * torch.arange(N)[:, None] - 2 * torch.arange(N)) / N)
    pattern = far_field_amplitude(wave, torch.ones(N, N))
    assert divmod(int(pattern.argmax()), N) == (N // 2 + 3, N // 2 - 2)


def test_the_tests_check_shapes_against_the_annotations() -> None:
    with pytest.raises(jaxtyping.TypeCheckError, match="patches"):
        far_field_amplitude(torch.ones(3, 4, 5), torch.ones(4, 5))


def test_a_shift_of_the_exit_wave_leaves_the_pattern():
    probe, patch = band_limited(32, 8, 0), band_limited(32, 8, 1)
    moved = fourier_shift(probe * patch, torch.tensor([1.3, -0.6]))
    ones = torch.ones(32, 32)
    torch.testing.assert_close(far_field_amplitude(moved, ones), far_field_amplitude(patch, probe))


@given(seed=seeds, rows=st.integers(-9, 9), cols=st.integers(-9, 9))
@settings(max_examples=20, deadline=None)
def test_a_whole_pixel_shift_is_a_roll_towards_plus(seed, rows, cols):
    field = complex_noise((16, 17), seed)
    shifted = fourier_shift(field, torch.tensor([float(rows), float(cols)]))
    torch.testing.assert_close(shifted, field.roll((rows, cols), dims=(0, 1)))


@given(seed=seeds, shift=st.tuples(st.floats(-3, 3), st.floats(-3, 3)))
@settings(max_examples=20, deadline=None)
def test_a_shift_keeps_the_energy_and_is_undone_by_its_opposite(seed, shift):
    field, by = complex_noise((2, 16, 16), seed), torch.tensor(shift, dtype=torch.float64)
    shifted = fourier_shift(field, by)
    torch.testing.assert_close(shifted.norm(), field.norm())
    torch.testing.assert_close(fourier_shift(shifted, -by), field)


def test_a_sub_pixel_shift_interpolates_a_sine_exactly_and_one_field_by_many_shifts():
    x = torch.arange(32, dtype=torch.float64)
    shifts = torch.tensor([[0.25, 0.0], [-0.5, 1.75]], dtype=torch.float64)

    def wave(down, right):
        return torch.exp(2j * torch.pi * (3 * (x - down)[:, None] - 5 * (x - right)) / 32)

    expected = torch.stack([wave(*shift) for shift in shifts])
    torch.testing.assert_close(fourier_shift(wave(0, 0), shifts), expected)


def test_propagation_and_shift_have_correct_gradients():
    probe, patch = complex_noise((4, 4), 0).requires_grad_(), complex_noise((2, 4, 4), 1).requires_grad_()
    shift = torch.tensor([0.3, -0.2], dtype=torch.float64, requires_grad=True)

    def amplitude(patch, probe, shift):
        return far_field_amplitude(fourier_shift(patch, shift), probe)

    assert torch.autograd.gradcheck(amplitude, (patch, probe, shift), fast_mode=True)


@pytest.mark.parametrize("N", [16, 32, 64, 128])
def test_the_default_probe_fits_the_oversampling_limit_and_lights_the_stitched_tile(N):
    intensity = np.abs(curved_disk(N)) ** 2
    half, tile = slice(N // 4, N - N // 4), slice(N // 2 - N * 5 // 64, N // 2 + N * 5 // 64)
    assert intensity[half, half].sum() > 0.99 * intensity.sum()
    assert intensity[tile, tile].min() > 0.99
    assert intensity.max() <= 1 + 1e-6


def test_probes_are_symmetric_about_the_middle_of_the_array():
    for probe in (curved_disk(64), disk(64)):
        np.testing.assert_allclose(probe, np.rot90(probe), atol=1e-6)


def test_the_curved_disk_is_the_disk_with_a_quadratic_phase():
    flat, curved = disk(64, 12), curved_disk(64, 12, 5.0)
    np.testing.assert_array_equal(flat.imag, 0)
    np.testing.assert_allclose(np.abs(curved), flat.real, atol=1e-6)
    row = 31 + np.arange(13)
    phase = np.unwrap(np.angle(curved[32, row]))
    distance = np.hypot(row - 31.5, 0.5)
    np.testing.assert_allclose(phase - phase[0], 5.0 * (distance**2 - 0.5) / 144, atol=1e-4)


@pytest.mark.parametrize("aperture", ["annular", "square"])
@pytest.mark.parametrize("N", [32, 64, 128])
def test_a_defocused_beam_has_a_structured_amplitude_of_its_radius_and_a_nearly_quadratic_phase(N, aperture):
    beam = defocused(N, aperture=aperture)
    radius, amplitude, middle = 15 / 64 * N, np.abs(beam), N // 2
    np.testing.assert_allclose(beam, np.flip(beam), atol=1e-5)
    assert amplitude.max() == pytest.approx(1)
    distance = np.hypot(*(np.mgrid[:N, :N] - (N - 1) / 2))
    assert 0.7 * radius < np.sqrt((amplitude**2 * distance**2).sum() / (amplitude**2).sum()) < 1.0 * radius
    assert amplitude[distance < 0.8 * radius].std() > 0.1  # that of a disk is 0
    row = middle + np.arange(int(radius))
    phase = np.unwrap(np.angle(beam[middle, row]))
    assert phase[-1] - phase[0] == pytest.approx(8 * (row[-1] - (N - 1) / 2) ** 2 / radius**2, abs=3)


def test_a_defocused_beam_on_the_other_side_of_the_focus_is_the_conjugate():
    np.testing.assert_allclose(defocused(64, curvature_rad=-6), defocused(64, curvature_rad=6).conj(), atol=1e-5)


@pytest.mark.parametrize("curvature_rad", [0.0, 23.6, -30.0, float("nan")])
def test_a_beam_whose_aperture_does_not_fit_is_refused(curvature_rad):
    with pytest.raises(ValueError, match=r"^`curvature_rad` \(=.*\) must be between 0 and 23.6 in magnitude at a rad"):
        defocused(64, 15, curvature_rad)


def test_only_the_curved_disk_tells_an_object_from_its_twin():
    obj = torch.from_numpy(np.random.default_rng(0).uniform(0.5, 1, (64, 64)))
    twin = obj.flip(0, 1)
    for probe, distinct in ((disk(64), False), (curved_disk(64), True)):
        ours, theirs = (far_field_amplitude(o, torch.from_numpy(probe)) for o in (obj, twin))
        assert ((ours - theirs).abs().sum() / ours.sum() > 0.05) == distinct


@pytest.mark.parametrize("radius_px", [0, -1, 16.5, float("nan")])
def test_a_radius_outside_the_oversampling_limit_is_refused(radius_px):
    for make in (disk, curved_disk, defocused):
        with pytest.raises(ValueError, match=r"^`radius_px` \(=.*\) must be > 0 and <= 16, a quarter of N=64$"):
            make(64, radius_px)


@given(scale=st.floats(1e-3, 1e3), nphotons=st.floats(1, 1e12))
@settings(max_examples=20, deadline=None)
def test_the_photon_scale_gives_the_mean_pattern_its_photons(scale, nphotons):
    amplitudes = scale * np.random.default_rng(0).random((5, 8, 8)).astype(np.float32)
    s = photon_scale(amplitudes, nphotons)
    assert ((s * amplitudes.astype(np.float64)) ** 2).sum((1, 2)).mean() == pytest.approx(nphotons, rel=1e-6)
    assert photon_scale(torch.from_numpy(amplitudes), nphotons) == s


@pytest.mark.parametrize("nphotons", [0, -5.0, float("nan")])
def test_a_photon_number_that_is_not_positive_is_refused(nphotons):
    with pytest.raises(ValueError, match=r"^`nphotons` \(=.*\) must be > 0$"):
        photon_scale(np.ones((1, 4, 4)), nphotons)


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_amplitudes_without_a_scale_are_refused(value):
    with pytest.raises(ValueError, match=r"^`amplitudes` \(=mean energy .*\) must be finite and not zero everywhere$"):
        photon_scale(np.full((1, 4, 4), value), 1e9)


@pytest.mark.parametrize("mean", [0.05, 3.0, 1e6, 1e9])
def test_counts_are_whole_with_poisson_mean_and_variance(mean):
    counts = poisson_counts(np.full(20_000, 2.0), np.sqrt(mean) / 2, np.random.default_rng(0)).astype(np.float64)
    assert counts.mean() == pytest.approx(mean, abs=5 * np.sqrt(mean / 20_000))
    assert counts.var() == pytest.approx(mean, rel=0.05)
    np.testing.assert_array_equal(counts, np.rint(counts))


def test_the_same_generator_state_gives_the_same_counts():
    amplitudes = np.random.default_rng(0).random((2, 8, 8))
    first, again, other = (poisson_counts(amplitudes, 100, np.random.default_rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert first.dtype == np.float32


@pytest.mark.parametrize(("M", "N"), [(128, 64), (96, 64), (64, 64), (65, 32)])
def test_the_cropped_probe_has_the_central_spectrum_unscaled(M, N):
    probe = complex_noise((M, M), 0, torch.complex64)
    cropped = torch.from_numpy(crop_probe(probe.numpy(), N))
    full = far_field_amplitude(torch.ones(M, M), probe).numpy()
    pattern = far_field_amplitude(torch.ones(N, N), cropped).numpy()
    np.testing.assert_allclose(pattern, crop_patterns(full, N), atol=1e-5)
    assert pattern.shape == (N, N)


def test_cropping_the_pattern_of_a_band_limited_object_is_the_coarse_model():
    """128 propagated and cropped = 64 propagated, with the object sampled at every second pixel."""
    probe, obj = band_limited(128, 20, 0), band_limited(128, 12, 1)
    fine = crop_patterns(far_field_amplitude(obj, probe).numpy(), 64)
    coarse = far_field_amplitude(obj[::2, ::2], torch.from_numpy(crop_probe(probe.numpy(), 64))).numpy()
    np.testing.assert_allclose(coarse, fine, atol=1e-6 * fine.max())


def test_positions_halve_when_patterns_are_cropped_to_half():
    """A window of a larger object, at (20, 36) on the fine grid, is the window at (10, 18) on the coarse one."""
    axis = (np.arange(128) - 64) / 18
    probe = np.exp(-(axis[:, None] ** 2 + axis**2) * (1 - 1j))
    obj = band_limited(256, 24, 2)
    fine = far_field_amplitude(obj[20:148, 36:164], torch.from_numpy(probe)).numpy()
    small = torch.from_numpy(crop_probe(probe, 64))
    coarse = far_field_amplitude(obj[::2, ::2][10:74, 18:82], small).numpy()
    shifted = far_field_amplitude(obj[::2, ::2][11:75, 18:82], small).numpy()
    expected = crop_patterns(fine, 64)
    assert np.abs(coarse - expected).sum() < 1e-4 * expected.sum()
    assert np.abs(shifted - expected).sum() > 0.05 * expected.sum()


@pytest.mark.parametrize("N", [0, 65])
def test_a_crop_larger_than_the_pattern_is_refused(N):
    for call in (lambda: crop_probe(np.ones((64, 64)), N), lambda: crop_patterns(np.ones((2, 64, 64)), N)):
        with pytest.raises(ValueError, match=rf"^`N` \(={N}\) must be between 1 and 64, the size of the patterns$"):
            call()


@needs_measured_scan
def test_the_cropped_refined_probe_explains_the_measured_scan_as_well_as_known():
    with np.load(io.BytesIO(bz2.decompress((MEASURED / "siemens-star-small.npz.bz2").read_bytes()))) as scan:
        patterns = np.fft.fftshift(scan["data"][0], axes=(-2, -1))
    probe = 128 * from_npz(MEASURED / "siemens-star-probe-refined.npz")  # from an FFT without the factor 1 / M
    for N, r_ones, r_mean in ((128, 0.262, 0.256), (64, 0.212, 0.195)):
        amplitudes = np.sqrt(crop_patterns(patterns, N))
        model = far_field_amplitude(torch.ones(N, N), torch.from_numpy(crop_probe(probe, N))).numpy()
        assert np.abs(model - amplitudes).sum() / amplitudes.sum() == pytest.approx(r_ones, abs=5e-4)
        assert np.abs(amplitudes.mean(0) - amplitudes).sum() / amplitudes.sum() == pytest.approx(r_mean, abs=5e-4)


@pytest.mark.parametrize("packed", [False, True])
def test_a_probe_is_read_back_from_npz(tmp_path, packed):
    probe, buffer = curved_disk(16), io.BytesIO()
    np.savez_compressed(buffer, probe=probe[None, None, None], other=np.arange(3))
    path = tmp_path / ("probe.npz.bz2" if packed else "probe.npz")
    path.write_bytes(bz2.compress(buffer.getvalue()) if packed else buffer.getvalue())
    read = from_npz(path)
    np.testing.assert_array_equal(read, probe)
    assert read.dtype == np.complex64


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"light": np.ones((4, 4))}, "must hold the key `probe`"),
        ({"probe": np.ones((4, 5))}, "must be one square array"),
        ({"probe": np.ones((2, 4, 5))}, "must be one square array, .* or its modes"),
        ({"probe": np.full((4, 4), np.nan)}, "must be finite"),
        ({"probe": np.zeros((4, 4))}, "must hold some light"),
        ({"probe": np.full((4, 4), "x")}, "must hold numbers"),
        ({"probe": np.array([[0, None]], dtype=object)}, "pickled"),
    ],
    ids=["key", "square", "modes", "nan", "zero", "text", "pickle"],
)
def test_a_file_without_a_usable_probe_is_refused_in_one_line(tmp_path, arrays, message):
    np.savez(tmp_path / "probe.npz", **arrays)
    with pytest.raises(ValueError, match=message) as error:
        from_npz(tmp_path / "probe.npz")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["missing", "truncated", "truncated bz2", "not npz"])
def test_an_unreadable_file_is_refused_in_one_line(tmp_path, kind):
    path, buffer = tmp_path / ("probe.npz.bz2" if "bz2" in kind else "probe.npz"), io.BytesIO()
    np.savez(buffer, probe=curved_disk(64))
    whole = bz2.compress(buffer.getvalue()) if "bz2" in kind else buffer.getvalue()
    if kind != "missing":
        path.write_bytes(b"not a zip" if kind == "not npz" else whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"must be (a readable file|a whole NPZ file|an NPZ file)") as error:
        from_npz(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
