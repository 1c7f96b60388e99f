"""Reconstruct a scan with a trained network: the entry point `reconstruct`, and `fnostab reconstruct`."""

import contextlib
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast, get_args

import numpy as np
from numpy.typing import NDArray

import fnostab
from fnostab import metrics
from fnostab.config import ConfigError, ReadingConfig, is_left_open
from fnostab.dataset import OnPatterns, import_scan
from fnostab.dataset.groups import Groups, group_patterns
from fnostab.evaluation import (
    Reconstruction,
    can_be_stitched,
    consistency_warning,
    half_scan_frc,
    in_mean_phase,
)
from fnostab.formats.result import Result, needs_pixel_size, resolve_layout, write_result
from fnostab.formats.scan import Quantity, Scan
from fnostab.io.files import atomic_write
from fnostab.optics import Beam, measured_scale
from fnostab.report.axes import try_to_draw
from fnostab.report.run import reconstruction_figure
from fnostab.scan import Reassembly, reassemble, stitched_r_factor
from fnostab.study.names import tracked
from fnostab.tracking.models import ShippedModel, load_model, log_to_projects_run
from fnostab.tracking.store import check_store
from fnostab.workflows import PrintLine, print_remarks

#: A scan's probe that differs from the model's by less than this share is taken as the same.
_PROBE_TOLERANCE: Final = 0.05
#: The same for the counts of the mean pattern.
_COUNTS_TOLERANCE: Final = 0.1


@dataclass(frozen=True, eq=False)
class ScanReconstruction:
    """One object from a whole scan, and the files that hold it; `png` is None if the object could not be drawn.

    `npz` is the object's file, of whichever layout. `r_factor` is that of the ONE stitched object,
    `r_factor_mean_pattern` that of one mean pattern everywhere, which is no information. `frc_halves_one_seventh` and
    `frc_halves_half_bit` are the spatial frequencies, in cycles per pixel, at which the Fourier ring correlation of the
    objects of two half scans falls under 1/7 and under the half-bit curve; NaN where the halves cannot be compared.
    `source` is the model, an alias replaced by its version; `run_id` the run of `mlflow run` that it was logged to, if
    any.
    """

    npz: Path
    png: Path | None
    source: str
    run_id: str | None
    stitched: Reassembly
    r_factor: float
    r_factor_mean_pattern: float
    frc_halves_one_seventh: float
    frc_halves_half_bit: float


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
    print_line: PrintLine = lambda line: None,
    on_patterns: OnPatterns = lambda done, total: None,
) -> ScanReconstruction:
    """Reconstruct the scan in `data` with the model at `model_uri` and write `out`, and a PNG beside it.

    The patterns are cropped to the model's N as for training, and for a model of gridsize 2 put into groups of four
    neighbours, always the same. The model's probe, with all its modes, is what its patches fit, so it is the one that
    they are stitched with; the scan's own, or that of the NPZ file `probe`, only where the model brings none. A pixel
    counts if it is good in the masks of both.

    `print_line` takes lines for people: a warning for a scan whose probe, mask or counts are not what the model was
    trained with, where overlap consistency means nothing, and why there is no PNG where the object could not be drawn.
    Amplitudes are in the model's units; a model without `scale` counts as one that was trained on this scan. Under
    `mlflow run` the files and the numbers go to its run.

    `out` is CXI if it ends in .cxi, .h5 or .hdf5, a product of ptychodus (.npz, .h5, .hdf5) with `layout` ptychodus;
    both need the object's pixel in metres. Else it is NPZ with `object` complex64 (H, W), its `light` float32 (H, W),
    `origin_px` (2,) in the frame of `positions_px` (n, 2), which start at 0; `pixel_size_m`, NaN if it is unknown;
    `probe` complex64 (N, N), the first of `modes` (k, N, N) if there are several; `r_factor`, `consistency`,
    `frc_halves_one_seventh`, `frc_halves_half_bit` and the URI `model`. Either file appears whole or not at all.
    Raises `ConfigError`, in one line and before anything is written, for bad input.
    """
    out, data = Path(out), Path(data)
    layout = _check_arguments(out, data, quantity, batch_size, layout)
    model = load_model(model_uri)
    reading = reading or ReadingConfig()
    scan = _import(data, model, quantity, None if is_left_open(probe) else probe, reading, print_line)
    if needs_pixel_size(layout) and scan.pixel_size_m is None:
        raise ConfigError(
            f"`object_pixel_m` (=null) must be given for a file of the layout {layout}, which is in metres, since "
            f"{data} does not tell it; or energy_keV, distance_m and detector_pixel_m"
        )
    beam = _beam(scan, model)
    _compare(scan, model, print_line)
    print_line(f"reconstructing {len(scan.counts)} patterns of {model.N} x {model.N} with {model.source}")
    positions = scan.positions_px - scan.positions_px.min(axis=0)
    groups = group_patterns(positions, np.zeros(len(scan.counts), np.int64), model.gridsize)
    patches = _predict(model, scan.counts, groups, batch_size, on_patterns)
    if not can_be_stitched(patches):
        raise ConfigError(f"`model` (={model_uri}) must predict finite patches of this scan, and does not")
    used, weight = beam.probe.numpy(), beam.weight.numpy()
    stitched = reassemble(patches, positions, weight)
    counts = scan.counts if beam.mask is None else np.where(beam.mask.numpy(), scan.counts, np.float32(0))
    scale = model.scale or measured_scale(counts, beam)
    amplitudes = np.sqrt(counts) / scale
    r_factor = stitched_r_factor(stitched, positions, beam, amplitudes)
    halves = half_scan_frc(patches, positions, weight, groups.group_of)
    numbers = {
        "r_factor": r_factor,
        "r_factor_mean_pattern": metrics.mean_pattern_r_factor(amplitudes, amplitudes),
        "overlap_consistency": stitched.consistency,
        "frc_halves_one_seventh": halves.crossing(1 / 7),
        "frc_halves_half_bit": halves.crossing(metrics.half_bit_threshold(halves.coefficients)),
    }
    if warning := consistency_warning(stitched):
        print_line(warning)
    result = Result(
        stitched.object,
        stitched.light,
        stitched.origin_px,
        positions,
        scan.positions_px.min(axis=0),
        np.stack([mode.numpy() for mode in beam.modes]),
        scale=scale,
        mean_counts=float(counts.sum(dtype=np.float64)) / len(counts),
        pixel_size_m=scan.pixel_size_m,
        energy_eV=scan.energy_eV,
        distance_m=scan.distance_m,
        numbers={
            "r_factor": r_factor,
            "consistency": stitched.consistency,
            "frc_halves_one_seventh": numbers["frc_halves_one_seventh"],
            "frc_halves_half_bit": numbers["frc_halves_half_bit"],
        },
        model=model.source,
        scan=data.name,
        program=f"fnostab {fnostab.__version__}",
    )
    title = f"{data.name}, {model_uri}: R = {r_factor:.4f}"
    picture, fault = try_to_draw(lambda: reconstruction_figure(_in_mean_phase(stitched, r_factor), used, title))
    png = out.with_suffix(".png") if picture else None
    if picture is None:
        print_line(f"warning: the object could not be drawn, so there is no picture: {fault}")
    with contextlib.ExitStack() as files:  # both appear, or neither
        write_result(files.enter_context(atomic_write(out)), layout, result)
        if picture and png:
            files.enter_context(atomic_write(png)).write_bytes(picture.png)
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
        stitched,
        r_factor,
        numbers["r_factor_mean_pattern"],
        numbers["frc_halves_one_seventh"],
        numbers["frc_halves_half_bit"],
    )


