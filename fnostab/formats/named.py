"""Any HDF5 or NPZ file whose arrays `data.paths` names."""

from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fnostab.config import ReadingConfig
from fnostab.config.section import did_you_mean
from fnostab.formats.containers import open_container
from fnostab.formats.frames import Stored, frames_of
from fnostab.formats.matlab import MatlabFile, is_matlab
from fnostab.formats.paths import PRESETS, ArrayPaths, array_paths
from fnostab.formats.raw import Format, OptionalImage, RawScan, ScanFile, Setup
from fnostab.formats.scan import checked_positions, key_list
from fnostab.formats.values import by_rows, energy_eV, energy_of_wavelength, in_metres, length_m, present, units

_PIXELS: Final = ("px", "pixel", "pixels")
#: Names of a file that are compared with one that is not there.
_MOST_COMPARED: Final = 2000


class _Found(NamedTuple):
    """An array that was found: its file and key, the unit that its name says, and whether its negative is meant."""

    file: ScanFile
    key: str
    unit: str | None
    negative: bool


class _Arrays:
    """The named arrays of a scan's file and of the one beside it, which is looked into first."""

    def __init__(self, files: Sequence[ScanFile], paths: ArrayPaths) -> None:
        self._files, self._paths = files, paths

    def find(self, name: str) -> _Found | None:
        """Find an array; None if it was not named."""
        place = self._paths.places.get(name)
        if place is None:
            return None
        for file in self._files:
            for said in place.keys:
                if key := present(file, said):
                    return _Found(file, key, place.unit, said in place.negative)
        looked = " or ".join(f"`{key}`" for key in place.keys)
        keys = [key for file in self._files for key in file.keys[:_MOST_COMPARED]]
        rule = f"must hold {looked}, which `data.paths` names for `{name}`; it holds {key_list(keys)}"
        raise self._files[-1].fault(rule + did_you_mean(place.keys[0], keys))

    def needed(self, name: str) -> _Found:
        """As `find`, for an array that was named."""
        found = self.find(name)
        assert found is not None
        return found


def _read(file: ScanFile, reading: ReadingConfig) -> RawScan:
    if not reading.paths:
        raise file.fault("must be read with `data.paths`, as patterns=/entry/data/data,x_um=/entry/x,y_um=/entry/y")
    paths = array_paths(reading.paths)
    main = _with_own_axes(file)
    with ExitStack() as stack:
        files = [main]
        if reading.positions:
            other = stack.enter_context(closing(open_container(Path(reading.positions), "data.positions")))
            files.insert(0, _with_own_axes(other))
        arrays = _Arrays(files, paths)
        patterns = _Arrays([main], paths).needed("patterns").key
        axes = _frame_axes(main.stored(patterns))
        positions, key, unit = _positions(arrays, paths, axes, reading)
        n = len(positions)
        stored = main.frames(patterns, n) if isinstance(main, MatlabFile) else main.stored(patterns)
        is_whole = stored.dtype.kind in "iu"
        return RawScan(
            frames=frames_of(stored, patterns, n),
            positions=positions,
            key=key,
            unit=unit,
            fft_ordered=paths.fft_ordered,
            quantity=paths.quantity or ("counts" if is_whole else None),
            probe=_image(arrays, "probe", main, reading),
            object=_image(arrays, "object", main, reading),
            good=_good(arrays),
            setup=_setup(arrays),
            object_pixel_m=_length(arrays, "object_pixel"),
            notes=paths.notes,
        )


def _with_own_axes(file: ScanFile) -> ScanFile:
    return MatlabFile(file) if is_matlab(file) else file


def _frame_axes(stored: Stored) -> tuple[int, ...]:
    """The axes of a raster (ny, nx) that patterns keep; () if they are in one row."""
    return stored.shape[:-2] if len(stored.shape) == 4 and 1 not in stored.shape[:-2] else ()


