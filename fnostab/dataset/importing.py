"""Measured scans as this package trains on them: N x N counts, positions in pixels, probe modes, a mask."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fnostab import optics
from fnostab.config import ReadingConfig
from fnostab.dataset.checks import scan_warnings
from fnostab.dataset.grid import Grid, corners_px, grid_of, setup_of, unit_of
from fnostab.dataset.patterns import read_patterns, window_of
from fnostab.formats.probe import read_modes
from fnostab.formats.raw import RawScan
from fnostab.formats.registry import open_scan
from fnostab.formats.scan import MIN_POSITIONS, Quantity, Scan, checked_image, checked_modes
from fnostab.io.scratch import Storage

#: The file is taken at its word.
_AS_IT_IS: Final = ReadingConfig()
#: Modes with a smaller share of the light are left out, unless they are asked for.
_LEAST_LIGHT: Final = 0.01
#: Nothing is so far away, and positions against it would lose their fractions of a pixel.
_FAR_PX: Final = 1e9


def import_scan(
    path: str | Path,
    N: int | None = None,
    quantity: Quantity = "auto",
    probe: str | Path | NDArray[Any] | None = None,
    reading: ReadingConfig = _AS_IT_IS,
    probe_needed: bool = True,
    storage: Storage | None = None,
) -> Scan:
    """Read a measured scan and bring it to N x N patterns; the detector's shorter side, if that is None.

    Frames are read in parts: the part of the detector about zero frequency is cut out, binned, masked and converted.
    Cropping makes pixels M / N times larger: the probe's spectrum is cropped alike, positions shrink by N / M, and the
    file's `object` is resampled; binning narrows the field of view. What lies beyond the detector is masked. `quantity`
    `auto` means what the format says, and is refused where it leaves that open: a guess would be wrong in silence.
    `probe`, an array of modes or one (M, M), or an NPZ file, stands in for the scan's own, which is not looked at then;
    of another size, it is resampled. The counts are kept in `storage`, by default in memory. Raises ValueError, in one
    line, for a file or values that are refused, and, with `probe_needed`, if there is no probe.
    """
    notes: list[str] = []
    with open_scan(path, reading) as (kind, raw):
        squared = is_amplitude(raw, quantity, path)
        kept = kept_frames(raw, reading)
        grid, setup = grid_of(raw, N, reading), setup_of(raw, reading)
        positions_px = corners_px(raw, grid, reading, kept)
        modes = modes_of(raw, probe, grid, reading, notes)
        if modes is None and probe_needed:
            raise ValueError(f"`data.probe` (=auto) must name a probe: there is none in {path}")
        obj, origin_px = _object(raw, grid, reading, notes)
        window, of_window = window_of(raw, grid, reading)
        if storage is not None and raw.frames.in_memory:
            notes.append(
                f"`{raw.frames.key}` is in memory as a whole while it is read: HDF5 files and plain .npz files"
                " that have the patterns along their first axis are read in parts"
            )
        patterns = read_patterns(raw, window, kept, reading, squared, storage)
        scan = Scan(
            counts=patterns.counts,
            positions_px=positions_px if obj is None else positions_px - origin_px,
            modes=modes,
            object=obj,
            layout=kind.name,
            mask=patterns.mask,
            pixel_size_m=grid.pixel_size_m,
            energy_eV=setup.energy_eV,
            distance_m=setup.distance_m,
            notes=(*raw.notes, *raw.frames.notes, *notes, *of_window, *patterns.notes),
        )
        return replace(scan, warnings=(*raw.warnings, *scan_warnings(scan, patterns.light)))


def is_amplitude(raw: RawScan, quantity: Quantity, path: str | Path) -> bool:
    """Whether patterns are amplitudes; refused where nothing says so."""
    if quantity == "auto" and raw.quantity is None:
        raise ValueError(
            f"`data.quantity` (=auto) must be counts or amplitude for {path}:"
            " patterns of such files are often amplitudes, and nothing in the file says so"
        )
    return (raw.quantity if quantity == "auto" else quantity) == "amplitude"


def kept_frames(raw: RawScan, reading: ReadingConfig) -> NDArray[np.bool_]:
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
    if kept.sum() < MIN_POSITIONS:
        rule = f"must leave {MIN_POSITIONS} patterns or more, not {kept.sum()}"
        raise ValueError(f"`data.skip_frames` (={reading.skip_frames}) {rule}")
    return kept


def modes_of(
    raw: RawScan, probe: str | Path | NDArray[Any] | None, grid: Grid, reading: ReadingConfig, notes: list[str]
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
    if reading.modes is not None and reading.modes > len(modes):
        raise ValueError(f"`data.modes` (={reading.modes}) must be at most {len(modes)}, the modes of the probe")
    if len(modes) == 1:
        return modes
    light = optics.energy(modes)
    order = np.argsort(-light, kind="stable")
    shares = light[order] / light.sum()
    k = int((shares > _LEAST_LIGHT).sum()) if reading.modes is None else reading.modes
    notes.append(
        f"{k} of the probe's {len(modes)} modes are used, with {100 * shares[:k].sum():.1f} % of its light;"
        f" the first has {100 * shares[0]:.1f} %"
    )
    return modes[order[:k]]


def _object(
    raw: RawScan, grid: Grid, reading: ReadingConfig, notes: list[str]
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
        with np.errstate(over="ignore", invalid="ignore"):
            origin = np.array(raw.object_middle) * grid.pixels_a(unit_of(raw, reading)) - np.array(obj.shape) / 2
        if not np.abs(origin).max() <= _FAR_PX:
            notes.append(f"`{raw.object.key}` is left out: its middle is given {np.abs(origin).max():.3g} pixels away")
            return None, np.zeros(2)
    resampled = obj if grid.scale == 1 else _resampled(obj, grid.N * grid.bin, grid.M)
    return resampled, origin * grid.scale


def _resampled(obj: NDArray[np.complex64], N: int, M: int) -> NDArray[np.complex64]:
    """`obj` (H, W) band-limited to pixels M / N times larger; its edge is repeated to a size that this divides."""
    from scipy.signal import resample  # half a second, for the few scans that need it

    whole = M // math.gcd(N, M)
    padded = np.pad(obj, [(0, -length % whole) for length in obj.shape], mode="edge")
    for axis, length in enumerate(padded.shape):
        padded = resample(padded, length * N // M, axis=axis)
    return np.asarray(padded, dtype=np.complex64)
