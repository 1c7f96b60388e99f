"""Reconstruct a scan with a trained network: the entry point `reconstruct`, and `fnostab reconstruct`."""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import fnostab
from fnostab import metrics
from fnostab.config import ReadingConfig, is_left_open
from fnostab.dataset import OnPatterns
from fnostab.dataset.groups import group_patterns
from fnostab.evaluation import consistency_warning
from fnostab.formats.scan import Scan
from fnostab.io.scratch import Scratch, Storage
from fnostab.reconstruction.patterns import StoredPatterns
from fnostab.reconstruction.refinement import RATE
from fnostab.scan import Reassembly
from fnostab.study.names import tracked
from fnostab.tracking.models import log_to_projects_run
from fnostab.workflows import PrintLine
from fnostab.workflows.backends import Network, load_network, resolve_backend
from fnostab.workflows.live import Following, check_following, predict_while_it_grows
from fnostab.workflows.scan_object import Predicted, refined, stitch_and_measure, write_object
from fnostab.workflows.scan_of_model import (
    GivenScan,
    beam_of,
    check_arguments,
    check_pixel_size,
    compare_with_model,
    import_for,
)


@dataclass(frozen=True)
class Timing:
    """Seconds that a reconstruction of `n` patterns took: reading them, predicting, stitching and measuring, refining.

    Of a growing file, `reading_s` is all but the others, waiting included.
    """

    n: int
    reading_s: float
    predicting_s: float
    stitching_s: float
    refining_s: float

    @property
    def patterns_per_s(self) -> float:
        """Patterns that the network predicted a second."""
        return self.n / max(self.predicting_s, 1e-9)


@dataclass(frozen=True, eq=False)
class ScanReconstruction:
    """One object from a whole scan, and the files that hold it; `png` is None if the object could not be drawn.

    `npz` is the object's file, of whichever layout. `r_factor` is that of the ONE object, `r_factor_network` that of
    the network's, which is the same without a refinement; `r_factor_mean_pattern` that of one mean pattern everywhere,
    which is no information. `frc_halves_one_seventh` and `frc_halves_half_bit` are the spatial frequencies, in cycles
    per pixel, at which the Fourier ring correlation of the objects of two half scans falls under 1/7 and under the
    half-bit curve; NaN where the halves cannot be compared. `source` is the model, an alias replaced by its version;
    `run_id` the run of `mlflow run` that it was logged to, if any. `deviation` is the root mean square of an ensemble's
    where the light is; None of one network.
    """

    npz: Path
    png: Path | None
    source: str
    run_id: str | None
    stitched: Reassembly
    r_factor: float
    r_factor_network: float
    r_factor_mean_pattern: float
    frc_halves_one_seventh: float
    frc_halves_half_bit: float
    timing: Timing
    deviation: float | None


