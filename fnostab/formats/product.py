"""ptychodus' products: positions, probe and object of a scan, whose patterns lie in another file."""

from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fnostab.config import ReadingConfig
from fnostab.formats.containers import open_container
from fnostab.formats.frames import Frames
from fnostab.formats.raw import OptionalImage, RawScan, ScanFile, Setup
from fnostab.formats.scan import checked_positions, key_list
from fnostab.formats.values import by_rows, energy_eV, number, present, real, single

#: Where ptychodus puts into CXI files what its other products have at their root.
_CXI: Final = {
    "probe": "/entry_1/image_1/data",
    "object": "/entry_1/image_2/data",
    "translation": "/entry_1/sample_1/geometry_1/translation",
    "photon_energy": "/entry_1/instrument_1/source_1/energy",
    "detector_object_distance_m": "/entry_1/instrument_1/detector_1/distance",
}
#: Pixels whose sizes differ by a smaller part are of one size.
_SAME_PIXEL: Final = 0.01


@dataclass(frozen=True, eq=False)
class Product:
    """What a product says of a scan.

    `positions` (n, 2) are the windows' middles in metres, `key` their names; `indexes` (n,) tell which pattern belongs
    to each, None means in order. `pixel_m` is the object's pixel, for patterns of `side` pixels.
    """

    positions: NDArray[np.float64]
    key: str
    indexes: NDArray[np.int64] | None
    probe: OptionalImage | None
    object: OptionalImage | None
    object_middle: tuple[float, ...]
    pixel_m: float | None
    side: int | None
    setup: Setup
    notes: tuple[str, ...]


def read_product(path: Path) -> Product:
    """Read a product, in NPZ, HDF5 or CXI; raises ValueError, in one line, for all else."""
    with closing(open_container(path, "data.positions")) as file:
        translation = present(file, _CXI["translation"])
        rows, columns = (present(file, f"probe_position_{axis}_m") for axis in "yx")
        if rows and columns:
            positions, key = checked_positions({k: file.read(k) for k in (rows, columns)}), f"{rows}, {columns}"
        elif translation:
            xyz = by_rows(file.read(translation))
            positions, key = checked_positions({translation: xyz[..., 1::-1]}), translation
        else:
            names = "probe_position_x_m and probe_position_y_m"
            raise file.fault(f"must be a product of ptychodus, which holds {names}; it holds {key_list(file.keys)}")
        notes: list[str] = []
        indexes = present(file, "probe_position_indexes", "/entry_1/ptychodus/probe_position_indexes")
        probe, obj = (present(file, name, _CXI[name]) for name in ("probe", "object"))
        shape = _shape(file, probe)
        *_, rows_px, columns_px = (1, 1, *shape)
        width, height = (single(_value(file, "object", f"pixel_{side}_m")) for side in ("width", "height"))
        if width and height and abs(width * columns_px / (height * rows_px) - 1) > _SAME_PIXEL:
            raise file.fault(f"must be of a detector with square pixels: the object's are {height:g} x {width:g} m")
        if len(shape) == 4 and shape[0] > 1:
            notes.append(f"the first of {shape[0]} coherent modes of `{probe}` is used")
        return Product(
            positions=positions,
            key=key,
            indexes=read_indexes(file, indexes) if indexes else None,
            probe=OptionalImage(probe, lambda: first_coherent(_read(path, probe))) if probe else None,
            object=OptionalImage(obj, lambda: _read(path, obj)) if obj else None,
            object_middle=tuple(real(_value(file, "object", f"center_{axis}_m")) or 0.0 for axis in "yx"),
            pixel_m=width or height,
            side=columns_px if shape else None,
            setup=_setup(file),
            notes=tuple(notes),
        )


