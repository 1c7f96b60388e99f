from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from fnostab.objects import synthetic_object
from fnostab.optics import curved_disk, disk, far_field_amplitude, fourier_shift
from fnostab.scan import (
    extract_patches,
    grid_positions,
    read_windows,
    reassemble,
    split_positions,
    stitch,
    stitch_grid,
    stitched_r_factor,
    synchronise_phases,
)

N = 32


def smooth_probe():
    """A Gaussian with curvature: dark at the window's edge and band-limited, so that shifts are exact."""
    axis = np.arange(N) - (N - 1) / 2
    return np.exp(-(axis[:, None] ** 2 + axis**2) * (1 / 24 - 0.02j)).astype(np.complex64)


def smooth_object(size, seed=0):
    """A periodic, band-limited complex object about 1."""
    rng = np.random.default_rng(seed)
    spectrum = rng.normal(size=(size, size)) + 1j * rng.normal(size=(size, size))
    k = np.fft.fftfreq(size)
    field = np.fft.ifft2(spectrum * (np.hypot(k[:, None], k) < 0.08))
    return (1 + 0.6 * field / np.abs(field).max()).astype(np.complex64)


def patches_at(obj, positions_px):
    """Patches of a periodic object at exact sub-pixel positions."""
    corners, remainders = split_positions(positions_px)
    canvas = torch.from_numpy(obj)
    moved = (fourier_shift(canvas, torch.from_numpy(-remainder)).numpy() for remainder in remainders)
    return np.concatenate([extract_patches(o, corner[None], N) for o, corner in zip(moved, corners, strict=True)])


def with_phases(patches, phases):
    return patches * np.exp(1j * phases).astype(np.complex64)[:, None, None]


def random_phases(n, seed=1):
    return np.random.default_rng(seed).uniform(-np.pi, np.pi, n)


def largest_error(result, obj):
    """Largest difference from the truth where light is over 1 % of its maximum, up to ONE global phase."""
    row, col = result.origin_px
    height, width = result.object.shape
    truth, lit = obj[row : row + height, col : col + width], result.light > 0.01 * result.light.max()
    phase = np.vdot(result.object[lit], truth[lit])
    return np.abs(result.object * phase / abs(phase) - truth)[lit].max()


def scattered(n, extent, seed=3):
    return np.random.default_rng(seed).uniform(0, extent, (n, 2))


def test_the_grid_has_the_patches_of_the_study():
    assert 2 * len(grid_positions(392, 64, 4)) == 13_778
    test = grid_positions(392, 64, 10)
    assert len(test) == 33 * 33
    np.testing.assert_array_equal(test[:2], [[0, 0], [0, 10]])
    assert (test.min(), test.max()) == (0, 320)


@given(size=st.integers(1, 40), N=st.integers(1, 40), stride=st.integers(1, 9))
@settings(max_examples=50, deadline=None)
def test_a_grid_holds_all_positions_that_fit_and_no_other(size, N, stride):
    if size < N:
        with pytest.raises(ValueError, match=rf"^`N` \(={N}\) must be between 1 and the object's size, {size}$"):
            grid_positions(size, N, stride)
    else:
        expected = [(r, c) for r in range(0, size - N + 1, stride) for c in range(0, size - N + 1, stride)]
        np.testing.assert_array_equal(grid_positions(size, N, stride), expected)


def test_a_stride_of_zero_is_refused():
    with pytest.raises(ValueError, match=r"^`stride_px` \(=0\) must be >= 1$"):
        grid_positions(64, 32, 0)


def test_patches_are_cut_row_by_column_as_copies():
    obj = np.arange(48.0).reshape(6, 8)
    patches = extract_patches(obj, [[0, 0], [2, 5]], 3)
    np.testing.assert_array_equal(patches, [obj[:3, :3], obj[2:5, 5:8]])
    patches[:] = -1
    assert obj.min() == 0


