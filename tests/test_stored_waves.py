"""A scan in parts: the object, the consistency and the R-factors of all patterns at once, with the memory of a few."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from test_scan import N, patches_at, random_phases, scattered, smooth_object, smooth_probe, with_phases

from fnostab import metrics
from fnostab.io.scratch import Memory, Scratch
from fnostab.optics import Beam
from fnostab.reconstruction.blocks import neighbouring_blocks
from fnostab.reconstruction.patterns import StoredPatterns
from fnostab.reconstruction.waves import StoredWaves
from fnostab.scan import grid_positions, reassemble, stitched_r_factor

#: Largest difference from the object of all patches at once, over its largest magnitude: single precision's.
_TOLERANCE = 2e-6


def _patches(positions, seed=0):
    """Patches that do not quite agree, each with a phase of its own."""
    rng = np.random.default_rng(seed)
    patches = patches_at(smooth_object(128), positions)
    noise = rng.normal(size=patches.shape) + 1j * rng.normal(size=patches.shape)
    return (with_phases(patches, random_phases(len(patches))) + 0.05 * noise).astype(np.complex64)


def _stored(patches, positions, storage, pixels, at_once=7):
    waves = StoredWaves(smooth_probe(), storage, len(patches), pixels=pixels)
    for start in range(0, len(patches), at_once):
        waves.append(positions[start : start + at_once], patches[start : start + at_once])
    return waves


def _assert_same(result, expected):
    largest = np.abs(expected.object).max()
    turn = np.vdot(result.object, expected.object)  # the phase of all is free, and its rounding with it
    turned = result.object * (turn / abs(turn)).astype(np.complex64)
    np.testing.assert_allclose(turned, expected.object, rtol=0, atol=_TOLERANCE * largest)
    np.testing.assert_allclose(result.object, expected.object, rtol=0, atol=10 * _TOLERANCE * largest)
    np.testing.assert_allclose(result.light, expected.light, rtol=1e-5, atol=1e-6 * expected.light.max())
    assert result.origin_px == expected.origin_px
    assert result.consistency == pytest.approx(expected.consistency, abs=1e-5)
    assert result.shared_light == pytest.approx(expected.shared_light, rel=1e-5)


@pytest.mark.parametrize("windows_a_block", [1, 5, 1000])
@pytest.mark.parametrize("whole", [False, True])
def test_the_object_is_that_of_all_patches_at_once_however_small_the_blocks(windows_a_block, whole, tmp_path):
    positions = grid_positions(96, N, 8) + 0.0 if whole else scattered(90, 128 - N - 1)
    patches = _patches(positions)
    waves = _stored(patches, positions, Scratch(tmp_path), windows_a_block * N**2)
    expected = reassemble(patches, positions, smooth_probe())
    result = waves.reassemble()
    _assert_same(result, expected)
    difference = np.exp(1j * (result.phases_rad - expected.phases_rad))
    assert np.abs(difference - difference[0]).max() < 1e-5


def test_the_order_in_which_patches_come_does_not_matter(tmp_path):
    positions = scattered(60, 128 - N - 1)
    patches, order = _patches(positions), np.random.default_rng(3).permutation(60)
    one = _stored(patches, positions, Memory(), 4 * N**2).reassemble()
    other = _stored(patches[order], positions[order], Scratch(tmp_path), 4 * N**2).reassemble()
    _assert_same(other, one)


def test_chosen_patches_make_the_object_of_those_alone(tmp_path):
    positions = scattered(60, 128 - N - 1)
    patches, chosen = _patches(positions), np.arange(1, 60, 2)
    waves = _stored(patches, positions, Scratch(tmp_path), 4 * N**2)
    _assert_same(waves.reassemble(chosen), reassemble(patches[chosen], positions[chosen], smooth_probe()))


def test_patches_that_lie_apart_keep_their_phases_and_say_so():
    positions = np.array([[0.0, 0.0], [0.0, 90.0], [90.0, 0.0], [90.0, 90.0]])
    patches = _patches(positions)
    result = _stored(patches, positions, Memory(), N**2).reassemble()
    assert np.isnan(result.consistency)
    np.testing.assert_array_equal(result.phases_rad, 0)
    np.testing.assert_allclose(result.object, reassemble(patches, positions, smooth_probe()).object, atol=1e-5)


@pytest.mark.parametrize("most", [1, 3, 50])
def test_blocks_hold_every_window_once_and_lie_together(most):
    corners = np.random.default_rng(0).integers(0, 400, (200, 2))
    blocks = neighbouring_blocks(corners, 8, most * 64)
    assert sorted(np.concatenate([block.members for block in blocks]).tolist()) == list(range(200))
    assert max(len(block.members) for block in blocks) <= most
    for block in blocks:
        assert (corners[block.members] >= block.start).all()
        assert (corners[block.members] + 8 <= block.stop).all()
    if most == 50:
        areas = [block.shape[0] * block.shape[1] for block in blocks]
        assert sum(areas) < 2 * 408**2


def test_r_factors_of_stored_patterns_are_those_of_all_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr("fnostab.reconstruction.patterns.BLOCK_PIXELS", 7 * N**2)
    positions, mask = scattered(60, 128 - N - 1), np.ones((N, N), bool)
    mask[3:5, 20] = False
    beam, patches = Beam.of(smooth_probe(), mask), _patches(positions)
    rng = np.random.default_rng(5)
    counts = rng.poisson(400 * beam.amplitude(torch.from_numpy(patches)).numpy() ** 2).astype(np.float32)
    storage = Scratch(tmp_path)
    kept = storage.empty(counts.shape, np.float32)
    kept[:] = counts + 9 * ~mask
    patterns, stitched = StoredPatterns(kept, storage), reassemble(patches, positions, beam.weight)
    patterns.keep_only(mask)
    np.testing.assert_array_equal(kept, counts)
    amplitudes = np.sqrt(counts) / 20
    expected = stitched_r_factor(stitched, positions, beam, amplitudes)
    assert patterns.r_factor(stitched, positions, beam, 20.0) == pytest.approx(expected, rel=1e-6)
    nothing = metrics.mean_pattern_r_factor(amplitudes, amplitudes)
    assert patterns.mean_pattern_r_factor() == pytest.approx(nothing, rel=1e-6)
    np.testing.assert_allclose(patterns.mean_counts(), counts.mean(axis=0, dtype=float))


_SCAN = """
import resource, sys
from pathlib import Path
import h5py
import numpy as np
from fnostab.config import ReadingConfig
from fnostab.dataset import import_scan
from fnostab.io.scratch import Scratch
from fnostab.optics import curved_disk
from fnostab.reconstruction.patterns import StoredPatterns
from fnostab.reconstruction.waves import StoredWaves

