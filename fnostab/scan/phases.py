"""The global phase of each exit wave over the one object that is common to all."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Shaped
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import eigsh

from fnostab.scan.stitching import Corners, Probes, Waves, not_dark, read_windows, stitch, window_index

#: Patch pairs whose overlap is under this share of their energy are taken as apart: it may be rounding.
_LOOSE = 1e-6


@torch.no_grad()
def synchronise_phases(
    exit_waves: Waves, probes: Probes, corners: Corners, n_iterations: int = 100
) -> Float[torch.Tensor, " n"]:
    """Estimate the global phase that each exit wave has over the one object common to all.

    Arguments as for `stitch`. Then psi_j is best explained as exp(i phase_j) P_j O. The least-squares phases maximise
    z* A z over unit z_j = exp(i phase_j), where A_jk = sum psi_j conj(P_j) P_k conj(psi_k) / light over the overlap of
    j and k. Start: the leading eigenvector of A without diagonal, normalised by its degrees D (Singer 2011, Appl.
    Comput. Harmon. Anal. 30, 20). Then at most `n_iterations` of z <- sgn(A z + D z), which never lower z* A z (Boumal
    2016, SIAM J. Optim. 26, 2355) and end where phase_j = arg <P_j O, psi_j> for every patch. A common phase is free:
    the mean of z is made positive in every group of patches that overlap, so agreeing patches keep their phases. The
    phases are solved for on the CPU.
    """
    matrix = _overlap_matrix(exit_waves, probes.expand_as(exit_waves), corners)
    phases = solve_phases(matrix, n_iterations)
    return torch.from_numpy(phases).to(exit_waves.device, exit_waves.real.dtype)


def solve_phases(matrix: Any, n_iterations: int = 100) -> Float64[NDArray[np.float64], " n"]:
    """Find the phases of `synchronise_phases` from its matrix A without diagonal, SciPy CSR, complex128 (n, n)."""
    z = np.ones(matrix.shape[0], dtype=np.complex128)
    n_groups, group = connected_components(abs(matrix), directed=False)
    for members in (np.flatnonzero(group == g) for g in range(n_groups)):
        if len(members) == 1:
            continue
        block = matrix[members][:, members]
        degree = np.asarray(abs(block).sum(axis=1)).ravel()
        z_group = _sign(_leading_eigenvector(block, degree))
        for _ in range(n_iterations):
            previous, z_group = z_group, _sign(block @ z_group + degree * z_group)
            if np.abs(z_group - previous).max() < 1e-7:
                break
        z[members] = z_group * _sign(z_group.mean(keepdims=True)).conj()
    return np.asarray(np.angle(z))


def _overlap_matrix(exit_waves: Waves, probes: Probes, corners: Corners) -> Any:
    """The matrix A of `synchronise_phases` without diagonal, SciPy CSR, complex (n, n): Q Q*, a row of Q a patch."""
    N, corners = exit_waves.shape[-1], corners - corners.amin(dim=0)
    height, width = (corners.amax(dim=0) + N).tolist()
    _, light = stitch(exit_waves, probes, corners, (height, width))
    light = read_windows(not_dark(light), corners, N)
    lit = lit_pixels(probes.abs().amax(dim=0))
    values = (probes.conj() * exit_waves / light.sqrt())[:, lit].cpu().numpy()
    index = window_index(corners, N, width).reshape(-1, N, N)[:, lit].cpu().numpy()
    ends = np.arange(len(values) + 1) * values.shape[1]
    rows = sparse.csr_array((values.ravel(), index.ravel(), ends), shape=(len(values), height * width))
    matrix = (rows @ rows.conj().T).tocoo()
    return tied_pairs(matrix.row, matrix.col, matrix.data, np.sqrt(matrix.diagonal().real))


def lit_pixels(brightest: Float[torch.Tensor, "N N"]) -> Bool[torch.Tensor, "N N"]:
    """The pixels of a window where phases are compared; `brightest` is the largest amplitude of all probes there."""
    return brightest > 1e-2 * brightest.max()


def tied_pairs(
    rows: Shaped[NDArray[Any], " m"],
    columns: Shaped[NDArray[Any], " m"],
    overlaps: Shaped[NDArray[Any], " m"],
    sizes: Shaped[NDArray[Any], " n"],
) -> Any:
    """The matrix A of `synchronise_phases` from its entries, without the diagonal and pairs that lie apart.

    `sizes` are the roots of its diagonal. Returns SciPy CSR, complex128 (n, n).
    """
    tied = (np.abs(overlaps) > _LOOSE * sizes[rows] * sizes[columns]) & (rows != columns)
    shape = (len(sizes), len(sizes))
    return sparse.csr_array((overlaps[tied], (rows[tied], columns[tied])), shape=shape, dtype=np.complex128)


def _leading_eigenvector(matrix: Any, degree: NDArray[np.float64]) -> NDArray[np.complex128]:
    """Leading eigenvector of a Hermitian CSR matrix after scaling by its degrees, from a fixed start."""
    scale = sparse.diags_array(1 / np.sqrt(degree))
    normalised = scale @ matrix @ scale
    if matrix.shape[0] <= 64:
        vectors = np.linalg.eigh(normalised.toarray())[1]
    else:
        start = np.ones(matrix.shape[0], dtype=np.complex128)
        vectors = eigsh(normalised, k=1, which="LA", v0=start, tol=1e-8, maxiter=100_000)[1]
    return np.asarray(vectors[:, -1])


def _sign(z: NDArray[np.complex128]) -> NDArray[np.complex128]:
    """z / |z|, and 1 where z is 0."""
    size = np.abs(z)
    return np.where(size > 0, z / np.where(size > 0, size, 1), 1)
