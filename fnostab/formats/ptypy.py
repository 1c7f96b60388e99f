"""ptypy's `.ptyd` files: patterns in chunks, positions in metres."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fnostab.config import ReadingConfig
from fnostab.formats.frames import Frames, Stored
from fnostab.formats.raw import Format, RawScan, ScanFile, Setup
from fnostab.formats.scan import checked_positions, size_text
from fnostab.formats.values import in_metres, number, present


@dataclass(frozen=True)
class _Chunks:
    """The frames of several arrays (m_i, H, W) after each other, read as those of one."""

    parts: Sequence[Stored]
    ends: NDArray[np.int64]

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Frames (k, H, W), as `Stored` says."""
        found: list[NDArray[Any]] = []
        for part, end in zip(self.parts, self.ends, strict=True):
            first = int(end) - part.shape[0]
            if first < stop and start < end:
                found.append(part.read(max(0, start - first), min(part.shape[0], stop - first)))
        return np.concatenate(found)


def _chunk_names(file: ScanFile) -> list[str]:
    """The chunks `/chunks/<i>` that the file holds, by their numbers."""
    numbers = {key.split("/")[2] for key in file.keys if key.startswith("/chunks/")}
    return [f"/chunks/{number}" for number in sorted((n for n in numbers if n.isdecimal()), key=int)]


def _read(file: ScanFile, reading: ReadingConfig) -> RawScan:
    chunks = _chunk_names(file)
    parts = [file.stored(f"{chunk}/data") for chunk in chunks]
    for chunk, part in zip(chunks, parts, strict=True):
        if (
            len(part.shape) != 3
            or 0 in part.shape
            or part.shape[1:] != parts[0].shape[1:]
            or part.dtype.kind not in "biuf"
        ):
            rule = "must be patterns (m, H, W), all chunks' of one size"
            raise ValueError(f"`{chunk}/data` (={size_text(part)} {part.dtype}) {rule}")
    positions = _positions(file, chunks, parts)
    ends = np.cumsum([part.shape[0] for part in parts])
    height, width = parts[0].shape[1:]
    frames = Frames("/chunks/*/data", len(positions), height, width, parts[0].dtype, _Chunks(parts, ends).read)
    # Numbers that are not known are zeros there, and `number` gives None.
    energy_keV = number(file, present(file, "/meta/energy"))
    rebin = number(file, present(file, "/info/rebin")) or 1
    centre = _centre(file, height, width)
    averaged = f"ptypy averaged {rebin:g} x {rebin:g} pixels: counts are too small by the square of that"
    return RawScan(
        frames=frames,
        positions=in_metres(positions, file, f"{chunks[0]}/positions", reading),
        key="/chunks/*/positions",
        unit="m",
        good=_good(file, chunks, parts),
        setup=Setup(
            energy_keV and 1e3 * energy_keV,
            number(file, present(file, "/meta/distance")),
            number(file, present(file, "/meta/psize")),
        ),
        centre=centre,
        notes=(f"zero frequency is at row {centre[0]}, column {centre[1]}, as the file says",) if centre else (),
        warnings=(averaged,) if rebin > 1 else (),
    )


def _positions(file: ScanFile, chunks: Sequence[str], parts: Sequence[Stored]) -> NDArray[np.float64]:
    """The positions (n, 2) of all chunks, row before column."""
    found = []
    for chunk, part in zip(chunks, parts, strict=True):
        key = f"{chunk}/positions"
        if key not in file.keys:
            raise file.fault(f"must hold positions in each of its chunks; `{key}` is missing")
        found.append(file.read(key))
        if found[-1].shape != (part.shape[0], 2):
            rule = f"must be row and column of {part.shape[0]} patterns"
            raise ValueError(f"`{key}` (={size_text(found[-1])}) {rule}")
    return checked_positions({"/chunks/*/positions": np.concatenate(found)})


def _good(file: ScanFile, chunks: Sequence[str], parts: Sequence[Stored]) -> NDArray[np.bool_] | None:
    """The pixels (H, W) that have a weight in every frame; None if none has."""
    shape = parts[0].shape[1:]
    common = present(file, "/meta/weight2d", "/common/weight2d", "/info/weight2d")
    keys = ([common] if common else []) + [f"{chunk}/weights" for chunk in chunks if f"{chunk}/weights" in file.keys]
    weights = [
        stored for stored in map(file.stored, keys) if stored.shape[-2:] == shape and len(stored.shape) in (2, 3)
    ]
    if not weights:
        return None
    good = np.ones(shape, np.bool_)
    for stored in weights:
        n = stored.shape[0] if len(stored.shape) == 3 else 1
        for _, some in Frames("weights", n, shape[0], shape[1], stored.dtype, stored.read).chunks():
            with np.errstate(invalid="ignore"):  # NaN is no weight
                good &= (some > 0).all(axis=0)
    return good


def _centre(file: ScanFile, height: int, width: int) -> tuple[int, int] | None:
    """The pixel of zero frequency if it is not the middle one; ptypy stores one zero for what is not known."""
    key = present(file, "/meta/center")
    try:
        centre = file.read(key).ravel() if key else np.zeros(0)
    except ValueError:  # a word, as "fftshift"
        return None
    inside = centre.shape == (2,) and (centre >= 0).all() and (centre < [height, width]).all()
    if not inside or (np.abs(centre - [height // 2, width // 2]) <= 0.5).all():
        return None
    row, column = np.rint(centre).astype(int).tolist()
    return min(row, height - 1), min(column, width - 1)


FORMAT: Final = Format(
    name="ptypy",
    title="ptypy's prepared data, .ptyd",
    container="HDF5",
    holds="/chunks/<i>/data (m, H, W), centred counts, and positions (m, 2), row and column in metres; weights, over 0 "
    "where a pixel counts, /meta/energy in keV, distance, psize: optional",
    source="github.com/ptycho/ptypy, ptypy/core/data.py; read, not run",
    matches=lambda file: any(key.startswith("/chunks/") and key.endswith("/data") for key in file.keys),
    read=_read,
)
