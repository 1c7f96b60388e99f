"""Measured scans as this package trains on them: N x N counts, positions in pixels, probe modes, a mask."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import psutil
from numpy.typing import NDArray
from scipy.signal import resample

from fnostab import optics
from fnostab.config import METRES, ReadingConfig
from fnostab.dataset.checks import Light, scan_warnings
from fnostab.dataset.detector import BadPixels, Window, light_centre
from fnostab.dataset.orientations import ORIENTATIONS
from fnostab.formats.mask import read_mask
from fnostab.formats.npz import read_modes
from fnostab.formats.raw import RawScan, Setup
from fnostab.formats.registry import open_scan
from fnostab.formats.scan import (
    MIN_POSITIONS,
    Quantity,
    Scan,
    check_extent,
    check_overlap,
    checked_image,
    checked_modes,
    size_text,
)

#: The file is taken at its word.
_AS_IT_IS: Final = ReadingConfig()
#: Patterns that tell where the light's centre is.
_CENTRE_FRAMES: Final = 200
#: Modes with a smaller share of the light are left out, unless they are asked for.
_LEAST_LIGHT: Final = 0.01
#: A mask that leaves a smaller share of the light is taken as one that was read upside down.
_LEAST_UNMASKED: Final = 0.2
#: Counts under this are looked at to tell counts from normalised patterns, and how near to whole numbers they are then.
_SMALL_COUNTS: Final = 20
_ROUNDING: Final = 0.1
#: Patterns may take so much of the free memory.
_MEMORY_SHARE: Final = 0.5


def import_scan(
    path: str | Path,
    N: int | None = None,
    quantity: Quantity = "auto",
    probe: str | Path | NDArray[Any] | None = None,
    reading: ReadingConfig = _AS_IT_IS,
    probe_needed: bool = True,
) -> Scan:
    """Read a measured scan and bring it to N x N patterns; the detector's shorter side, if that is None.

    Frames are read in parts: the part of the detector about zero frequency is cut out, binned, masked and converted.
    Cropping makes pixels M / N times larger: the probe's spectrum is cropped alike, positions shrink by N / M, and the
    file's `object` is resampled; binning narrows the field of view. What lies beyond the detector is masked. `quantity`
    `auto` means what the format says, and is refused where it leaves that open: a guess would be wrong in silence.
    `probe`, an array of modes or one (M, M), or an NPZ file, stands in for the scan's own, which is not looked at then;
    of another size, it is resampled. Raises ValueError, in one line, for a file or values that are refused, and, with
    `probe_needed`, if there is no probe.
    """
    notes: list[str] = []
    with open_scan(path, reading) as (kind, raw):
        squared = _is_amplitude(raw, quantity, path)
        kept = _kept(raw, reading)
        grid, setup = _grid(raw, N, reading), _setup(raw, reading)
        positions_px = _positions(raw, grid, reading)
        modes = _modes(raw, probe, grid, reading, notes)
        if modes is None and probe_needed:
            raise ValueError(f"`data.probe` (=auto) must name a probe: there is none in {path}")
        obj, origin_px = _object(raw, grid, reading, notes)
        window = _window(raw, grid, reading, notes)
        counts, mask, light = _patterns(raw, window, kept, reading, squared, notes)
        scan = Scan(
            counts=_in_photons(counts, light, len(counts), raw, reading, notes),
            positions_px=(positions_px if obj is None else positions_px - origin_px)[kept],
            modes=modes,
            object=obj,
            layout=kind.name,
            mask=mask,
            pixel_size_m=grid.pixel_size_m,
            energy_eV=setup.energy_eV,
            distance_m=setup.distance_m,
            notes=(*raw.notes, *raw.frames.notes, *notes),
        )
        return replace(scan, warnings=(*raw.warnings, *scan_warnings(scan, light)))


@dataclass(frozen=True)
class _Grid:
    """The patterns' N pixels, of `bin` detector pixels each, on a detector of M pixels along its shorter side.

    `file_pixel_m` is the object's pixel for all M of them, None if it is not known.
    """

    M: int
    N: int
    bin: int
    file_pixel_m: float | None

    @property
    def scale(self) -> float:
        """Pixels of the object on this grid in one of the file's."""
        return self.N * self.bin / self.M

    @property
    def pixel_size_m(self) -> float | None:
        """The object's pixel on this grid."""
        return None if self.file_pixel_m is None else self.file_pixel_m / self.scale

    def pixels_a(self, unit: str) -> float:
        """The file's pixels in one `unit`."""
        return METRES[unit] / self.file_pixel_m if self.file_pixel_m and unit != "px" else 1.0


