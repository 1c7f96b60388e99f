"""Scans as tike's tests and examples keep them: NPZ files of counts in FFT order."""

from typing import Final

from fnostab.config import ReadingConfig
from fnostab.formats.frames import frames_of
from fnostab.formats.raw import Format, RawScan, ScanFile, optional_image
from fnostab.formats.scan import checked_positions


def _read(file: ScanFile, reading: ReadingConfig) -> RawScan:
    positions = checked_positions({"scan": file.read("scan")})
    return RawScan(
        frames=frames_of(file.stored("data"), "data", len(positions)),
        positions=positions,
        key="scan",
        fft_ordered=True,
        probe=optional_image(file, "probe"),
    )


FORMAT: Final = Format(
    name="tike",
    title="tike's tests and examples",
    container="NPZ",
    holds="data (1, n, M, M), counts in FFT order; scan (1, n, 2), corners; probe (1, 1, 1, k, M, M): optional",
    source="github.com/AdvancedPhotonSource/tike, tests/data; read on its Siemens star",
    matches=lambda file: {"data", "scan"} <= set(file.keys),
    read=_read,
)