def scan_of(frames: Frames, indexes: NDArray[np.int64] | None, product: Product, setup: Setup, **more: Any) -> RawScan:
    """Put patterns together with their product.

    `indexes` (n,) are those that the product's positions name, 0 to n - 1 if None. What only one of both has is left
    out. `more` are further fields of the scan. Raises ValueError, in one line, if they have nothing in common.
    """
    notes = list(product.notes)
    positions = product.positions
    if product.indexes is None and len(positions) != frames.n and not frames.may_be_longer:
        raise ValueError(f"`{frames.key}` (={frames.n} patterns) must match the {len(positions)} positions")
    if product.indexes is not None:
        place = {int(index): row for row, index in enumerate(product.indexes)}
        if len(place) < len(product.indexes) or len(place) != len(positions):
            raise ValueError(f"`{product.key}` (={len(positions)} positions) must have an index each, all different")
        wanted = range(frames.n) if indexes is None else indexes.tolist()
        pairs = [(row, place[index]) for row, index in enumerate(wanted) if index in place]
        if not pairs:
            raise ValueError(
                f"`{frames.key}` (={frames.n} patterns) must share indexes with the {len(place)} positions"
            )
        if not len(pairs) == frames.n == len(place):
            read = f"{len(pairs)} of {frames.n} patterns and {len(place)} positions share an index"
            notes.append(f"{read}; only these are read")
        rows, places = np.array(pairs).T
        positions, frames = positions[places], _chosen(frames, rows)
    M = min(frames.height, frames.width)
    side = product.side or M
    obj = product.object
    if obj and (side != M or frames.height != frames.width):
        notes.append(f"`{obj.key}` is left out: it is for patterns of {side} pixels, and these have another size")
        obj = None
    return RawScan(
        frames=frames,
        positions=positions,
        key=product.key,
        unit="m",
        reference="middle",
        probe=product.probe,
        object=obj,
        object_middle=(product.object_middle[0], product.object_middle[1]),
        object_pixel_m=product.pixel_m and product.pixel_m * side / M,
        setup=Setup(
            setup.energy_eV or product.setup.energy_eV,
            setup.distance_m or product.setup.distance_m,
            setup.detector_pixel_m,
        ),
        notes=tuple(notes),
        **more,
    )


def product_of(path: Path, reading: ReadingConfig) -> Path | None:
    """The file of positions that belongs to the patterns in `path`: the given one, or one beside it, by its name."""
    if reading.positions:
        return Path(reading.positions)
    for ending, other in (("_dp.hdf5", "_para.hdf5"), ("_dp.h5", "_para.h5"), ("diffraction.h5", "product.h5")):
        beside = path.with_name(path.name.removesuffix(ending) + other)
        if path.name.endswith(ending) and beside.is_file():
            return beside
    return None


def _chosen(frames: Frames, rows: NDArray[np.int64]) -> Frames:
    """The frames `rows`, in ascending order."""
    if len(rows) == frames.n:
        return frames

    def read(start: int, stop: int) -> NDArray[Any]:
        part = rows[start:stop]
        return np.asarray(frames.read(int(part[0]), int(part[-1]) + 1)[part - part[0]])

    return replace(frames, n=len(rows), read=read)


def _read(path: Path, key: str) -> NDArray[Any]:
    with closing(open_container(path, "data.positions")) as file:
        return np.asarray(file.read(key))


def first_coherent(probe: NDArray[Any]) -> NDArray[Any]:
    """The incoherent modes (I, H, W) of the first coherent mode of a probe (C, I, H, W)."""
    return np.asarray(probe[0]) if probe.ndim == 4 else probe


def read_indexes(file: ScanFile, key: str) -> NDArray[np.int64]:
    """The whole numbers (n,) under `key`."""
    array = file.read(key).ravel()
    if array.dtype.kind not in "iu":
        raise file.fault(f"must hold whole numbers, `{key}` is {array.dtype}")
    return array.astype(np.int64)


def _shape(file: ScanFile, key: str | None) -> tuple[int, ...]:
    """The shape of an image and its leading axes; () if it cannot be used, which matters only if somebody uses it."""
    try:
        shape = file.stored(key).shape if key else ()
    except ValueError:
        return ()
    return shape if len(shape) >= 2 and 0 not in shape else ()


def _value(file: ScanFile, thing: str, name: str) -> Any:
    """A value that is an attribute of `thing` in HDF5, an array of its own in NPZ and CXI; None if it is missing."""
    key = present(file, f"{thing}_{name}", f"/entry_1/ptychodus/{thing}_{name}")
    return file.read(key) if key else file.attributes(present(file, thing) or "/").get(name)


def _setup(file: ScanFile) -> Setup:
    root = file.attributes("/")
    joules = present(file, _CXI["photon_energy"])
    names = ("photon_energy_eV", "probe_energy_eV")
    return Setup(
        energy_eV=number(file, present(file, *names))
        or next((single(root[name]) for name in names if name in root), None)
        or energy_eV(file, joules, "j"),
        distance_m=number(file, present(file, "detector_object_distance_m", _CXI["detector_object_distance_m"]))
        or single(root.get("detector_object_distance_m")),
    )
