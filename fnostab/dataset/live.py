"""A measured scan whose file grows while it is read."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fnostab.config import ConfigError, ReadingConfig
from fnostab.dataset.grid import Grid, corners_px, grid_of, setup_of
from fnostab.dataset.importing import is_amplitude, kept_frames, modes_of
from fnostab.dataset.patterns import FrameReader, is_normalised, window_of
from fnostab.formats.raw import RawScan, Setup
from fnostab.formats.registry import open_scan
from fnostab.formats.scan import Quantity, Scan
from fnostab.io.scratch import GrowingArray, Storage


@dataclass(frozen=True)
class Growth:
    """What a look at a growing file found: patterns that are `new`, all `n` that are there, whether these are the last.

    `total` is the number of patterns that the file announces by its positions, None where these come with the patterns.
    """

    new: int
    n: int
    total: int | None
    is_complete: bool


@dataclass(frozen=True, eq=False)
class _Begun:
    """What the first look at a file decides for all of them."""

    grid: Grid
    setup: Setup
    reader: FrameReader
    modes: NDArray[np.complex64]
    first_px: NDArray[np.float64]
    notes: tuple[str, ...]
    room: int


class LiveScan:
    """A scan in an HDF5 file that a program is writing (SWMR), read as `import_scan` reads it, each frame once.

    `storage` keeps the counts. `probe`, a file, stands in for the scan's own; `spare_probe`, modes (k, M, M), for one
    that is missing or unusable. A reference object in the file is not looked at. Raises `ConfigError` for what takes
    all patterns to know: the light's centre, and how many counts normalised patterns hold.
    """

    def __init__(
        self,
        path: Path,
        N: int,
        quantity: Quantity,
        probe: str | None,
        spare_probe: NDArray[np.complex64] | None,
        reading: ReadingConfig,
        storage: Storage,
    ) -> None:
        for key, value in (
            ("center", reading.center == "auto" and "auto"),
            ("photons_per_pattern", reading.photons_per_pattern),
        ):
            if value:
                raise ConfigError(f"`data.{key}` (={value}) must be left out with `follow`: it takes all patterns")
        self._path, self._N, self._quantity, self._reading, self._storage = path, N, quantity, reading, storage
        self._probe, self._spare_probe = probe, spare_probe
        self._begun: _Begun | None = None
        self._counts: GrowingArray | None = None
        self._frames_done = self._told = 0
        self._scan: Scan | None = None

    @property
    def scan(self) -> Scan:
        """What was found by the last look that found any; pixels outside of its mask are as the file has them."""
        assert self._scan is not None
        return self._scan

    @property
    def first_px(self) -> NDArray[np.float64]:
        """The smallest (row, column) of the positions that the file had or announced when it was first read."""
        assert self._begun is not None
        return self._begun.first_px

    @property
    def room(self) -> int:
        """The number of patterns that the file announced then."""
        assert self._begun is not None
        return self._begun.room

    def look(self) -> Growth:
        """Read what is new.

        Raises ValueError, in one line, for what cannot be read: now, as there is too little of it or it is being
        written, or ever.
        """
        with open_scan(self._path, self._reading, may_grow=True) as (kind, announced):
            raw = announced.cut_to_common()
            kept = kept_frames(raw, self._reading)
            begun = self._begun or self._begin(announced, raw)
            positions_px = corners_px(raw, begun.grid, self._reading, kept)
            self._begun = begun
            counts = self._read_new(raw, kept, begun).array
            self._scan = Scan(
                counts=counts,
                positions_px=positions_px,
                modes=begun.modes,
                layout=kind.name,
                mask=begun.reader.mask(raw, self._reading),
                pixel_size_m=begun.grid.pixel_size_m,
                energy_eV=begun.setup.energy_eV,
                distance_m=begun.setup.distance_m,
                notes=(*raw.notes, *raw.frames.notes, *begun.notes),
                warnings=raw.warnings,
            )
        all_there = announced.positions_are_final and raw.frames.n == len(announced.positions)
        total = begun.room if announced.positions_are_final else None
        before, self._told = self._told, len(counts)
        return Growth(len(counts) - before, len(counts), total, all_there or not announced.is_growing)

    def _begin(self, announced: RawScan, raw: RawScan) -> _Begun:
        reading, notes = self._reading, list[str]()
        grid = grid_of(raw, self._N, reading)
        window, of_window = window_of(raw, grid, reading)
        reader = FrameReader(raw.frames, window, reading, is_amplitude(raw, self._quantity, self._path))
        try:
            modes = modes_of(raw, self._probe, grid, reading, notes)
        except ValueError:
            if self._spare_probe is None or self._probe is not None:
                raise
            modes = None
        if modes is None:
            if self._spare_probe is None:
                raise ConfigError(f"`data.probe` (=auto) must name a probe: there is none in {self._path}")
            modes = modes_of(raw, self._spare_probe, grid, reading, notes)
            notes.append("the scan brings no probe that can be used: the model's is used")
        assert modes is not None
        ahead = replace(announced, frames=replace(announced.frames, n=len(announced.positions)))
        try:
            kept = kept_frames(ahead, reading)
            positions_px = corners_px(ahead, grid, reading, kept)
        except ValueError:  # places for positions that are not known yet
            kept = kept_frames(raw, reading)
            positions_px = corners_px(raw, grid, reading, kept)
        first_px = positions_px.min(axis=0)
        return _Begun(grid, setup_of(raw, reading), reader, modes, first_px, (*notes, *of_window), int(kept.sum()))

    def _read_new(self, raw: RawScan, kept: NDArray[np.bool_], begun: _Begun) -> GrowingArray:
        for start, chunk in raw.frames.chunks(start=self._frames_done):
            chosen = np.flatnonzero(kept[start : start + len(chunk)])
            counts = begun.reader.counts(start + chosen, chunk[chosen])
            if self._counts is None:
                if is_normalised(counts):
                    rule = "must be counts to be followed, or amplitudes: these patterns were normalised"
                    raise ConfigError(f"`{raw.frames.key}` (=on average {counts.mean():.3g} a pixel) {rule}")
                self._counts = GrowingArray(self._storage, counts.shape[1:], np.float32, begun.room)
            self._counts.append(counts)
            self._frames_done = start + len(chunk)
        assert self._counts is not None
        return self._counts
