"""CXI files, as cdtools, ptychodus, PyNX and SHARP write them, and NeXus' NXcxi_ptycho."""

import math
import re
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fnostab.config import ReadingConfig
from fnostab.formats.frames import frames_of
from fnostab.formats.product import first_coherent, read_product, scan_of
from fnostab.formats.raw import HC_EV_M, Format, OptionalImage, RawScan, ScanFile, Setup
from fnostab.formats.scan import checked_positions, size_text
from fnostab.formats.values import by_rows, energy_eV, energy_of_wavelength, in_metres, length_m, present

#: A pixel is good if its mask is 0, or says only that it has a signal (CXI file format 1.6, pixel masks).
_HAS_SIGNAL: Final = 0x1000
#: Steps of the detector's rows and columns where a file has none: y points up, x to the left as the beam sees it.
_BASIS: Final = np.array([[0, -1, 0], [-1, 0, 0]], np.float64)
#: The cosine of the largest angle, one degree, by which detectors may be turned.
_STRAIGHT: Final = np.cos(np.deg2rad(1))
#: Pixels whose sides differ by a smaller part are square.
_SAME_PIXEL: Final = 0.01
#: What PyNX takes for Planck's constant times the speed of light, in eV m, when it writes an energy.
_PYNX_EV_M: Final = 12384e-10 * 1.60218 / 1.602176634
_TRANSLATIONS: Final = ("data_1/translation", "sample_1/geometry_1/translation", "instrument_1/detector_1/translation")


def _entry(file: ScanFile) -> str | None:
    """The first group `/entry_<i>` with patterns."""
    entries = sorted({key.split("/")[1] for key in file.keys if re.match(r"/entry_\d+/", key)})
    return next((f"/{entry}" for entry in entries if _patterns(file, f"/{entry}")), None)


def _patterns(file: ScanFile, entry: str) -> str | None:
    return present(file, f"{entry}/data_1/data", f"{entry}/instrument_1/detector_1/data")


def _read(file: ScanFile, reading: ReadingConfig) -> RawScan:
    entry = _entry(file)
    key = entry and _patterns(file, entry)
    if not entry or not key:
        raise file.fault("must hold patterns under `/entry_1/data_1/data`")
    setup, good = _setup(file, entry), _good(file, entry)
    if reading.positions:
        product = read_product(Path(reading.positions))
        count = math.prod(file.stored(key).shape[:-2])
        return scan_of(frames_of(file.stored(key), key, count), None, product, setup, good=good)
    positions, name = _positions(file, entry, reading)
    return RawScan(
        frames=frames_of(file.stored(key), key, len(positions)),
        positions=positions,
        key=name,
        unit="m",
        good=good,
        probe=_probe(file, entry),
        setup=setup,
        notes=_notes(file, entry),
    )


def _positions(file: ScanFile, entry: str, reading: ReadingConfig) -> tuple[NDArray[np.float64], str]:
    """Positions (n, 2) in metres and their name.

    CXI gives the sample's, and the beam moves over it the other way: against them along the steps of the detector's
    rows and columns. Without `basis_vectors`, that is y for rows and x for columns.
    """
    key = present(file, *(f"{entry}/{name}" for name in _TRANSLATIONS))
    if key:
        array = by_rows(file.read(key))
        first = name = key
        xy = checked_positions({key: array[..., :2] if array.shape[-1:] == (3,) else array})
    else:
        groups = (f"{entry}/data", f"{entry}/data_1", f"{entry}/sample_1/transformations")
        axes = next(
            (axes for group in groups if all(axes := [present(file, f"{group}/{axis}") for axis in "xy"])), None
        )
        if axes is None:
            raise file.fault(
                f"must hold positions, as `{entry}/{_TRANSLATIONS[0]}`; if they are in ptychodus' product, name it in"
                " `data.positions`"
            )
        first, name = str(axes[0]), ", ".join(map(str, axes))
        xy = checked_positions({str(axis): file.read(str(axis)) for axis in axes})
    rows, columns = (np.rint(step / np.linalg.norm(step))[:2] for step in _basis(file, entry))
    return in_metres(np.stack([-xy @ rows, -xy @ columns], axis=1), file, first, reading), name


