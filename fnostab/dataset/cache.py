"""The cache of datasets: each is built once from its `DataConfig`, and memory-mapped when it is read.

An entry is a directory of `.npy` files and a `meta.json`, named by the SHA-256 of the resolved config and of the files
that it names; it appears whole or not at all. Only scans have `mask.npy` and `further_modes.npy`, and only those with
bad pixels or several modes of the probe. Its content hash is a pure function of the names, types, shapes and bytes
of its arrays and of its two scalars.
"""

import hashlib
import json
import logging
import math
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fnostab.config import PROBES, DataConfig
from fnostab.dataset.dataset import SPLITS, Dataset, Split, array_sha256
from fnostab.dataset.measured import measured_writer
from fnostab.dataset.simulated import simulated_writer
from fnostab.dataset.writer import OnPatterns, Writer
from fnostab.formats.registry import scan_files
from fnostab.io.cache import cache_folder
from fnostab.io.files import is_disk_full, open_binary
from fnostab.io.locks import file_lock

#: Raise one of these when the same config of that kind shall give other data, or the files of an entry change.
_SIMULATED_FORMAT: Final = 3
_MEASURED_FORMAT: Final = 2

_log = logging.getLogger(__name__)


def load_or_build(config: DataConfig, *, cache_dir: Path | None = None, progress: OnPatterns | None = None) -> Dataset:
    """Give the dataset of `config` from the cache, building it first if it is not there.

    The cache is `cache_dir`, else `cache_folder()`. Any number of processes may ask at once: one builds, the others
    wait. `progress` is called with the patterns done and their total while it builds. An entry is checked against its
    hashes whenever it is read; a damaged one is logged and built anew. Bad input raises ValueError, in one line, before
    anything is written.

    The same config gives the same bytes, whatever the chunks, the number of threads and the processor's FFT: each
    object has a seed of its own, NumPy draws its noise in one go, and rates are in double precision, whose last bit
    decides one count in 1e16 photons. If it does, or a version of NumPy draws other numbers from a seed, the content
    hash says so.
    """
    entry = (cache_dir or cache_folder()) / _config_sha256(config)
    if dataset := _load(entry, config):
        dataset.check_groups(config.gridsize)  # it may have been built for networks that take patterns alone
        return dataset
    write = measured_writer(config) if config.path else simulated_writer(config)
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


def common_sha256(config: DataConfig, content_sha256: str) -> str:
    """What runs that may be compared have in common: the content hash, or with `seeds` a hash of what all are made of.

    `content_sha256` is that of one run's dataset.
    """
    return content_sha256 if config.seeds == 1 else _config_sha256(config)


@contextmanager
def _locked(entry: Path) -> Iterator[None]:
    """Hold the entry's lock: any number of processes may ask for one dataset at once."""
    with ExitStack() as held:
        try:
            entry.parent.mkdir(parents=True, exist_ok=True)
            held.enter_context(file_lock(entry.with_name(f".{entry.name}.lock")))
        except OSError as error:
            rule = f"`FNOSTAB_CACHE` (={entry.parent}) must be a writable directory: {error.strerror}"
            raise ValueError(rule) from None
        yield


def _build(entry: Path, config: DataConfig, write: Writer, progress: OnPatterns) -> None:
    """Write an entry beside its place and move it there; the lock is held."""
    partial = entry.with_name(f".{entry.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a builder that was killed
    partial.mkdir()
    try:
        written = write(partial, progress)
        arrays = {path.stem: np.load(path, mmap_mode="r", allow_pickle=False) for path in partial.glob("*.npy")}
        mean_counts = float(arrays["train_counts"].mean(dtype=np.float64))
        if "mask" in arrays:
            mean_counts /= float(arrays["mask"].mean())
        content = _content(arrays, {"scale": written.scale, "input_scale": 1 / math.sqrt(mean_counts)})
        meta = {
            "sha256": _json_sha256(content),
            **content,
            "notes": written.notes,
            "warnings": written.warnings,
            "format": _format(config),
            "config": config.model_dump(),
        }
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
        parts = [field.name for field in fields(Split)]
        found: dict[str, Any] = {split: Split(*(arrays[f"{split}_{part}"] for part in parts)) for split in SPLITS}
        found |= {name: arrays.get(name) for name in ("val_objects", "test_objects", "reference", "mask")}
        found |= {name: tuple(map(str, meta.get(name, ()))) for name in ("notes", "warnings")}
        modes = np.concatenate([arrays["probe"][None], *(arrays[name] for name in arrays if name == "further_modes")])
        return Dataset(config, entry.name, meta["sha256"], modes, **meta["scalars"], **found)
    except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _content(arrays: Mapping[str, NDArray[Any]], scalars: Mapping[str, float]) -> dict[str, Any]:
    """What the content hash covers: the scalars, and of each array type, shape and the hash of its bytes."""
    names = sorted(arrays)
    with ThreadPoolExecutor() as pool:  # hashlib lets other threads run
        hashes = list(pool.map(array_sha256, (arrays[name] for name in names)))
    return {
        "scalars": dict(scalars),
        "arrays": {
            name: {"dtype": arrays[name].dtype.str, "shape": list(arrays[name].shape), "sha256": sha256}
            for name, sha256 in zip(names, hashes, strict=True)
        },
    }


def _json_sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _format(config: DataConfig) -> int:
    return _MEASURED_FORMAT if config.path else _SIMULATED_FORMAT


def _config_sha256(config: DataConfig) -> str:
    """The key of the cache: files count by their content, wherever they lie, and `auto` by what it means.

    Keys newer than an entry that are as they were then do not count.
    """
    values = config.model_dump(mode="json")
    values["gridsize"] = 1  # says how a network takes the patterns, not which there are
    if config.path:
        values["path"] = _file_sha256(config.path, "data.path")
        if config.val_choice == "random":
            values["val_choice"] = "random places"  # entries of before held every tenth pattern out
        for key in ("mask", "positions"):
            if getattr(config, key):
                values[key] = _file_sha256(getattr(config, key), f"data.{key}")
        if others := scan_files(config.path, config)[1:]:
            values["other_files"] = [_file_sha256(str(other), "data.positions") for other in others]
    elif config.probe == "auto":
        values["probe"] = "curved_disk"
    if config.probe not in ("auto", *PROBES):
        values["probe"] = _file_sha256(config.probe, "data.probe", f"{', '.join(PROBES)} or ")
    for name in config.left_out:
        del values[name]
    return _json_sha256({"format": _format(config), "config": values})


def _file_sha256(path: str, parameter: str, alternatives: str = "") -> str:
    digest = hashlib.sha256()
    try:
        with open_binary(Path(path)) as stream:
            while chunk := stream.read(2**20):
                digest.update(chunk)
    except OSError as error:
        rule = f"must be {alternatives}a readable file: {error.strerror}"
        raise ValueError(f"`{parameter}` (={path}) {rule}") from None
    return digest.hexdigest()
