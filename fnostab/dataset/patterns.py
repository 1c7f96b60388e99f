"""A scan's patterns: which part of the detector they are of, and their counts and mask."""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import psutil
from numpy.typing import NDArray

from fnostab.config import ReadingConfig
from fnostab.dataset.checks import Light, kept_light
from fnostab.dataset.detector import BadPixels, Window, light_centre
from fnostab.dataset.grid import Grid
from fnostab.formats.frames import Frames
from fnostab.formats.mask import read_mask
from fnostab.formats.raw import RawScan
from fnostab.formats.scan import size_text
from fnostab.io.scratch import Memory, Storage

#: Patterns that tell where the light's centre is, and whether they are counts.
_SOME: Final = 200
#: A mask that leaves a smaller share of the light, and of the pixels less than half, was read upside down.
_LEAST_UNMASKED: Final = 0.2
#: Counts under this are looked at to tell counts from normalised patterns, and how near to whole numbers they are then.
_SMALL_COUNTS: Final = 20
_ROUNDING: Final = 0.1
#: Patterns may take so much of the free memory.
_MEMORY_SHARE: Final = 0.5
#: Bytes of counts that are looked at together.
_AT_ONCE_BYTES: Final = 2**24


def window_of(raw: RawScan, grid: Grid, reading: ReadingConfig) -> tuple[Window, list[str]]:
    """The part of the detector that becomes patterns, and notes of what was found out."""
    frames, notes = raw.frames, []
    shape = frames.height, frames.width
    corner = raw.fft_ordered if reading.fft_order == "auto" else reading.fft_order == "corner"
    centre = raw.centre or (frames.height // 2, frames.width // 2)
    if reading.center == "auto":
        if corner:
            raise ValueError("`data.center` (=auto) must be left out for patterns in FFT order, whose centre is known")
        centre = _found_centre(raw, reading)
        notes.append(f"the light's centre, row {centre[0]}, column {centre[1]}, is taken as zero frequency")
    elif reading.center:
        centre = (int(reading.center.partition(",")[0]), int(reading.center.partition(",")[2]))
        if not all(0 <= index < length for index, length in zip(centre, shape, strict=True)):
            raise ValueError(f"`data.center` (={reading.center}) must lie on the detector, {shape[0]} x {shape[1]}")
    return Window.about(centre, shape, grid.N, grid.bin, corner), notes


def _found_centre(raw: RawScan, reading: ReadingConfig) -> tuple[int, int]:
    """The centre of the light of the first frames."""
    frames = raw.frames
    light = np.zeros((frames.height, frames.width))
    bad = BadPixels(frames, reading.model_copy(update={"bad_pixels": "mask"}))
    everything = Window.about((frames.height // 2, frames.width // 2), light.shape, min(light.shape), 1, False)
    for start, chunk in frames.chunks(_SOME):
        light += bad.taken_out(start + np.arange(len(chunk)), chunk, everything).sum(axis=0, dtype=np.float64)
    good = ~bad.found & (True if raw.good is None else raw.good)
    if not (light * good).any():
        raise ValueError(f"`data.center` (=auto) must find light: the first {_SOME} patterns hold none")
    return light_centre(light, good)


@dataclass(frozen=True, eq=False)
class Patterns:
    """Counts float32 (n, N, N), their mask bool (N, N) or None, what the detector saw, and notes of what was done."""

    counts: NDArray[np.float32]
    mask: NDArray[np.bool_] | None
    light: Light
    notes: list[str]


class FrameReader:
    """Makes counts (k, N, N) of some frames after others: cut, binned, and in counts.

    `bad` are the bad pixels that were found so far, `seen` (H, W) is the sum of the frames. The frames are `squared` if
    they are amplitudes.
    """

    def __init__(self, frames: Frames, window: Window, reading: ReadingConfig, squared: bool) -> None:
        self.bad = BadPixels(frames, reading)
        self.seen: NDArray[np.float64] = np.zeros((frames.height, frames.width))
        self.window, self._squared, self._key = window, squared, frames.key

    def counts(self, numbers: NDArray[np.int64], chunk: NDArray[Any]) -> NDArray[np.float32]:
        """The counts of frames (k, H, W) of these `numbers`; raises ValueError, in one line, if they are refused."""
        chunk = self.bad.taken_out(numbers, chunk, self.window)
        with np.errstate(over="ignore"):  # what overflows float32 becomes infinite and is refused below
            values = np.square(chunk, dtype=np.float32) if self._squared else chunk
            self.seen += values.sum(axis=0, dtype=np.float64)
            made: NDArray[np.float32] = self.window.added_up(self.window.cut(values).astype(np.float32, copy=False))
        if not np.isfinite(made.max(initial=0)):
            largest = np.finfo(np.float32).max
            raise ValueError(f"`{self._key}` (=over {largest:.3g}) must be finite in single precision")
        return made

    def mask(self, raw: RawScan, reading: ReadingConfig) -> NDArray[np.bool_] | None:
        """The pixels (N, N) that count after what was read, None if all do."""
        return _mask(raw, self.window, self.bad, kept_light(self.seen, self.window), reading)


def read_patterns(
    raw: RawScan,
    window: Window,
    kept: NDArray[np.bool_],
    reading: ReadingConfig,
    squared: bool,
    storage: Storage | None = None,
) -> Patterns:
    """Read the frames that are `kept`, bool (n,), some at a time: cut, binned, masked and in counts.

    They are `squared` if they are amplitudes. The counts go to `storage`, by default the memory. Raises ValueError, in
    one line, for patterns that are refused.
    """
    frames, N, n = raw.frames, window.N, int(kept.sum())
    if storage is None:
        _check_memory(n, N)
        storage = Memory()
    counts: NDArray[np.float32] = storage.empty((n, N, N), np.float32)
    reader = FrameReader(frames, window, reading, squared)
    done = 0
    for start, chunk in frames.chunks():
        chosen = np.flatnonzero(kept[start : start + len(chunk)])
        chunk = chunk if len(chosen) == len(chunk) else chunk[chosen]
        counts[done : done + len(chunk)] = reader.counts(start + chosen, chunk)
        done += len(chunk)
        storage.release()
    notes = []
    mask, seen = reader.mask(raw, reading), reader.seen
    if mask is not None:
        notes.append(f"{mask.size - mask.sum()} of {mask.size} pixels of a pattern are masked and count nowhere")
    if not seen.any():
        raise ValueError(f"`{frames.key}` (=0 everywhere) must hold some counts")
    light = Light(seen, window, reader.bad.full_at, *_multiplied(counts, mask, storage))
    if not light.highest.any():
        raise ValueError(f"`data.N` (={N}) must be larger: the middle of the patterns holds no counts")
    factor, of_scale = _photon_factor(counts, light, raw, reading)
    if factor is not None:
        light = Light(seen, window, reader.bad.full_at, *_multiplied(counts, factor, storage))
    return Patterns(counts, mask, light, [*notes, *of_scale])


def _multiplied(
    counts: NDArray[np.float32], factor: NDArray[np.bool_] | np.float32 | None, storage: Storage
) -> tuple[NDArray[np.float64], NDArray[np.float32], NDArray[np.float32]]:
    """Multiply `counts` (n, N, N) in place by a mask or a number, some at a time.

    Returns the `sums`, `lowest` and `highest` of `Light`.
    """
    N = counts.shape[-1]
    sums: NDArray[np.float64] = np.empty(len(counts))
    lowest, highest = np.full((N, N), np.inf, np.float32), np.zeros((N, N), np.float32)
    step = max(1, _AT_ONCE_BYTES // (4 * N**2))
    for start in range(0, len(counts), step):
        part = counts[start : start + step]
        if factor is not None:
            part *= factor
        sums[start : start + step] = part.sum(axis=(1, 2), dtype=np.float64)
        np.minimum(lowest, part.min(axis=0), out=lowest)
        np.maximum(highest, part.max(axis=0), out=highest)
        storage.release()
    return sums, lowest, highest


def _mask(
    raw: RawScan, window: Window, bad: BadPixels, light: NDArray[np.float64], reading: ReadingConfig
) -> NDArray[np.bool_] | None:
    """The pixels (N, N) that count, None if all do; `light` (N, N) is what the window saw."""
    good = ~bad.found
    parts = [(raw.good, "the file's mask")]
    if reading.mask:
        parts.append((read_mask(reading.mask), "`data.mask`"))
    for part, name in parts:
        if part is None:
            continue
        if part.shape != good.shape:
            raise ValueError(f"`data.mask` (={name}, {size_text(part)}) must be {size_text(good)}, as the frames")
        good = good & part
    mask = window.inside & window.all_of(good)
    if mask.all():
        return None
    share = float((light * mask).sum() / max(light.sum(), np.finfo(float).tiny))
    if share < _LEAST_UNMASKED and mask.mean() < 0.5:  # a few hot pixels may hold most of the light
        raise ValueError(
            f"`data.mask` (={mask.sum()} of {mask.size} pixels count) must leave most of the light, not"
            f" {100 * share:.1f} %: is a mask upside down? 1 and True are pixels that count (`bad_pixels`: that do not)"
        )
    return np.asarray(mask)


def _photon_factor(
    counts: NDArray[np.float32], light: Light, raw: RawScan, reading: ReadingConfig
) -> tuple[np.float32 | None, list[str]]:
    """What makes counts of patterns that were normalised, with a note; refused if nobody says how many they hold."""
    normalised = light.mean < 1 and not _are_whole(counts)
    photons = reading.photons_per_pattern or (raw.photons_per_pattern if normalised else None)
    if photons is not None:
        note = f"patterns were scaled to {photons:g} counts on average"
        return np.float32(photons * len(counts) / light.seen.sum()), [note]
    if normalised:
        raise ValueError(
            f"`{raw.frames.key}` (=on average {light.mean:.3g} a pixel, in fractions) must be counts: these were"
            " normalised, so photon noise is unknown; `data.photons_per_pattern` says how many the mean pattern holds"
        )
    return None, []


def is_normalised(counts: NDArray[np.float32]) -> bool:
    """Whether the first patterns (k, N, N) are no counts but shares of something: small, and not whole."""
    return float(counts[:_SOME].mean(dtype=np.float64)) < 1 and not _are_whole(counts)


def _are_whole(counts: NDArray[np.float32]) -> bool:
    """Whether small counts are mostly whole numbers but 0, to the rounding of amplitudes in half precision."""
    some = counts[:_SOME]
    small = some[(some > 0) & (some < _SMALL_COUNTS)]
    return bool(len(small) == 0 or np.mean(np.abs(small - np.rint(small).clip(min=1)) < _ROUNDING) > 0.5)


def _check_memory(n: int, N: int) -> None:
    free, needed = psutil.virtual_memory().available, 4 * n * N**2
    if needed > _MEMORY_SHARE * free:
        raise ValueError(
            f"`data.N` (={N}) must be smaller, or `data.skip_frames` leave some out: {n} patterns take"
            f" {needed >> 20} MiB, and {free >> 20} MiB are free"
        )
