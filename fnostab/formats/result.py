"""A scan's reconstruction in a file: this package's own NPZ, CXI, or a product of ptychodus.

The other two hold lengths in metres, and probe modes in the square root of counts, so that
sum_k |FFT2(mode_k * patch)|^2 are the counts of a pattern. x runs along columns, y along rows.
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fnostab.formats.raw import JOULES_PER_EV

#: What `layout` may be, and how files of it may end.
LAYOUTS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "fnostab": (".npz",),
        "cxi": (".cxi", ".h5", ".hdf5"),
        "ptychodus": (".npz", ".h5", ".hdf5"),
    }
)


@dataclass(frozen=True, eq=False)
class Result:
    """What is known of an object that was reconstructed from a scan.

    `object` complex64 (H, W) and its `light` float32 (H, W) have their first pixel at `origin_px` (row, column), in the
    frame of `positions_px` (n, 2), which start at 0: at `first_px` in the frame of the imported scan.
    `modes` complex64 (k, N, N) are the probe's, `scale` turns their amplitudes into square roots of counts.
    `pixel_size_m` is the object's pixel; with `energy_eV` and `distance_m`, None where it is unknown. `numbers` are
    measures of the reconstruction by name, `mean_counts` those of the mean pattern. `network_object` complex64 (H, W)
    is what a network made of it, where `object` was fitted further; `deviation` float32 (H, W) is what an ensemble of
    networks deviates by.
    """

    object: NDArray[np.complex64]
    light: NDArray[np.float32]
    origin_px: tuple[int, int]
    positions_px: NDArray[np.float64]
    first_px: NDArray[np.float64]
    modes: NDArray[np.complex64]
    scale: float
    mean_counts: float
    pixel_size_m: float | None
    energy_eV: float | None
    distance_m: float | None
    numbers: Mapping[str, float]
    model: str
    scan: str
    program: str
    network_object: NDArray[np.complex64] | None = None
    deviation: NDArray[np.float32] | None = None

    @property
    def middles_m(self) -> NDArray[np.float64]:
        """The middle of each window, (row, column) in metres, in the frame of the imported scan; float64 (n, 2)."""
        middles_px: NDArray[np.float64] = self.positions_px + self.first_px + self.modes.shape[-1] / 2
        return middles_px * self._pixel_m

    @property
    def center_m(self) -> tuple[float, float]:
        """The middle of the object, (row, column) in metres, in the frame of `middles_m`."""
        row, column = (np.array(self.origin_px) + self.first_px + np.array(self.object.shape) / 2) * self._pixel_m
        return float(row), float(column)

    @property
    def counting_modes(self) -> NDArray[np.complex64]:
        """The modes with amplitudes in square roots of counts."""
        return (self.modes * self.scale).astype(np.complex64)

    @property
    def _pixel_m(self) -> float:
        assert self.pixel_size_m is not None
        return self.pixel_size_m


def resolve_layout(out: Path, layout: str) -> str:
    """Return the layout of the file `out`, `auto` decided by its ending; raises ValueError if they don't agree."""
    if layout not in ("", "auto", *LAYOUTS):
        raise ValueError(f"`layout` (={layout}) must be one of auto, {', '.join(LAYOUTS)}")
    ending = out.suffix.lower()
    fitting = [name for name, endings in LAYOUTS.items() if ending in endings]
    if layout in ("", "auto"):
        if not fitting:
            endings = dict.fromkeys(ending for endings in LAYOUTS.values() for ending in endings)
            raise ValueError(f"`out` (={out}) must end in {_either(endings)}")
        return fitting[0]
    if layout not in fitting:
        raise ValueError(f"`out` (={out}) must end in {_either(LAYOUTS[layout])} for the layout {layout}")
    return layout


def needs_pixel_size(layout: str) -> bool:
    """Whether files of `layout` hold lengths in metres."""
    return layout != "fnostab"


def write_result(path: Path, layout: str, result: Result) -> None:
    """Write `result` to the new file `path`; both `cxi` and `ptychodus` need its `pixel_size_m`."""
    if layout == "fnostab":
        np.savez_compressed(path, **_own_arrays(result))
    elif path.suffix.lower() == ".npz":
        np.savez_compressed(path, **_product_arrays(result))
    else:
        # In memory first: where HDF5 itself meets a full disk, it may end the process.
        memory = io.BytesIO()
        (_write_cxi if layout == "cxi" else _write_product)(memory, result)
        path.write_bytes(memory.getvalue())


def _own_arrays(result: Result) -> dict[str, Any]:
    unknown = result.pixel_size_m is None
    arrays = {
        "object": result.object,
        "light": result.light,
        "origin_px": result.origin_px,
        "pixel_size_m": np.nan if unknown else result.pixel_size_m,
        "probe": result.modes[0],
        "positions_px": result.positions_px,
        **result.numbers,
        "model": result.model,
    }
    further = {"network_object": result.network_object, "deviation": result.deviation}
    arrays |= {key: array for key, array in further.items() if array is not None}
    return arrays | ({"modes": result.modes} if len(result.modes) > 1 else {})


