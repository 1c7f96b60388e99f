"""From a scan's file to patterns: windows, bins, masks, units, modes and what is said about them."""

import re
import tracemalloc

import numpy as np
import pytest

from fnostab import optics
from fnostab.config import DataConfig, ReadingConfig
from fnostab.dataset import import_scan, load_or_build, patterns
from fnostab.formats import frames
from fnostab.scan import extract_patches, grid_positions

M, STEP = 32, 4


def _scan(**changes):
    """A scan of an object without symmetry, in this package's layout; its patterns can be computed by hand."""
    rng = np.random.default_rng(0)
    obj = (1 + 0.5 * rng.random((56, 60))) * np.exp(1j * rng.random((56, 60)))
    positions = grid_positions(56, M, STEP).astype(float)
    probe = 20 * optics.curved_disk(M, radius_px=6)
    waves = probe * extract_patches(obj, positions, M)
    counts = np.abs(np.fft.fftshift(np.fft.fft2(waves, norm="ortho"), axes=(1, 2))) ** 2
    arrays = {"counts": np.rint(counts), "positions_px": positions, "probe": probe, "object": obj.astype("c8")}
    return {key: value for key, value in {**arrays, **changes}.items() if value is not None}


@pytest.fixture
def imported(tmp_path):
    """What is imported of a scan with changed arrays."""

    def read(changes=(), N=None, **reading):
        probe = reading.pop("probe", None)
        np.savez(tmp_path / "scan.npz", **_scan(**dict(changes)))
        return import_scan(tmp_path / "scan.npz", N, probe=probe, reading=ReadingConfig(**reading))

    return read


@pytest.fixture
def refused(imported):
    def check(match, changes=(), N=None, **reading):
        with pytest.raises(ValueError, match=match) as caught:
            imported(changes, N, **reading)
        assert "\n" not in str(caught.value)

    return check


COUNTS = _scan()["counts"]


def test_the_window_lies_about_the_centre_that_is_given(imported):
    moved = np.roll(COUNTS, (5, -3), axis=(1, 2))
    found = imported({"counts": moved}, 16, center="21,13")
    np.testing.assert_array_equal(found.counts, COUNTS[:, 8:24, 8:24])


def test_the_lights_centre_is_found(imported):
    narrow = np.zeros_like(COUNTS)
    narrow[:, 8:25, 8:25] = COUNTS[:, 8:25, 8:25] + COUNTS[:, 24:7:-1, 24:7:-1]  # symmetric about row and column 16
    found = imported({"counts": np.roll(narrow, (5, -3), axis=(1, 2))}, 16, center="auto")
    np.testing.assert_array_equal(found.counts, narrow[:, 8:24, 8:24])
    assert "the light's centre, row 21, column 13, is taken as zero frequency" in found.notes


def test_what_lies_beyond_the_detector_is_masked(imported):
    found = imported((), 32, center="20,16")
    assert found.mask is not None
    np.testing.assert_array_equal(found.mask, np.arange(32)[:, None] < np.full((1, 32), 28))
    np.testing.assert_array_equal(found.counts[:, :28], COUNTS[:, 4:])
    assert not found.counts[:, 28:].any()


@pytest.mark.parametrize("columns", [48, 20])
def test_a_detector_that_is_not_square_is_cropped_or_padded(imported, columns):
    wide = np.zeros((len(COUNTS), M, columns))
    width = min(columns, M)
    left, start = columns // 2 - width // 2, M // 2 - width // 2
    wide[..., left : left + width] = COUNTS[..., start : start + width]
    found = imported({"counts": wide, "object": None}, M, probe=_scan()["probe"].astype("c8"))
    expected = np.zeros_like(COUNTS)
    expected[..., start : start + width] = COUNTS[..., start : start + width]
    np.testing.assert_array_equal(found.counts, expected)
    assert (found.mask is None) == (columns > M)


def test_bins_add_counts_up_and_keep_the_objects_pixels(imported):
    found = imported((), 16, bin=2)
    np.testing.assert_array_equal(found.counts, COUNTS.reshape(-1, 16, 2, 16, 2).sum(axis=(2, 4)))
    whole = imported()
    np.testing.assert_allclose(found.positions_px - whole.positions_px, 8)
    np.testing.assert_array_equal(found.probe, whole.probe[8:24, 8:24])
    np.testing.assert_array_equal(found.object, whole.object)