@pytest.mark.parametrize("position", [[-1, 0], [0, 6], [4, 0]])
def test_a_patch_outside_the_object_is_refused(position):
    with pytest.raises(ValueError, match=r"^`positions_px` \(=\[.*\]\) must be between 0 and \[3, 5\]$"):
        extract_patches(np.zeros((6, 8)), [[0, 0], position], 3)


@pytest.mark.parametrize("positions", [[[0.5, 0]], [[0, np.nan]], [], [[1, 2, 3]]])
def test_positions_that_are_not_whole_pixel_pairs_are_refused(positions):
    with pytest.raises(ValueError, match=r"^`positions_px` .* must be (whole pixels|finite, \(n, 2\), with n >= 1)$"):
        extract_patches(np.zeros((6, 8)), positions, 3)


@given(st.lists(st.tuples(st.floats(-1e4, 1e4), st.floats(-1e4, 1e4)), min_size=1, max_size=5))
def test_a_position_is_its_pixel_and_at_most_half_a_pixel(positions):
    corners, remainders = split_positions(positions)
    assert np.abs(remainders).max() <= 0.5
    np.testing.assert_allclose(corners + remainders, positions, atol=1e-6)


@pytest.mark.parametrize("tile", [10, 7])
def test_grid_tiles_put_the_object_back_bit_for_bit(tile):
    obj = smooth_object(96)
    positions = grid_positions(96, N, tile) + [3, 5]
    patches = extract_patches(np.pad(obj, ((3, 0), (5, 0))), positions, N)
    canvas, (row, col) = stitch_grid(patches, positions, tile, N)
    side = tile * round(len(positions) ** 0.5)
    assert (row, col) == (3 + (N - tile) // 2, 5 + (N - tile) // 2)
    np.testing.assert_array_equal(canvas, obj[row - 3 :, col - 5 :][:side, :side])


@pytest.mark.parametrize("tile", [0, 9, 11, N + 1])
def test_tiles_with_gaps_or_overlaps_are_refused(tile):
    positions = grid_positions(96, N, 10)
    with pytest.raises(ValueError, match=rf"^`tile_px` \(={tile}\) must be the stride of a full grid"):
        stitch_grid(np.zeros((len(positions), N, N)), positions, tile, N)


def test_a_grid_with_a_hole_is_refused():
    positions = np.delete(grid_positions(96, N, 10), 10, axis=0)
    with pytest.raises(ValueError, match="must be the stride of a full grid"):
        stitch_grid(np.zeros((len(positions), N, N)), positions, 10, N)


def test_patches_that_do_not_match_the_positions_are_refused():
    with pytest.raises(ValueError, match=r"^`patches` \(=\(3, 32, 32\)\) must be \(4, 32, 32\)"):
        stitch_grid(np.zeros((3, N, N)), grid_positions(42, N, 10), 10, N)


def test_windows_are_read_where_patches_are_cut():
    obj, positions = smooth_object(64), grid_positions(64, N, 7)
    windows = read_windows(torch.from_numpy(obj), torch.from_numpy(positions), N)
    np.testing.assert_array_equal(windows.numpy(), extract_patches(obj, positions, N))


def test_stitching_is_the_adjoint_of_reading_and_conserves_the_light():
    """<P_j O[i_j], psi_j> summed over patches = <O, sum conj(P_j) psi_j>."""
    generator = torch.Generator().manual_seed(0)
    shape, corners = (20, 24), torch.tensor([[0, 0], [3, 8], [12, 16], [12, 1]])
    canvas = torch.randn(shape, dtype=torch.complex128, generator=generator)
    probes, waves = torch.randn((2, 4, 8, 8), dtype=torch.complex128, generator=generator)
    numerator, light = stitch(waves, probes, corners, shape)
    direct = ((probes * read_windows(canvas, corners, 8)).conj() * waves).sum()
    torch.testing.assert_close((canvas.conj() * numerator).sum(), direct)
    torch.testing.assert_close(light.sum(), probes.abs().square().sum())


def test_one_probe_stitches_as_its_copies():
    waves, probe, corners = torch.randn(3, 8, 8) + 0j, torch.randn(8, 8) + 0j, torch.tensor([[0, 0], [1, 2], [4, 4]])
    for one, many in zip(
        stitch(waves, probe, corners, (12, 12)), stitch(waves, probe.expand(3, 8, 8), corners, (12, 12)), strict=True
    ):
        torch.testing.assert_close(one, many)


def test_the_stitched_model_has_correct_gradients_in_patches_and_probe():
    generator = torch.Generator().manual_seed(0)
    patches = torch.randn((2, 4, 4), dtype=torch.complex128, generator=generator, requires_grad=True)
    probe = torch.randn((4, 4), dtype=torch.complex128, generator=generator, requires_grad=True)
    corners, remainders = torch.tensor([[0, 0], [2, 1]]), torch.tensor([[0.2, -0.1], [0.4, 0.3]])

    def amplitudes(patches, probe):
        probes = fourier_shift(probe, remainders)
        numerator, light = stitch(fourier_shift(probe * patches, remainders), probes, corners, (6, 5))
        return far_field_amplitude(read_windows(numerator / (light + 1e-3), corners, 4), probes)

    assert torch.autograd.gradcheck(amplitudes, (patches, probe), fast_mode=True)


def test_stitching_and_its_gradient_are_the_same_bits_every_time():
    obj, positions = smooth_object(96), grid_positions(96, N, 3)
    corners, probe = torch.from_numpy(positions), torch.from_numpy(smooth_probe())
    waves = probe * torch.from_numpy(extract_patches(obj, positions, N))
    results = []
    for _ in range(3):
        canvas = torch.from_numpy(obj).requires_grad_()
        read_windows(canvas, corners, N).abs().sum().backward()
        results.append((*stitch(waves, probe, corners, obj.shape), canvas.grad))
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], result, strict=True))


