"""A scan's patterns: which part of the detector they are of, and their counts and mask."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import psutil
from numpy.typing import NDArray

from fnostab.config import ReadingConfig
from fnostab.dataset.checks import Light
from fnostab.dataset.detector import BadPixels, Window, light_centre
from fnostab.dataset.grid import Grid
from fnostab.formats.mask import read_mask
from fnostab.formats.raw import RawScan
from fnostab.formats.scan import size_text

#: Patterns that tell where the light's centre is, and whether they are counts.
_SOME: Final = 200
#: A mask that leaves a smaller share of the light, and of the pixels less than half, was read upside down.
_LEAST_UNMASKED: Final = 0.2
#: Counts under this are looked at to tell counts from normalised patterns, and how near to whole numbers they are then.
_SMALL_COUNTS: Final = 20
_ROUNDING: Final = 0.1
#: Patterns may take so much of the free memory.
_MEMORY_SHARE: Final = 0.5


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


def read_patterns(
    raw: RawScan, window: Window, kept: NDArray[np.bool_], reading: ReadingConfig, squared: bool
) -> Patterns:
    """Read the frames that are `kept`, bool (n,), some at a time: cut, binned, masked and in counts.

    They are `squared` if they are amplitudes. Raises ValueError, in one line, for patterns that are refused.
    """
    frames, N, n = raw.frames, window.N, int(kept.sum())
    _check_memory(n, N)
    counts, bad = np.empty((n, N, N), np.float32), BadPixels(frames, reading)
    seen = np.zeros((frames.height, frames.width))
    done = 0
    for start, chunk in frames.chunks():
        chosen = np.flatnonzero(kept[start : start + len(chunk)])
        chunk = bad.taken_out(start + chosen, chunk if len(chosen) == len(chunk) else chunk[chosen], window)
        with np.errstate(over="ignore"):  # what overflows float32 becomes infinite and is refused below
            values = np.square(chunk, dtype=np.float32) if squared else chunk
            seen += values.sum(axis=0, dtype=np.float64)
            counts[done : done + len(chunk)] = window.added_up(window.cut(values).astype(np.float32, copy=False))
        done += len(chunk)
    if not np.isfinite(counts.max()):
        raise ValueError(f"`{frames.key}` (=over {np.finfo(np.float32).max:.3g}) must be finite in single precision")
    light, notes = Light(seen, window, full_at=bad.full_at), []
    mask = _mask(raw, window, bad, light, reading)
    if mask is not None:
        counts *= mask
        notes.append(f"{mask.size - mask.sum()} of {mask.size} pixels of a pattern are masked and count nowhere")
    if not seen.any():
        raise ValueError(f"`{frames.key}` (=0 everywhere) must hold some counts")
    if not counts.any():
        raise ValueError(f"`data.N` (={N}) must be larger: the middle of the patterns holds no counts")
    notes += _scale_to_photons(counts, light, raw, reading)
    return Patterns(counts, mask, light, notes)


def _mask(
    raw: RawScan, window: Window, bad: BadPixels, light: Light, reading: ReadingConfig
) -> NDArray[np.bool_] | None:
    """The pixels (N, N) that count, None if all do."""
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
    share = float((light.kept * mask).sum() / max(light.kept.sum(), np.finfo(float).tiny))
    if share < _LEAST_UNMASKED and mask.mean() < 0.5:  # a few hot pixels may hold most of the light
        raise ValueError(
            f"`data.mask` (={mask.sum()} of {mask.size} pixels count) must leave most of the light, not"
            f" {100 * share:.1f} %: is a mask upside down? 1 and True are pixels that count (`bad_pixels`: that do not)"
        )
    return np.asarray(mask)


def _scale_to_photons(counts: NDArray[np.float32], light: Light, raw: RawScan, reading: ReadingConfig) -> Iterator[str]:
    """Scale patterns that were normalised to counts, in place, with a note; refuse them if nobody says to how many."""
    normalised = float(counts.mean(dtype=np.float64)) < 1 and not _are_whole(counts)
    photons = reading.photons_per_pattern or (raw.photons_per_pattern if normalised else None)
    if photons is not None:
        counts *= np.float32(photons * len(counts) / light.seen.sum())
        yield f"patterns were scaled to {photons:g} counts on average"
    elif normalised:
        raise ValueError(
            f"`{raw.frames.key}` (=on average {counts.mean():.3g} a pixel, in fractions) must be counts: these were"
            " normalised, so photon noise is unknown; `data.photons_per_pattern` says how many the mean pattern holds"
        )


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
