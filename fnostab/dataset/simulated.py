"""A simulated dataset: objects, scan positions, and counts with Poisson noise."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from fnostab import optics
from fnostab.config import ConfigError, DataConfig
from fnostab.dataset.dataset import SPLITS, Dataset
from fnostab.dataset.groups import check_groups
from fnostab.dataset.neighbours import central
from fnostab.dataset.writer import OnPatterns, Writer, Written, configured_probe, random_subset
from fnostab.formats.scan import size_text
from fnostab.objects import synthetic_object
from fnostab.scan import extract_patches, grid_positions

#: Patterns are simulated in chunks of about this many pixels.
_CHUNK_PIXELS: Final = 2**21

#: NumPy draws Poisson numbers up to 9.2e18 in a pixel, and a training set must not come out all dark.
_MAX_PHOTONS: Final = 1e16

_MIN_TRAIN_PHOTONS: Final = 100


@dataclass(frozen=True, eq=False)
class _Plan:
    """What one simulated split is made of, before there are patterns; one noise seed an object."""

    objects: NDArray[np.complex64]
    positions_px: NDArray[np.int64]
    object_index: NDArray[np.int64]
    noise_seeds: list[np.random.SeedSequence]

    def patches(self, N: int) -> Iterator[NDArray[np.complex64]]:
        """Chunks of patches in the order of the split."""
        for k in range(len(self.objects)):
            yield from (patches for _, patches in self.patches_of(k, N))

    def patches_of(self, k: int, N: int) -> Iterator[tuple[int, NDArray[np.complex64]]]:
        """Chunks of the patches of object `k`, each with the place of its first one in the split."""
        places = np.flatnonzero(self.object_index == k)  # without gaps
        chunk = max(1, _CHUNK_PIXELS // N**2)
        for start in range(0, len(places), chunk):
            members = places[start : start + chunk]
            yield int(members[0]), extract_patches(self.objects[k], self.positions_px[members], N)


def simulated_writer(config: DataConfig) -> Writer:
    """Draw the objects of `config`; the writer simulates their patterns."""
    probe = np.asarray(configured_probe(config))
    if probe.ndim == 3 and len(probe) > 1:
        raise ValueError(f"`probe` (={len(probe)} modes) must be one to simulate with, in {config.probe}")
    probe = probe.reshape(probe.shape[-2:])
    if len(probe) < config.N:
        raise ValueError(
            f"`probe` (={size_text(probe)}) must be at least N x N = {config.N} x {config.N}, in {config.probe}"
        )
    if len(probe) > config.N:  # of the same field of view on a finer grid
        probe = optics.crop_probe(probe, config.N)
    plans = _plans(config)
    check_groups(config.gridsize, {split: plan.object_index for split, plan in plans.items()})
    least = _MIN_TRAIN_PHOTONS / len(plans["train"].positions_px)
    if not least <= config.nphotons <= _MAX_PHOTONS:
        raise ValueError(f"`data.nphotons` (={config.nphotons:g}) must be {least:.2g} to {_MAX_PHOTONS:g}")
    # By Parseval the exit wave holds the pattern's energy; `photon_scale` needs no more of a pattern than that.
    light = np.square(_magnitudes(probe))
    chunks = plans["train"].patches(config.N)
    energies = np.concatenate([np.tensordot(np.square(_magnitudes(patches)), light, axes=2) for patches in chunks])
    scale = _settled(optics.photon_scale(np.sqrt(energies)[:, None, None], config.nphotons))

    def write(directory: Path, progress: OnPatterns) -> Written:
        np.save(directory / "probe.npy", probe)
        done, total = 0, sum(len(plan.positions_px) for plan in plans.values())
        for split, plan in plans.items():
            np.save(directory / f"{split}_positions_px.npy", plan.positions_px.astype(np.float64))
            np.save(directory / f"{split}_object_index.npy", plan.object_index)
            if split != "train":
                np.save(directory / f"{split}_objects.npy", plan.objects)
            counts = np.empty((len(plan.positions_px), config.N, config.N), np.float32)
            for place, chunk in _patterns(plan, probe, scale):
                counts[place : place + len(chunk)] = chunk
                done += len(chunk)
                progress(done, total)
            np.save(directory / f"{split}_counts.npy", counts)
        return Written(scale)

    return write


def training_objects(dataset: Dataset) -> NDArray[np.complex64]:
    """Draw the true training objects of a simulated `dataset` again, complex64 (k, H, W); its entry does not hold them.

    Raises `ConfigError` if they are not those that the patterns are of, as the test objects that are drawn beside them
    tell: another version of a library draws other ones.
    """
    plans = _plans(dataset.config)
    assert dataset.test_objects is not None
    if not np.allclose(plans["test"].objects, dataset.test_objects, atol=1e-4):
        raise ConfigError(
            f"`data.seed` (={dataset.config.seed}) must draw the objects of the dataset {dataset.config_sha256} again, "
            "and does not since a library was upgraded: delete that folder of the cache"
        )
    return plans["train"].objects


def _plans(config: DataConfig) -> dict[str, _Plan]:
    """The plan of each split, with objects of the amplitudes that `config` asks for."""
    plans = {split: _plan(config, split) for split in SPLITS}
    level = _settled(_level(config, plans["train"]))
    return {split: replace(plan, objects=plan.objects / level) for split, plan in plans.items()}


def _level(config: DataConfig, train: _Plan) -> float:
    """What the amplitudes of all objects are divided by."""
    if config.object_mean is not None:
        means = [_magnitudes(one).mean() for one in train.objects]  # one by one, which takes less memory
        return float(np.mean(means)) / config.object_mean
    peaks = [_magnitudes(patches).max(axis=(1, 2)) for patches in train.patches(config.N)]
    return float(np.concatenate(peaks).mean())


def _magnitudes(field: NDArray[np.complex64]) -> NDArray[np.float64]:
    """|field| in double precision."""
    return np.abs(field.astype(np.complex128))


def _settled(value: float) -> float:
    """`value` to 12 digits: those after them depend on the order in which a processor adds numbers up."""
    return float(f"{value:.12g}")


def _plan(config: DataConfig, split: str) -> _Plan:
    """Objects, positions and noise seeds of one split; object k is the same however many there are."""
    source = "test" if split == "val" and config.val == "test" else split
    n_objects = {"train": config.nimgs_train, "val": config.nimgs_val, "test": config.nimgs_test}[source]
    stride = {"train": config.stride_train_px, "val": config.stride_val_px, "test": config.stride_test_px}[source]
    limit = {"train": config.max_train_patches, "val": config.max_val_patches, "test": None}[split]
    seed = np.random.SeedSequence(config.seed).spawn(len(SPLITS))[SPLITS.index(source)]
    object_seed, noise_seed, subset_seed = seed.spawn(3)
    rngs = [np.random.default_rng(child) for child in object_seed.spawn(n_objects)]
    grid = grid_positions(config.object_size, config.N, stride)
    positions_px = np.tile(grid, (n_objects, 1))
    object_index = np.repeat(np.arange(n_objects), len(grid))
    if split == "val" and config.val_choice == "block":
        kept = _blocks(positions_px, object_index, limit)
    else:
        kept = random_subset(len(positions_px), limit, subset_seed)
    return _Plan(
        objects=np.stack([synthetic_object(config.objects, config.object_size, config.phase, rng) for rng in rngs]),
        positions_px=positions_px[kept],
        object_index=object_index[kept],
        noise_seeds=noise_seed.spawn(n_objects),
    )


def _blocks(positions_px: NDArray[np.int64], object_index: NDArray[np.int64], limit: int | None) -> NDArray[np.int64]:
    """Sorted indices of `limit` positions (n, 2), shared among the objects: those around the middle of each."""
    n_objects = int(object_index[-1]) + 1
    shares = [None if limit is None else limit // n_objects + (k < limit % n_objects) for k in range(n_objects)]
    return np.concatenate(
        [central(np.flatnonzero(object_index == k), positions_px, share) for k, share in enumerate(shares)]
    )


def _patterns(plan: _Plan, probe: NDArray[np.complex64], scale: float) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Chunks of noisy counts, each with the place of its first pattern in the split.

    A thread an object, as each has its noise from a generator of its own: NumPy draws Poisson numbers, which take most
    of the time, without holding the other threads up. Rates are in double precision: what an FFT leaves open in their
    last bits then moves no count.
    """
    beam = torch.from_numpy(probe).to(torch.complex128)

    def of_object(k: int) -> Iterator[tuple[int, NDArray[np.float32]]]:
        rng = np.random.default_rng(plan.noise_seeds[k])
        for place, patches in plan.patches_of(k, len(probe)):
            amplitudes = optics.far_field_amplitude(torch.from_numpy(patches).to(beam.dtype), beam)
            yield place, optics.poisson_counts(amplitudes, scale, rng)

    objects = [of_object(k) for k in range(len(plan.objects))]
    with ThreadPoolExecutor(len(objects)) as pool:
        while objects:
            chunks = list(pool.map(lambda chunks: next(chunks, None), objects))
            yield from (chunk for chunk in chunks if chunk)
            objects = [rest for rest, chunk in zip(objects, chunks, strict=True) if chunk]
