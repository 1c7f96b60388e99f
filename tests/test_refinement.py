"""Gradient descent on an object and its probe: what it gains, and what it leaves alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_scan import N, largest_error, patches_at, scattered, smooth_object, smooth_probe

from fnostab.io.scratch import Memory
from fnostab.optics import Beam
from fnostab.reconstruction.patterns import StoredPatterns
from fnostab.reconstruction.refinement import light_of, refine
from fnostab.scan import reassemble, split_positions

_SCALE = 20.0


def _scan(modes, mask=None, n=60):
    """Noiseless patterns, the true object as it would be stitched, and where it lies."""
    obj, positions = smooth_object(96), scattered(n, 96 - N - 1)
    patches, beam = patches_at(obj, positions), Beam.of(np.stack(modes), mask)
    counts = (_SCALE * beam.amplitude(torch.from_numpy(patches)).numpy()) ** 2
    return positions, beam, StoredPatterns(counts, Memory()), reassemble(patches, positions, beam.weight), obj


def _worse(stitched, beam, seed=0):
    """A blurred object and a probe that is another by some per cent."""
    rng = np.random.default_rng(seed)
    noise = 0.1 * (rng.normal(size=stitched.object.shape) + 1j * rng.normal(size=stitched.object.shape))
    other = tuple(
        mode * (1 + 0.1 * torch.from_numpy(rng.normal(size=(N, N)).astype(np.float32))) for mode in beam.modes
    )
    return replace(stitched, object=(stitched.object + noise).astype(np.complex64)), replace(beam, modes=other)


def _refined(scan, start, steps, batch_size=16, seed=0):
    positions, _, patterns, _, _ = scan
    rng = np.random.default_rng(seed)
    return refine(start[0], positions, start[1], patterns, _SCALE, steps, rng, batch_size, rate=0.01)


@pytest.mark.parametrize("n_modes", [1, 2])
def test_it_finds_the_object_and_all_modes_of_the_probe_back(n_modes):
    probe = smooth_probe()
    scan = _scan([probe, 0.3 * np.roll(probe, 4, axis=0)][:n_modes])
    positions, beam, patterns, stitched, obj = scan
    start = _worse(stitched, beam)
    before = patterns.r_factor(start[0], positions, start[1], _SCALE)
    found = _refined(scan, start, steps=200)
    after = patterns.r_factor(found.stitched, positions, found.beam, _SCALE)
    assert before > 0.05
    assert after < before / 8
    assert largest_error(found.stitched, obj) < largest_error(start[0], obj) / 2
    errors = [
        float(torch.linalg.vector_norm(torch.stack(found_.modes) - torch.stack(beam.modes)))
        for found_ in (start[1], found.beam)
    ]
    assert errors[1] < errors[0] / 2


def test_the_truth_stays_where_it_is():
    scan = _scan([smooth_probe()])
    positions, beam, patterns, stitched, _ = scan
    start = patterns.r_factor(stitched, positions, beam, _SCALE)
    found = _refined(scan, (stitched, beam), steps=100)
    assert start < 2e-3
    assert patterns.r_factor(found.stitched, positions, found.beam, _SCALE) < 5e-3


def test_masked_pixels_decide_nothing():
    mask = np.ones((N, N), bool)
    mask[N // 2, N // 2] = False
    scan = _scan([smooth_probe()], mask)
    positions, beam, patterns, stitched, obj = scan
    assert patterns.counts[:, N // 2, N // 2].max() == 0  # all light of the brightest pixel is missing
    start = _worse(stitched, beam)
    found = _refined(scan, start, steps=150)
    assert patterns.r_factor(found.stitched, positions, found.beam, _SCALE) < 0.02
    assert largest_error(found.stitched, obj) < largest_error(start[0], obj) / 2


def test_the_same_seed_gives_the_same_bits_and_steps_are_told():
    scan = _scan([smooth_probe()], n=20)
    start, told = _worse(scan[3], scan[1]), []
    one, two = (_refined(scan, start, steps=5) for _ in range(2))
    np.testing.assert_array_equal(one.stitched.object, two.stitched.object)
    assert not np.array_equal(one.stitched.object, _refined(scan, start, steps=5, seed=1).stitched.object)
    rng = np.random.default_rng(0)
    refine(start[0], scan[0], start[1], scan[2], _SCALE, 3, rng, 50, on_step=lambda *step: told.append(step))
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_what_it_starts_from_is_not_changed():
    scan = _scan([smooth_probe()], n=20)
    start = _worse(scan[3], scan[1])
    obj, probe = start[0].object.copy(), start[1].probe.clone()
    found = _refined(scan, start, steps=3)
    np.testing.assert_array_equal(start[0].object, obj)
    assert torch.equal(start[1].probe, probe)
    assert not np.array_equal(found.stitched.object, obj)


def test_the_light_is_that_of_the_new_probe():
    scan = _scan([smooth_probe()])
    positions, _, _, stitched, _ = scan
    found = _refined(scan, (stitched, scan[1]), steps=2)
    expected = reassemble(patches_at(smooth_object(96), positions), positions, found.beam.weight).light
    np.testing.assert_allclose(found.stitched.light, expected, rtol=1e-4, atol=1e-6 * expected.max())
    corners, remainders = split_positions(positions)
    both = Beam.of(np.stack([smooth_probe(), 2 * smooth_probe()]))
    one = light_of(scan[1], corners - corners.min(axis=0), remainders, expected.shape)
    five = light_of(both, corners - corners.min(axis=0), remainders, expected.shape)
    np.testing.assert_allclose(five, 5 * one, rtol=1e-5, atol=1e-6 * one.max())