def test_whole_pixel_patches_with_random_phases_give_the_object_back():
    """A default probe and object of the study: nothing band-limited, more than 64 patches (the sparse solver)."""
    obj = synthetic_object("lines", 128, "tanh", np.random.default_rng(0))
    obj /= np.abs(obj).max()
    positions = grid_positions(128, N, 8)
    phases = random_phases(len(positions))
    result = reassemble(with_phases(extract_patches(obj, positions, N), phases), positions, curved_disk(N))
    assert len(positions) > 64
    assert largest_error(result, obj) < 1e-4
    assert (result.object.shape, result.light.shape, result.origin_px) == ((128, 128), (128, 128), (0, 0))
    assert (result.object.dtype, result.light.dtype) == (np.complex64, np.float32)


@pytest.mark.parametrize("n", [60, 120])
def test_scattered_sub_pixel_patches_with_random_phases_give_the_object_back(n):
    obj, positions = smooth_object(96), scattered(n, 96 - N - 1)
    patches = with_phases(patches_at(obj, positions), random_phases(n))
    result = reassemble(patches, positions, smooth_probe())
    assert largest_error(result, obj) < 1e-4
    whole = reassemble(patches, np.rint(positions), smooth_probe())
    assert largest_error(whole, obj) > 1e-3  # so the sub-pixel part is really used


def test_the_estimated_phases_are_the_true_ones_up_to_one():
    obj, positions, phases = smooth_object(96), scattered(100, 63), random_phases(100)
    result = reassemble(with_phases(patches_at(obj, positions), phases), positions, smooth_probe())
    relative = np.exp(1j * (result.phases_rad - phases))
    np.testing.assert_allclose(relative, relative[0], atol=1e-4)


def test_patches_that_agree_keep_their_phases():
    obj, positions = smooth_object(96) * np.complex64(1j), grid_positions(96, N, 8)
    result = reassemble(extract_patches(obj, positions, N), positions, smooth_probe())
    np.testing.assert_allclose(result.phases_rad, 0, atol=1e-4)
    row, col = 48, 48
    np.testing.assert_allclose(result.object[row, col], obj[row, col], atol=1e-4)