def test_a_crop_makes_pixels_larger(imported):
    half = imported((), 16)
    np.testing.assert_array_equal(half.counts, COUNTS[:, 8:24, 8:24])
    np.testing.assert_array_equal(half.positions_px, _scan()["positions_px"] / 2)
    assert half.object.shape == (28, 30)
    np.testing.assert_array_equal(half.probe, optics.crop_probe(_scan()["probe"], 16))


@pytest.mark.parametrize("kind", ["u2", "i4", "u4", "i8", "f4"])
def test_the_largest_integer_is_a_gap_in_any_type(imported, refused, kind):
    gap = COUNTS.astype(kind)
    gap[:, 3] = np.iinfo(kind).max if kind[0] in "iu" and kind != "i8" else 2**32 - 1
    refused(
        r"`counts` \(=.* at pattern, row, column 0, 3, 0\) must be under .*; `data.bad_pixels` mask", {"counts": gap}
    )
    found = imported({"counts": gap}, bad_pixels="mask")
    assert found.mask is not None
    assert np.flatnonzero(~found.mask.any(axis=1)).tolist() == [3]
    assert not found.counts[:, 3].any()


def test_a_pixel_that_is_bad_in_one_frame_is_masked_in_all(imported):
    counts = COUNTS.copy()
    counts[7, 4, 5] = np.nan
    found = imported({"counts": counts}, bad_pixels="mask")
    assert np.argwhere(~found.mask).tolist() == [[4, 5]]
    assert not found.counts[:, 4, 5].any()


def test_clipping_keeps_pixels_that_a_background_made_negative(imported):
    counts = COUNTS.copy()
    counts[7, 4, 5] = -0.5
    found = imported({"counts": counts}, bad_pixels="clip")
    assert found.mask is None
    assert found.counts[7, 4, 5] == 0


def test_masks_of_the_file_and_of_another_are_both_kept(imported, tmp_path):
    own, other = np.ones((M, M), bool), np.zeros((M, M), bool)
    own[0], other[1] = False, True
    np.savez(tmp_path / "mask.npz", bad_pixels=other)
    found = imported({"mask": own}, mask=str(tmp_path / "mask.npz"), mask_value=COUNTS.max())
    assert not found.mask[:2].any()
    brightest = np.unravel_index(COUNTS.argmax(), COUNTS.shape)[1:]
    assert not found.mask[brightest]
    assert found.mask.sum() == M * M - 2 * M - (COUNTS.max() == COUNTS).any(axis=0).sum()


def test_a_mask_upside_down_is_refused(refused, tmp_path):
    good = np.zeros((M, M), bool)
    good[:4] = True
    np.save(tmp_path / "mask.npy", good)
    refused("must leave most of the light, .* is a mask upside down", mask=str(tmp_path / "mask.npy"))


@pytest.mark.parametrize(
    ("array", "rule"),
    [
        (np.ones((8, 8)), r"must be 32 x 32, as the frames"),
        (np.ones(8), "must be a mask of two axes"),
        (np.array(["a"]), "must be a mask of two axes"),
        (np.array([None]), "must be a whole NPY, NPZ or HDF5 file"),
    ],
)
def test_a_mask_that_does_not_fit_is_refused(refused, tmp_path, array, rule):
    np.save(tmp_path / "mask.npy", array, allow_pickle=True)
    refused(rule, mask=str(tmp_path / "mask.npy"))


def test_metres_become_pixels_through_energy_distance_and_detector(imported):
    wavelength, distance, pixel = 1e-10, 2.0, 75e-6
    object_pixel = wavelength * distance / (M * pixel)
    positions = _scan()["positions_px"] * object_pixel
    keys = {"energy_keV": 12.398419843320026, "distance_m": distance, "detector_pixel_m": pixel, "unit": "m"}
    found = imported({"positions_px": positions}, **keys)
    np.testing.assert_allclose(found.positions_px, _scan()["positions_px"], atol=1e-9)
    assert found.pixel_size_m == pytest.approx(object_pixel, rel=1e-9)
    assert imported({"positions_px": positions}, 16, **keys).pixel_size_m == pytest.approx(2 * object_pixel, rel=1e-9)
    micrometres = imported({"positions_px": positions * 1e6}, **{**keys, "unit": "um"})
    np.testing.assert_allclose(micrometres.positions_px, _scan()["positions_px"], atol=1e-9)


