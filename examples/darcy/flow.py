"""Darcy flow in a porous square: permeabilities, the pressure that a finite-volume solver finds, and a small FNO."""

import numpy as np
import torch
from neuralop.models import FNO
from scipy.fft import idctn
from scipy.sparse import diags_array
from scipy.sparse.linalg import spsolve
from torch.utils.data import TensorDataset


def darcy(samples: int, cells: int, seed: int) -> TensorDataset:
    """Permeabilities and pressures, float32 (samples, 1, cells, cells) each, of mean 0 and deviation 1 or so.

    -div(a grad u) = 1 in the unit square, u = 0 on its rim. The permeability a is 12 where a Gaussian random field
    with covariance (-Laplace + 9)^-2 and Neumann boundaries is positive, and 3 elsewhere: Li et al. 2021, section 5.2.
    """
    rng = np.random.default_rng(seed)
    permeability = np.stack([np.where(_random_field(cells, rng) > 0, 12.0, 3.0) for _ in range(samples)])
    pressure = np.stack([_pressure(a) for a in permeability])
    # 7.5 and 4.5: middle and half range of the permeability. The pressure is of order 0.01.
    pairs = ((permeability - 7.5) / 4.5, 200 * pressure)
    return TensorDataset(*(torch.tensor(values, dtype=torch.float32).unsqueeze(1) for values in pairs))


def small_fno(seed: int) -> FNO:
    """Build an FNO that maps permeabilities to pressures, with weights of this seed."""
    torch.manual_seed(seed)
    return FNO(n_modes=(8, 8), in_channels=1, out_channels=1, hidden_channels=16, n_layers=4)


def relative_error(predicted: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
    """Mean over samples of ||predicted - true|| / ||true||."""
    return ((predicted - true).flatten(1).norm(dim=1) / true.flatten(1).norm(dim=1)).mean()


def constant_error(train: TensorDataset, val: TensorDataset) -> float:
    """Error of a prediction that looks at nothing: the mean pressure of the training samples."""
    return float(relative_error(train.tensors[1].mean(0).expand_as(val.tensors[1]), val.tensors[1]))


def _random_field(cells: int, rng: np.random.Generator) -> np.ndarray:
    k = np.arange(cells)
    amplitude = 1 / (np.pi**2 * (k[:, None] ** 2 + k**2) + 9)
    amplitude[0, 0] = 0
    return idctn(amplitude * rng.standard_normal((cells, cells)), norm="ortho")


def _pressure(a: np.ndarray) -> np.ndarray:
    """Solve for the pressure in each cell; fluxes pass a face by the harmonic mean of its two cells."""
    cells = len(a)
    down = 2 / (1 / a[1:] + 1 / a[:-1])
    right = 2 / (1 / a[:, 1:] + 1 / a[:, :-1])
    # On the rim u is 0, half a cell away.
    diagonal = np.zeros_like(a)
    diagonal[1:] += down
    diagonal[:-1] += down
    diagonal[:, 1:] += right
    diagonal[:, :-1] += right
    for edge in (np.s_[0], np.s_[-1], np.s_[:, 0], np.s_[:, -1]):
        diagonal[edge] += 2 * a[edge]
    beside = np.pad(right, ((0, 0), (0, 1))).ravel()[:-1]
    below = down.ravel()
    offsets = [0, 1, -1, cells, -cells]
    matrix = diags_array([diagonal.ravel(), -beside, -beside, -below, -below], offsets=offsets, format="csc")
    return spsolve(matrix, np.full(cells**2, 1 / cells**2)).reshape(a.shape)
