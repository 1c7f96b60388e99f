"""One object from the patches of a whole scan, how far they agree, and how well its patterns fit the measured ones."""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Complex64, Float32, Float64, Shaped
from numpy.typing import ArrayLike, NDArray

from fnostab.optics import Beam, Illumination
from fnostab.scan.phases import synchronise_phases
from fnostab.scan.positions import split_positions
from fnostab.scan.stitching import (
    Corners,
    Probes,
    Waves,
    least_squares_object,
    not_dark,
    read_windows,
    shifted,
    stitch,
)

#: Patches whose variance is under this share of their energy are taken as constant: single precision cannot tell.
_CONSTANT = 1e-5
#: Patches that share less than this part of their light cannot be said to agree or to disagree.
LEAST_SHARED = 0.01


@dataclass(frozen=True)
class Reassembly:
    """One object from a scan's patches; `origin_px` is the canvas's (row, column) in the positions' frame."""

    object: Complex64[NDArray[np.complex64], "H W"]  #: least squares over all patches
    light: Float32[NDArray[np.float32], "H W"]  #: sum of the shifted probes' intensities
    origin_px: tuple[int, int]
    phases_rad: Float64[NDArray[np.float64], " n"]  #: the phase that each patch had over the object
    consistency: float  #: intraclass correlation of overlapping patches: 1 if they agree, 0 if unrelated, NaN if apart
    shared_light: float  #: mean share that other patches have in the light where a patch has its own, 0 to 1


@torch.no_grad()
def reassemble(
    patches: ArrayLike | torch.Tensor, positions_px: ArrayLike, probe: ArrayLike | torch.Tensor, n_sync: int = 100
) -> Reassembly:
    """Find the least-squares object of patches at scattered, sub-pixel positions.

    `patches` complex (n, N, N), `positions_px` (n, 2), `probe` complex (N, N); `n_sync` limits the iterations that
    settle the patches' global phases, 0 keeps the patches' own. Patch j sees the object at its exact position; its exit
    wave and the probe are shifted by the remainder to whole pixels (exact where band limits allow), then O = sum
    conj(P_j) psi_j exp(-i phase_j) / (sum |P_j|^2 + 1e-7 of its maximum). Runs on the device of `patches`. Raises
    ValueError if the shapes do not fit.

    `consistency` is an intraclass correlation (Fisher 1925, Statistical Methods for Research Workers, chapter VII) of
    the values O_j = psi_j / P_j that patches have in common pixels, weighted by light: 1 - sum |psi_j - P_j O|^2 / sum
    s_j |psi_j - P_j m_j|^2, sums over patches and pixels. s_j = 1 - |P_j|^2 / light is the others' share of a pixel's
    light, m_j the mean of O_j weighted by s_j |P_j|^2: the patch's own, because a mean common to all would make the
    free phases of patches part of the variance, and positions too far apart look better than the right ones. The
    numerator is the sum over pairs |P_j|^2 |P_k|^2 / light |O_j - O_k|^2; patches without relation but of one mean have
    the denominator's value there. So it is 1 for patches that agree, about 0 for unrelated ones however many overlap,
    and negative for those that differ more. A pixel that one patch lights alone adds 0 to both sums. NaN if
    `shared_light`, the mean of s_j weighted by |P_j|^2, is under 0.01, or if the patches are constant where they
    overlap.
    """
    waves = torch.as_tensor(patches).to(torch.complex64)
    light_field = torch.as_tensor(probe).to(waves)
    corners, remainders = split_positions(positions_px)
    N = waves.shape[-1]
    if waves.shape != (len(corners), N, N) or light_field.shape != (N, N):
        shapes = f"{tuple(waves.shape)}, {corners.shape}, {tuple(light_field.shape)}"
        raise ValueError(f"`patches`, `positions_px`, `probe` (={shapes}) must be (n, N, N), (n, 2), (N, N)")
    origin = corners.min(axis=0)
    height, width = (corners.max(axis=0) - origin + N).tolist()
    windows = torch.from_numpy(corners - origin).to(waves.device)
    probes = shifted(light_field, remainders)
    waves = shifted(light_field * waves, remainders)
    phases = waves.real.new_zeros(len(waves))
    if n_sync > 0:
        phases = synchronise_phases(waves, probes, windows, n_sync)
        waves = waves * torch.polar(torch.ones_like(phases), -phases)[:, None, None]
    numerator, light = stitch(waves, probes, windows, (height, width))
    canvas = least_squares_object(numerator, light)
    consistency, shared_light = _consistency(waves, probes, windows, canvas, light)
    return Reassembly(
        object=canvas.cpu().numpy(),
        light=light.cpu().numpy(),
        origin_px=(int(origin[0]), int(origin[1])),
        phases_rad=phases.double().cpu().numpy(),
        consistency=consistency,
        shared_light=shared_light,
    )


