"""Scan positions, and patches cut from an object or laid side by side, where positions are whole pixels."""

from typing import Any

import numpy as np
from jaxtyping import Float32, Int64, Shaped
from numpy.typing import ArrayLike, NDArray


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


def _whole(positions_px: ArrayLike) -> NDArray[np.int64]:
    corners, remainders = split_positions(positions_px)
    if remainders.any():
        raise ValueError(f"`positions_px` (={remainders[remainders != 0][0]:+g} off) must be whole pixels")
    return corners
