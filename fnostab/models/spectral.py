"""Spectral convolution: a learnt linear map per Fourier mode, on the lowest modes of the grid."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn


def require_at_least(minimum: int, **values: int) -> None:
    """Raise ValueError, naming the first of `values` that is less than `minimum`."""
    for name, value in values.items():
        if value < minimum:
            raise ValueError(f"`{name}` (={value}) must be >= {minimum}")


def require_modes(modes: int, N: int) -> None:
    """Raise ValueError where an N x N grid lacks some of `modes`."""
    require_at_least(1, modes=modes)
    if modes > N // 2 + 1:
        raise ValueError(f"`modes` (={modes}) must be <= {N // 2 + 1} at N={N}")


class SpectralConv2d(nn.Module):
    r"""Multiply the lowest Fourier modes of the input by learnt complex matrices (Li et al. 2021, eq. 4 and 5).

    Shapes: float `(B, in_channels, H, W)` -> `(B, out_channels, H, W)`, any `H, W >= 2`.

    `weight` is real, `(out, in, rows, cols, 2)`, its last axis the real and imaginary parts of w. Its rows are the row
    frequencies r in FFT order 0..h-1, -h..-1, its columns the frequencies c = 0..cols-1, with `h = min(modes, H//2)`,
    `rows = 2h` and `cols = min(modes, W//2 + 1)` at the `resolution` (H, W), an int or a pair, that the layer is
    built for: modes which that grid lacks have no weights. Initially E|w|^2 = 1/in_channels.

    With the transform x_rc = sum over (m, n) of x_mn exp(-2 pi i (rm/H + cn/W)), the output is

        y_mn = 1/(HW) sum over rows r, columns c of  k_c Re[ w_rc x_rc exp(2 pi i (rm/H + cn/W)) ],

    where k_c = 1 for c = 0 and c = W/2, the columns that are their own mirror images, and 2 for the others, which
    stand for -c as well. This is `irfft2` of the packed half spectrum, zero elsewhere, said so that it means the same
    on every device: the real part projects the half spectrum onto the spectra of real images. In the mirror columns,
    where x_rc and x_-rc are conjugate, rows r and -r therefore share one factor, (w_rc + conj(w_-rc))/2, with 0 for a
    row that is not kept. So every weight takes part, but for the imaginary parts at the (at most four) bins that are
    their own conjugates (r = 0 or -H/2 in a mirror column): to a real image they cannot matter.

    The layer runs on other grids too: the same modes on a finer grid, the modes that exist on a coarser one. Below
    the Nyquist frequencies of both grids it is the same operator on the functions that the grids sample.

    The transforms are products with truncated DFT matrices, everything real: no padded spectrum, no complex tensor,
    and for a dozen modes less work than an FFT. They are not meant for hundreds of modes.
    """

    across: Tensor
    down: Tensor

    def __init__(self, in_channels: int, out_channels: int, modes: int, resolution: int | Sequence[int]) -> None:
        super().__init__()
        require_at_least(1, in_channels=in_channels, out_channels=out_channels, modes=modes)
        height, width = (resolution, resolution) if isinstance(resolution, int) else resolution
        require_at_least(2, resolution=min(height, width))
        self.modes = modes
        self.resolution = (height, width)
        rows, cols = self._weight_grid()
        weight = torch.randn(out_channels, in_channels, rows, cols, 2) * math.sqrt(0.5 / in_channels)
        self.weight = nn.Parameter(weight)
        across, down = _transforms(height, width, *self._kept(height, width))
        # Not persistent: they follow from the resolution, and a checkpoint holds what was learnt.
        self.register_buffer("across", across.to(weight), persistent=False)
        self.register_buffer("down", down.to(weight), persistent=False)

    def _kept(self, height: int, width: int) -> tuple[int, int, int]:
        """How many rows r >= 0, rows r < 0 and columns are multiplied on a grid of this size."""
        h = min(self.modes, height // 2)
        return h, h, min(self.modes, width // 2 + 1)

    def _weight_grid(self) -> tuple[int, int]:
        """Rows and columns of `weight`."""
        positive, negative, cols = self._kept(*self.resolution)
        return positive + negative, cols

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to `x`, `(B, in_channels, H, W)`."""
        size = (x.shape[-2], x.shape[-1])
        kept = tuple(map(min, self._kept(*size), self._kept(*self.resolution)))
        across, down = self.across, self.down
        if size != self.resolution or x.dtype == torch.float64:  # the buffers are no better than single precision
            across, down = (matrix.to(x) for matrix in _transforms(*size, *kept))
        weight = _lowest(self.weight, *kept)
        return _from_modes(_multiply(_to_modes(x, across, down), weight), across, down)


