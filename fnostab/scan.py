"""Scans: patches cut from an object, and ONE object put together from patches.

A position is the (row, column) of a patch's top-left corner in object pixels. It splits into the nearest whole pixel,
the corner of a window on the canvas, and a remainder by which exit wave and probe are shifted within the window.
`stitch` and `read_windows` are differentiable and fit into a training loss; `reassemble` solves a whole scan.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Complex, Complex64, Float, Float32, Float64, Int64, Shaped
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import eigsh

from fnostab.optics import Beam, Illumination, fourier_shift

Waves = Complex[torch.Tensor, "n N N"]
Probes = Complex[torch.Tensor, "... N N"]
Corners = Int64[torch.Tensor, "n 2"]

#: Light under this share of its maximum counts as dark: there the object is free, and is drawn to zero.
_DARK = 1e-7
#: Patches whose variance is under this share of their energy are taken as constant: single precision cannot tell.
_CONSTANT = 1e-5
#: Patches that share less than this part of their light cannot be said to agree or to disagree.
LEAST_SHARED = 0.01
#: Patch pairs whose overlap is under this share of their energy are taken as apart: it may be rounding.
_LOOSE = 1e-6


@dataclass(frozen=True)
class Reassembly:
    """One object from a scan's patches; `origin_px` is the canvas's (row, column) in the positions' frame."""

    object: Complex64[NDArray[np.complex64], "H W"]  #: least squares over all patches
    light: Float32[NDArray[np.float32], "H W"]  #: sum of the shifted probes' intensities
    origin_px: tuple[int, int]
    phases_rad: Float64[NDArray[np.float64], " n"]  #: the phase that each patch had over the object
    consistency: float  #: intraclass correlation of overlapping patches: 1 if they agree, 0 if unrelated, NaN if apart
    shared_light: float  #: mean share that other patches have in the light where a patch has its own, 0 to 1


def grid_positions(size: int, N: int, stride_px: int) -> Int64[NDArray[np.int64], "n 2"]:
    """List the top-left corners of a square grid of N x N patches on a `size` x `size` object.

    They are (row, column), row by row from (0, 0), every patch inside the object. Raises ValueError if no patch fits or
    the stride is not positive.
    """
    if not 1 <= N <= size:
        raise ValueError(f"`N` (={N}) must be between 1 and the object's size, {size}")
    if stride_px < 1:
        raise ValueError(f"`stride_px` (={stride_px}) must be >= 1")
    axis = np.arange(0, size - N + 1, stride_px, dtype=np.int64)
    return np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)


def extract_patches(
    obj: Shaped[NDArray[Any], "H W"], positions_px: ArrayLike, N: int
) -> Shaped[NDArray[Any], "n {N} {N}"]:
    """Cut N x N patches out of an object at whole-pixel positions.

    `positions_px` is (n, 2); the patches are copies, of the object's dtype. Raises ValueError if a position is not
    whole or its patch leaves the object.
    """
    corners = _whole(positions_px)
    last = np.array(obj.shape) - N
    outside = ((corners < 0) | (corners > last)).any(axis=1)
    if outside.any():
        raise ValueError(f"`positions_px` (={corners[outside][0].tolist()}) must be between 0 and {last.tolist()}")
    patches: NDArray[Any] = np.lib.stride_tricks.sliding_window_view(obj, (N, N))[corners[:, 0], corners[:, 1]]
    return patches


def stitch_grid(
    patches: Shaped[NDArray[Any], "..."], positions_px: ArrayLike, tile_px: int, N: int
) -> tuple[Shaped[NDArray[Any], "H W"], tuple[int, int]]:
    """Lay the central `tile_px` x `tile_px` of every patch side by side.

    `patches` is (n, N, N) with common phase, `positions_px` (n, 2) whole pixels of a full grid whose stride is
    `tile_px`. Returns the canvas of just the tiles' area, (H, W), and its (row, column) in the positions' frame. Raises
    ValueError if the tiles do not cover every pixel exactly once.
    """
    corners = _whole(positions_px)
    if patches.shape != (len(corners), N, N):
        raise ValueError(f"`patches` (={patches.shape}) must be {(len(corners), N, N)}, one N x N patch a position")
    margin = (N - tile_px) // 2
    first = corners.min(axis=0)
    shape = corners.max(axis=0) - first + tile_px
    pixels = (corners - first)[:, :, None] + np.arange(tile_px)
    rows, cols = pixels[:, 0, :, None], pixels[:, 1, None, :]
    covered = np.bincount((rows * shape[1] + cols).ravel(), minlength=int(shape.prod()))
    if not 1 <= tile_px <= N or (covered != 1).any():
        raise ValueError(f"`tile_px` (={tile_px}) must be the stride of a full grid, so that tiles just meet")
    canvas = np.empty(shape, dtype=patches.dtype)
    canvas[rows, cols] = patches[:, margin : margin + tile_px, margin : margin + tile_px]
    return canvas, (int(first[0]) + margin, int(first[1]) + margin)


