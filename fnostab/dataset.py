"""Datasets: built once from a `DataConfig`, cached by its hash, memory-mapped when read.

A dataset is simulated, or imported from a measured scan. An entry of the cache is a directory of `.npy` files and a
`meta.json`, named by the SHA-256 of the resolved config and of the files that it names; it appears whole or not at
all. Its content hash is a pure function of names, types, shapes and bytes of its arrays and of its two scalars.
"""

import hashlib
import json
import logging
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Final

import filelock
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.signal import fftconvolve, resample
from scipy.spatial import cKDTree

from fnostab import npz, optics
from fnostab.config import DataConfig
from fnostab.files import is_disk_full
from fnostab.objects import synthetic_object
from fnostab.scan import extract_patches, grid_positions

#: Raise this when the same config shall give other data, or the files of an entry change.
CACHE_FORMAT: Final = 2

#: Every so manyth position of a measured scan is validation.
VAL_EVERY: Final = 10

#: Called with the patterns done and their total.
Progress = Callable[[int, int], None]

_SPLITS: Final = ("train", "val", "test")
#: Patterns are simulated in chunks of about this many pixels.
_CHUNK_PIXELS: Final = 2**21
#: NumPy draws Poisson numbers up to 9.2e18 in a pixel, and a training set must not come out all dark.
_MAX_PHOTONS: Final = 1e16
_MIN_TRAIN_PHOTONS: Final = 100
_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Split:
    """The patterns of one split.

    `counts` float32 (n, N, N), read-only and memory-mapped, zero frequency at N // 2; `positions_px` float64 (n, 2),
    (row, column) of each patch's first pixel in object pixels; `object_index` int64 (n,), the object each was taken on.
    """

    counts: NDArray[np.float32]
    positions_px: NDArray[np.float64]
    object_index: NDArray[np.int64]

    def part(self, members: NDArray[np.int64]) -> "Split":
        """The patterns at the indices `members`."""
        return Split(self.counts[members], self.positions_px[members], self.object_index[members])

    def patches_of(self, objects: NDArray[np.complex64]) -> NDArray[np.complex64]:
        """The patches (n, N, N) of the true `objects` (k, H, W), at whole-pixel positions."""
        N = self.counts.shape[-1]
        patches = np.empty((len(self.counts), N, N), np.complex64)
        for index in np.unique(self.object_index):
            members = self.object_index == index
            patches[members] = extract_patches(objects[index], self.positions_px[members], N)
        return patches


@dataclass(frozen=True, eq=False)
class Dataset:
    """A dataset as a run sees it.

    The forward model is A = sqrt(counts) / `scale` ~ |FFT2(probe * patch)|, orthonormal, with |patch| about 1; the
    network's input is sqrt(counts) * `input_scale`, whose mean square over the training patterns is 1. `probe` is
    complex64 (N, N); `val_objects` and `test_objects` are the truth, complex64 (k, H, W), or None for a measured scan.
    `reference` is the object that came with a measured scan, complex64 (H, W) in the frame of the test positions (to
    half a pixel) and 0 where it does not reach, or None. `config_sha256` names the cache entry, `sha256` is the hash of
    the content.
    """

    config: DataConfig
    config_sha256: str
    sha256: str
    probe: NDArray[np.complex64]
    scale: float
    input_scale: float
    train: Split
    val: Split
    test: Split
    val_objects: NDArray[np.complex64] | None
    test_objects: NDArray[np.complex64] | None
    reference: NDArray[np.complex64] | None

    @property
    def measured(self) -> bool:
        """Whether the patterns were measured; there is no truth then."""
        return self.test_objects is None

    @property
    def probe_sha256(self) -> str:
        """Hash of the probe's bytes."""
        return _array_sha256(self.probe)


def cache_folder() -> Path:
    """Tell where datasets are kept: `$FNOSTAB_CACHE`, else `~/.cache/fnostab`."""
    return Path(os.environ.get("FNOSTAB_CACHE") or Path.home() / ".cache" / "fnostab")