def _write_cxi(memory: io.BytesIO, result: Result) -> None:
    """Write CXI 1.6 (https://www.cxidb.org/cxi.html) with the probe and the object as images 1 and 2, as ptychodus.

    The format names no place for an image's pixel and middle: `ptychodus` and `basis_vectors` are what ptychodus and
    PyNX read and write there. The steps of rows and columns point to negative y and x, as the format has it for
    detectors; translations are those of the sample, so they grow with the row and the column of the window.
    """
    import h5py

    pixel_m, (n, N) = result.pixel_size_m, (len(result.positions_px), result.modes.shape[-1])
    assert pixel_m is not None
    (H, W), (center_y_m, center_x_m) = result.object.shape, result.center_m
    with h5py.File(memory, "w") as file:
        file["cxi_version"] = 160
        file["number_of_entries"] = 1
        entry = file.create_group("entry_1")
        entry["program_name"] = result.program
        entry["title"] = f"reconstruction of {result.scan}"
        translation = np.zeros((n, 3))
        translation[:, 1], translation[:, 0] = result.middles_m.T
        entry["sample_1/geometry_1/translation"] = translation
        entry["data_1/translation"] = h5py.SoftLink("/entry_1/sample_1/geometry_1/translation")
        source, detector = entry.create_group("instrument_1/source_1"), entry.create_group("instrument_1/detector_1")
        if result.energy_eV:
            source["energy"] = result.energy_eV * JOULES_PER_EV
        if result.distance_m:
            detector["distance"] = result.distance_m
        for name, axes, array, kind, size in (
            ("image_1", "incoherent:y:x", result.counting_modes, "amplitude", (N, N)),
            ("image_2", "y:x", result.object, "electron density", (W, H)),
        ):
            image = entry.create_group(name)
            image.create_dataset("data", data=array, compression="gzip", shuffle=True).attrs["axes"] = axes
            image["data_type"], image["data_space"] = kind, "real"
            image["image_size"] = [*(length * pixel_m for length in size), 0.0]
            image["basis_vectors"] = [[0.0, -pixel_m, 0.0], [-pixel_m, 0.0, 0.0]]
            image["source_1"] = h5py.SoftLink("/entry_1/instrument_1/source_1")
            image["detector_1"] = h5py.SoftLink("/entry_1/instrument_1/detector_1")
        source["illumination"] = h5py.SoftLink("/entry_1/image_1/data")
        entry["probe"], entry["object"] = h5py.SoftLink("/entry_1/image_1"), h5py.SoftLink("/entry_1/image_2")
        other = entry.create_group("ptychodus")
        other["object_center_x_m"], other["object_center_y_m"] = center_x_m, center_y_m
        other["probe_photon_count"] = result.mean_counts
        for name in ("object", "probe"):
            other[f"{name}_pixel_width_m"] = other[f"{name}_pixel_height_m"] = pixel_m
        process = entry.create_group("process_1")
        process["program"], _, process["version"] = result.program.partition(" ")
        process["date"] = datetime.now(timezone.utc).isoformat(timespec="seconds")
        process["configuration/model"], process["configuration/scan"] = result.model, result.scan
        own = entry.create_group("fnostab")
        for key, value in _own_arrays(result).items():
            if key not in ("object", "probe", "modes", "model"):
                own[key] = value


def _product_arrays(result: Result) -> dict[str, Any]:
    """What a product of ptychodus (1.7) holds, by the names in its NPZ files.

    The middle of a window of N pixels is its pixel (N - 1) / 2 there, N / 2 here, and so is the object's: it cancels.
    An energy and a distance that are not known are 0, as in what ptychodus reads from other programs.
    """
    (center_y_m, center_x_m), numbers = result.center_m, result.numbers.items()
    measures = ", ".join(f"{name} {value:.4g}" for name, value in numbers)
    rows_m, columns_m = result.middles_m.T
    pixels = {f"{name}_pixel_{side}_m": result.pixel_size_m for name in ("object", "probe") for side in _SIDES}
    return {
        "name": result.scan,
        "comments": f"{result.program}, {result.model}, {measures}",
        "detector_object_distance_m": result.distance_m or 0.0,
        "photon_energy_eV": result.energy_eV or 0.0,
        "probe_photon_count": result.mean_counts,
        "exposure_time_s": 0.0,
        "mass_attenuation_m2_per_kg": 0.0,
        "tomography_angle_deg": 0.0,
        "focus_object_distance_m": 0.0,
        "tilt_angle_deg": 0.0,
        "far_field": True,
        "probe_position_indexes": np.arange(len(rows_m)),
        "probe_position_x_m": columns_m,
        "probe_position_y_m": rows_m,
        "probe": result.counting_modes[np.newaxis],
        "object": result.object[np.newaxis],
        "object_center_x_m": center_x_m,
        "object_center_y_m": center_y_m,
        "object_layer_spacing_m": np.zeros(0),
        "loss_epochs": np.zeros(0, np.int64),
        "loss_values": np.zeros(0),
        **pixels,
    }


_SIDES: Final = ("width", "height")
#: Where its HDF5 files have what its NPZ files hold beside the arrays of this name.
_PRODUCT_ATTRIBUTES: Final = {
    "object": ("object_pixel_width_m", "object_pixel_height_m", "object_center_x_m", "object_center_y_m"),
    "probe": ("probe_pixel_width_m", "probe_pixel_height_m"),
}


def _write_product(memory: io.BytesIO, result: Result) -> None:
    """Write a product of ptychodus as HDF5: its single values are attributes, those of an array on that array."""
    import h5py

    arrays = _product_arrays(result)
    with h5py.File(memory, "w") as file:
        for owner, names in _PRODUCT_ATTRIBUTES.items():
            dataset = file.create_dataset(owner, data=arrays.pop(owner), compression="gzip", shuffle=True)
            for name in names:
                dataset.attrs[name.removeprefix(f"{owner}_")] = arrays.pop(name)
        for name, value in arrays.items():
            if np.ndim(value):
                file[name] = value
            else:
                file.attrs[name] = value


def _either(endings: Any) -> str:
    *first, last = endings
    return f"{', '.join(first)} or {last}" if first else str(last)