def test_without_synchronisation_random_phases_spoil_the_object():
    obj, positions = smooth_object(96), grid_positions(96, N, 8)
    patches = with_phases(extract_patches(obj, positions, N), random_phases(len(positions)))
    result = reassemble(patches, positions, smooth_probe(), n_sync=0)
    assert largest_error(result, obj) > 0.3
    assert not result.phases_rad.any()


def test_under_noise_the_phases_fit_better_than_the_true_ones_and_cannot_be_improved_one_by_one():
    obj, positions, probe = smooth_object(128), grid_positions(128, N, 6), torch.from_numpy(smooth_probe())
    phases, rng = torch.from_numpy(random_phases(289)), np.random.default_rng(2)
    noise = 0.3 * rng.normal(size=(289, N, N, 2)).astype(np.float32).view(np.complex64)[..., 0]
    waves = probe * torch.from_numpy(with_phases(extract_patches(obj, positions, N) + noise, phases.numpy()))
    corners = torch.from_numpy(positions)
    estimate = synchronise_phases(waves, probe, corners, n_iterations=2000)

    def fit(angles):
        turned = waves * torch.polar(torch.ones_like(angles), -angles)[:, None, None]
        numerator, light = stitch(turned, probe, corners, obj.shape)
        canvas = numerator / (light + 1e-7 * light.max())
        residual = (turned - probe * read_windows(canvas, corners, N)).abs().square().sum()
        return canvas.to(torch.complex64), float(residual)

    canvas, residual = fit(estimate)
    assert residual < fit(phases)[1]
    each = (waves * (probe * read_windows(canvas, corners, N)).conj()).sum((1, 2)).angle()
    assert np.abs(np.angle(np.exp(1j * (each - estimate).numpy()))).max() < 1e-3
    relative = np.exp(1j * (estimate - phases).numpy())
    assert np.angle(relative * relative.mean().conj()).std() < 0.1  # noise alone gives a patch about 0.04 rad


def test_groups_of_patches_that_never_overlap_are_each_settled():
    obj = smooth_object(192)
    left = grid_positions(72, N, 8)
    positions = np.concatenate([left, left + [0, 120], [[150, 80]]])
    patches = with_phases(extract_patches(obj, positions, N), random_phases(len(positions)))
    result = reassemble(patches, positions, smooth_probe())
    for group in (slice(0, 72), slice(120, 192)):
        part = replace(
            result, object=result.object[:72, group], light=result.light[:72, group], origin_px=(0, group.start)
        )
        assert largest_error(part, obj) < 1e-4


def test_dark_patches_and_dark_places_stay_finite_and_zero():
    obj, positions = smooth_object(96), grid_positions(96, N, 8)
    patches = extract_patches(obj, positions, N)
    patches[5] = 0
    result = reassemble(patches, positions, smooth_probe())
    assert np.isfinite(result.object).all()
    assert np.isfinite(result.phases_rad).all()
    assert np.abs(result.object[0, 0]) < 0.5
    assert np.isfinite(reassemble(0 * patches, positions, smooth_probe()).object).all()


def test_the_origin_and_extent_follow_the_positions():
    obj, positions = smooth_object(96), scattered(30, 60)
    patches = patches_at(obj, positions)
    here, there = (reassemble(patches, positions + shift, smooth_probe()) for shift in (0, np.array([100, -7])))
    np.testing.assert_array_equal(np.subtract(there.origin_px, here.origin_px), [100, -7])
    np.testing.assert_allclose(there.object, here.object, atol=1e-4)


