"""`fnostab reconstruct`."""

import argparse
import math
from typing import TYPE_CHECKING, Any

from fnostab.cli.common import (
    add_command,
    add_scan_arguments,
    pattern_bar,
    positive_number,
    reading_config,
    say,
    whole_number,
)
from fnostab.config import ConfigError, is_left_open
from fnostab.io.garbage import lasting_imports
from fnostab.io.untrusted import shown

if TYPE_CHECKING:
    from fnostab.workflows.reconstruct import ScanReconstruction, Timing


def add(commands: Any) -> None:
    """Add the command."""
    parser = add_command(commands, "reconstruct", "reconstruct a scan with a trained network", _reconstruct)
    uris = "models:/NAME@ALIAS, models:/NAME/VERSION, runs:/RUN/model, a folder, or a file of `fnostab export-model`"
    parser.add_argument("--model", required=True, metavar="URI", help=uris)
    parser.add_argument(
        "--data", required=True, metavar="SCAN", help="scan in a format that `fnostab data formats` lists"
    )
    out = "default: recon.npz; .cxi, .h5 and .hdf5 are CXI; a picture (.png) is put beside it"
    parser.add_argument("--out", default="recon.npz", metavar="FILE", help=out)
    layout = "of the file OUT: fnostab (.npz), cxi, or ptychodus (a product, .npz or .h5); default: by OUT's ending"
    parser.add_argument("--layout", default="auto", help=layout)
    add_scan_arguments(parser)
    parser.add_argument("--batch_size", default="64", help="patterns per pass of the network (default 64)")
    backend = "what runs the network: torch, or onnx (onnxruntime); default: onnx for an ONNX file, else torch"
    parser.add_argument("--backend", default="auto", help=backend)
    precision = "of the network's convolutions: 32-true (default) or bf16-mixed, with the backend torch"
    parser.add_argument("--precision", default="auto", help=precision)
    refine = "steps of gradient descent on object and probe, of 32 patterns each, that follow (default 0)"
    parser.add_argument("--refine", default="auto", metavar="N", help=refine)
    rate = "first step of --refine, over the largest amplitudes of object and probe (default 0.03)"
    parser.add_argument("--refine_rate", metavar="RATE", help=rate)
    follow = "DATA is an HDF5 file that grows (SWMR): predict what is new and update OUT until it is complete"
    parser.add_argument("--follow", action="store_true", help=follow)
    parser.add_argument("--every", metavar="SECONDS", help="with --follow: between two updates (default 10)")
    idle = "with --follow: end when no pattern came for so long (default 60)"
    parser.add_argument("--idle", metavar="SECONDS", help=idle)


def _reconstruct(arguments: argparse.Namespace) -> int:
    batch_size = whole_number("batch_size", arguments.batch_size, at_least=1)
    refine = 0 if is_left_open(arguments.refine) else whole_number("refine", arguments.refine, at_least=0)
    rate = (
        {} if arguments.refine_rate is None else {"refine_rate": positive_number("refine_rate", arguments.refine_rate)}
    )
    reading = reading_config(arguments)
    times = _times(arguments)
    with lasting_imports():
        from fnostab.workflows.live import Following
        from fnostab.workflows.reconstruct import reconstruct_scan

    with pattern_bar("patches") as progress, pattern_bar("refining", "step") as steps:
        result = reconstruct_scan(
            arguments.model,
            arguments.data,
            arguments.out,
            quantity=arguments.quantity,
            probe=arguments.probe,
            layout=arguments.layout,
            reading=reading,
            batch_size=batch_size,
            backend=arguments.backend,
            precision=arguments.precision,
            refine=refine,
            **rate,
            following=Following(**times) if arguments.follow else None,
            print_line=say,
            on_patterns=progress,
            on_step=steps,
        )
    say(f"{_taken(result.timing, arguments.follow)}\n{_reached(result, refine)}")
    return 0


def _times(arguments: argparse.Namespace) -> dict[str, float]:
    """The times of `--follow` that were given, by their names in `Following`."""
    given = {key: value for key in ("every", "idle") if (value := getattr(arguments, key)) is not None}
    for key, value in given.items():
        if not arguments.follow:
            raise ConfigError(f"`{key}` (={shown(value)}) must be left out without --follow")
    return {f"{key}_s": positive_number(key, value) for key, value in given.items()}


def _taken(timing: "Timing", follow: bool) -> str:
    """How long each part took."""
    waited = "read and waited for" if follow else "read"
    refined = f", refined in {timing.refining_s:.2f} s" if timing.refining_s else ""
    return (
        f"patterns: {waited} in {timing.reading_s:.2f} s, predicted in {timing.predicting_s:.2f} s "
        f"({timing.patterns_per_s:.4g} a second), stitched and measured in {timing.stitching_s:.2f} s{refined}"
    )


def _deviating(deviation: float | None) -> str:
    """How far the members of an ensemble deviate; nothing for one network."""
    if deviation is None:
        return ""
    return (
        f"deviation of the members: {deviation:.4g} where the light is (root mean square); it is no error by itself\n"
    )


def _reached(result: "ScanReconstruction", refine: int) -> str:
    """What the object is worth, and where it is."""
    halves = (
        f"falls under 1/7 at {result.frc_halves_one_seventh:.3f} cycles/px, under the half-bit curve at "
        f"{result.frc_halves_half_bit:.3f} (0.5: nowhere)"
    )
    if math.isnan(result.frc_halves_one_seventh):
        halves = "unknown: they have too little lit area in common, or are constant"
    of_what = "for the stitched object"
    if refine:
        of_what = f"after {refine} steps of refinement, {result.r_factor_network:.4f} before"
    return (
        f"R-factor: {result.r_factor:.4f} {of_what} (one mean pattern everywhere, no information: "
        f"{result.r_factor_mean_pattern:.4f})\n"
        f"overlap consistency: {result.stitched.consistency:.3f} (1: overlapping patches agree, 0: they are "
        "unrelated)\n"
        f"FRC of two half scans: {halves}\n"
        f"{_deviating(result.deviation)}"
        f"object: {result.npz.absolute()}" + (f"; picture: {result.png.absolute()}" if result.png else "")
    )