class OneSidedSpectralConv2d(SpectralConv2d):
    """The original study's layer as it really ran: `modes` x `modes` weights at every level, rows r >= 0 only.

    Differs from `SpectralConv2d` in two ways: negative rows are dropped (on grids with fewer than `modes` rows none
    are: row r of the FFT is r - H, too), and the weights exist whatever the resolution, so that on a small grid most
    of them are never used. It is kept for comparisons.
    """

    def _kept(self, height: int, width: int) -> tuple[int, int, int]:
        return min(self.modes, height), 0, min(self.modes, width // 2 + 1)

    def _weight_grid(self) -> tuple[int, int]:
        return self.modes, self.modes


def _lowest(weight: Tensor, positive: int, negative: int, cols: int) -> Tensor:
    """The modes of `weight`, `(out, in, rows, cols, 2)`, that a grid has: first and last rows, first columns."""
    rows = weight.shape[2]
    if positive + negative < rows:
        weight = torch.cat([weight[:, :, :positive], weight[:, :, rows - negative :]], dim=2)
    return weight[:, :, :, :cols]


def _transforms(height: int, width: int, positive: int, negative: int, cols: int) -> tuple[Tensor, Tensor]:
    """Truncated, orthonormally scaled DFT matrices, float64: `across` (W, cols, 2) and `down` (rows, 2, H, 2).

    `across` takes a real row to real and imaginary parts, times sqrt(k_c), so that the adjoint of both matrices is
    the inverse transform; `down` takes the parts (last axis) of a column to the parts (second axis) of its modes.
    """
    c, n, m = (torch.arange(count, device="cpu") for count in (cols, width, height))  # not every device has float64
    angle = (n[:, None] * c % width).double() * (2 * math.pi / width)
    mirror = (c == 0) | (2 * c == width)
    across = torch.stack([angle.cos(), -angle.sin()], dim=-1) / math.sqrt(width)
    across = across * torch.where(mirror, 1.0, 2.0).double().sqrt()[:, None]

    r = torch.tensor([*range(positive), *range(-negative, 0)], device="cpu")
    angle = (r[:, None] * m % height).double() * (2 * math.pi / height)
    cos, sin = angle.cos(), angle.sin()
    down = torch.stack([torch.stack([cos, sin], dim=-1), torch.stack([-sin, cos], dim=-1)], dim=1)
    return across, down / math.sqrt(height)


def _to_modes(x: Tensor, across: Tensor, down: Tensor) -> Tensor:
    """Image `(B, C, H, W)` -> its kept modes `(rows, cols, 2, B, C)`."""
    return torch.einsum("bchpk,rqhp->rkqbc", torch.einsum("bchw,wkp->bchpk", x, across), down)


class _Transpose(torch.autograd.Function):
    """Matrix transpose in memory, forwards and backwards.

    Autograd would leave the gradient strided, and gathering the five-dimensional weight's takes a tenth of the step.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(matrix: Tensor) -> Tensor:
        return matrix.t().contiguous()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        """Nothing to keep: a linear map."""

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _transpose(gradient)


_transpose: Callable[[Tensor], Tensor] = _Transpose.apply


def _multiply(modes: Tensor, weight: Tensor) -> Tensor:
    """Complex product over channels.

    Modes `(rows, cols, 2, B, in)`, weight `(out, in, rows, cols, 2)` -> `(2, rows, cols, B, out)`.
    """
    out, channels, rows, cols, _ = weight.shape
    by_mode = _transpose(weight.reshape(out * channels, -1)).reshape(rows * cols, 2 * out, channels)
    # One real product per mode, of (real; imaginary) with (real, imaginary), holds the four that a complex one needs.
    products = torch.bmm(modes.reshape(rows * cols, -1, channels), by_mode.mT)
    real, imaginary = products.reshape(rows, cols, 2, -1, 2, out).unbind(2)
    return torch.stack([real[..., 0, :] - imaginary[..., 1, :], real[..., 1, :] + imaginary[..., 0, :]])


def _from_modes(modes: Tensor, across: Tensor, down: Tensor) -> Tensor:
    """Modes `(2, rows, cols, B, C)` -> image `(B, C, H, W)`: the adjoint of `_to_modes`."""
    return torch.einsum("bchpk,wkp->bchw", torch.einsum("qrkbc,rqhp->bchpk", modes, down), across)
