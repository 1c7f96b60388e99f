"""`data.paths`: where any HDF5 or NPZ file has its arrays, said by the user or by a preset."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from fnostab.config.section import did_you_mean
from fnostab.io.untrusted import printable, read_yaml, shown

#: The presets that come with the package: a YAML file each, which users copy and change.
PRESETS: Final = Path(__file__).parent / "presets"
#: What can be named, and of which kind it is: with a unit of length, a unit of energy, or without one.
_LENGTHS: Final = ("x", "y", "xy", "yx", "wavelength", "distance", "detector_pixel", "object_pixel")
_ENERGY: Final = ("energy",)
_UNITLESS: Final = ("patterns", "probe", "object", "mask", "bad_pixels")
_UNITS: Final = {
    **dict.fromkeys(_LENGTHS, ("px", "m", "mm", "um", "nm", "angstrom")),
    **dict.fromkeys(_ENERGY, ("eV", "keV", "J")),
    **dict.fromkeys(_UNITLESS, ()),
}
_POSITIONS: Final = (("x", "y"), ("xy",), ("yx",))
#: What a YAML file may hold.
_KEYS: Final = ("paths", "quantity", "fft_order", "about", "source", "sure")


@dataclass(frozen=True)
class Place:
    """Where an array is: under the first of `keys` that there is, in `unit` if the file names none.

    The negative of the array is meant for keys of `negative`.
    """

    keys: tuple[str, ...]
    unit: str | None
    negative: frozenset[str]


@dataclass(frozen=True)
class ArrayPaths:
    """The places of a scan's arrays, and what the patterns are.

    `quantity` None leaves that open. `file` is the YAML file that this comes from; `notes` are lines for people.
    """

    places: Mapping[str, Place]
    quantity: Literal["counts", "amplitude"] | None = None
    fft_ordered: bool = False
    file: Path | None = None
    notes: tuple[str, ...] = ()


def array_paths(text: str) -> ArrayPaths:
    """Read `data.paths`: NAME=PATH,NAME=PATH, the name of a preset, or that of a YAML file.

    A name may end in a unit, as x_um or energy_keV; a path that begins with a minus is of the negative. Raises
    ValueError, in one line, for unknown names, units, presets, and where patterns or positions are not named.
    """
    if "=" in text:
        parts = [part.partition("=") for part in text.split(",")]
        names = [name.strip() for name, _, _ in parts]
        if len(set(names)) < len(names):
            raise _wrong(text, "must name each array once")
        return ArrayPaths(_places({name: path.strip() for name, (_, _, path) in zip(names, parts, strict=True)}, text))
    shipped = {preset.stem: preset for preset in sorted(PRESETS.glob("*.yaml"))}
    path = shipped.get(text, Path(text))
    if text not in shipped and path.suffix not in (".yaml", ".yml"):
        rule = f"must be NAME=PATH,..., a preset ({', '.join(shipped)}) or a YAML file"
        raise _wrong(text, rule + did_you_mean(text, shipped))
    try:
        content = read_yaml(path)
    except ValueError as error:
        raise _wrong(text, str(error)) from None
    return _of_yaml(content, text, path)


def _of_yaml(content: Any, text: str, path: Path) -> ArrayPaths:
    if not isinstance(content, dict) or not isinstance(content.get("paths"), dict):
        raise _wrong(text, "must hold `paths`, each a name and a path")
    unknown = next((key for key in content if key not in _KEYS), None)
    if unknown is not None:
        raise _wrong(text, f"must hold {', '.join(_KEYS)} and nothing else, not `{shown(unknown)}`")
    quantity, order = content.get("quantity"), content.get("fft_order", "centred")
    if quantity not in (None, "counts", "amplitude"):
        raise _wrong(text, f"must have counts or amplitude for `quantity`, not {shown(quantity)}")
    if order not in ("centred", "corner"):
        raise _wrong(text, f"must have centred or corner for `fft_order`, not {shown(order)}")
    sure = content.get("sure")
    notes = (f"`data.paths` {shown(text)}: {shown(sure)}",) if sure else ()
    return ArrayPaths(_places(content["paths"], text), quantity, order == "corner", path, notes)


def _places(named: Mapping[Any, Any], text: str) -> dict[str, Place]:
    places: dict[str, Place] = {}
    for said, value in named.items():
        name, unit = _name_and_unit(str(said), text)
        keys = value if isinstance(value, list) else [value]
        if not keys or not all(isinstance(key, str) and key.strip("-/ ") for key in keys):
            raise _wrong(text, f"must have the path of an array for `{shown(said)}`, not {shown(value)}")
        if name in places:
            raise _wrong(text, f"must name each array once, not `{name}` twice")
        negative = frozenset(key[1:] for key in keys if key.startswith("-"))
        places[name] = Place(tuple(key.removeprefix("-") for key in keys), unit, negative)
    if "patterns" not in places:
        raise _wrong(text, "must name `patterns`")
    if sum(all(name in places for name in names) for names in _POSITIONS) != 1:
        raise _wrong(text, "must name positions once: `x` and `y`, or `xy` or `yx` for one array of both")
    return places


def _name_and_unit(said: str, text: str) -> tuple[str, str | None]:
    if said in _UNITS:
        return said, None
    name, _, unit = said.rpartition("_")
    if name in _UNITS and _UNITS[name]:
        if unit in _UNITS[name]:
            return name, unit
        raise _wrong(text, f"must have a unit of {', '.join(_UNITS[name])} at the end of `{shown(said)}`")
    raise _wrong(text, f"must name {', '.join(_UNITS)}, not `{shown(said)}`{did_you_mean(said, _UNITS)}")


def _wrong(text: str, rule: str) -> ValueError:
    return ValueError(printable(f"`data.paths` (={shown(text)}) {rule}"))