def _grid(raw: RawScan, N: int | None, reading: ReadingConfig) -> _Grid:
    frames, bin = raw.frames, reading.bin
    M, longer = sorted((frames.height, frames.width))
    if N is None:
        N = M // bin // 2 * 2 if bin > 1 else M
    if not 1 <= N <= longer // bin:
        binned = f" binned by {bin}" if bin > 1 else ""
        raise ValueError(f"`data.N` (={N}) must be <= {longer // bin}, the size of the patterns{binned}")
    pixel_m = reading.object_pixel_m or raw.object_pixel_m or _setup(raw, reading).object_pixel_m(M)
    return _Grid(M, N, bin, pixel_m)


def _setup(raw: RawScan, reading: ReadingConfig) -> Setup:
    """The experiment's geometry, what is given before what the file says."""
    energy_eV = None if reading.energy_keV is None else 1e3 * reading.energy_keV
    return Setup(
        energy_eV or raw.setup.energy_eV,
        reading.distance_m or raw.setup.distance_m,
        reading.detector_pixel_m or raw.setup.detector_pixel_m,
    )


def _is_amplitude(raw: RawScan, quantity: Quantity, path: str | Path) -> bool:
    """Whether patterns are amplitudes; refused where nothing says so."""
    if quantity == "auto" and raw.quantity is None:
        raise ValueError(
            f"`data.quantity` (=auto) must be counts or amplitude for {path}:"
            " patterns of such files are often amplitudes, and nothing in the file says so"
        )
    return (raw.quantity if quantity == "auto" else quantity) == "amplitude"


def _kept(raw: RawScan, reading: ReadingConfig) -> NDArray[np.bool_]:
    """Which frames are kept, bool (n,)."""
    n = raw.frames.n
    kept = np.ones(n, np.bool_)
    kept[reading.skipped(n)] = False
    scans = np.unique(raw.scan_index) if raw.scan_index is not None else np.zeros(1, np.int64)
    if reading.scan_index is not None:
        if raw.scan_index is None or reading.scan_index not in scans:
            listed = ", ".join(str(index) for index in scans[:20]) if raw.scan_index is not None else "no index"
            raise ValueError(f"`data.scan_index` (={reading.scan_index}) must be a scan of the file: it has {listed}")
        kept &= raw.scan_index == reading.scan_index
    elif len(scans) > 1:
        listed = ", ".join(str(index) for index in scans[:20])
        raise ValueError(f"`data.scan_index` (=None) must choose one of the file's {len(scans)} scans: {listed}")
    return kept


def _window(raw: RawScan, grid: _Grid, reading: ReadingConfig, notes: list[str]) -> Window:
    frames = raw.frames
    shape = frames.height, frames.width
    corner = raw.fft_ordered if reading.fft_order == "auto" else reading.fft_order == "corner"
    centre = frames.height // 2, frames.width // 2
    if reading.center == "auto":
        if corner:
            raise ValueError("`data.center` (=auto) must be left out for patterns in FFT order, whose centre is known")
        centre = _found_centre(raw, reading)
        notes.append(f"the light's centre, row {centre[0]}, column {centre[1]}, is taken as zero frequency")
    elif reading.center:
        centre = (int(reading.center.partition(",")[0]), int(reading.center.partition(",")[2]))
        if not all(0 <= index < length for index, length in zip(centre, shape, strict=True)):
            raise ValueError(f"`data.center` (={reading.center}) must lie on the detector, {shape[0]} x {shape[1]}")
    return Window.about(centre, shape, grid.N, grid.bin, corner)