def split_positions(
    positions_px: ArrayLike,
) -> tuple[Int64[NDArray[np.int64], "n 2"], Float32[NDArray[np.float32], "n 2"]]:
    """Split positions (n, 2) into nearest whole pixels, int64, and remainders of at most half a pixel, float32."""
    positions = np.asarray(positions_px, dtype=np.float64)
    if positions.ndim != 2 or positions.shape[1] != 2 or not len(positions) or not np.isfinite(positions).all():
        raise ValueError(f"`positions_px` (=shape {positions.shape}) must be finite, (n, 2), with n >= 1")
    corners = np.rint(positions)
    return corners.astype(np.int64), (positions - corners).astype(np.float32)


def read_windows(canvas: Shaped[torch.Tensor, "H W"], corners: Corners, N: int) -> Shaped[torch.Tensor, "n {N} {N}"]:
    """Read N x N windows of a canvas at `corners`; differentiable.

    The windows must lie inside the canvas, which is not checked: that would make a GPU wait.
    """
    index = _window_index(corners, N, canvas.shape[-1])
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
    index = _window_index(corners, exit_waves.shape[-1], shape[1])
    products = probes.conj() * exit_waves
    intensities = probes.abs().square().expand_as(products)
    # index_add_ on flat tensors, forwards and in `read_windows` backwards: on a CPU always in the same order.
    numerator = products.new_zeros(shape[0] * shape[1]).index_add(0, index, products.reshape(-1))
    light = intensities.new_zeros(shape[0] * shape[1]).index_add(0, index, intensities.reshape(-1))
    return numerator.reshape(shape), light.reshape(shape)


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


def not_dark(light: Float[torch.Tensor, "H W"]) -> Float[torch.Tensor, "H W"]:
    """`light`, and the least of it that is not dark where it is."""
    return light.clamp_min(_DARK * light.max())


def least_squares_object(
    numerator: Complex[torch.Tensor, "H W"], light: Float[torch.Tensor, "H W"]
) -> Complex[torch.Tensor, "H W"]:
    """The object from what `stitch` gives of all patches; it goes to zero where it is dark."""
    return numerator / (light + _DARK * light.max())


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


def _whole(positions_px: ArrayLike) -> NDArray[np.int64]:
    corners, remainders = split_positions(positions_px)
    if remainders.any():
        raise ValueError(f"`positions_px` (={remainders[remainders != 0][0]:+g} off) must be whole pixels")
    return corners


def shifted(field: torch.Tensor, remainders: NDArray[np.float32]) -> torch.Tensor:
    """Shift `field`, complex (N, N) or (n, N, N), by the `remainders` (n, 2) of positions, as probes and waves are.

    It is returned untouched, and not copied, where all are zero.
    """
    if not remainders.any():
        return field
    return fourier_shift(field, torch.from_numpy(remainders).to(field.device))


def _window_index(corners: Corners, N: int, width: int) -> torch.Tensor:
    """Flat canvas indices, int64 (n * N * N), of the windows at `corners`."""
    step = torch.arange(N, device=corners.device)
    rows, cols = corners[:, 0, None] + step, corners[:, 1, None] + step
    return (rows[:, :, None] * width + cols[:, None, :]).reshape(-1)


def _overlap_matrix(exit_waves: Waves, probes: Probes, corners: Corners) -> Any:
    """The matrix A of `synchronise_phases` without diagonal, SciPy CSR, complex (n, n): Q Q*, a row of Q a patch."""
    N, corners = exit_waves.shape[-1], corners - corners.amin(dim=0)
    height, width = (corners.amax(dim=0) + N).tolist()
    _, light = stitch(exit_waves, probes, corners, (height, width))
    light = read_windows(not_dark(light), corners, N)
    lit = lit_pixels(probes.abs().amax(dim=0))
    values = (probes.conj() * exit_waves / light.sqrt())[:, lit].cpu().numpy()
    index = _window_index(corners, N, width).reshape(-1, N, N)[:, lit].cpu().numpy()
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