def test_frames_are_left_out(imported):
    found = imported((), skip_frames="0,3-5")
    np.testing.assert_array_equal(found.counts, np.delete(COUNTS, [0, 3, 4, 5], axis=0))
    np.testing.assert_array_equal(found.positions_px, np.delete(_scan()["positions_px"], [0, 3, 4, 5], axis=0))


def test_a_wild_frame_and_position_do_not_matter_where_they_are_left_out(imported, refused):
    counts, positions = COUNTS.copy(), _scan()["positions_px"]
    counts[3], positions[3] = np.nan, np.nan
    positions[5] = 1e7
    wild = {"counts": counts, "positions_px": positions}
    refused(r"`positions_px` \(=nan at position 3\) must be finite; `data.skip_frames` leaves some out", wild)
    refused("must span 1 to 32768 px", wild, skip_frames="3")
    found = imported(wild, skip_frames="3,5")
    np.testing.assert_array_equal(found.counts, np.delete(COUNTS, [3, 5], axis=0))


def test_too_few_frames_that_are_left_are_refused(refused):
    refused(r"`data.skip_frames` \(=0-40\) must leave 10 patterns or more, not 8", skip_frames="0-40")


@pytest.mark.parametrize("skip", ["100", "5-3", "40-60"])
def test_frames_that_are_not_there_are_no_frames_to_leave_out(refused, skip):
    refused(r"`data.skip_frames` \(=.*\) must be among the frames 0 to 48", skip_frames=skip)


def test_of_several_scans_in_a_file_one_is_chosen(tmp_path):
    arrays = _scan()
    index = np.repeat([0, 4], (20, 29))
    mid = arrays["positions_px"] + M / 2
    pinn = {"diff3d": arrays["counts"], "ycoords": mid[:, 0], "xcoords": mid[:, 1], "probeGuess": arrays["probe"]}
    np.savez(tmp_path / "scan.npz", **pinn, scan_index=index)
    with pytest.raises(ValueError, match=r"`data.scan_index` \(=None\) must choose one of the file's 2 scans: 0, 4"):
        import_scan(tmp_path / "scan.npz", quantity="counts")
    found = import_scan(tmp_path / "scan.npz", quantity="counts", reading=ReadingConfig(scan_index=4))
    np.testing.assert_array_equal(found.counts, arrays["counts"][20:])
    with pytest.raises(ValueError, match=r"`data.scan_index` \(=3\) must be a scan of the file: it has 0, 4"):
        import_scan(tmp_path / "scan.npz", quantity="counts", reading=ReadingConfig(scan_index=3))


def test_normalised_patterns_need_their_photons(tmp_path):
    arrays = _scan()
    amplitudes = np.sqrt(arrays["counts"] / arrays["counts"].mean()) / 2
    mid = arrays["positions_px"] + M / 2
    pinn = {"diffraction": amplitudes, "ycoords": mid[:, 0], "xcoords": mid[:, 1], "probeGuess": arrays["probe"]}
    np.savez(tmp_path / "scan.npz", **pinn)
    with pytest.raises(ValueError, match=r"`diffraction` .* were normalised, .* `data.photons_per_pattern` says"):
        import_scan(tmp_path / "scan.npz", quantity="amplitude")
    photons = arrays["counts"].sum() / len(arrays["counts"])
    reading = ReadingConfig(photons_per_pattern=photons)
    found = import_scan(tmp_path / "scan.npz", quantity="amplitude", reading=reading)
    np.testing.assert_allclose(found.counts, arrays["counts"], rtol=1e-4, atol=1e-3)


def test_amplitudes_normalised_as_ptychopinn_does_are_refused_whatever_their_photons(tmp_path):
    """Its patterns hold (N / 2)^2 on average, a quarter a pixel, and most pixels next to nothing."""
    arrays = _scan(counts=np.random.default_rng(0).poisson(_scan()["counts"]))
    amplitudes = np.sqrt(arrays["counts"] / arrays["counts"].sum(axis=(1, 2)).mean()) * M / 2
    mid = arrays["positions_px"] + M / 2
    pinn = {"diffraction": amplitudes, "ycoords": mid[:, 0], "xcoords": mid[:, 1], "probeGuess": arrays["probe"]}
    np.savez(tmp_path / "scan.npz", **pinn)
    with pytest.raises(ValueError, match=r"`data.photons_per_pattern` says"):
        import_scan(tmp_path / "scan.npz", quantity="amplitude")


