"""ptychodus' patterns, and those of pty-chi's users, whose positions and probe lie in a product."""

from pathlib import Path
from typing import Final

import numpy as np

from fnostab.config import ReadingConfig
from fnostab.formats.frames import frames_of
from fnostab.formats.product import product_of, read_indexes, read_product, scan_of
from fnostab.formats.raw import Format, RawScan, ScanFile, Setup, optional_image
from fnostab.formats.scan import checked_positions
from fnostab.formats.values import energy_eV, number, present, single

_SOURCE: Final = "github.com/AdvancedPhotonSource/ptychodus 1.7, src/ptychodus/plugins"


def _matches(file: ScanFile) -> bool:
    named = present(file, "patterns") and present(file, "indexes", "bad_pixels", "probe_position_x_px")
    return bool(named or present(file, "probe_position_x_m", "/entry_1/ptychodus/probe_position_indexes"))


def _read(file: ScanFile, reading: ReadingConfig) -> RawScan:
    patterns = present(file, "patterns")
    if patterns is None:
        raise file.fault("must be the file of the patterns; this is ptychodus' product: name it in `data.positions`")
    if present(file, "probe_position_x_px"):
        return _read_training(file, patterns)
    product = read_product(_needed_product(file, reading))
    key = present(file, "indexes")
    stored = file.stored(patterns)
    indexes = read_indexes(file, key) if key else np.arange(len(product.positions))
    return scan_of(
        frames_of(stored, patterns, len(indexes)),
        indexes,
        product,
        Setup(detector_pixel_m=single(file.attributes(patterns).get("detector_pixel_width_m"))),
        good=_good(file),
    )


def _read_training(file: ScanFile, patterns: str) -> RawScan:
    """The file that ptychodus writes to train networks, which holds everything."""
    keys = [f"/probe_position_{axis}_px" for axis in "yx"]
    positions = checked_positions({key: file.read(key) for key in keys})
    frames = frames_of(file.stored(patterns), patterns, len(positions))
    return RawScan(
        frames=frames,
        positions=positions - (min(frames.height, frames.width) - 1) / 2,  # of the window's middle pixel
        key=", ".join(keys),
        probe=optional_image(file, "/probe"),
        object=optional_image(file, "/object"),
        good=_good(file),
        setup=Setup(
            energy_eV(file, present(file, "photon_energy_eV"), "eV"),
            number(file, present(file, "detector_object_distance_m")),
        ),
        object_pixel_m=number(file, present(file, "object_pixel_width_m")),
    )


def _read_pair(file: ScanFile, reading: ReadingConfig) -> RawScan:
    product = read_product(_needed_product(file, reading))
    return scan_of(frames_of(file.stored("/dp"), "/dp", len(product.positions)), None, product, Setup())


def _needed_product(file: ScanFile, reading: ReadingConfig) -> Path:
    path = product_of(Path(file.name), reading)
    if path is None:
        raise file.fault(
            "must come with its positions: `data.positions` names ptychodus' product; if they are in this file,"
            " `data.paths` names them"
        )
    return path


def _good(file: ScanFile) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]] | None:
    key = present(file, "bad_pixels")
    return np.asarray(file.read(key) == 0) if key else None


FORMAT: Final = Format(
    name="ptychodus",
    title="ptychodus' patterns, with their product; its training file",
    container="NPZ or HDF5",
    holds="patterns (n, H, W), centred counts, and indexes (n,); bad_pixels (H, W): optional; `data.positions` names "
    "the product: probe_position_x_m, probe_position_y_m, probe, object with pixel sizes",
    source=_SOURCE,
    matches=_matches,
    read=_read,
)

PAIR: Final = Format(
    name="pty-chi",
    title="the pair NAME_dp.hdf5 and NAME_para.hdf5 of pty-chi's users",
    container="HDF5",
    holds="/dp (n, H, W), centred counts; NAME_para.hdf5 beside it, or `data.positions`: probe_position_x_m, "
    "probe_position_y_m, probe (k, H, W), object with pixel sizes",
    source="github.com/AdvancedPhotonSource/pty-chi, tests/test_utils.py",
    matches=lambda file: "/dp" in file.keys,
    read=_read_pair,
)
