"""3x3 convolutions that train on CPUs with a fraction of the multiplications: Winograd's minimal filtering."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn

#: F(4, 3): 4 outputs of a filter with 3 taps from 6 products, in the points 0, 1, -1, 2, -2 and infinity.
_TILE: Final = 4
_POINTS: Final = 6
_INPUT: Final = (
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
_FILTER: Final = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)
_OUTPUT: Final = ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1))

#: Used where it needs at most this share of the multiplications: moving its numbers about costs time as well.
_WORTHWHILE: Final = 0.6


class Conv3x3(nn.Conv2d):
    """A 3x3 convolution that keeps the grid: `(B, in_channels, H, W)` -> `(B, out_channels, H, W)`.

    Everywhere `torch.nn.Conv2d` of that name, but for rounding: training on a CPU, on the `resolution` (an int, or H
    and W) that it is made for, it takes the minimal filtering algorithm F(4x4, 3x3) of Lavin and Gray 2016 where that
    saves enough: 36 products in place of 144 for each tile of 4 x 4 outputs. In single precision its error is two
    to three times the direct sum's, some 1e-6. Inputs are best channels last in memory, as the output then is.
    """

    def __init__(self, in_channels: int, out_channels: int, resolution: int | Sequence[int]) -> None:
        super().__init__(in_channels, out_channels, kernel_size=3, padding=1)
        height, width = (resolution, resolution) if isinstance(resolution, int) else resolution
        self.resolution = (height, width)
        self.tiled = _share_of_products(in_channels, out_channels, height, width) <= _WORTHWHILE

    def forward(self, x: Tensor) -> Tensor:
        """Convolve `x`, `(B, in_channels, H, W)`."""
        if not (self.tiled and self.training and x.shape[-2:] == self.resolution and self._runs_as_written(x)):
            return super().forward(x)
        assert self.bias is not None
        return _winograd(x.permute(0, 2, 3, 1), self.weight.permute(0, 2, 3, 1), self.bias).permute(0, 3, 1, 2)

    def _runs_as_written(self, x: Tensor) -> bool:
        """Whether this runs on a CPU in single precision, with no compiler or autocast to decide otherwise."""
        single = x.device.type == "cpu" and x.dtype == self.weight.dtype == torch.float32
        return single and not (torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"))


def _share_of_products(in_channels: int, out_channels: int, height: int, width: int) -> float:
    """Multiplications of a step's forward pass by tiles, over those of the direct sum."""
    if height % _TILE or width % _TILE:
        return float("inf")
    growth = _POINTS / _TILE
    products = growth**2 * in_channels * out_channels
    transforms = growth * (width + growth * height) * in_channels + growth * (growth * height + width) * out_channels
    return (products + transforms) / (9 * in_channels * out_channels)


class _Transforms(NamedTuple):
    """The transforms along one axis of n = 4t pixels, all tiles at once, the zeros around the image included."""

    to_points: Tensor  #: (6t, n): points times tiles, from pixels
    to_pixels: Tensor  #: (n, 6t)


@lru_cache
def _transforms(length: int) -> _Transforms:
    tiles = length // _TILE
    to_points = torch.zeros(_POINTS, tiles, length + 2)
    to_pixels = torch.zeros(tiles, _TILE, _POINTS, tiles)
    for tile in range(tiles):
        to_points[:, tile, _TILE * tile : _TILE * tile + _POINTS] = torch.tensor(_INPUT, dtype=torch.float32)
        to_pixels[tile, :, :, tile] = torch.tensor(_OUTPUT, dtype=torch.float32)
    return _Transforms(
        to_points[..., 1:-1].reshape(_POINTS * tiles, length), to_pixels.reshape(length, _POINTS * tiles)
    )


@lru_cache
def _filter_transform() -> Tensor:
    """From the 9 taps of a filter to its 36 points."""
    matrix = torch.tensor(_FILTER, dtype=torch.float32)
    return torch.kron(matrix, matrix)


class _Winograd(torch.autograd.Function):
    """Convolution of `(B, H, W, in)` with `(out, 3, 3, in)` plus `(out,)`, to `(B, H, W, out)`.

    A linear map to the points, a product over channels in each point, a linear map back. Written out backwards as
    well, so that the weight's gradient comes to lie in memory as the weight does.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The convolution; and image and filters in the points, for the way back."""
        rows, cols = _transforms(x.shape[1]), _transforms(x.shape[2])
        points = _to_points(x, rows.to_points, cols.to_points)
        filters = torch.matmul(_filter_transform(), weight.reshape(len(weight), 9, -1))  # (out, 36, in)
        products = torch.bmm(points, filters.permute(1, 2, 0))
        return _to_pixels(products, rows.to_pixels, cols.to_pixels) + bias, points, filters

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        """Keep what the way back needs."""
        _, points, filters = output
        ctx.mark_non_differentiable(points, filters)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(points, filters)
        ctx.size = inputs[0].shape[1:3]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        gradient = gradients[0].contiguous()
        points, filters = ctx.saved_tensors
        rows, cols = map(_transforms, ctx.size)
        products = _to_points(gradient, rows.to_pixels.t(), cols.to_pixels.t())
        of_filters = torch.bmm(products.mT, points).permute(1, 0, 2)
        of_weight = torch.matmul(_filter_transform().t(), of_filters).reshape(len(filters), 3, 3, -1)
        of_points = torch.bmm(products, filters.permute(1, 0, 2))
        of_x = _to_pixels(of_points, rows.to_points.t(), cols.to_points.t())
        return of_x, of_weight, gradient.sum((0, 1, 2))


def _winograd(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    convolved: Tensor = _Winograd.apply(x, weight, bias)[0]  # type: ignore[no-untyped-call]
    return convolved


def _to_points(image: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
    """`(B, H, W, C)` -> `(36, tiles, C)`, by `rows` (6t, H) and `cols` (6u, W)."""
    batch, height, _, channels = image.shape
    points = torch.matmul(rows, torch.matmul(cols, image).reshape(batch, height, -1))
    t, u = len(rows) // _POINTS, len(cols) // _POINTS
    points = points.reshape(batch, _POINTS, t, _POINTS, u * channels).permute(1, 3, 0, 2, 4)
    return points.reshape(_POINTS**2, batch * t * u, channels)


def _to_pixels(points: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
    """`(36, tiles, C)` -> `(B, H, W, C)`, by `rows` (H, 6t) and `cols` (W, 6u)."""
    height, t = rows.shape[0], rows.shape[1] // _POINTS
    u, channels = cols.shape[1] // _POINTS, points.shape[-1]
    batch = points.shape[1] // (t * u)
    points = points.reshape(_POINTS, _POINTS, batch, t, u * channels).permute(2, 0, 3, 1, 4)
    lines = torch.matmul(rows, points.reshape(batch, rows.shape[1], -1))
    return torch.matmul(cols, lines.reshape(batch, height, cols.shape[1], channels))