def test_pixels_that_hold_the_same_in_every_pattern_are_warned_of(imported):
    counts = COUNTS.astype(np.float32)
    counts[:, 4] = 65535
    assert any(
        "32 pixels hold the same count in every pattern" in line for line in imported({"counts": counts}).warnings
    )
    assert not any("same count" in line for line in imported().warnings)


def test_few_whole_counts_are_counts(imported):
    few = np.random.default_rng(1).poisson(0.2, COUNTS.shape)
    found = imported({"counts": few})
    np.testing.assert_array_equal(found.counts, few)
    assert any("counts a pixel on average" in warning for warning in found.warnings)


def test_the_brightest_modes_are_used_unless_a_number_is_given(imported):
    probe = _scan()["probe"]
    modes = np.stack([0.3 * np.roll(probe, 2, 0), probe, 0.05 * np.roll(probe, 3, 1)])
    found = imported({"probe": modes})
    np.testing.assert_array_equal(found.modes, modes[[1, 0]])
    np.testing.assert_array_equal(imported({"probe": modes}, modes=3).modes, modes[[1, 0, 2]])
    assert len(imported({"probe": modes}, modes=1).modes) == 1


def test_more_modes_than_there_are_are_refused(refused):
    refused(r"`data.modes` \(=2\) must be at most 1, the modes of the probe", modes=2)


@pytest.mark.parametrize("size", [24, 48])
def test_a_probe_of_another_size_is_resampled_over_the_same_field_of_view(imported, size):
    axis = np.arange(M) - (M - 1) / 2
    smooth = np.exp(-(axis[:, None] ** 2 + axis**2) / 40).astype("c8")
    found = imported({"probe": optics.resample_probe(smooth, size)})
    assert any(f"resampled from {size} x {size} to 32 x 32" in note for note in found.notes)
    np.testing.assert_allclose(found.probe, smooth, atol=1e-3)


@pytest.mark.parametrize("probe", [np.zeros((M, M)), np.full((M, M), np.nan), np.ones(3), np.array("none")])
def test_whatever_is_wrong_with_the_files_probe_does_not_matter_where_another_is_given(imported, probe):
    given = _scan()["probe"].astype("c8")
    np.testing.assert_array_equal(imported({"probe": probe}, probe=given).probe, given)


def test_positions_are_turned_and_the_object_is_left_out_then(imported):
    found, given = imported((), orient="swap+flip_rows"), _scan()["positions_px"]
    np.testing.assert_array_equal(found.positions_px, given[:, ::-1] * [-1, 1])
    assert found.object is None
    assert any("it lies to the positions as they were given" in note for note in found.notes)


def test_patterns_that_fill_the_memory_are_refused_before_they_are_read(refused, monkeypatch):
    monkeypatch.setattr(patterns.psutil, "virtual_memory", lambda: type("Memory", (), {"available": 300_000})())
    refused(r"`data.N` \(=32\) must be smaller, .* 49 patterns take 0 MiB")


def test_importing_takes_little_more_memory_than_what_is_kept(tmp_path, monkeypatch):
    """2000 patterns of 128 x 128 are 125 MiB as float32; the kept N = 32 are a sixteenth of that."""
    monkeypatch.setattr(frames, "_CHUNK_BYTES", 2**20)
    counts = np.zeros((2000, 128, 128), np.uint16)
    counts[:, 48:80, 48:80] = np.resize(COUNTS, (2000, 32, 32))
    positions = grid_positions(50 + 128, 128, 1)[:2000]
    np.savez_compressed(tmp_path / "scan.npz", counts=counts, positions_px=positions, probe=np.ones((128, 128)))
    del counts
    kept = 2000 * 32 * 32 * 4
    tracemalloc.start()
    try:
        found = import_scan(tmp_path / "scan.npz", 32)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found.counts.nbytes == kept
    assert peak < 1.5 * kept + 16 * 2**20


def test_notes_and_warnings_come_back_from_the_cache(tmp_path):
    probe = _scan()["probe"]
    np.savez(tmp_path / "scan.npz", **_scan(probe=np.stack([probe, 0.2 * np.roll(probe, 2, 0)]), counts=COUNTS * 0 + 1))
    config = DataConfig(path=str(tmp_path / "scan.npz"), N=32)
    built, again = (load_or_build(config, cache_dir=tmp_path / "cache") for _ in range(2))
    assert built.notes == again.notes
    assert re.search("2 of the probe's 2 modes", built.notes[0])
