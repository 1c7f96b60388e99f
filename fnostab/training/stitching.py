"""The one object that the overlapping patches of a batch, or of a whole scan, make together while a run trains."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from fnostab import metrics
from fnostab.dataset import Split
from fnostab.optics import Beam, fourier_shift
from fnostab.scan import read_windows, stitch

#: Iterations that settle the phases of a batch; they start from the phases that the network gives, nearly agreeing.
_PHASE_ITERATIONS = 3
#: Light under this share of the maximum does not count.
_DARK = 1e-3


def stitched_amplitude(
    patches: torch.Tensor,
    beam: Beam,
    positions_px: torch.Tensor,
    extent_px: tuple[int, int],
    only_counted: Callable[[torch.Tensor], torch.Tensor] = lambda rows: rows,
) -> torch.Tensor:
    """Far-field amplitudes (B, N, N) of the one object that overlapping `patches` (B, N, N) make together.

    The patches' free global phases are settled first, by a few iterations that pass no gradient; then the least-squares
    object of `scan.stitch`, weighted by the light of all modes, is read back at each of the `positions_px` (B, 2),
    whose rounded rows and columns span `extent_px`, or less: a larger canvas gives the same numbers. `only_counted`
    sets rows to zero; patches of such rows are no part of the object.
    """
    size = patches.shape[-1]
    corners = positions_px.round()
    remainder = positions_px - corners
    corners = (corners - corners.amin(0)).long()
    height, width = extent_px[0] + size, extent_px[1] + size
    probes = only_counted(fourier_shift(beam.weight.expand_as(patches), remainder))
    waves = only_counted(fourier_shift(beam.weight * patches, remainder))
    modes: tuple[torch.Tensor, ...] = (probes,)
    if len(beam.modes) > 1:
        modes = tuple(fourier_shift(mode.expand_as(patches), remainder) for mode in beam.modes)
    phase = patches.new_ones(len(patches))
    for iteration in range(_PHASE_ITERATIONS + 1):
        last = iteration == _PHASE_ITERATIONS
        with torch.set_grad_enabled(last and torch.is_grad_enabled()):
            numerator, light = stitch(waves * phase[:, None, None], probes, corners, (height, width))
            canvas = numerator / (light + _DARK * light.amax().detach())
            views = read_windows(canvas, corners, size)
            if not last:
                inner = (waves.conj() * (probes * views)).sum((1, 2))
                phase = inner / inner.abs().clamp_min(1e-12)
    return replace(beam, modes=modes).amplitude(views)


def stitched_amplitude_ssim(
    amplitudes: torch.Tensor, probe: torch.Tensor, split: Split, objects: NDArray[np.complex64]
) -> float:
    """Mean SSIM over `objects`, each stitched from the `amplitudes` (n, N, N) of its patches in `split`.

    No patch's global phase touches it. NaN where an object is not finite.
    """
    values = []
    for index, truth in enumerate(objects):
        members = torch.from_numpy(np.flatnonzero(split.object_index == index)).to(amplitudes.device)
        corners = torch.from_numpy(split.positions_px.astype(np.int64)).to(amplitudes.device)[members]
        numerator, light = stitch(probe * amplitudes[members], probe, corners, truth.shape)
        mask = (light > metrics.LIT_SHARE * light.max()).cpu().numpy()
        stitched = (numerator.real / light.clamp_min(torch.finfo(light.dtype).tiny)).cpu().numpy()
        finite = bool(mask.any() and np.isfinite(stitched[mask]).all())
        values.append(metrics.amplitude_ssim(stitched, np.abs(truth), mask) if finite else math.nan)
    return float(np.mean(values))