def load_or_build(config: DataConfig, *, cache_dir: Path | None = None, progress: Progress | None = None) -> Dataset:
    """Give the dataset of `config` from the cache, building it first if it is not there.

    The cache is `cache_dir`, else `cache_folder()`. Any number of processes may ask at once: one builds, the others
    wait. `progress` is called with the patterns done and their total while it builds. An entry is checked against its
    hashes whenever it is read; a damaged one is logged and built anew. Bad input raises ValueError, in one line, before
    anything is written.

    The same config gives the same bytes, whatever the chunks and the number of threads: each object has a seed of its
    own and NumPy draws its noise in one go. Another version of NumPy or torch, or another processor's FFT, may change
    the last bit of a rate and with it some counts: then the content hash says so.
    """
    entry = (cache_dir or cache_folder()) / _config_sha256(config)
    if dataset := _load(entry, config):
        return dataset
    write = _measured(config) if config.path else _simulated(config)
    with _locked(entry):
        if dataset := _load(entry, config):
            return dataset
        try:
            _build(entry, config, write, progress or (lambda done, total: None))
        except OSError as error:
            if not is_disk_full(error):
                raise
            raise ValueError(f"`FNOSTAB_CACHE` (={entry.parent}) must have room for the dataset: it is full") from None
        if dataset := _load(entry, config):
            return dataset
    raise OSError(f"the cache entry {entry} cannot be read back as it was written")


def import_scan(
    path: str | Path, N: int, quantity: npz.Quantity = "auto", probe: str | Path | NDArray[Any] | None = None
) -> npz.Scan:
    """Read a measured scan and bring it to N x N patterns.

    Patterns larger than N x N are cropped to their middle, which makes pixels M / N times larger: the probe's spectrum
    is cropped alike, positions shrink by N / M, and the file's `object` is resampled. `probe`, an array or an NPZ file,
    stands in for the scan's own: one of M x M is cropped, one of N x N used as it is. Returns a `Scan` with a probe.
    Raises ValueError, in one line, as `npz.read_scan` does, for patterns smaller than N x N
    or without counts in their middle, for a probe of another size, and if there is no probe.
    """
    scan = npz.read_scan(path, quantity)
    M = scan.counts.shape[-1]
    if N > M:
        raise ValueError(f"`data.N` (={N}) must be <= {M}, the size of the patterns in {path}")
    if probe is None:
        if scan.probe is None:
            raise ValueError(f"`data.probe` (=auto) must name a probe: there is none in {path}")
        probe = scan.probe
    elif not isinstance(probe, np.ndarray):
        probe = npz.read_probe(probe)
    if probe.shape not in ((N, N), (M, M)):
        either = f"{N} x {N}" if M == N else f"{N} x {N}, or {M} x {M} as the patterns"
        raise ValueError(f"`probe` (={_size(probe)}) must be N x N = {either}")
    counts = np.ascontiguousarray(optics.crop_patterns(scan.counts, N))
    if not counts.any():
        raise ValueError(f"`data.N` (={N}) must be larger: the middle of the patterns in {path} holds no counts")
    return npz.Scan(
        counts=counts,
        positions_px=scan.positions_px * (N / M),
        probe=probe if len(probe) == N else optics.crop_probe(probe, N),
        object=scan.object if scan.object is None or N == M else _resampled(scan.object, N, M),
        layout=scan.layout,
    )


