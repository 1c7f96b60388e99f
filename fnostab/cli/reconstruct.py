"""`fnostab reconstruct`."""

import argparse
import math
from typing import Any

from fnostab.cli.common import add_command, add_scan_arguments, pattern_bar, reading_config, say, whole_number
from fnostab.io.garbage import lasting_imports


def add(commands: Any) -> None:
    """Add the command."""
    parser = add_command(commands, "reconstruct", "reconstruct a scan with a trained network", _reconstruct)
    uris = "models:/NAME@ALIAS, models:/NAME/VERSION, runs:/RUN/model or a folder"
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


def _reconstruct(arguments: argparse.Namespace) -> int:
    batch_size = whole_number("batch_size", arguments.batch_size, at_least=1)
    reading = reading_config(arguments)
    with lasting_imports():
        from fnostab.workflows.reconstruct import reconstruct_scan

    with pattern_bar("patches") as progress:
        result = reconstruct_scan(
            arguments.model,
            arguments.data,
            arguments.out,
            quantity=arguments.quantity,
            probe=arguments.probe,
            layout=arguments.layout,
            reading=reading,
            batch_size=batch_size,
            print_line=say,
            on_patterns=progress,
        )
    if math.isnan(result.frc_halves_one_seventh):
        halves = "unknown: they have too little lit area in common, or are constant"
    else:
        halves = (
            f"falls under 1/7 at {result.frc_halves_one_seventh:.3f} cycles/px, under the half-bit curve at "
            f"{result.frc_halves_half_bit:.3f} (0.5: nowhere)"
        )
    say(
        f"R-factor: {result.r_factor:.4f} for the stitched object (one mean pattern everywhere, no information: "
        f"{result.r_factor_mean_pattern:.4f})\n"
        f"overlap consistency: {result.stitched.consistency:.3f} (1: overlapping patches agree, 0: they are "
        "unrelated)\n"
        f"FRC of two half scans: {halves}\n"
        f"object: {result.npz.absolute()}" + (f"; picture: {result.png.absolute()}" if result.png else "")
    )
    return 0