def _basis(file: ScanFile, entry: str) -> NDArray[np.float64]:
    """The steps (2, 3) from row to row and from column to column; refused unless they lie along x and y."""
    key = present(file, f"{entry}/instrument_1/detector_1/basis_vectors")
    if key is None:
        return _BASIS
    array = file.read(key)
    steps = array.T if array.shape == (3, 2) else array
    if array.dtype.kind in "iuf":
        with np.errstate(all="ignore"):
            steps = steps.astype(np.float64)
    if (
        steps.dtype != np.float64
        or steps.shape != (2, 3)
        or not np.isfinite(steps).all()
        or not steps.any(axis=1).all()
    ):
        raise ValueError(
            f"`{key}` (={size_text(array)}) must be the two steps of the detector's pixels, (2, 3) or (3, 2)"
        )
    along = np.abs(steps[:, :2]) / np.linalg.norm(steps, axis=1, keepdims=True)
    if along.max(axis=1).min() < _STRAIGHT or along[0].argmax() == along[1].argmax():
        raise ValueError(f"`{key}` (={steps.tolist()}) must lie along x and y, to one degree")
    return steps


def _setup(file: ScanFile, entry: str) -> Setup:
    detector, source = f"{entry}/instrument_1/detector_1", f"{entry}/instrument_1/source_1"
    beams = [f"{entry}/{place}beam_1" for place in ("instrument_1/", "sample_1/", "")]
    energies = [
        energy_eV(
            file, present(file, *(f"{beam}/{name}" for beam in beams for name in ("incident_beam_energy", "energy")))
        ),
        energy_of_wavelength(length_m(file, present(file, f"{source}/wavelength"))),
        energy_eV(file, present(file, f"{source}/energy"), "j"),
    ]
    energy = next(filter(None, energies), None)
    if energy and str(file.attributes("/").get("creator")) == "PyNX":
        energy *= HC_EV_M / _PYNX_EV_M
    pixels = [length_m(file, present(file, f"{detector}/{axis}_pixel_size")) for axis in "xy"]
    if present(file, f"{detector}/basis_vectors") and not any(pixels):
        pixels = [float(size) for size in np.linalg.norm(_basis(file, entry), axis=1)]
    x, y = pixels
    if x and y and abs(x / y - 1) > _SAME_PIXEL:
        raise ValueError(
            f"`{detector}/x_pixel_size` (={x:g} m) must be as y_pixel_size, {y:g} m: pixels must be square"
        )
    return Setup(energy, length_m(file, present(file, f"{detector}/distance")), x or y)


def _good(file: ScanFile, entry: str) -> NDArray[np.bool_] | None:
    """The pixels (H, W) that count in every frame."""
    detector = f"{entry}/instrument_1/detector_1"
    key = present(file, f"{detector}/mask", f"{detector}/pixel_mask")
    if key is None:
        return None
    mask = file.read(key)
    good = (mask == 0) | (mask == _HAS_SIGNAL)
    return np.asarray(good.all(axis=tuple(range(good.ndim - 2))))


def _probe(file: ScanFile, entry: str) -> OptionalImage | None:
    key = present(file, f"{entry}/instrument_1/source_1/illumination")
    return OptionalImage(key, lambda: first_coherent(file.read(str(key)))) if key else None


def _notes(file: ScanFile, entry: str) -> tuple[str, ...]:
    """What is in the file and not used."""
    notes = []
    others = sorted({key.split("/")[1] for key in file.keys if re.match(r"/entry_\d+/", key)} - {entry[1:]})
    if others:
        notes.append(f"only `{entry}` was read, not {', '.join(others[:5])}")
    for name, what in (("data_dark", "was not subtracted"), ("data_white", "was not divided by")):
        if present(file, f"{entry}/instrument_1/detector_1/{name}"):
            notes.append(f"`{name}` {what}")
    return tuple(notes)


FORMAT: Final = Format(
    name="cxi",
    title="CXI, as cdtools, ptychodus, PyNX and SHARP write it; NXcxi_ptycho",
    container="HDF5",
    holds="/entry_1/data_1/data (n, H, W), centred counts; /entry_1/data_1/translation (n, 3), the sample's, in "
    "metres, or x and y of NXcxi_ptycho; detector_1/distance, x_pixel_size, basis_vectors, mask, source_1/energy, "
    "source_1/illumination: optional",
    source="www.cxidb.org/cxi.html, version 1.6; cdtools 0.3.2; ptychodus 1.7; NXcxi_ptycho of the NeXus definitions",
    matches=lambda file: _entry(file) is not None,
    read=_read,
)