folder, n = Path(sys.argv[1]), int(sys.argv[2])
side = int(n**0.5)
y, x = (axis.ravel() * 9.0 for axis in np.mgrid[:side, :side])
with h5py.File(folder / "scan.h5", "w") as file:
    data = file.create_dataset("data", (len(y), 64, 64), "u2", chunks=(1, 64, 64))
    for start in range(0, len(y), 100):
        data[start : start + 100] = np.random.default_rng(start).poisson(30, (min(100, len(y) - start), 64, 64))
    file["y"], file["x"] = y, x
storage = Scratch(folder)
reading = ReadingConfig(paths="patterns=/data,y_px=/y,x_px=/x")
scan = import_scan(folder / "scan.h5", 64, "counts", curved_disk(64), reading, storage=storage)
waves = StoredWaves(curved_disk(64), storage, len(y))
for start in range(0, len(y), 64):
    counts = scan.counts[start : start + 64]
    waves.append(scan.positions_px[start : start + 64], np.exp(0.01j * counts).astype(np.complex64))
patterns = StoredPatterns(scan.counts, storage)
print(patterns.mean_pattern_r_factor(), waves.reassemble().consistency)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="measures the peak memory of a process as Linux tells it")
def test_ten_times_the_patterns_take_no_more_memory(tmp_path):
    """At once, 3,600 patterns more would take 59 MB of counts, 118 MB of patches and several times that."""
    peaks = []
    for n in (900, 3600):
        done = subprocess.run(
            [sys.executable, "-c", _SCAN, str(tmp_path), str(n)], capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout.split()[-1]))
    assert peaks[1] - peaks[0] < 60, peaks