def _positions(
    arrays: _Arrays, paths: ArrayPaths, raster: tuple[int, ...], reading: ReadingConfig
) -> tuple[NDArray[np.float64], str, Any]:
    """Positions (n, 2), row before column, their names and their unit, px or m."""
    both = next((name for name in ("xy", "yx") if name in paths.places), None)
    found = [arrays.needed(name) for name in ((both,) if both else ("y", "x"))]
    values, in_pixels = {}, set()
    for part in found:
        array, unit = part.file.read(part.key), _unit(part, reading)
        in_pixels.add(unit in _PIXELS)
        array = array if unit in _PIXELS else in_metres(array, part.file, part.key, reading, unit)
        values[part.key] = -1.0 * array if part.negative else array
    name = ", ".join(values)
    if len(in_pixels) > 1 or len(values) < len(found):
        raise ValueError(f"`{name}` must be x and y, two arrays, both in pixels or both in units of length")
    if both:
        array = by_rows(values[name])
        values = {name: array[..., 1::-1] if both == "xy" else array[..., :2]}
    elif raster == tuple(array.size for array in values.values()):
        grid = np.meshgrid(*(array.ravel() for array in values.values()), indexing="ij")
        values = dict(zip(values, grid, strict=True))
    return checked_positions(values), name, "px" if in_pixels == {True} else "m"


def _unit(part: _Found, reading: ReadingConfig) -> str:
    """The unit of positions: the file's, else that of their name; `data.unit` stands above both."""
    unit = units(part.file, part.key) or part.unit
    if unit is None and reading.unit == "auto":
        raise ValueError(f"`data.unit` (=auto) must say what `{part.key}` is in: neither its file nor its name does")
    return unit or "m"


def _image(arrays: _Arrays, name: str, main: ScanFile, reading: ReadingConfig) -> OptionalImage | None:
    """A probe or object, read when it is used; by then the file beside the scan's is closed, and opened again."""
    found = arrays.find(name)
    if found is None:
        return None
    file, key = found.file, found.key

    def read() -> NDArray[Any]:
        if file is main:
            return main.stored(key).whole()
        with closing(open_container(Path(reading.positions), "data.positions")) as other:
            return _with_own_axes(other).stored(key).whole()

    return OptionalImage(key, read)


def _good(arrays: _Arrays) -> NDArray[np.bool_] | None:
    """The pixels (H, W) that `mask` says count, and `bad_pixels` does not say do not."""
    good = None
    for name, is_good in (("mask", True), ("bad_pixels", False)):
        if found := arrays.find(name):
            part = (found.file.stored(found.key).whole() != 0) == is_good
            part = part.all(axis=tuple(range(part.ndim - 2)))
            good = part if good is None else good & part
    return good


def _setup(arrays: _Arrays) -> Setup:
    energy = arrays.find("energy")
    return Setup(
        energy_eV=energy_eV(energy.file, energy.key, energy.unit)
        if energy
        else energy_of_wavelength(_length(arrays, "wavelength")),
        distance_m=_length(arrays, "distance"),
        detector_pixel_m=_length(arrays, "detector_pixel"),
    )


def _length(arrays: _Arrays, name: str) -> float | None:
    found = arrays.find(name)
    return length_m(found.file, found.key, found.unit or "m") if found else None


FORMAT: Final = Format(
    name="named",
    title="any HDF5 or NPZ file, by the names of its arrays in `data.paths`",
    container="NPZ or HDF5",
    holds="patterns (n, H, W), (ny, nx, H, W) or (H, W, n); x and y, or xy or yx (n, 2), of window corners; probe, "
    "object, mask, bad_pixels, energy, wavelength, distance, detector_pixel, object_pixel: optional; presets: "
    + ", ".join(sorted(preset.stem for preset in PRESETS.glob("*.yaml"))),
    source="the user's own",
    matches=lambda file: False,
    read=_read,
)
