"""The one object of a scan whose patches were predicted: stitched, measured, refined, written."""

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

import fnostab
from fnostab import metrics
from fnostab.config import ConfigError
from fnostab.dataset import OnPatterns
from fnostab.dataset.groups import Groups
from fnostab.evaluation import Reconstruction, can_be_stitched, frc_of_halves, in_mean_phase
from fnostab.formats.result import Result, write_result
from fnostab.formats.scan import Scan
from fnostab.io.files import atomic_write
from fnostab.optics import Beam, measured_scale
from fnostab.reconstruction.patterns import StoredPatterns
from fnostab.reconstruction.refinement import refine
from fnostab.reconstruction.waves import StoredWaves
from fnostab.report.axes import try_to_draw
from fnostab.report.run import reconstruction_figure
from fnostab.scan import Reassembly
from fnostab.workflows import PrintLine
from fnostab.workflows.backends import Network

#: What `refine` draws its patterns by.
_REFINING_SEED: Final = 0


@dataclass(eq=False)
class Predicted:
    """A scan and what a network has predicted of it so far.

    `patterns` are the scan's counts where the masks of both are good; the scan's positions less `first_px` (2,) are
    those of the object's frame. `waves` are the patches' in the light of `beam`, those of the patterns `members` in
    this order, of which `group_of` tells which were predicted together; `predicting_s` are the seconds that it took.
    `variances` are the squared deviations that an ensemble predicts of the patches, kept like them; None of a network.
    """

    scan: Scan
    model: Network
    patterns: StoredPatterns
    beam: Beam
    first_px: NDArray[np.float64]
    waves: StoredWaves
    members: NDArray[np.int64]
    group_of: NDArray[np.int64]
    variances: StoredWaves | None = None
    predicting_s: float = 0.0

    @classmethod
    def nothing_of(
        cls,
        scan: Scan,
        model: Network,
        patterns: StoredPatterns,
        beam: Beam,
        first_px: NDArray[np.float64],
        room: int | None = None,
    ) -> "Predicted":
        """A scan of which nothing was predicted yet; `room` is the number of patterns that it will have."""
        kept = partial(StoredWaves, beam.weight.numpy(), patterns.storage, room or len(patterns))
        none = np.empty(0, np.int64)
        return cls(scan, model, patterns, beam, first_px, kept(), none, none, kept() if model.has_deviation else None)

    @property
    def positions_px(self) -> NDArray[np.float64]:
        """The positions (n, 2) of all patterns of the scan in the frame of the object."""
        return self.scan.positions_px - self.first_px

    @property
    def scale(self) -> float:
        """What turns amplitudes into square roots of counts: the model's, or else that of an object of ones."""
        if self.model.scale is not None:
            return self.model.scale
        return measured_scale(self.patterns.mean_counts()[None].astype(np.float32), self.beam)

    def add(self, groups: Groups, batch_size: int, on_patterns: OnPatterns) -> None:
        """Predict the patches of `groups` of patterns, a batch at a time; one that ends inside a group takes all of it.

        Raises `ConfigError` for patches that cannot be stitched.
        """
        order, counted, C = groups.in_order, groups.counted, self.model.gridsize**2
        positions = self.positions_px
        group_of = np.arange(len(order)) // C + int(self.group_of.max(initial=-1)) + 1
        step = batch_size + -batch_size % C
        for start in range(0, len(order), step):
            members, first = order[start : start + step], counted[start : start + step]
            began = time.perf_counter()
            patches, deviations = self.model.predict_with_deviation(self.scan.counts[members])
            self.predicting_s += time.perf_counter() - began
            if not can_be_stitched(patches):
                source = self.model.source
                raise ConfigError(f"`model` (={source}) must predict finite patches of this scan, and does not")
            self.waves.append(positions[members[first]], patches[first])
            if self.variances is not None and deviations is not None:
                self.variances.append(positions[members[first]], np.square(deviations[first]).astype(np.complex64))
            self.members = np.concatenate([self.members, members[first]])
            self.group_of = np.concatenate([self.group_of, group_of[start : start + step][first]])
            on_patterns(min(start + step, len(self.patterns)), len(self.patterns))
        self.patterns.storage.release()


@dataclass(frozen=True, eq=False)
class ScanObject:
    """The object of a scan, the probe that it is seen with, and numbers by their names in `study.names`.

    `network_object` is the network's, where `stitched` was refined. `deviation` float32 (H, W) is that of an ensemble's
    object, before any refinement: sqrt(sum |P_j|^2 deviation_j^2 / light), with the weights of the object.
    """

    stitched: Reassembly
    beam: Beam
    scale: float
    numbers: dict[str, float]
    network_object: NDArray[np.complex64] | None = None
    deviation: NDArray[np.float32] | None = None

    @property
    def mean_deviation(self) -> float | None:
        """The root mean square of `deviation` where the light is."""
        if self.deviation is None:
            return None
        lit = self.deviation[metrics.is_lit(self.stitched.light)]
        return float(np.sqrt(np.square(lit, dtype=np.float64).mean()))