def _resampled(obj: NDArray[np.complex64], N: int, M: int) -> NDArray[np.complex64]:
    """`obj` (H, W) band-limited to pixels M / N times larger; its edge is repeated to a size that this divides."""
    whole = M // math.gcd(N, M)
    padded = np.pad(obj, [(0, -length % whole) for length in obj.shape], mode="edge")
    for axis, length in enumerate(padded.shape):
        padded = resample(padded, length * N // M, axis=axis)
    return np.asarray(padded, dtype=np.complex64)


def describe(dataset: Dataset) -> dict[str, Any]:
    """Summarise a dataset in numbers and short strings, for people.

    Counts are those of the training patterns; `step_px` is the median distance from a training position to its nearest
    neighbour on the same object, NaN if there is none; `lit_fraction` is the share of the rectangle around the windows
    on the first training object that has over 1 % of the strongest light there.
    """
    counts = dataset.train.counts
    per_pattern = counts.sum(axis=(1, 2), dtype=np.float64)
    index = dataset.train.object_index
    objects = [dataset.train.positions_px[index == k] for k in np.unique(index)]
    steps = [cKDTree(positions).query(positions, k=2)[0][:, 1] for positions in objects if len(positions) > 1]
    light = _light(objects[0], dataset.probe)
    return {
        "source": dataset.config.path or f"simulated {dataset.config.objects}, phase {dataset.config.phase}",
        "sha256": dataset.sha256,
        "config_sha256": dataset.config_sha256,
        "N": counts.shape[-1],
        **{f"{name}_patterns": len(getattr(dataset, name).counts) for name in _SPLITS},
        "counts_per_pattern_mean": float(per_pattern.mean()),
        "counts_per_pattern_min": float(per_pattern.min()),
        "counts_per_pattern_max": float(per_pattern.max()),
        "counts_max": float(counts.max()),
        "scale": dataset.scale,
        "input_scale": dataset.input_scale,
        "probe_sha256": dataset.probe_sha256,
        "probe_energy": float(_energy(dataset.probe)),
        "step_px": float(np.median(np.concatenate(steps))) if steps else math.nan,
        "lit_fraction": float((light > 0.01 * light.max()).mean()),
    }


#: Writes the arrays of an entry into a directory and returns the photon scale.
_Writer = Callable[[Path, Progress], float]


def _measured(config: DataConfig) -> _Writer:
    """Read the scan of `config`; the writer splits and stores it."""
    scan = import_scan(config.path, config.N, config.quantity, _probe(config))
    probe = np.asarray(scan.probe)
    scale = math.sqrt(scan.counts.sum(dtype=np.float64) / len(scan.counts) / float(_energy(probe)))
    whole = np.arange(len(scan.counts))
    held_out = whole % VAL_EVERY == 0
    train_seed, val_seed = np.random.SeedSequence(config.seed).spawn(2)
    members = {
        "train": whole[~held_out][_subset(int((~held_out).sum()), config.max_train_patches, train_seed)],
        "val": whole[held_out][_subset(int(held_out.sum()), config.max_val_patches, val_seed)],
        "test": whole,
    }
    if not scan.counts[members["train"]].any():
        raise ValueError(f"`data.path` (={config.path}) must hold counts in its training patterns")
    first = scan.positions_px.min(axis=0)
    positions = scan.positions_px - first

    def write(directory: Path, progress: Progress) -> float:
        np.save(directory / "probe.npy", probe)
        if scan.object is not None:
            shape = np.ceil(positions.max(axis=0)).astype(int) + config.N
            np.save(directory / "reference.npy", _window(scan.object, np.rint(first).astype(int), shape))
        done, total = 0, sum(map(len, members.values()))
        for split, index in members.items():
            np.save(directory / f"{split}_counts.npy", scan.counts[index])
            np.save(directory / f"{split}_positions_px.npy", positions[index])
            np.save(directory / f"{split}_object_index.npy", np.zeros(len(index), dtype=np.int64))
            done += len(index)
            progress(done, total)
        return scale

    return write


def _window(obj: NDArray[np.complex64], first: NDArray[np.int64], shape: NDArray[np.int64]) -> NDArray[np.complex64]:
    """The window of `obj` (H, W) of `shape` whose first pixel is `first`; zero outside of `obj`."""
    window = np.zeros(shape, np.complex64)
    start = np.maximum(0, first)
    inside = obj[start[0] : max(0, first[0] + shape[0]), start[1] : max(0, first[1] + shape[1])]
    top, left = start - first
    window[top : top + inside.shape[0], left : left + inside.shape[1]] = inside
    return window


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


def _simulated(config: DataConfig) -> _Writer:
    """Draw the objects of `config`; the writer simulates their patterns."""
    probe = np.asarray(_probe(config))
    if len(probe) < config.N:
        raise ValueError(
            f"`probe` (={_size(probe)}) must be at least N x N = {config.N} x {config.N}, in {config.probe}"
        )
    if len(probe) > config.N:  # of the same field of view on a finer grid
        probe = optics.crop_probe(probe, config.N)
    seeds = dict(zip(_SPLITS, np.random.SeedSequence(config.seed).spawn(len(_SPLITS)), strict=True))
    plans = {split: _plan(config, split, seed) for split, seed in seeds.items()}
    least = _MIN_TRAIN_PHOTONS / len(plans["train"].positions_px)
    if not least <= config.nphotons <= _MAX_PHOTONS:
        raise ValueError(f"`data.nphotons` (={config.nphotons:g}) must be {least:.2g} to {_MAX_PHOTONS:g}")
    peaks = [np.abs(patches).max(axis=(1, 2)) for patches in plans["train"].patches(config.N)]
    level = np.concatenate(peaks).mean()
    plans = {split: replace(plan, objects=plan.objects / level) for split, plan in plans.items()}
    # By Parseval the exit wave holds the pattern's energy; `photon_scale` needs no more of a pattern than that.
    energies = np.concatenate([_energy(patches * probe) for patches in plans["train"].patches(config.N)])
    scale = optics.photon_scale(np.sqrt(energies)[:, None, None], config.nphotons)

    def write(directory: Path, progress: Progress) -> float:
        np.save(directory / "probe.npy", probe)
        done, total = 0, sum(len(plan.positions_px) for plan in plans.values())
        for split, plan in plans.items():
            np.save(directory / f"{split}_positions_px.npy", plan.positions_px.astype(np.float64))
            np.save(directory / f"{split}_object_index.npy", plan.object_index)
            if split != "train":
                np.save(directory / f"{split}_objects.npy", plan.objects)
            shape = (len(plan.positions_px), config.N, config.N)
            with _npy_stream(directory / f"{split}_counts.npy", shape) as stream:
                start = stream.tell()
                for place, counts in _patterns(plan, probe, scale):
                    stream.seek(start + place * counts[0].nbytes)
                    stream.write(counts.data)
                    done += len(counts)
                    progress(done, total)
        return scale

    return write


def _plan(config: DataConfig, split: str, seed: np.random.SeedSequence) -> _Plan:
    """Objects, positions and noise seeds of one split; object k is the same however many there are."""
    n_objects = {"train": config.nimgs_train, "val": config.nimgs_val, "test": config.nimgs_test}[split]
    stride = {"train": config.stride_train_px, "val": config.stride_val_px, "test": config.stride_test_px}[split]
    limit = {"train": config.max_train_patches, "val": config.max_val_patches, "test": None}[split]
    object_seed, noise_seed, subset_seed = seed.spawn(3)
    rngs = [np.random.default_rng(child) for child in object_seed.spawn(n_objects)]
    grid = grid_positions(config.object_size, config.N, stride)
    kept = _subset(n_objects * len(grid), limit, subset_seed)
    return _Plan(
        objects=np.stack([synthetic_object(config.objects, config.object_size, config.phase, rng) for rng in rngs]),
        positions_px=np.tile(grid, (n_objects, 1))[kept],
        object_index=np.repeat(np.arange(n_objects), len(grid))[kept],
        noise_seeds=noise_seed.spawn(n_objects),
    )


def _patterns(plan: _Plan, probe: NDArray[np.complex64], scale: float) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Chunks of noisy counts, each with the place of its first pattern in the split.

    A thread an object, as each has its noise from a generator of its own: NumPy draws Poisson numbers, which take most
    of the time, without holding the other threads up.
    """

    def of_object(k: int) -> Iterator[tuple[int, NDArray[np.float32]]]:
        rng = np.random.default_rng(plan.noise_seeds[k])
        for place, patches in plan.patches_of(k, len(probe)):
            amplitudes = optics.far_field_amplitude(torch.from_numpy(patches), torch.from_numpy(probe))
            yield place, optics.poisson_counts(amplitudes, scale, rng)

    objects = [of_object(k) for k in range(len(plan.objects))]
    with ThreadPoolExecutor(len(objects)) as pool:
        while objects:
            chunks = list(pool.map(lambda chunks: next(chunks, None), objects))
            yield from (chunk for chunk in chunks if chunk)
            objects = [rest for rest, chunk in zip(objects, chunks, strict=True) if chunk]


def _subset(n: int, limit: int | None, seed: np.random.SeedSequence) -> NDArray[np.int64]:
    """Sorted indices of at most `limit` out of `n`."""
    if limit is None or limit >= n:
        return np.arange(n)
    return np.sort(np.random.default_rng(seed).choice(n, size=limit, replace=False))


def _probe(config: DataConfig) -> NDArray[np.complex64] | None:
    """The probe that `config` names, None for the scan's own."""
    if config.probe == "disk":
        return optics.disk(config.N, config.probe_radius_px)
    if config.probe == "curved_disk" or (config.probe == "auto" and not config.path):
        return optics.curved_disk(config.N, config.probe_radius_px, config.probe_curvature_rad)
    return None if config.probe == "auto" else npz.read_probe(config.probe)


def _energy(fields: NDArray[np.complex64]) -> NDArray[np.float64]:
    """Sum of |field|^2 over the last two axes."""
    return np.asarray(np.square(np.abs(fields), dtype=np.float64).sum(axis=(-2, -1)))


def _size(array: NDArray[Any]) -> str:
    return " x ".join(str(length) for length in array.shape)


def _light(positions_px: NDArray[np.float64], probe: NDArray[np.complex64]) -> NDArray[np.float64]:
    """Light on the rectangle that a scan covers, positions rounded to whole pixels."""
    corners = np.rint(positions_px - positions_px.min(axis=0)).astype(np.int64)
    visits = np.zeros(corners.max(axis=0) + 1)
    np.add.at(visits, (corners[:, 0], corners[:, 1]), 1)
    light: NDArray[np.float64] = fftconvolve(visits, np.square(np.abs(probe), dtype=np.float64))
    return light


# The cache.


@contextmanager
def _locked(entry: Path) -> Iterator[None]:
    """Hold the entry's lock file, which the system releases if this process dies."""
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(entry.with_name(f".{entry.name}.lock"))
        lock.acquire()
    except OSError as error:
        raise ValueError(f"`FNOSTAB_CACHE` (={entry.parent}) must be a writable directory: {error.strerror}") from None
    try:
        yield
    finally:
        lock.release()


def _build(entry: Path, config: DataConfig, write: _Writer, progress: Progress) -> None:
    """Write an entry beside its place and move it there; the lock is held."""
    partial = entry.with_name(f".{entry.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a builder that was killed
    partial.mkdir()
    try:
        scale = write(partial, progress)
        arrays = {path.stem: np.load(path, mmap_mode="r", allow_pickle=False) for path in partial.glob("*.npy")}
        mean_counts = float(arrays["train_counts"].mean(dtype=np.float64))
        content = _content(arrays, {"scale": scale, "input_scale": 1 / math.sqrt(mean_counts)})
        meta = {"sha256": _json_sha256(content), **content, "format": CACHE_FORMAT, "config": config.model_dump()}
        (partial / "meta.json").write_text(json.dumps(meta, indent=1), encoding="utf-8")
        if entry.exists():
            _log.warning("the cache entry %s is damaged and was built anew", entry)
            shutil.rmtree(entry)
        partial.rename(entry)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _load(entry: Path, config: DataConfig) -> Dataset | None:
    """The dataset of an entry, None if it is not there, not whole, or not what its hashes say."""
    try:
        meta = json.loads((entry / "meta.json").read_text(encoding="utf-8"))
        arrays = {name: np.load(entry / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in meta["arrays"]}
        content = _content(arrays, meta["scalars"])
        if _json_sha256(content) != meta["sha256"]:
            return None
        # Patterns stay on the disk; the rest is small.
        arrays = {name: array if name.endswith("_counts") else np.array(array) for name, array in arrays.items()}
        train, val, test = (
            Split(arrays[f"{split}_counts"], arrays[f"{split}_positions_px"], arrays[f"{split}_object_index"])
            for split in _SPLITS
        )
        return Dataset(
            config=config,
            config_sha256=entry.name,
            sha256=meta["sha256"],
            probe=arrays["probe"],
            scale=meta["scalars"]["scale"],
            input_scale=meta["scalars"]["input_scale"],
            train=train,
            val=val,
            test=test,
            val_objects=arrays.get("val_objects"),
            test_objects=arrays.get("test_objects"),
            reference=arrays.get("reference"),
        )
    except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _content(arrays: Mapping[str, NDArray[Any]], scalars: Mapping[str, float]) -> dict[str, Any]:
    """What the content hash covers: the scalars, and of each array type, shape and the hash of its bytes."""
    names = sorted(arrays)
    with ThreadPoolExecutor() as pool:  # hashlib lets other threads run
        hashes = list(pool.map(_array_sha256, (arrays[name] for name in names)))
    return {
        "scalars": dict(scalars),
        "arrays": {
            name: {"dtype": arrays[name].dtype.str, "shape": list(arrays[name].shape), "sha256": sha256}
            for name, sha256 in zip(names, hashes, strict=True)
        },
    }


def _array_sha256(array: NDArray[Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()


def _json_sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _config_sha256(config: DataConfig) -> str:
    """The key of the cache: files count by their content, wherever they lie, and `auto` by what it means."""
    values = config.model_dump(mode="json")
    if config.path:
        values["path"] = _file_sha256(config.path, "data.path")
    elif config.probe == "auto":
        values["probe"] = "curved_disk"
    if config.probe not in ("auto", "curved_disk", "disk"):
        values["probe"] = _file_sha256(config.probe, "data.probe", "curved_disk, disk or ")
    return _json_sha256({"format": CACHE_FORMAT, "config": values})


def _file_sha256(path: str, parameter: str, alternatives: str = "") -> str:
    digest = hashlib.sha256()
    rule = f"`{parameter}` (={path}) must be {alternatives}a readable file"
    if Path(path).exists() and not (Path(path).is_file() or Path(path).is_dir()):
        raise ValueError(f"{rule}: it is a device or a pipe")  # /dev/zero never ends
    try:
        with open(path, "rb") as stream:
            while chunk := stream.read(2**20):
                digest.update(chunk)
    except OSError as error:
        raise ValueError(f"{rule}: {error.strerror}") from None
    return digest.hexdigest()


@contextmanager
def _npy_stream(path: Path, shape: tuple[int, ...]) -> Iterator[BinaryIO]:
    """A float32 `.npy` file of `shape`, to be filled. (A memory map would crash on a full disk.)"""
    with open(path, "wb") as stream:
        header = {"shape": shape, "fortran_order": False, "descr": np.lib.format.dtype_to_descr(np.dtype(np.float32))}
        np.lib.format.write_array_header_1_0(stream, header)
        yield stream
