"""This package's own layout of a scan, an NPZ file: read and written."""

import bz2
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike

from fnostab.config import ReadingConfig
from fnostab.formats.frames import InMemory, frames_of
from fnostab.formats.raw import Format, RawScan, ScanFile, optional_image
from fnostab.formats.scan import (
    check_extent,
    check_finite,
    check_overlap,
    checked_image,
    checked_modes,
    checked_positions,
    size_text,
)
from fnostab.io.files import atomic_write


def _read(file: ScanFile, reading: ReadingConfig) -> RawScan:
    positions = checked_positions({"positions_px": file.read("positions_px")})
    pixel_size = file.read("pixel_size_m") if "pixel_size_m" in file.keys else None
    return RawScan(
        frames=frames_of(file.stored("counts"), "counts", len(positions)),
        positions=positions,
        key="positions_px",
        probe=optional_image(file, "probe"),
        object=optional_image(file, "object"),
        good=file.read("mask") != 0 if "mask" in file.keys else None,
        object_pixel_m=None if pixel_size is None else float(pixel_size.real.ravel()[0]),
    )


FORMAT: Final = Format(
    name="fnostab",
    title="this package's own",
    container="NPZ",
    holds="counts (n, M, M), centred; positions_px (n, 2), corners; probe (M, M) or (k, M, M), object (H, W), "
    "mask (M, M), True where a pixel counts, pixel_size_m: optional",
    source="fnostab.formats.own.write_scan",
    matches=lambda file: {"counts", "positions_px"} <= set(file.keys),
    read=_read,
)


def write_scan(
    path: str | Path,
    counts: ArrayLike,
    positions_px: ArrayLike,
    probe: ArrayLike | None = None,
    object: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    pixel_size_m: float | None = None,
) -> None:
    """Write a scan in this package's own layout, compressed by bzip2 if `path` ends in `.bz2`.

    Arguments as in `Scan`, `probe` (M, M) or (k, M, M); counts of any real type are stored as they are. The file
    appears whole or not at all, and equal arrays give equal bytes. Raises ValueError, in one line, for arrays that do
    not fit each other and for a name that ends in neither `.npz` nor `.npz.bz2`.
    """
    path = Path(path)
    if not path.name.endswith((".npz", ".npz.bz2")):
        raise ValueError(f"`path` (={path}) must end in .npz or .npz.bz2")
    given = {"counts": counts, "positions_px": positions_px, "probe": probe, "object": object, "mask": mask}
    arrays = {
        key: np.asarray(value) for key, value in {**given, "pixel_size_m": pixel_size_m}.items() if value is not None
    }
    positions = checked_positions({"positions_px": arrays["positions_px"]})
    frames = frames_of(InMemory(arrays["counts"]), "counts", len(positions))
    check_finite(positions, "positions_px", np.arange(len(positions)))
    check_extent(positions, "positions_px")
    check_overlap(positions, frames.height, "positions_px")
    for broken, rule in ((~np.isfinite(arrays["counts"]), "finite"), (arrays["counts"] < 0, ">= 0")):
        if broken.any():
            first = np.unravel_index(int(broken.argmax()), broken.shape)
            where = ", ".join(str(int(index)) for index in first)
            raise ValueError(f"`counts` (={arrays['counts'][first]} at pattern, row, column {where}) must be {rule}")
    if "object" in arrays:
        checked_image(arrays["object"], "object")
    M = frames.height
    if "probe" in arrays and checked_modes(arrays["probe"], "probe").shape[-1] != M:
        raise ValueError(f"`probe` (={size_text(arrays['probe'])}) must be {M} x {M}, as the patterns")
    with atomic_write(path) as partial, _opened(partial, packed=path.suffix == ".bz2") as stream:
        np.savez(stream, **arrays)  # type: ignore[arg-type]  # the stub takes any keyword for `allow_pickle`


def _opened(path: Path, packed: bool) -> Any:
    return bz2.open(path, "wb") if packed else path.open("wb")
