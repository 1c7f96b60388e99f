"""Import a measured scan: `fnostab data import`."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final

import numpy as np

from fnostab import optics
from fnostab.config import ConfigError, DataConfig
from fnostab.dataset import Dataset, OnPatterns, import_configured, load_or_build
from fnostab.dataset.orientations import orientation_r_factors
from fnostab.formats.own import write_scan
from fnostab.formats.raw import Format
from fnostab.formats.registry import formats
from fnostab.health.config import DEFAULTS
from fnostab.workflows import PrintLine, print_remarks

#: Opens a bar that shows how many patterns are done.
OpenBar = Callable[[], AbstractContextManager[OnPatterns]]

#: Orientations whose R-factors are nearer to each other than this factor are alike.
_ALIKE: Final = DEFAULTS.orientation_ratio


def known_formats() -> tuple[Format, ...]:
    """The formats of scan files that can be read; a package's that cannot be loaded is a `ConfigError`."""
    try:
        return formats()
    except ValueError as error:
        raise ConfigError(str(error)) from error


def import_measured(
    config: DataConfig, out: Path | None, strict: bool, print_line: PrintLine, open_bar: OpenBar
) -> Dataset:
    """Put the scan of `config` into the cache, say what was guessed in it and what is probably wrong.

    With `out` it is also written there, in the package's own layout. Raises `ConfigError`, in one line and before
    anything is written, for bad input, and with `strict` for a scan with warnings.
    """
    try:
        if strict or out is not None:
            scan = import_configured(config)
            if strict and scan.warnings:
                raise ConfigError(f"`data.path` (={config.path}) must be without warnings: {scan.warnings[0]}")
            if out is not None:
                write_scan(out, scan.counts, scan.positions_px, scan.modes, scan.object, scan.mask, scan.pixel_size_m)
            del scan  # it may fill the memory
        with open_bar() as progress:
            dataset = load_or_build(config, progress=progress)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    print_remarks(dataset, print_line)
    return dataset


def find_orientation(config: DataConfig, print_line: PrintLine) -> DataConfig:
    """Try the eight orientations of the positions on the middle of the scan; give `config` with the one that fits.

    A table of R-factors is printed. Raises `ConfigError` where two are alike, so that nothing can be said, or where
    patterns overlap too little.
    """
    try:
        scan = import_configured(config)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    beam = optics.Beam.of(np.asarray(scan.modes), scan.mask)
    scale = optics.measured_scale(scan.counts, beam)
    found = orientation_r_factors(scan.counts, scan.positions_px, beam, scale)
    if not found:
        raise ConfigError("`data.orient` (=auto) must be given: the patterns share too little light to tell")
    ranked = sorted(found, key=lambda name: found[name])
    for name in ranked:
        print_line(f"R = {found[name]:.4f}  {name}")
    best, next_best = ranked[:2]
    if not found[best] < _ALIKE * min(1, found[next_best]):
        raise ConfigError(
            f"`data.orient` (=auto) must be given: {best} and {next_best} fit alike, R = {found[best]:.4f} and"
            f" {found[next_best]:.4f}"
        )
    print_line(f"orientation: {best}; train with data.orient={best}")
    return config.model_copy(update={"orient": best})