def _found_centre(raw: RawScan, reading: ReadingConfig) -> tuple[int, int]:
    """The centre of the light of the first frames."""
    frames = raw.frames
    light = np.zeros((frames.height, frames.width))
    bad = BadPixels(frames, reading.model_copy(update={"bad_pixels": "mask"}))
    everything = Window.about((frames.height // 2, frames.width // 2), light.shape, min(light.shape), 1, False)
    for start, chunk in frames.chunks(_CENTRE_FRAMES):
        light += bad.taken_out(start, chunk, everything).sum(axis=0, dtype=np.float64)
    good = ~bad.found & (True if raw.good is None else raw.good)
    if not (light * good).any():
        raise ValueError(f"`data.center` (=auto) must find light: the first {_CENTRE_FRAMES} patterns hold none")
    return light_centre(light, good)


def _positions(raw: RawScan, grid: _Grid, reading: ReadingConfig) -> NDArray[np.float64]:
    """The windows' corners (n, 2) in pixels of the grid, turned as `reading` says."""
    unit = _unit(raw, reading)
    if unit != "px" and grid.file_pixel_m is None:
        raise ValueError(
            f"`data.unit` (={unit}) must be px where the object's pixel is not known: give `data.object_pixel_m`, or"
            " `data.energy_keV`, `data.distance_m` and `data.detector_pixel_m`"
        )
    positions = raw.positions if unit == "px" else raw.positions * grid.pixels_a(unit)
    if raw.reference == "middle":
        positions = positions - grid.M / 2
    positions = positions * grid.scale
    if grid.bin > 1:  # the window is narrower by that factor, about the same middle
        positions = positions + grid.N * (grid.bin - 1) / 2
    turned = ORIENTATIONS[reading.orient](positions)
    check_extent(turned, raw.key)
    check_overlap(turned, grid.N, raw.key)
    return turned


def _unit(raw: RawScan, reading: ReadingConfig) -> str:
    return raw.unit if reading.unit == "auto" else reading.unit


def _modes(
    raw: RawScan, probe: str | Path | NDArray[Any] | None, grid: _Grid, reading: ReadingConfig, notes: list[str]
) -> NDArray[np.complex64] | None:
    """The probe's modes (k, N, N) on the grid, the brightest first."""
    if isinstance(probe, np.ndarray):
        modes = checked_modes(probe, "probe")
    elif probe is not None:
        modes = read_modes(probe)
    elif raw.probe is not None:
        modes = checked_modes(raw.probe.read(), raw.probe.key)
    else:
        return None
    P, N, M, bin = modes.shape[-1], grid.N, grid.M, grid.bin
    if P != N:
        if P != M:
            notes.append(f"the probe was resampled from {P} x {P} to {N} x {N} pixels, with the same field of view")
        if bin > 1:
            modes = np.asarray(optics.crop_patterns(modes, P // bin))
        if modes.shape[-1] != N:
            modes = np.stack([optics.resample_probe(mode, N) for mode in modes])
    return _brightest(modes, reading, notes)


def _brightest(modes: NDArray[np.complex64], reading: ReadingConfig, notes: list[str]) -> NDArray[np.complex64]:
    """The modes that are used, the brightest first."""
    if len(modes) == 1:
        return modes
    light = optics.energy(modes)
    order = np.argsort(-light, kind="stable")
    shares = light[order] / light.sum()
    k = int((shares > _LEAST_LIGHT).sum()) if reading.modes is None else min(reading.modes, len(modes))
    notes.append(
        f"{k} of the probe's {len(modes)} modes are used, with {100 * shares[:k].sum():.1f} % of its light;"
        f" the first has {100 * shares[0]:.1f} %"
    )
    return modes[order[:k]]


def _object(
    raw: RawScan, grid: _Grid, reading: ReadingConfig, notes: list[str]
) -> tuple[NDArray[np.complex64] | None, NDArray[np.float64]]:
    """The object that came with the scan and its corner (2,), on the grid; None, with a note, if it cannot be used."""
    if raw.object is None:
        return None, np.zeros(2)
    if reading.orient != "as_given":
        notes.append(f"`{raw.object.key}` is left out: it lies to the positions as they were given")
        return None, np.zeros(2)
    try:
        obj = checked_image(raw.object.read(), raw.object.key)
    except ValueError as error:
        notes.append(f"the file's object is left out: {error}")
        return None, np.zeros(2)
    origin = np.zeros(2)
    if raw.object_middle is not None:
        origin = np.array(raw.object_middle) * grid.pixels_a(_unit(raw, reading)) - np.array(obj.shape) / 2
    resampled = obj if grid.scale == 1 else _resampled(obj, grid.N * grid.bin, grid.M)
    return resampled, origin * grid.scale


def _patterns(
    raw: RawScan,
    window: Window,
    kept: NDArray[np.bool_],
    reading: ReadingConfig,
    squared: bool,
    notes: list[str],
) -> tuple[NDArray[np.float32], NDArray[np.bool_] | None, Light]:
    """The counts (n, N, N), their mask, and what the detector saw."""
    frames, N, n = raw.frames, window.N, int(kept.sum())
    if n < MIN_POSITIONS:
        raise ValueError(f"`data.skip_frames` (={reading.skip_frames}) must leave {MIN_POSITIONS} patterns, not {n}")
    _check_memory(n, N)
    counts, bad = np.empty((n, N, N), np.float32), BadPixels(frames, reading)
    seen = np.zeros((frames.height, frames.width))
    done = 0
    for start, chunk in frames.chunks():
        chosen = kept[start : start + len(chunk)]
        chunk = bad.taken_out(start, chunk if chosen.all() else chunk[chosen], window)
        with np.errstate(over="ignore"):  # what overflows float32 becomes infinite and is refused below
            values = np.square(chunk, dtype=np.float32) if squared else chunk
            seen += values.sum(axis=0, dtype=np.float64)
            counts[done : done + len(chunk)] = window.added_up(window.cut(values).astype(np.float32, copy=False))
        done += len(chunk)
    if not np.isfinite(counts.max()):
        raise ValueError(f"`{frames.key}` (=over {np.finfo(np.float32).max:.3g}) must be finite in single precision")
    light = Light(seen, window, full_at=bad.full_at)
    mask = _mask(raw, window, bad, light, reading, notes)
    if mask is not None:
        counts *= mask
    if not seen.any():
        raise ValueError(f"`{frames.key}` (=0 everywhere) must hold some counts")
    if not counts.any():
        raise ValueError(f"`data.N` (={N}) must be larger: the middle of the patterns holds no counts")
    return counts, mask, light


def _mask(
    raw: RawScan, window: Window, bad: BadPixels, light: Light, reading: ReadingConfig, notes: list[str]
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
    if share < _LEAST_UNMASKED or not mask.any():
        raise ValueError(
            f"`data.mask` (={mask.sum()} of {mask.size} pixels count) must leave most of the light, not"
            f" {100 * share:.1f} %: is a mask upside down? 1 and True are pixels that count (`bad_pixels`: that do not)"
        )
    notes.append(f"{mask.size - mask.sum()} of {mask.size} pixels of a pattern are masked and count nowhere")
    return np.asarray(mask)


def _in_photons(
    counts: NDArray[np.float32], light: Light, n: int, raw: RawScan, reading: ReadingConfig, notes: list[str]
) -> NDArray[np.float32]:
    """The patterns in counts, if they were normalised; refused if nobody says to how many."""
    normalised = float(counts.mean(dtype=np.float64)) < 1 and not _are_whole(counts)
    photons = reading.photons_per_pattern or (raw.photons_per_pattern if normalised else None)
    if photons is not None:
        counts *= np.float32(photons * n / light.seen.sum())
        notes.append(f"patterns were scaled to {photons:g} counts on average")
    elif normalised:
        raise ValueError(
            f"`{raw.frames.key}` (=on average {counts.mean():.3g} a pixel, in fractions) must be counts: these were"
            " normalised, so photon noise is unknown; `data.photons_per_pattern` says how many the mean pattern holds"
        )
    return counts


def _are_whole(counts: NDArray[np.float32]) -> bool:
    """Whether small counts are mostly whole numbers, to the rounding of amplitudes in half precision."""
    some = counts[:_CENTRE_FRAMES]
    small = some[(some > 0) & (some < _SMALL_COUNTS)]
    return bool(len(small) == 0 or np.mean(np.abs(small - np.rint(small)) < _ROUNDING) > 0.5)


def _check_memory(n: int, N: int) -> None:
    free, needed = psutil.virtual_memory().available, 4 * n * N**2
    if needed > _MEMORY_SHARE * free:
        raise ValueError(
            f"`data.N` (={N}) must be smaller, or `data.skip_frames` leave some out: {n} patterns take"
            f" {needed >> 20} MiB, and {free >> 20} MiB are free"
        )


def _resampled(obj: NDArray[np.complex64], N: int, M: int) -> NDArray[np.complex64]:
    """`obj` (H, W) band-limited to pixels M / N times larger; its edge is repeated to a size that this divides."""
    whole = M // math.gcd(N, M)
    padded = np.pad(obj, [(0, -length % whole) for length in obj.shape], mode="edge")
    for axis, length in enumerate(padded.shape):
        padded = resample(padded, length * N // M, axis=axis)
    return np.asarray(padded, dtype=np.complex64)
