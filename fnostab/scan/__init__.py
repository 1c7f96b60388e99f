"""Scans: patches cut from an object, and ONE object put together from patches.

A position is the (row, column) of a patch's top-left corner in object pixels. It splits into the nearest whole pixel,
the corner of a window on the canvas, and a remainder by which exit wave and probe are shifted within the window.
`stitch` and `read_windows` are differentiable and fit into a training loss; `reassemble` solves a whole scan.
"""

from fnostab.scan.phases import (
    lit_pixels as lit_pixels,
    solve_phases as solve_phases,
    synchronise_phases as synchronise_phases,
    tied_pairs as tied_pairs,
)
from fnostab.scan.positions import (
    extract_patches as extract_patches,
    grid_positions as grid_positions,
    split_positions as split_positions,
    stitch_grid as stitch_grid,
)
from fnostab.scan.reassembly import (
    LEAST_SHARED as LEAST_SHARED,
    Reassembly as Reassembly,
    agreement_sums as agreement_sums,
    consistency_of as consistency_of,
    reassemble as reassemble,
    stitched_r_factor as stitched_r_factor,
)
from fnostab.scan.stitching import (
    Corners as Corners,
    Probes as Probes,
    Waves as Waves,
    least_squares_object as least_squares_object,
    not_dark as not_dark,
    read_windows as read_windows,
    shifted as shifted,
    stitch as stitch,
)
