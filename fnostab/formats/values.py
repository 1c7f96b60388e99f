"""Single values of a scan file, in the units that this package counts in."""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fnostab.config import METRES, ReadingConfig
from fnostab.formats.raw import HC_EV_M, JOULES_PER_EV, ScanFile
from fnostab.io.untrusted import shown

#: Metres in the units of length that files name, in lower case.
_LENGTHS: Final = {
    **METRES,
    **dict.fromkeys(("meter", "metre", "meters", "metres"), 1.0),
    **dict.fromkeys(("micron", "microns", "micrometer", "\N{MICRO SIGN}m", "\N{GREEK SMALL LETTER MU}m"), 1e-6),
}
_EV_IN_JOULE: Final = 1 / JOULES_PER_EV
_ENERGIES: Final = {"ev": 1.0, "kev": 1e3, "mev": 1e6, "gev": 1e9, "j": _EV_IN_JOULE, "joule": _EV_IN_JOULE}
#: Values that say they are one number may differ by this part, as an energy that was read at every position.
_SAME: Final = 1e-3
#: The largest energy of a photon that ptychography uses; machines have more.
_MOST_EV: Final = 1e6


def present(file: ScanFile, *names: str) -> str | None:
    """The first of `names` that the file holds, as it calls it: HDF5 files have a slash before names of NPZ files."""
    keys = set(file.keys)
    candidates = (key for name in names for key in (name, f"/{name}"))
    return next((key for key in candidates if key in keys), None)


def real(values: Any) -> float | None:
    """One finite number from an array or attribute that holds it, if need be several times; else None."""
    given = np.asarray(values)
    if given.dtype.kind not in "biuf" or not given.size:
        return None
    with np.errstate(all="ignore"):
        numbers = given.astype(np.float64).ravel()
        same = np.isfinite(numbers).all() and np.ptp(numbers) <= _SAME * abs(numbers[0])
    return float(numbers[0]) if same else None


def single(values: Any) -> float | None:
    """One number as `real` gives it, without its sign; None for zero, which stands for what is not known."""
    return abs(real(values) or 0) or None


def number(file: ScanFile, key: str | None) -> float | None:
    """The number under `key`, without its sign, as a distance may have one; None if there is none that can be used."""
    if key is None:
        return None
    try:
        return single(file.read(key))
    except ValueError:
        return None


def units(file: ScanFile, key: str) -> str | None:
    """What the attribute `units` of `key` says, in lower case; None if there is none."""
    value = file.attributes(key).get("units", file.attributes(key).get("unit"))
    text = np.asarray(value).ravel()[0] if value is not None and np.size(value) else None
    if isinstance(text, bytes):
        text = text.decode("utf-8", "replace")
    return text.strip().lower() or None if isinstance(text, str) else None


def length_m(file: ScanFile, key: str | None, otherwise: str = "m") -> float | None:
    """The length under `key` in metres, by its units, else `otherwise`; None if it cannot be used."""
    value = number(file, key)
    if value is None or key is None:
        return None
    factor = _LENGTHS.get(units(file, key) or otherwise.lower())
    return None if factor is None else value * factor


def in_metres(
    positions: NDArray[np.float64], file: ScanFile, key: str, reading: ReadingConfig, otherwise: str = "m"
) -> NDArray[np.float64]:
    """Positions in metres, by the units of `key`, or `otherwise` where the file names none.

    Left as they are where `data.unit` says what they are in. Raises ValueError, in one line, for units of no length.
    """
    if reading.unit != "auto":
        return positions
    unit = units(file, key) or otherwise.lower()
    if unit not in _LENGTHS:
        raise ValueError(f"`{key}` (=in {shown(unit)}) must be in a unit of length; `data.unit` says which, if not")
    with np.errstate(all="ignore"):  # what overflows has no extent in pixels, and is refused for that
        return positions * _LENGTHS[unit]


def energy_eV(file: ScanFile, key: str | None, otherwise: str | None = None) -> float | None:
    """The energy of a photon under `key`; None if it cannot be used, or is a machine's.

    Where neither the file nor `otherwise` names a unit, the size of the number tells joules, keV and eV apart: no
    photon of ptychography has 10 eV or 150 keV.
    """
    value = number(file, key)
    if value is None or key is None:
        return None
    unit = units(file, key) or (otherwise or ("j" if value < 1e-12 else "kev" if value < 150 else "ev")).lower()
    energy = value * _ENERGIES.get(unit, np.inf)
    return energy if energy < _MOST_EV else None


def energy_of_wavelength(wavelength_m: float | None) -> float | None:
    """The energy in eV of photons of this wavelength."""
    return None if wavelength_m is None else HC_EV_M / wavelength_m


def by_rows(array: NDArray[Any]) -> NDArray[Any]:
    """Positions (n, 2) or (n, 3), from their transposed too; scans have more positions than space has axes."""
    return array.T if array.ndim == 2 and array.shape[0] in (2, 3) and array.shape[1] not in (2, 3) else array