def test_the_r_factor_is_zero_on_truth_and_known_for_a_scaled_object():
    obj, positions, probe = smooth_object(96), scattered(60, 63), smooth_probe()
    patches = patches_at(obj, positions)
    amplitudes = far_field_amplitude(torch.from_numpy(patches), torch.from_numpy(probe)).numpy()
    result = reassemble(with_phases(patches, random_phases(60)), positions, probe)
    assert stitched_r_factor(result, positions, probe, amplitudes, batch_size=7) < 5e-4
    brighter = replace(result, object=1.1 * result.object)
    assert stitched_r_factor(brighter, positions, probe, amplitudes) == pytest.approx(0.1, abs=1e-4)


def test_the_r_factor_is_of_the_one_object_not_of_each_patch():
    """Patches that each fit their pattern but contradict each other must not score well."""
    positions, probe = grid_positions(96, N, 8), smooth_probe()
    patches = np.concatenate(
        [extract_patches(smooth_object(96, seed), p[None], N) for seed, p in enumerate(positions, 1)]
    )
    amplitudes = far_field_amplitude(torch.from_numpy(patches), torch.from_numpy(probe)).numpy()
    result = reassemble(patches, positions, probe)
    assert stitched_r_factor(result, positions, probe, amplitudes) > 0.05


def test_positions_off_the_canvas_are_refused():
    obj, positions, probe = smooth_object(96), grid_positions(96, N, 8), smooth_probe()
    result = reassemble(extract_patches(obj, positions, N), positions, probe)
    with pytest.raises(ValueError, match=r"^`positions_px` .* must lie on the reassembled canvas$"):
        stitched_r_factor(result, positions + 1, probe, np.ones((len(positions), N, N)))


@pytest.mark.parametrize(("n", "side"), [(3, N), (4, N - 1)])
def test_shapes_that_do_not_fit_are_refused(n, side):
    with pytest.raises(ValueError, match=r"must be \(n, N, N\), \(n, 2\), \(N, N\)$"):
        reassemble(np.ones((n, side, side)), grid_positions(42, N, 10), smooth_probe())


def _overlapping(seed=0, contrast=0.5):
    """Patches of one object at overlapping positions, their positions, and a probe."""
    rng = np.random.default_rng(seed)
    truth = 1 + contrast * (rng.standard_normal((48, 48)) + 1j * rng.standard_normal((48, 48)))
    positions = grid_positions(48, 16, 4)
    return extract_patches(truth.astype(np.complex64), positions, 16), positions, disk(16)


def test_patches_of_one_object_are_consistent_whatever_their_phases():
    patches, positions, probe = _overlapping()
    phases = np.exp(1j * np.random.default_rng(1).uniform(0, 6, len(patches)))
    assert reassemble(phases[:, None, None] * patches, positions, probe).consistency == pytest.approx(1, abs=1e-5)


def _noise_about_one(shape, seed=2):
    rng = np.random.default_rng(seed)
    return 1 + 0.5 * (rng.standard_normal(shape) + 1j * rng.standard_normal(shape))


@pytest.mark.parametrize("stride", [2, 3, 4])
def test_unrelated_patches_have_consistency_zero_however_many_overlap(stride):
    positions = grid_positions(48, 16, stride)
    noise = _noise_about_one((len(positions), 16, 16))
    assert reassemble(noise, positions, disk(16), n_sync=0).consistency == pytest.approx(0, abs=0.05)


@pytest.mark.parametrize("stride", [2, 3, 4])
def test_consistency_is_the_common_share_of_the_variance_however_many_patches_overlap(stride):
    truth = _noise_about_one((48, 48), seed=0)
    positions = grid_positions(48, 16, stride)
    patches = extract_patches(truth, positions, 16)
    mixed = patches + 0.5 * (_noise_about_one(patches.shape) - 1)  # variance 1/2 in common and 1/8 of each patch's own
    assert reassemble(mixed, positions, disk(16), n_sync=0).consistency == pytest.approx(0.8, abs=0.02)