def probe_difference(first: NDArray[np.complex64], second: NDArray[np.complex64]) -> float:
    """Relative difference of two probes after the best complex factor: min over c of |first - c second| / |first|.

    0 for probes that differ by a factor only, 1 for orthogonal ones. A shift and a ramp count as differences.
    """
    a, b = (probe.astype(np.complex128).ravel() for probe in (first, second))
    overlap = np.abs(np.vdot(a, b)) ** 2 / (np.vdot(a, a).real * np.vdot(b, b).real)
    return math.sqrt(max(0.0, 1 - float(overlap)))


def _check_arguments(out: Path, data: Path, quantity: str, batch_size: int, layout: str) -> str:
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
    if os.environ.get("MLFLOW_RUN_ID"):
        check_store()  # it is written to at the end
    return resolved


def _import(
    data: Path, model: ShippedModel, quantity: str, probe: str | None, reading: ReadingConfig, print_line: PrintLine
) -> Scan:
    """The scan at the model's N, with its own probe, or else with the model's."""
    kind = cast(Quantity, quantity or "auto")
    try:
        try:
            scan = import_scan(data, model.N, kind, probe, reading)
        except ValueError as fault:
            if model.probe is None or probe is not None:
                raise
            # Whatever is wrong with the scan's own probe does not matter; all else is said again.
            scan = import_scan(data, model.N, kind, model.probe, reading)
            missing = str(fault).startswith("`data.probe`")
            reason = "the scan brings no probe" if missing else f"the scan's probe cannot be used ({fault})"
            print_line(f"{reason}: the model's is used")
    except ValueError as error:
        hint = "; N is the model's" if str(error).startswith("`data.N`") else ""
        raise ConfigError(f"{error}{hint}") from error
    print_remarks(scan, print_line)
    return scan


def _beam(scan: Scan, model: ShippedModel) -> Beam:
    """The model's modes, or else the scan's, and the pixels that are good for both."""
    modes = np.asarray(scan.modes) if model.modes is None else model.modes
    masks = [mask for mask in (scan.mask, model.mask) if mask is not None]
    return Beam.of(modes, np.logical_and.reduce(masks) if masks else None)


def _compare(scan: Scan, model: ShippedModel, print_line: PrintLine) -> None:
    """Warn if the scan's probe or its counts are not those that the model was trained with."""
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
        mean_counts = float(scan.counts.sum(dtype=np.float64)) / len(scan.counts)
        factor = mean_counts / model.mean_counts
        if not 1 / (1 + _COUNTS_TOLERANCE) <= factor <= 1 + _COUNTS_TOLERANCE:
            print_line(
                f"warning: the scan's mean pattern holds {factor:.3g} times the counts that the model was trained with "
                f"({mean_counts:.4g}, not {model.mean_counts:.4g}); its input is not rescaled"
            )


def _predict(
    model: ShippedModel, counts: NDArray[np.float32], groups: Groups, batch_size: int, on_patterns: OnPatterns
) -> NDArray[np.complex64]:
    """Predict all patches, complex64 (n, N, N), a batch at a time; one that ends inside a group takes all of it."""
    order = groups.in_order
    step = batch_size + -batch_size % model.gridsize**2
    patches = np.empty((len(order), *counts.shape[1:]), np.complex64)
    for start in range(0, len(order), step):
        patches[start : start + step] = model.predict(counts[order[start : start + step]])
        on_patterns(min(start + step, len(counts)), len(counts))
    return groups.once(patches)


def _in_mean_phase(stitched: Reassembly, r_factor: float) -> Reconstruction:
    """What is drawn: the object's phase is turned so that the mean of what was lit is real."""
    lit = stitched.light > metrics.LIT_SHARE * stitched.light.max()
    return Reconstruction(in_mean_phase(stitched.object, lit), lit, stitched, r_factor)
