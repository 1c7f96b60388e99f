"""The conventional reconstruction, on a simulated scan whose object and probe are known."""

from typing import NamedTuple

import numpy as np
import pytest
import torch

from fnostab.difference_map import difference_map
from fnostab.metrics import align
from fnostab.objects import synthetic_object
from fnostab.optics import curved_disk, far_field_amplitude
from fnostab.scan import extract_patches, grid_positions, reassemble

_N, _SIZE, _PHOTONS = 32, 64, 1e6


class _Scan(NamedTuple):
    amplitudes: np.ndarray
    positions_px: np.ndarray
    probe: np.ndarray
    truth: np.ndarray
    lit: np.ndarray


@pytest.fixture(scope="module")
def scan():
    rng = np.random.default_rng(0)
    grid = grid_positions(_SIZE - 4, _N, 4)
    positions = grid + rng.integers(0, 4, grid.shape)
    truth, probe = synthetic_object("grf", _SIZE, "tanh", rng), curved_disk(_N)
    patches = extract_patches(truth, positions, _N)
    exact = far_field_amplitude(torch.from_numpy(patches), torch.from_numpy(probe)).numpy()
    scale = np.sqrt(_PHOTONS / np.square(exact).sum(axis=(1, 2)).mean())
    amplitudes = (np.sqrt(rng.poisson((scale * exact) ** 2)) / scale).astype(np.float32)
    first = positions.min(axis=0)
    light = reassemble(patches, positions, probe, n_sync=0).light
    truth = truth[first[0] : first[0] + light.shape[0], first[1] : first[1] + light.shape[1]]
    return _Scan(amplitudes, positions.astype(float), probe, truth, light > 0.1 * light.max())


def _off(found, truth, lit):
    """The relative error that a constant factor does not mend."""
    a, b = found[lit], truth[lit]
    return np.sqrt(1 - abs(np.vdot(a, b)) ** 2 / np.vdot(a, a).real / np.vdot(b, b).real)


def test_it_finds_the_object_down_to_photon_noise(scan):
    found = difference_map(scan.amplitudes, scan.positions_px, scan.probe, 60)
    assert _off(np.ones_like(scan.truth), scan.truth, scan.lit) > 0.3
    assert _off(align(found.object, scan.truth, scan.lit).object, scan.truth, scan.lit) < 0.05
    assert found.r_factor < 0.03


def test_it_mends_a_probe_that_is_out_of_focus(scan):
    wrong = curved_disk(_N, curvature_rad=10.0)
    found = difference_map(scan.amplitudes, scan.positions_px, wrong, 150)
    lit = abs(scan.probe) > 0.1 * abs(scan.probe).max()
    assert _off(found.probe, scan.probe, lit) < _off(wrong, scan.probe, lit) / 3


def test_only_differences_between_positions_matter(scan):
    here = difference_map(scan.amplitudes, scan.positions_px, scan.probe, 10)
    there = difference_map(scan.amplitudes, scan.positions_px - 1000, scan.probe, 10)
    np.testing.assert_array_equal(here.object, there.object)


def test_positions_between_pixels_are_taken_as_they_are(scan):
    here = difference_map(scan.amplitudes, scan.positions_px, scan.probe, 30)
    moved = difference_map(scan.amplitudes, scan.positions_px + [0.3, -0.4], scan.probe, 30)
    rounded = scan.positions_px + np.random.default_rng(1).uniform(-0.5, 0.5, scan.positions_px.shape)
    wrong = difference_map(scan.amplitudes, rounded, scan.probe, 30)
    assert here.r_factor <= moved.r_factor < wrong.r_factor