def reconstruct_scan(
    model_uri: str,
    data: str | Path,
    out: str | Path,
    *,
    quantity: str = "auto",
    probe: str = "auto",
    layout: str = "auto",
    reading: ReadingConfig | None = None,
    batch_size: int = 64,
    backend: str = "auto",
    precision: str = "auto",
    refine: int = 0,
    refine_rate: float = RATE,
    following: Following | None = None,
    print_line: PrintLine = lambda line: None,
    on_patterns: OnPatterns = lambda done, total: None,
    on_step: OnPatterns = lambda done, total: None,
) -> ScanReconstruction:
    """Reconstruct the scan in `data` with the model at `model_uri` and write `out`, and a PNG beside it.

    The patterns are cropped to the model's N as for training, and for a model of gridsize 2 put into groups of four
    neighbours, always the same. The model's probe, with all its modes, is what its patches fit, so it is the one that
    they are stitched with; the scan's own, or that of the NPZ file `probe`, only where the model brings none. A pixel
    counts if it is good in the masks of both. `backend` and `precision` say what runs the network
    (`workflows.backends`). With `refine`, the network's object and the probe are fitted on by so many steps of
    `reconstruction.refinement.refine` at `refine_rate`, and what they end with is written.

    With `following`, `data` is an HDF5 file that grows: its patterns are predicted as they come, and `out` and the PNG
    are written anew with those that are there (`workflows.live`), until it is complete.

    Patterns and patches are kept in temporary files beside `out` and taken some at a time: memory does not grow with
    their number, but for some numbers a pattern and what a file keeps in it that cannot be read in parts.

    `print_line` takes lines for people: a warning for a scan whose probe, mask or counts are not what the model was
    trained with, where overlap consistency means nothing, and why there is no PNG where the object could not be drawn.
    Amplitudes are in the model's units; a model without `scale` counts as one that was trained on this scan. Under
    `mlflow run` the files and the numbers go to its run.

    `out` is CXI if it ends in .cxi, .h5 or .hdf5, a product of ptychodus (.npz, .h5, .hdf5) with `layout` ptychodus;
    both need the object's pixel in metres. Else it is NPZ with `object` complex64 (H, W), its `light` float32 (H, W),
    `origin_px` (2,) in the frame of `positions_px` (n, 2), which start at 0; `pixel_size_m`, NaN if it is unknown;
    `probe` complex64 (N, N), the first of `modes` (k, N, N) if there are several; `r_factor`, `consistency`,
    `frc_halves_one_seventh`, `frc_halves_half_bit` and the URI `model`; of a refined object also the network's,
    `network_object` and `r_factor_network`; of that of an ensemble its `deviation` float32 (H, W). Either file appears
    whole or not at all. Raises `ConfigError`, in one line and before anything is written, for bad input.
    """
    out, data = Path(out), Path(data)
    backend, precision = resolve_backend(model_uri, backend, precision)
    layout = check_arguments(out, data, quantity, batch_size, layout, refine)
    model = load_network(model_uri, backend, precision, print_line)
    given = GivenScan(data, quantity, None if is_left_open(probe) else probe, reading or ReadingConfig())
    storage, clock = Scratch(out.parent), _Clock()
    if following is None:
        scan = import_for(given, model, storage, print_line)
        check_pixel_size(scan, layout, data)
        predicted = _predict_all(scan, model, batch_size, storage, print_line, on_patterns)
    else:
        check_following(data, model)
        predicted = predict_while_it_grows(model, given, out, layout, following, batch_size, storage, print_line)
    predicting_s = predicted.predicting_s
    reading_s = clock.lap() - predicting_s
    found = stitch_and_measure(predicted)
    stitching_s = clock.lap()
    if warning := consistency_warning(found.stitched):
        print_line(warning)
    if refine:
        found = refined(predicted, found, refine, refine_rate, on_step)
    timing = Timing(len(predicted.members), reading_s, predicting_s, stitching_s, clock.lap() if refine else 0.0)
    numbers = found.numbers
    title = f"{data.name}, {model_uri}: R = {numbers['r_factor']:.4f}"
    png = write_object(predicted, found, data, out, layout, title, print_line)
    tags = {"model": model.source, "scan": str(data), "fnostab_version": fnostab.__version__}
    if vacuous := metrics.vacuous(numbers):
        tags["vacuous"] = ",".join(vacuous)
    tags |= {"model_run": model.run_id} if model.run_id else {}
    run_id = log_to_projects_run([path for path in (out, png) if path], tracked(numbers), tags)
    return ScanReconstruction(
        out,
        png,
        model.source,
        run_id,
        found.stitched,
        numbers["r_factor"],
        numbers.get("r_factor_network", numbers["r_factor"]),
        numbers["r_factor_mean_pattern"],
        numbers["frc_halves_one_seventh"],
        numbers["frc_halves_half_bit"],
        timing,
        found.mean_deviation,
    )


def _predict_all(
    scan: Scan,
    model: Network,
    batch_size: int,
    storage: Storage,
    print_line: PrintLine,
    on_patterns: OnPatterns,
) -> Predicted:
    """Predict all patterns of a scan."""
    patterns = StoredPatterns(scan.counts, storage)
    compare_with_model(scan, float(patterns.mean_counts().sum()), model, print_line)
    if model.mask is not None:
        patterns.keep_only(model.mask)
    print_line(f"reconstructing {len(patterns)} patterns of {model.N} x {model.N} with {model.source}")
    predicted = Predicted.nothing_of(scan, model, patterns, beam_of(scan, model), scan.positions_px.min(axis=0))
    groups = group_patterns(predicted.positions_px, np.zeros(len(patterns), np.int64), model.gridsize)
    predicted.add(groups, batch_size, on_patterns)
    return predicted


class _Clock:
    """Tells the time of laps."""

    def __init__(self) -> None:
        self._last = time.perf_counter()

    def lap(self) -> float:
        """Seconds since the last call, or since the beginning."""
        last, self._last = self._last, time.perf_counter()
        return self._last - last
