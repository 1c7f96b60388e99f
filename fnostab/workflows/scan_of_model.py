"""A scan as a trained network needs it: what is refused beforehand, what is read, and how far the two differ."""

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast, get_args

import numpy as np
from numpy.typing import NDArray

from fnostab.config import ConfigError, ReadingConfig
from fnostab.dataset import import_scan
from fnostab.formats.result import needs_pixel_size, resolve_layout
from fnostab.formats.scan import Quantity, Scan
from fnostab.io.scratch import Storage
from fnostab.optics import Beam
from fnostab.tracking.store import check_store
from fnostab.workflows import PrintLine, print_remarks
from fnostab.workflows.backends import Network

#: A scan's probe that differs from the model's by less than this share is taken as the same.
_PROBE_TOLERANCE: Final = 0.05
#: The same for the counts of the mean pattern.
_COUNTS_TOLERANCE: Final = 0.1


@dataclass(frozen=True)
class GivenScan:
    """A scan's file and what the user says of it; `probe` is a file that stands in for the scan's own, or None."""

    path: Path
    quantity: str
    probe: str | None
    reading: ReadingConfig

    @property
    def kind(self) -> Quantity:
        """The quantity, one of its names."""
        return cast(Quantity, self.quantity or "auto")


def probe_difference(first: NDArray[np.complex64], second: NDArray[np.complex64]) -> float:
    """Relative difference of two probes after the best complex factor: min over c of |first - c second| / |first|.

    0 for probes that differ by a factor only, 1 for orthogonal ones. A shift and a ramp count as differences.
    """
    a, b = (probe.astype(np.complex128).ravel() for probe in (first, second))
    overlap = np.abs(np.vdot(a, b)) ** 2 / (np.vdot(a, a).real * np.vdot(b, b).real)
    return math.sqrt(max(0.0, 1 - float(overlap)))


def check_arguments(out: Path, data: Path, quantity: str, batch_size: int, layout: str, refine: int) -> str:
    """Refuse what can be refused before a model is fetched; returns the layout of `out`."""
    try:
        resolved = resolve_layout(out, layout)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if not out.parent.is_dir() or out.is_dir():
        raise ConfigError(f"`out` (={out}) must be a file in a folder that exists")
    if not os.access(out.parent, os.W_OK):
        raise ConfigError(f"`out` (={out}) must lie in a folder that can be written to")
    if not data.is_file():
        raise ConfigError(f"`data` (={data}) must be a scan, a file that exists")
    if out.exists() and out.samefile(data):
        raise ConfigError(f"`out` (={out}) must be another file than the scan")
    if quantity not in ("", *get_args(Quantity)):
        raise ConfigError(f"`quantity` (={quantity}) must be one of {', '.join(get_args(Quantity))}")
    if batch_size < 1:
        raise ConfigError(f"`batch_size` (={batch_size}) must be >= 1")
    if refine < 0:
        raise ConfigError(f"`refine` (={refine}) must be >= 0")
    if os.environ.get("MLFLOW_RUN_ID"):
        check_store()  # it is written to at the end
    return resolved


def import_for(given: GivenScan, model: Network, storage: Storage, print_line: PrintLine) -> Scan:
    """The scan at the model's N, with its own probe, or else with the model's; its counts in `storage`."""
    path, N, kind, reading = given.path, model.N, given.kind, given.reading
    try:
        try:
            scan = import_scan(path, N, kind, given.probe, reading, storage=storage)
        except ValueError as fault:
            if model.probe is None or given.probe is not None:
                raise
            # Whatever is wrong with the scan's own probe does not matter; all else is said again.
            scan = import_scan(path, N, kind, model.probe, reading, storage=storage)
            missing = str(fault).startswith("`data.probe`")
            reason = "the scan brings no probe" if missing else f"the scan's probe cannot be used ({fault})"
            print_line(f"{reason}: the model's is used")
    except ValueError as error:
        hint = "; N is the model's" if str(error).startswith("`data.N`") else ""
        raise ConfigError(f"{error}{hint}") from error
    print_remarks(scan, print_line)
    return scan


def check_pixel_size(scan: Scan, layout: str, data: Path) -> None:
    """Refuse a scan that does not tell the pixel of its object, for a file in metres."""
    if needs_pixel_size(layout) and scan.pixel_size_m is None:
        raise ConfigError(
            f"`object_pixel_m` (=null) must be given for a file of the layout {layout}, which is in metres, since "
            f"{data} does not tell it; or energy_keV, distance_m and detector_pixel_m"
        )


def beam_of(scan: Scan, model: Network) -> Beam:
    """The model's modes, or else the scan's, and the pixels that are good for both."""
    modes = np.asarray(scan.modes) if model.modes is None else model.modes
    masks = [mask for mask in (scan.mask, model.mask) if mask is not None]
    return Beam.of(modes, np.logical_and.reduce(masks) if masks else None)


def compare_with_model(scan: Scan, mean_counts: float, model: Network, print_line: PrintLine) -> None:
    """Warn if the scan's probe, or the counts of its mean pattern, are not those that the model was trained with."""
    if model.probe is None:
        print_line(
            "warning: the model brings no probe: the scan's is used, and the R-factor means little if it is another"
        )
    else:
        # A probe that was learnt differs from the one that its own scan brings.
        known = [model.probe, *([] if model.start_probe is None else [model.start_probe])]
        difference = min(probe_difference(np.asarray(scan.probe), probe) for probe in known)
        if difference >= _PROBE_TOLERANCE:
            print_line(
                f"warning: the scan's probe differs from the model's by {100 * difference:.1f} % (after the best "
                "complex factor); the model's is used. Where it was not learnt from such a probe, train the model anew"
            )
    good = [np.ones((model.N, model.N), bool) if mask is None else mask for mask in (scan.mask, model.mask)]
    if differing := int((good[0] != good[1]).sum()):
        print_line(
            f"warning: the masks of the scan and of the model differ in {differing} pixels: only those count that are "
            "good in both. Where they are many, train the model anew"
        )
    if model.scale is None:
        print_line(
            "warning: the model does not say its scale: the R-factor holds if it was trained on this measured scan"
        )
    if model.mean_counts is not None:
        factor = mean_counts / model.mean_counts
        if not 1 / (1 + _COUNTS_TOLERANCE) <= factor <= 1 + _COUNTS_TOLERANCE:
            print_line(
                f"warning: the scan's mean pattern holds {factor:.3g} times the counts that the model was trained with "
                f"({mean_counts:.4g}, not {model.mean_counts:.4g}); its input is not rescaled"
            )
