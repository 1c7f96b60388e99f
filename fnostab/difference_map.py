"""The difference map: a conventional reconstruction of a scan, which needs no network and no training.

Thibault et al. 2009, Ultramicroscopy 109, 338: exit waves are driven to where those that fit the patterns and those of
one object and one probe, of any number of modes, meet. It is kept small: whole patterns at once, a fixed number of
iterations.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Complex64, Float
from numpy.typing import NDArray

from fnostab.optics import Beam, Illumination
from fnostab.scan import read_windows, shifted, split_positions, stitch

#: Iterations with the probe as it was given: before there is an object, it would take the blame for everything.
_PROBE_FIXED = 5
#: Projections onto one object and the patterns in turn, at the end: the difference map circles about its solution.
_REFINEMENTS = 5
#: Light under this share of its maximum is damped, as is an object where the probe is dark.
_DARK = 1e-3


class Reconstruction(NamedTuple):
    """An object and the first mode of a probe, and how badly they fit: R = sum |A_model - A| / sum A."""

    object: Complex64[NDArray[np.complex64], "H W"]
    probe: Complex64[NDArray[np.complex64], "N N"]
    r_factor: float


@torch.no_grad()
def difference_map(
    amplitudes: Float[NDArray[np.float32], "n N N"],
    positions_px: Float[NDArray[np.float64], "n 2"],
    probe: Illumination,
    iterations: int = 30,
) -> Reconstruction:
    """Reconstruct the object and the probe of measured `amplitudes`, zero frequency at N // 2, from a flat object.

    `positions_px` are (row, column) of each pattern's window in object pixels; `probe`, a `Beam` or complex (N, N), is
    where the probe starts from, in the amplitudes' scale; masked pixels keep the amplitude that they are given by
    object and probe. The object starts at the corner of the smallest position. Raises ValueError for positions
    that are not finite (n, 2).
    """
    corners, remainders = split_positions(positions_px)
    corners = corners - corners.min(axis=0)
    beam = Beam.of(probe)
    N = beam.probe.shape[-1]
    height, width = (corners.max(axis=0) + N).tolist()
    windows = torch.from_numpy(corners)
    measured = torch.from_numpy(np.array(amplitudes, dtype=np.float32))
    fields = torch.stack(beam.modes).to(torch.complex64)[:, None]  # (k, 1, N, N), as there are (k, n, N, N) waves
    probes = shifted(fields, remainders)
    waves = probes.expand(-1, len(measured), N, N)
    for iteration in range(iterations + _REFINEMENTS):
        obj = _object(waves, probes, windows, (height, width))
        views = read_windows(obj, windows, N)
        if iteration >= _PROBE_FIXED:
            fields = _probe(waves, views, remainders)
            probes = shifted(fields, remainders)
        together = probes * views
        if iteration < iterations:
            waves = waves + _with_amplitudes(2 * together - waves, measured, beam.mask) - together
        else:
            waves = _with_amplitudes(together, measured, beam.mask)
    obj = _object(waves, probes, windows, (height, width))
    model = Beam(tuple(probes), beam.mask).amplitude(read_windows(obj, windows, N))
    r_factor = float((model - measured).abs().sum(dtype=torch.float64) / measured.sum(dtype=torch.float64))
    return Reconstruction(obj.numpy(), fields[0, 0].numpy(), r_factor)


def _with_amplitudes(waves: torch.Tensor, measured: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """The exit waves nearest to `waves` (k, n, N, N) that have the measured far-field amplitudes where they count.

    All modes of a pixel are scaled alike (Thibault and Menzel 2013, Nature 494, 68).
    """
    far = torch.fft.fft2(waves, norm="ortho")
    amplitudes = torch.fft.ifftshift(measured, dim=(-2, -1))
    if len(waves) > 1:
        each = far.abs()
        together = torch.linalg.vector_norm(each, dim=0)
        amplitudes = amplitudes * torch.where(together > 0, each / together, len(waves) ** -0.5)
    if mask is not None:
        amplitudes = torch.where(torch.fft.ifftshift(mask), amplitudes, far.abs())
    found: torch.Tensor = torch.fft.ifft2(torch.polar(amplitudes.expand(far.shape), far.angle()), norm="ortho")
    return found


def _object(waves: torch.Tensor, probes: torch.Tensor, windows: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    all_modes = windows.repeat(len(waves), 1)
    return _ratio(*stitch(waves.flatten(0, 1), probes.expand_as(waves).flatten(0, 1), all_modes, shape))


def _probe(waves: torch.Tensor, views: torch.Tensor, remainders: NDArray[np.float32]) -> torch.Tensor:
    """The least-squares modes (k, 1, N, N) of exit waves (k, n, N, N) and the object in their windows, `views`."""
    views, waves = shifted(views, -remainders), shifted(waves, -remainders)
    return _ratio((views.conj() * waves).sum(1, keepdim=True), views.abs().square().sum(0))


def _ratio(numerator: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    ratio: torch.Tensor = numerator / (weight + _DARK * weight.max())
    return ratio