def test_consistency_compares_pairs_of_patches_with_the_variance_of_each():
    rng = np.random.default_rng(0)
    corners, probe = np.array([[0, 0], [1, 2], [2, 0], [9, 9]]), rng.uniform(0.5, 1, (4, 4)).astype(np.complex64)
    patches = _noise_about_one((4, 4, 4)).astype(np.complex64)
    light, values = np.zeros((13, 13, 4)), np.zeros((13, 13, 4), complex)
    for j, (row, col) in enumerate(corners):
        light[row : row + 4, col : col + 4, j] = np.abs(probe) ** 2
        values[row : row + 4, col : col + 4, j] = patches[j]
    total = light.sum(axis=-1)
    apart, expected, shared = 0.0, 0.0, 0.0
    for j in range(4):
        with_others = light[..., j] * (total - light[..., j]) / np.maximum(total, 1e-9)
        shared += with_others.sum()
        if with_others.any():
            mean = (with_others * values[..., j]).sum() / with_others.sum()
            expected += (with_others * np.abs(values[..., j] - mean) ** 2).sum()
        for k in range(j):
            weight = light[..., j] * light[..., k] / np.maximum(total, 1e-9)
            apart += (weight * np.abs(values[..., j] - values[..., k]) ** 2).sum()
    found = reassemble(patches, corners, probe, n_sync=0)
    assert found.consistency == pytest.approx(1 - apart / expected, abs=1e-5)
    assert found.shared_light == pytest.approx(shared / light.sum(), abs=1e-6)


@pytest.mark.parametrize("noise", [0.02, 0.04])
def test_positions_of_the_right_scale_are_the_most_consistent_and_far_ones_are_not_consistent_at_all(noise):
    """Imperfect patches at positions in a wrong unit: half, a tenth too near or too far, twice, 15 times."""
    rng = np.random.default_rng(0)
    obj = synthetic_object("lines", 96, "tanh", rng)
    positions = grid_positions(96, N, 4)
    patches = extract_patches(obj / np.abs(obj).max(), positions, N)
    patches = patches + noise * (rng.standard_normal(patches.shape) + 1j * rng.standard_normal(patches.shape))
    patches = with_phases(patches.astype(np.complex64), random_phases(len(positions)))
    found = {scale: reassemble(patches, scale * positions, curved_disk(N)) for scale in (0.5, 0.9, 1, 1.1, 2, 3, 15)}
    consistency = {scale: one.consistency for scale, one in found.items()}
    assert np.isnan(consistency.pop(15))
    assert found[15].shared_light == pytest.approx(0, abs=1e-6)
    assert max(consistency, key=consistency.get) == 1
    assert 0.2 < consistency[1] < 0.8  # so noise is no little thing here
    assert max(consistency[scale] for scale in (0.5, 2, 3)) < 0.6 * consistency[1]


def test_a_patch_that_shares_no_light_changes_nothing_about_the_others():
    patches, positions, probe = _overlapping()
    noisy = patches + 0.5 * (_noise_about_one(patches.shape) - 1)
    alone = np.concatenate([noisy, 9 * noisy[:1]]), np.concatenate([positions, [[300, 0]]])
    expected = reassemble(noisy, positions, probe).consistency
    assert reassemble(*alone, probe).consistency == pytest.approx(expected, abs=1e-4)


def test_an_overlap_of_under_a_hundredth_of_the_light_says_nothing():
    patches, positions, _ = _overlapping()
    probe = np.hypot(*np.mgrid[-7.5:8, -7.5:8]) < 6
    spread = reassemble(patches, 3 * positions, probe)  # their lit circles touch
    touching = reassemble(patches, 2 * positions, probe)
    assert np.isnan(spread.consistency)
    assert spread.shared_light < 0.01 <= touching.shared_light
    assert np.isfinite(touching.consistency)


def test_constant_patches_have_no_consistency():
    patches, positions, probe = _overlapping(contrast=0)
    assert np.isnan(reassemble(patches, positions, probe).consistency)