def stitch_and_measure(predicted: Predicted, halves: bool = True) -> ScanObject:
    """The network's object, its R-factor beside that of no information, and what of it two half scans repeat.

    The last is NaN without `halves`, which take as long as the object itself.
    """
    patterns, scale = predicted.patterns, predicted.scale
    stitched = predicted.waves.reassemble()
    curve = frc_of_halves(predicted.waves.reassemble, predicted.group_of) if halves else metrics.FRC(*np.empty((3, 0)))
    numbers = {
        "r_factor": patterns.r_factor(stitched, predicted.positions_px, predicted.beam, scale),
        "r_factor_mean_pattern": patterns.mean_pattern_r_factor(),
        "overlap_consistency": stitched.consistency,
        "frc_halves_one_seventh": curve.crossing(1 / 7),
        "frc_halves_half_bit": curve.crossing(metrics.half_bit_threshold(curve.coefficients)),
    }
    return ScanObject(stitched, predicted.beam, scale, numbers, deviation=_deviation(predicted))


def refined(
    predicted: Predicted, found: ScanObject, steps: int, rate: float, on_step: Callable[[int, int], None]
) -> ScanObject:
    """The object `found` after `steps` of descent on it and its probe; what is said of patches stays the network's."""
    rng = np.random.default_rng(_REFINING_SEED)
    positions, patterns, scale = predicted.positions_px, predicted.patterns, found.scale
    stitched, beam = refine(
        found.stitched, positions, found.beam, patterns, scale, steps, rng, rate=rate, on_step=on_step
    )
    numbers = found.numbers | {
        "r_factor": patterns.r_factor(stitched, positions, beam, scale),
        "r_factor_network": found.numbers["r_factor"],
    }
    return ScanObject(stitched, beam, scale, numbers, found.stitched.object, found.deviation)


def write_object(
    predicted: Predicted, found: ScanObject, data: Path, out: Path, layout: str, title: str, print_line: PrintLine
) -> Path | None:
    """Write the object and a picture of it beside: both or neither. Returns the picture, None if it cannot be drawn."""
    stitched, scan, numbers = found.stitched, predicted.scan, dict(found.numbers)
    numbers["consistency"] = numbers.pop("overlap_consistency")
    del numbers["r_factor_mean_pattern"]
    positions = predicted.positions_px
    first = np.floor(positions.min(axis=0))  # 0, but for a growing file that did not say where it would begin
    top, left = (np.array(stitched.origin_px) - first.astype(int)).tolist()
    result = Result(
        stitched.object,
        stitched.light,
        (top, left),
        positions - first,
        predicted.first_px + first,
        np.stack([mode.numpy() for mode in found.beam.modes]),
        scale=found.scale,
        mean_counts=float(predicted.patterns.mean_counts().sum()),
        pixel_size_m=scan.pixel_size_m,
        energy_eV=scan.energy_eV,
        distance_m=scan.distance_m,
        numbers=numbers,
        model=predicted.model.source,
        scan=data.name,
        program=f"fnostab {fnostab.__version__}",
        network_object=found.network_object,
        deviation=found.deviation,
    )
    shown = _in_mean_phase(stitched, numbers["r_factor"])
    probe = found.beam.probe.numpy()
    picture, fault = try_to_draw(lambda: reconstruction_figure(shown, probe, title, found.deviation))
    png = out.with_suffix(".png") if picture else None
    if picture is None:
        print_line(f"warning: the object could not be drawn, so there is no picture: {fault}")
    with contextlib.ExitStack() as files:  # both appear, or neither
        write_result(files.enter_context(atomic_write(out)), layout, result)
        if picture and png:
            files.enter_context(atomic_write(png)).write_bytes(picture.png)
    return png


def _deviation(predicted: Predicted) -> NDArray[np.float32] | None:
    """The deviation of an ensemble's object: variances are put together as patches are, and have no phases."""
    if predicted.variances is None:
        return None
    return np.asarray(np.sqrt(predicted.variances.reassemble(n_sync=0).object.real.clip(0)))


def _in_mean_phase(stitched: Reassembly, r_factor: float) -> Reconstruction:
    """What is drawn: the object's phase is turned so that the mean of what was lit is real."""
    lit = metrics.is_lit(stitched.light)
    return Reconstruction(in_mean_phase(stitched.object, lit), lit, stitched, r_factor)
