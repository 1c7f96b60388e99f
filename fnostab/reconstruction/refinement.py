"""An object and its probe fitted further to the measured patterns, by gradient descent from where they are."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from fnostab.optics import Beam
from fnostab.reconstruction.blocks import neighbouring_blocks
from fnostab.reconstruction.patterns import StoredPatterns
from fnostab.scan import Reassembly, read_windows, shifted, split_positions, stitch

#: The first step of Adam, over the largest magnitude of the object and of each mode of the probe: from a network's
#: object on. A start that is further away wants more, one that nearly fits less (docs/measured-scan.md).
RATE: Final = 0.03
#: Patterns of a step: of fewer, steps are rougher, of more, the same time holds fewer of them (docs/measured-scan.md).
BATCH_SIZE: Final = 32


class Refined(NamedTuple):
    """An object with the light of its new probe, and that probe, in the place of those that the descent began with."""

    stitched: Reassembly
    beam: Beam


def refine(
    stitched: Reassembly,
    positions_px: NDArray[np.floating],
    beam: Beam,
    patterns: StoredPatterns,
    scale: float,
    steps: int,
    rng: np.random.Generator,
    batch_size: int = BATCH_SIZE,
    rate: float = RATE,
    on_step: Callable[[int, int], None] = lambda done, total: None,
) -> Refined:
    """Lower the R-factor of the one object by `steps` of Adam on object and probe; the positions stay.

    A step takes `batch_size` patterns, drawn by `rng` so that all have had their turn before one comes again. Its loss
    is the numerator of R, in which masked pixels count nowhere; the rate falls from `rate`, over the largest magnitude
    of the object and of each mode, to 0 along half a cosine (Loshchilov and Hutter 2017, ICLR, eq. 5). The model of the
    experiment is that of `scan.stitched_r_factor`: exact sub-pixel positions, incoherent modes.
    """
    corners, remainders = split_positions(positions_px)
    windows = torch.from_numpy(corners - np.array(stitched.origin_px))
    N = beam.probe.shape[-1]
    field = torch.view_as_real(torch.from_numpy(stitched.object.copy())).requires_grad_()
    modes = [torch.view_as_real(mode.detach().clone().to(torch.complex64)).requires_grad_() for mode in beam.modes]
    rates = [rate * float(torch.view_as_complex(each.detach()).abs().max()) for each in (field, *modes)]
    groups = [{"params": [each], "lr": first} for each, first in zip((field, *modes), rates, strict=True)]
    optimizer = torch.optim.Adam(groups)
    order: NDArray[np.int64] = np.empty(0, np.int64)
    for step in range(steps):
        if len(order) < min(batch_size, len(patterns)):
            order = np.concatenate([order, rng.permutation(len(patterns))])
        members, order = order[:batch_size], order[batch_size:]
        for group, largest in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = largest * (1 + math.cos(math.pi * step / steps)) / 2
        measured = torch.from_numpy(patterns.amplitudes(members, scale))
        patterns.storage.release()
        at_positions = tuple(shifted(torch.view_as_complex(mode), remainders[members]) for mode in modes)
        views = read_windows(torch.view_as_complex(field), windows[members], N)
        model = replace(beam, modes=at_positions).amplitude(views)
        loss = (model - measured).abs().mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        on_step(step + 1, steps)
    found = replace(beam, modes=tuple(torch.view_as_complex(mode.detach()) for mode in modes))
    obj = torch.view_as_complex(field.detach()).numpy()
    light = light_of(found, corners - np.array(stitched.origin_px), remainders, stitched.light.shape)
    return Refined(replace(stitched, object=obj, light=light), found)


def light_of(
    beam: Beam, corners: NDArray[np.int64], remainders: NDArray[np.float32], shape: tuple[int, ...]
) -> NDArray[np.float32]:
    """The intensity of all modes over all positions, float32 of `shape`: the `light` of a `Reassembly`."""
    N = beam.probe.shape[-1]
    light = torch.zeros(shape)
    for block in neighbouring_blocks(corners, N):
        windows = torch.from_numpy(corners[block.members] - block.start)
        for mode in beam.modes:
            probes = shifted(mode.to(torch.complex64), remainders[block.members]).expand(len(windows), N, N)
            light[block.place] += stitch(probes, probes, windows, block.shape)[1]
    return light.numpy()
