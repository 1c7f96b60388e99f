"""Windows of a canvas and their sum, differentiable, so that they fit into a training loss.

Windows have whole-pixel corners. The remainders of sub-pixel positions shift exit waves and probes within them.
"""

import numpy as np
import torch
from jaxtyping import Complex, Float, Int64, Shaped
from numpy.typing import NDArray

from fnostab.optics import fourier_shift

Waves = Complex[torch.Tensor, "n N N"]
Probes = Complex[torch.Tensor, "... N N"]
Corners = Int64[torch.Tensor, "n 2"]

#: Light under this share of its maximum counts as dark: there the object is free, and is drawn to zero.
_DARK = 1e-7


def read_windows(canvas: Shaped[torch.Tensor, "H W"], corners: Corners, N: int) -> Shaped[torch.Tensor, "n {N} {N}"]:
    """Read N x N windows of a canvas at `corners`; differentiable.

    The windows must lie inside the canvas, which is not checked: that would make a GPU wait.
    """
    index = window_index(corners, N, canvas.shape[-1])
    return canvas.reshape(-1).index_select(0, index).reshape(-1, N, N)


def stitch(
    exit_waves: Waves, probes: Probes, corners: Corners, shape: tuple[int, int]
) -> tuple[Complex[torch.Tensor, "H W"], Float[torch.Tensor, "H W"]]:
    """Sum exit waves into the numerator and the light of the least-squares object; differentiable.

    `exit_waves` and `probes`, (n, N, N) or (N, N), are both shifted by their positions' remainders; `corners` are not
    checked to lie inside the canvas of `shape`. Returns the numerator sum conj(P_j) psi_j and the light sum |P_j|^2:
    their quotient is the object that minimises sum |psi_j - P_j O|^2 (Thibault et al. 2009, Ultramicroscopy 109, 338,
    eq. 9).
    """
    index = window_index(corners, exit_waves.shape[-1], shape[1])
    products = probes.conj() * exit_waves
    intensities = probes.abs().square().expand_as(products)
    # index_add_ on flat tensors, forwards and in `read_windows` backwards: on a CPU always in the same order.
    numerator = products.new_zeros(shape[0] * shape[1]).index_add(0, index, products.reshape(-1))
    light = intensities.new_zeros(shape[0] * shape[1]).index_add(0, index, intensities.reshape(-1))
    return numerator.reshape(shape), light.reshape(shape)


def least_squares_object(
    numerator: Complex[torch.Tensor, "H W"], light: Float[torch.Tensor, "H W"]
) -> Complex[torch.Tensor, "H W"]:
    """The object from what `stitch` gives of all patches; it goes to zero where it is dark."""
    return numerator / (light + _DARK * light.max())


def not_dark(light: Float[torch.Tensor, "H W"]) -> Float[torch.Tensor, "H W"]:
    """`light`, and the least of it that is not dark where it is."""
    return light.clamp_min(_DARK * light.max())


def shifted(field: torch.Tensor, remainders: NDArray[np.float32]) -> torch.Tensor:
    """Shift `field`, complex (N, N) or (n, N, N), by the `remainders` (n, 2) of positions, as probes and waves are.

    It is returned untouched, and not copied, where all are zero.
    """
    if not remainders.any():
        return field
    return fourier_shift(field, torch.from_numpy(remainders).to(field.device))


def window_index(corners: Corners, N: int, width: int) -> torch.Tensor:
    """Flat canvas indices, int64 (n * N * N), of the windows at `corners`."""
    step = torch.arange(N, device=corners.device)
    rows, cols = corners[:, 0, None] + step, corners[:, 1, None] + step
    return (rows[:, :, None] * width + cols[:, None, :]).reshape(-1)
