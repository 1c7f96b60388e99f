"""Several networks as one: the mean of their object patches, and how far they deviate from it."""

from collections.abc import Sequence
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor, nn

#: Steps that settle the phases; where the members nearly agree, the first one finds them.
_STEPS: Final = 8
#: Overlaps of members under this magnitude have no phase.
_NO_OVERLAP: Final = 1e-20

Parts = Float[Tensor, "K patches pixels"]


class Ensemble(nn.Module):
    """Counts in; out comes the mean patch of several networks, and its standard deviation in each pixel.

    `members` are networks as runs ship them, from counts float32 (B, N, N) to patches (B, N, N, 2), real and imaginary
    part, or of groups from (B, C, N, N) to (B, C, N, N, 2). `light` (N, N) is the probe's intensity. The output has a
    third value beside real and imaginary part of the mean: sqrt(mean_k |o_k - mean|^2), in units of the object.

    A pattern leaves the global phase of its patch open, so the members' patches are turned before the mean is taken;
    see `settle_phases`. The mean is in the phase of the first member. Raises ValueError for fewer than two members.
    """

    light: Tensor

    def __init__(self, members: Sequence[nn.Module], light: Float[Tensor, "N N"]) -> None:
        super().__init__()
        if len(members) < 2:
            raise ValueError(f"`members` (={len(members)}) must be at least 2 networks")
        self.members = nn.ModuleList(members)
        self.register_buffer("light", light / light.sum())

    def forward(self, counts: Float[Tensor, "B *groups N N"]) -> Float[Tensor, "B *groups N N 3"]:
        """Predict mean patches and their deviations."""
        return self.combine(torch.stack([member(counts) for member in self.members]))

    def combine(self, predicted: Float[Tensor, "K B *groups N N 2"]) -> Float[Tensor, "B *groups N N 3"]:
        """The mean and the deviation of what the K members have `predicted`."""
        parts = predicted.flatten(1, -4).flatten(2, 3)
        real, imag = settle_phases(parts[..., 0], parts[..., 1], self.light.flatten())
        mean_real, mean_imag = real.mean(0), imag.mean(0)
        deviation = ((real - mean_real).square() + (imag - mean_imag).square()).mean(0).sqrt()
        return torch.stack([mean_real, mean_imag, deviation], dim=-1).reshape(*predicted.shape[1:-1], 3)


def settle_phases(real: Parts, imag: Parts, light: Float[Tensor, " pixels"]) -> tuple[Parts, Parts]:
    """Turn K estimates o_k of each patch so that they differ least; returns their real and imaginary parts.

    `real` and `imag` are (K, patches, pixels). The phases minimise sum_k sum_r light |exp(-i phase_k) o_k - mean|^2:
    the generalised Procrustes problem (Gower 1975, Psychometrika 40, 33) with turns of the phase alone. With unit z_k
    and the products G_jk = sum_r light o_j conj(o_k) that is the largest z* G z. It is found by z <- sgn(G z), which
    never lowers it (Boumal 2016, SIAM J. Optim. 26, 2355), from the phases over the first estimate, which stays.
    """
    a, b = real.transpose(0, 1), imag.transpose(0, 1)
    weighted_a, weighted_b = a * light, b * light
    # In real numbers, which every runtime of an exported file has.
    G_real = weighted_a @ a.mT + weighted_b @ b.mT
    G_imag = weighted_b @ a.mT - weighted_a @ b.mT
    x, y = _sign(G_real[..., 0], G_imag[..., 0])
    for _ in range(_STEPS):
        x, y = _sign(_product(G_real, x) - _product(G_imag, y), _product(G_real, y) + _product(G_imag, x))
    first_x, first_y = x[:, :1], y[:, :1]
    turn_real, turn_imag = x * first_x + y * first_y, x * first_y - y * first_x  # conj(z_k) z_0
    turn_real, turn_imag = turn_real.T[..., None], turn_imag.T[..., None]
    return real * turn_real - imag * turn_imag, real * turn_imag + imag * turn_real


def _product(matrices: Float[Tensor, "patches K K"], vectors: Float[Tensor, "patches K"]) -> Float[Tensor, "patches K"]:
    return (matrices * vectors[:, None, :]).sum(-1)


def _sign(
    real: Float[Tensor, "patches K"], imag: Float[Tensor, "patches K"]
) -> tuple[Float[Tensor, "patches K"], Float[Tensor, "patches K"]]:
    """Complex numbers divided by their magnitude; 1 for those that have none."""
    magnitude = (real.square() + imag.square()).sqrt()
    has_phase = magnitude > _NO_OVERLAP
    safe = torch.where(has_phase, magnitude, torch.ones_like(magnitude))
    return torch.where(has_phase, real / safe, torch.ones_like(real)), torch.where(has_phase, imag / safe, imag * 0)
