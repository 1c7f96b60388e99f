"""The Siemens star by pty-chi's LSQML and by a trained network, with and without refinement: R-factor against time.

    make .venv-interop/.installed
    .venv-interop/bin/python -m benchmarks.siemens ../shared/data/siemens-star-small.npz.bz2 --model runs:/RUN/model

All in one process, one after the other, in CPU seconds, which other work beside does not change much; so one thread is
the measure. Clocks run from patterns in memory to the object: reading, loading the model, and taking R-factors are left
out for all. LSQML starts from the probe in the file and an object of
ones; its R-factors are those of its own forward model. R = sum |sqrt(counts) - A| / sum sqrt(counts).
"""

import argparse
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
import torch

from fnostab.dataset import import_scan
from fnostab.dataset.groups import group_patterns
from fnostab.io.scratch import Memory
from fnostab.optics import Beam, measured_scale
from fnostab.reconstruction.patterns import StoredPatterns
from fnostab.reconstruction.refinement import RATE, light_of, refine
from fnostab.scan import Reassembly, read_windows, shifted, split_positions
from fnostab.workflows.backends import load_network, resolve_backend
from fnostab.workflows.scan_object import Predicted
from fnostab.workflows.scan_of_model import beam_of

#: The central part of the patterns whose R-factor is told beside that of the whole.
_CROP = 64
#: The R-factor of whole patterns that the first clock runs to.
_FIRST = 0.17
#: Epochs of LSQML between two looks at its R-factor, after that.
_EVERY = 5


class Row(NamedTuple):
    """What was done, the seconds that it took, and R-factors of whole patterns and of their middle."""

    what: str
    seconds: float
    r: float
    r_middle: float

    def __str__(self) -> str:
        return f"| {self.what} | {self.seconds:.2f} | {self.r:.4f} | {self.r_middle:.4f} |"


class Fit:
    """Sums up an R-factor over patterns (k, N, N) and over their middle."""

    def __init__(self) -> None:
        self.sums = np.zeros((2, 2))

    def add(self, model: torch.Tensor, measured: torch.Tensor) -> None:
        edge = (measured.shape[-1] - _CROP) // 2
        middle = (slice(None), slice(edge, edge + _CROP), slice(edge, edge + _CROP))
        for row, part in enumerate((slice(None), middle)):
            difference = (model[part] - measured[part]).abs().sum(dtype=torch.float64)
            self.sums[row] += float(difference), float(measured[part].sum(dtype=torch.float64))

    @property
    def r_factors(self) -> tuple[float, float]:
        whole, middle = self.sums[:, 0] / self.sums[:, 1]
        return float(whole), float(middle)


def fit_of(stitched: Reassembly, positions: np.ndarray, beam: Beam, patterns: StoredPatterns, scale: float) -> Fit:
    """The R-factors of the one object, at exact sub-pixel positions."""
    fit = Fit()
    corners, remainders = split_positions(positions)
    windows = torch.from_numpy(corners - np.array(stitched.origin_px))
    canvas = torch.from_numpy(stitched.object)
    for part in patterns.parts:
        views = read_windows(canvas, windows[part], beam.probe.shape[-1])
        modes = tuple(shifted(mode, remainders[part]) for mode in beam.modes)
        with torch.no_grad():
            model = Beam(modes, beam.mask).amplitude(views)
        fit.add(model, torch.from_numpy(patterns.amplitudes(part, scale)))
    return fit


def network_rows(
    scan_path: Path, model_uri: str, precision: str, steps: list[int], rate: float, batch_size: int
) -> list[Row]:
    """The network alone, and refined by each number of steps."""
    backend, precision = resolve_backend(model_uri, "auto", precision)
    model = load_network(model_uri, backend, precision, print)
    scan = import_scan(scan_path, model.N, storage=Memory())
    patterns = StoredPatterns(scan.counts, Memory())
    warm = model.predict(scan.counts[:batch_size])
    assert warm.shape[-1] == model.N
    began = time.process_time()
    predicted = Predicted.nothing_of(scan, model, patterns, beam_of(scan, model), scan.positions_px.min(axis=0))
    positions = predicted.positions_px
    groups = group_patterns(positions, np.zeros(len(patterns), np.int64), model.gridsize)
    predicted.add(groups, batch_size, lambda done, total: None)
    stitched = predicted.waves.reassemble()
    alone_s = time.process_time() - began
    beam, scale = predicted.beam, predicted.scale
    name = f"network, N = {model.N}, {backend} {precision}"
    rows = [Row(name, alone_s, *fit_of(stitched, positions, beam, patterns, scale).r_factors)]
    for number in steps:
        began = time.process_time()
        rng = np.random.default_rng(0)
        found = refine(stitched, positions, beam, patterns, scale, number, rng, rate=rate)
        seconds = alone_s + time.process_time() - began
        fitted = fit_of(found.stitched, positions, found.beam, patterns, scale)
        rows.append(Row(f"{name}, refined by {number} steps at {rate:g}", seconds, *fitted.r_factors))
    return rows


