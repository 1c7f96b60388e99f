"""Reconstruct a scan while its file grows: `fnostab reconstruct --follow`."""

from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep
from typing import Final

import numpy as np

from fnostab.config import ConfigError
from fnostab.dataset.groups import Groups
from fnostab.dataset.live import Growth, LiveScan
from fnostab.formats.hdf5 import is_hdf5
from fnostab.io.scratch import Storage
from fnostab.reconstruction.patterns import StoredPatterns
from fnostab.workflows import PrintLine, print_remarks
from fnostab.workflows.backends import Network
from fnostab.workflows.scan_object import Predicted, stitch_and_measure, write_object
from fnostab.workflows.scan_of_model import GivenScan, beam_of, check_pixel_size, compare_with_model

#: Seconds between two looks at a file, where none is said.
EVERY_S: Final = 10.0
#: Seconds without a new pattern after which a scan counts as ended.
IDLE_S: Final = 60.0


@dataclass(frozen=True)
class Following:
    """How a growing file is followed: `every_s` seconds between updates, `idle_s` without a pattern until the end."""

    every_s: float = EVERY_S
    idle_s: float = IDLE_S


def check_following(data: Path, model: Network) -> None:
    """Refuse files that nobody can read while they grow, and networks whose groups would change with every pattern."""
    if not is_hdf5(data):
        raise ConfigError(f"`follow` (=true) needs an HDF5 file, which can be read while it is written, not {data}")
    if model.gridsize != 1:
        raise ConfigError(f"`follow` (=true) needs a model of single patterns: {model.source} takes groups of four")


def predict_while_it_grows(
    model: Network,
    given: GivenScan,
    out: Path,
    layout: str,
    following: Following,
    batch_size: int,
    storage: Storage,
    print_line: PrintLine,
) -> Predicted:
    """Predict a scan's patterns as they come, and write `out` and its picture after each look that found some.

    Ends when all positions that the file announces have their pattern, when it is closed, or when nothing came for
    `idle_s`, which a line says. Returns all that was predicted. What cannot be read yet is tried again until then;
    raises `ConfigError`, with the reason, if nothing could ever be read.
    """
    data = given.path
    scan = LiveScan(data, model.N, given.kind, given.probe, model.modes, given.reading, storage)
    predicted: Predicted | None = None
    last_growth = monotonic()
    while True:
        began = monotonic()
        growth, fault = _look(scan)
        if growth and growth.new:
            last_growth = monotonic()
            predicted = predicted or _begin(scan, model, layout, data, storage, print_line)
            _take_in(predicted, scan, growth.new, batch_size)
            if not growth.is_complete:
                _show(predicted, growth, data, out, layout, print_line)
        if predicted and growth and growth.is_complete:
            if growth.total and growth.n < growth.total:
                print_line(f"{data.name} was closed with {growth.n} of the {growth.total} patterns that it announced")
            break
        if monotonic() - last_growth >= following.idle_s:
            if predicted is None:
                raise ConfigError(f"`data` (={data}) had nothing to read for {following.idle_s:g} s: {fault}")
            read = f"{len(predicted.members)} patterns are read" + (f" ({fault})" if fault else "")
            print_line(f"{data.name} has not grown for {following.idle_s:g} s: {read}, and the scan counts as ended")
            break
        sleep(max(0.0, following.every_s - (monotonic() - began)))
    compare_with_model(scan.scan, float(predicted.patterns.mean_counts().sum()), model, print_line)
    return predicted


def _look(scan: LiveScan) -> tuple[Growth | None, str]:
    """What is new in a file; or why it cannot be read, which may change, as the file does."""
    try:
        return scan.look(), ""
    except ConfigError:
        raise
    except ValueError as error:
        return None, str(error)


def _begin(
    scan: LiveScan, model: Network, layout: str, data: Path, storage: Storage, print_line: PrintLine
) -> Predicted:
    print_remarks(scan.scan, print_line)
    check_pixel_size(scan.scan, layout, data)
    print_line(f"following {data.name}: patterns of {model.N} x {model.N} with {model.source}")
    patterns = StoredPatterns(scan.scan.counts[:0], storage)
    return Predicted.nothing_of(scan.scan, model, patterns, beam_of(scan.scan, model), scan.first_px, scan.room)


def _take_in(predicted: Predicted, scan: LiveScan, new: int, batch_size: int) -> None:
    """Mask and predict the `new` patterns at the end of the scan, all of them anew where further pixels are masked."""
    before = predicted.beam.mask
    predicted.scan, predicted.beam = scan.scan, beam_of(scan.scan, predicted.model)
    predicted.patterns = StoredPatterns(scan.scan.counts, predicted.patterns.storage)
    mask, n = predicted.beam.mask, len(predicted.patterns)
    if mask is not None:
        is_new = before is None or bool((mask != before).any())
        masked = (
            predicted.patterns if is_new else StoredPatterns(scan.scan.counts[n - new :], predicted.patterns.storage)
        )
        masked.keep_only(mask.numpy())
    members = np.arange(n - new, n)
    predicted.add(Groups(members[:, None]), batch_size, lambda done, total: None)


def _show(predicted: Predicted, growth: Growth, data: Path, out: Path, layout: str, print_line: PrintLine) -> None:
    """Write what there is, and say how far it has come."""
    found = stitch_and_measure(predicted, halves=False)
    r_factor = found.numbers["r_factor"]
    so_far = f"{growth.n} of {growth.total} patterns" if growth.total else f"{growth.n} patterns"
    write_object(predicted, found, data, out, layout, f"{data.name}, {so_far}: R = {r_factor:.4f}", print_line)
    print_line(f"{so_far}: R-factor {r_factor:.4f}")