def _consistency(
    waves: Waves, probes: Probes, corners: Corners, canvas: torch.Tensor, light: torch.Tensor
) -> tuple[float, float]:
    """`Reassembly.consistency` and `.shared_light` of exit waves in phase and their object, `canvas`."""
    sums = agreement_sums(waves, probes, corners, canvas, not_dark(light))
    return consistency_of(sums, float(light.sum(dtype=torch.float64)))


def agreement_sums(
    waves: Waves, probes: Probes, corners: Corners, canvas: torch.Tensor, light: torch.Tensor
) -> Float64[NDArray[np.float64], "4"]:
    """Sums over some patches that `consistency_of` needs of all: exit waves in phase, their object and its light."""
    N = waves.shape[-1]
    intensities = probes.abs().square()
    others = (1 - intensities / read_windows(light, corners, N)).clamp_min(0)
    shared = others * intensities
    own_weight = shared.sum(dim=(1, 2)).clamp_min(torch.finfo(shared.dtype).tiny)
    own_mean = (others * probes.conj() * waves).sum(dim=(1, 2)) / own_weight
    varying = others * (waves - probes * own_mean[:, None, None]).abs().square()
    whole = others * waves.abs().square()
    differing = (waves - probes * read_windows(canvas, corners, N)).abs().square()
    return np.array([float(each.sum(dtype=torch.float64)) for each in (shared, varying, whole, differing)])


def consistency_of(sums: Float64[NDArray[np.float64], "4"], all_light: float) -> tuple[float, float]:
    """`Reassembly.consistency` and `.shared_light` from the `agreement_sums` of all patches and the sum of light."""
    shared, varying, whole, differing = sums.tolist()
    shared_light = shared / all_light if all_light else math.nan
    if not (shared_light >= LEAST_SHARED and varying > _CONSTANT * whole):
        return math.nan, shared_light
    return 1 - differing / varying, shared_light


@torch.no_grad()
def stitched_r_factor(
    reassembly: Reassembly,
    positions_px: ArrayLike,
    probe: Illumination,
    amplitudes: Shaped[NDArray[Any], "n N N"],
    batch_size: int = 256,
) -> float:
    """Compare the patterns of the ONE reassembled object with the measured amplitudes.

    `amplitudes` are centred, 0 at masked pixels, and may be memory-mapped; `positions_px` (n, 2) lie on the
    reassembly's canvas; `probe` is a `Beam` or complex (N, N), in the amplitudes' scale. Returns R = sum |A_model - A|
    / sum A. Raises ValueError if a position leaves the canvas.
    """
    canvas = torch.from_numpy(reassembly.object)
    beam = Beam.of(probe).detached()
    modes = [mode.to(canvas) for mode in beam.modes]
    N = modes[0].shape[-1]
    corners, remainders = split_positions(positions_px)
    corners = corners - np.array(reassembly.origin_px)
    if (corners < 0).any() or (corners + N > np.array(canvas.shape)).any():
        raise ValueError(f"`positions_px` (=from {corners.min(axis=0)}) must lie on the reassembled canvas")
    difference = total = 0.0
    for start in range(0, len(corners), batch_size):
        batch = slice(start, start + batch_size)
        measured = torch.from_numpy(np.array(amplitudes[batch], dtype=np.float32))
        windows = read_windows(canvas, torch.from_numpy(corners[batch]), N)
        at_positions = replace(beam, modes=tuple(shifted(mode, remainders[batch]) for mode in modes))
        model = at_positions.amplitude(windows)
        difference += float((model - measured).abs().sum(dtype=torch.float64))
        total += float(measured.sum(dtype=torch.float64))
    return difference / total