def descent_rows(scan_path: Path, N: int, steps: list[int], rate: float) -> list[Row]:
    """The refinement alone: from an object of ones and the probe in the file, as LSQML."""
    scan = import_scan(scan_path, N, storage=Memory())
    patterns, beam = StoredPatterns(scan.counts, Memory()), Beam.of(scan.probe)
    positions, scale = scan.positions_px - scan.positions_px.min(axis=0), measured_scale(scan.counts, beam)
    corners, remainders = split_positions(positions)
    shape = tuple((corners.max(axis=0) + N).tolist())
    light = light_of(beam, corners, remainders, shape)
    flat = Reassembly(np.ones(shape, np.complex64), light, (0, 0), np.zeros(len(corners)), np.nan, np.nan)
    rows = []
    for number in steps:
        began = time.process_time()
        found = refine(flat, positions, beam, patterns, scale, number, np.random.default_rng(0), rate=rate)
        seconds = time.process_time() - began
        fitted = fit_of(found.stitched, positions, found.beam, patterns, scale)
        rows.append(Row(f"no network, N = {N}, refined by {number} steps at {rate:g}", seconds, *fitted.r_factors))
    return rows


def lsqml_rows(scan_path: Path, epochs: int, batch_size: int) -> list[Row]:
    """pty-chi's LSQML, a row an epoch until the first clock stops, then one every few epochs."""
    _without_torchvision()
    from ptychi import api
    from ptychi.api.task import PtychographyTask

    scan = import_scan(scan_path)
    N = scan.counts.shape[-1]
    middles = scan.positions_px - scan.positions_px.min(axis=0)
    middles -= middles.max(axis=0) / 2
    size = [int(np.ceil(extent)) + N + 20 for extent in np.ptp(scan.positions_px, axis=0)]
    options = api.LSQMLOptions()
    options.data_options.free_space_propagation_distance_m = np.inf
    options.data_options.wavelength_m = 1e-10
    options.object_options.pixel_size_m = 1e-8
    options.object_options.optimizable = options.probe_options.optimizable = True
    options.reconstructor_options.default_device = api.Devices.CPU
    options.reconstructor_options.num_epochs, options.reconstructor_options.batch_size = epochs, batch_size
    # Its FFT is not orthonormal, ours is: N in amplitude.
    probe = torch.from_numpy(scan.probe / N)[None, None]
    task = PtychographyTask(
        options,
        diffraction_data=scan.counts,
        object_data=torch.ones((1, *size), dtype=torch.complex64),
        probe_data=probe,
        probe_position_y_px=middles[:, 0],
        probe_position_x_px=middles[:, 1],
    )
    measured = torch.from_numpy(np.sqrt(scan.counts))
    rows, seconds = [], 0.0
    for epoch in range(1, epochs + 1):
        began = time.process_time()
        task.run(1)
        seconds += time.process_time() - began
        if first_under(rows, _FIRST) and epoch % _EVERY and epoch != epochs:
            continue
        fit = Fit()
        with torch.no_grad():
            for start in range(0, len(measured), batch_size):
                index = torch.arange(start, min(start + batch_size, len(measured)))
                intensities = task.reconstructor.forward_model.forward(index)
                fit.add(torch.fft.fftshift(intensities.sqrt(), dim=(-2, -1)), measured[index])
        rows.append(Row(f"LSQML, {epoch} epochs", seconds, *fit.r_factors))
    return rows


def _without_torchvision() -> None:
    """pty-chi imports it and does not use it; a build for another torch does not import."""
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        for name in [name for name in sys.modules if name.startswith("torchvision")]:
            del sys.modules[name]
        sys.modules["torchvision._meta_registrations"] = ModuleType("torchvision._meta_registrations")


def first_under(rows: list[Row], r: float) -> Row | None:
    """The first of `rows` whose R-factor of whole patterns is at most `r`."""
    return next((row for row in rows if row.r <= r), None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("scan", type=Path, help="siemens-star-small.npz.bz2")
    parser.add_argument("--model", action="append", default=[], help="a trained network; several may be given")
    parser.add_argument("--precision", default="auto", help="as of fnostab reconstruct")
    parser.add_argument("--refine", default="25,50,100,200", help="numbers of steps, each a refinement of its own")
    parser.add_argument("--rate", type=float, default=RATE, help="of the refinement")
    parser.add_argument("--nothing", type=int, metavar="N", help="also refine an object of ones, at this pattern size")
    parser.add_argument("--batch_size", type=int, default=64, help="of the networks")
    parser.add_argument("--epochs", type=int, default=60, help="of LSQML; 0 leaves it out")
    parser.add_argument("--lsqml_batch_size", type=int, default=64, help="patterns a batch of LSQML")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of all; their seconds are added up")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    steps = [int(number) for number in arguments.refine.split(",") if number]
    print("| what | CPU s | R, whole patterns | R, central 64 x 64 |\n|---|---|---|---|")
    theirs = lsqml_rows(arguments.scan, arguments.epochs, arguments.lsqml_batch_size) if arguments.epochs else []
    reached = first_under(theirs, _FIRST)
    for row in theirs[theirs.index(reached) if reached else 0 :]:
        print(row, flush=True)
    for uri in arguments.model:
        for row in network_rows(arguments.scan, uri, arguments.precision, steps, arguments.rate, arguments.batch_size):
            print(row, flush=True)
    for row in descent_rows(arguments.scan, arguments.nothing, steps, arguments.rate) if arguments.nothing else []:
        print(row, flush=True)
    if theirs:
        best, best_middle = (min(theirs, key=lambda row, key=key: getattr(row, key)) for key in ("r", "r_middle"))
        print(f"\nLSQML's best: {best.r:.4f} in {best.seconds:.1f} s; {best_middle.r_middle:.4f} in the middle")


if __name__ == "__main__":
    main()
