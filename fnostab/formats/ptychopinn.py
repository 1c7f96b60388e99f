"""PtychoPINN's NPZ files, which ptychodus exports for its training as well."""

from typing import Final

from fnostab.config import ReadingConfig
from fnostab.formats.frames import frames_of
from fnostab.formats.raw import Format, RawScan, ScanFile, optional_image
from fnostab.formats.scan import checked_positions

_PATTERNS: Final = ("diffraction", "diff3d")


def _read(file: ScanFile, reading: ReadingConfig) -> RawScan:
    positions = checked_positions({key: file.read(key) for key in ("ycoords", "xcoords")})
    present = [key for key in _PATTERNS if key in file.keys]
    index = file.read("scan_index") if "scan_index" in file.keys else None
    both = (f"the file holds both {' and '.join(present)}: {present[0]} was read; `data.paths` patterns=... chooses",)
    return RawScan(
        frames=frames_of(file.stored(present[0]), present[0], len(positions)),
        positions=positions,
        key="ycoords, xcoords",
        reference="middle",
        quantity=None,
        probe=optional_image(file, "probeGuess"),
        object=optional_image(file, "objectGuess"),
        good=file.read("bad_pixels") == 0 if "bad_pixels" in file.keys else None,
        scan_index=index.ravel().astype("i8") if index is not None and index.size == len(positions) else None,
        warnings=both if len(present) > 1 else (),
    )


FORMAT: Final = Format(
    name="ptychopinn",
    title="PtychoPINN's, and what ptychodus exports for it",
    container="NPZ",
    holds="diffraction or diff3d (n, M, M), centred, amplitudes or counts; xcoords and ycoords (n,), window middles; "
    "probeGuess, objectGuess, bad_pixels (M, M), scan_index: optional",
    source="github.com/hoidn/PtychoPINN, ptycho/raw_data.py",
    matches=lambda file: any(key in file.keys for key in _PATTERNS) and {"xcoords", "ycoords"} <= set(file.keys),
    read=_read,
)
