"""Spectral convolution: a learnt linear map per Fourier mode, on the lowest modes of the grid."""

import math
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fnostab.models.precision import as_single, single_precision


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

    `weight` is real, `(rows, cols, in, out, 2)`, its last axis the real and imaginary parts of w. Its rows are the row
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
    and for a dozen modes less work than an FFT. They are not meant for hundreds of modes. The layer is fastest on
    inputs that have their channels last in memory, and returns its output in that order. `weight` has the order in
    which the product reads it, so that neither it nor its gradient, most of a network's numbers, is ever moved.

    Under autocast the products per mode are in bfloat16, the transforms stay in single precision.

    State dicts of version 1 hold `weight` as `(out, in, rows, cols, 2)`; they load into this layer.
    """

    #: The axis of `weight` that counts output units, for `fnostab.clipping`.
    unit_axis: ClassVar[int] = 3
    _version = 2  # torch writes it into state dicts

    across: Tensor
    down: Tensor
    up: Tensor

    def __init__(self, in_channels: int, out_channels: int, modes: int, resolution: int | Sequence[int]) -> None:
        super().__init__()
        require_at_least(1, in_channels=in_channels, out_channels=out_channels, modes=modes)
        height, width = (resolution, resolution) if isinstance(resolution, int) else resolution
        require_at_least(2, resolution=min(height, width))
        self.modes = modes
        self.resolution = (height, width)
        rows, cols = self._weight_grid()
        # Drawn in the order of version 1, so that a seed gives the weights that it always gave.
        weight = torch.randn(out_channels, in_channels, rows, cols, 2) * math.sqrt(0.5 / in_channels)
        self.weight = nn.Parameter(modes_first(weight))
        # Not persistent: they follow from the resolution, and a checkpoint holds what was learnt.
        for name, matrix in _transforms(height, width, *self._kept(height, width))._asdict().items():
            self.register_buffer(name, matrix.to(weight), persistent=False)

    def _kept(self, height: int, width: int) -> tuple[int, int, int]:
        """How many rows r >= 0, rows r < 0 and columns are multiplied on a grid of this size."""
        h = min(self.modes, height // 2)
        return h, h, min(self.modes, width // 2 + 1)

    def _weight_grid(self) -> tuple[int, int]:
        """Rows and columns of `weight`."""
        positive, negative, cols = self._kept(*self.resolution)
        return positive + negative, cols

    def forward(self, x: Float[Tensor, "batch in_channels H W"]) -> Float[Tensor, "batch out_channels H W"]:
        """Apply the layer to `x`."""
        size = (x.shape[-2], x.shape[-1])
        kept = tuple(map(min, self._kept(*size), self._kept(*self.resolution)))
        transforms = _Transforms(self.across, self.down, self.up)
        if size != self.resolution or x.dtype == torch.float64:  # the buffers are no better than single precision
            transforms = _Transforms(*(matrix.to(x) for matrix in _transforms(*size, *kept)))
        weight = _lowest(self.weight, *kept)
        return _apply(x.permute(0, 2, 3, 1), transforms, weight).permute(0, 3, 1, 2)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *args: Any
    ) -> None:
        """Bring the weight of a state dict of version 1 into today's order; torch calls this while it loads."""
        key = f"{prefix}weight"
        weight = state_dict.get(key)
        if local_metadata.get("version", 1) < 2 and isinstance(weight, Tensor) and weight.ndim == 5:
            weight = modes_first(weight)
            if weight.shape == self.weight.shape:  # torch refuses any other shape
                state_dict[key] = weight
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)


class OneSidedSpectralConv2d(SpectralConv2d):
    """The original study's layer as it really ran: `modes` x `modes` weights at every level, rows r >= 0 only.

    Differs from `SpectralConv2d` in two ways: negative rows are dropped (on grids with fewer than `modes` rows none
    are: row r of the FFT is r - H, too), and it has all weights at every resolution, most of them unused on a small
    grid. It is kept for comparisons.
    """

    def _kept(self, height: int, width: int) -> tuple[int, int, int]:
        return min(self.modes, height), 0, min(self.modes, width // 2 + 1)

    def _weight_grid(self) -> tuple[int, int]:
        return self.modes, self.modes


def _lowest(
    weight: Float[Tensor, "rows cols in out 2"], positive: int, negative: int, cols: int
) -> Float[Tensor, "fewer_rows fewer_cols in out 2"]:
    """The modes of `weight` that a grid has: first and last rows, first columns."""
    rows = len(weight)
    if positive + negative < rows:
        weight = torch.cat([weight[:positive], weight[rows - negative :]])
    return weight[:, :cols]


def modes_first(weight: Float[Tensor, "out in rows cols 2"]) -> Float[Tensor, "rows cols in out 2"]:
    """Bring a weight of version 1 into today's order, contiguous."""
    return weight.permute(2, 3, 1, 0, 4).contiguous()


class _Transforms(NamedTuple):
    """Truncated, orthonormally scaled DFT matrices of a grid; p, q, s are 0 for a real part, 1 for an imaginary one."""

    across: Tensor  #: (p cols, W): each row of the image to its modes
    down: Tensor  #: (rows q, H p): columns of those to the modes of the image
    up: Tensor  #: (H p, rows q s): the adjoint of `down`, from parts q of modes times parts s of weights


def _transforms(height: int, width: int, positive: int, negative: int, cols: int) -> _Transforms:
    """The matrices, float64. The factors k_c are shared by both directions, as square roots, in `across`."""
    c, n, m = (torch.arange(count, device="cpu") for count in (cols, width, height))  # not every device has float64
    angle = (c[:, None] * n % width).double() * (2 * math.pi / width)
    mirror = (c == 0) | (2 * c == width)
    across = torch.stack([angle.cos(), -angle.sin()]) / math.sqrt(width)
    across = across * torch.where(mirror, 1.0, 2.0).double().sqrt()[:, None]

    r = torch.tensor([*range(positive), *range(-negative, 0)], device="cpu")
    angle = (r[:, None] * m % height).double() * (2 * math.pi / height)
    cos, sin = angle.cos(), angle.sin()
    # Of exp(-i angle) (x_0 + i x_1): axes r, q, m, p.
    down = torch.stack([torch.stack([cos, sin], dim=-1), torch.stack([-sin, cos], dim=-1)], dim=1) / math.sqrt(height)
    # (x_0 + i x_1)(w_0 + i w_1) has real part x_0 w_0 - x_1 w_1 and imaginary part x_0 w_1 + x_1 w_0.
    product = torch.tensor([[[1, 0], [0, -1]], [[0, 1], [1, 0]]], dtype=torch.float64, device="cpu")
    up = torch.einsum("rtmp,tqs->mprqs", down, product)
    return _Transforms(across.flatten(0, 1), down.flatten(2).flatten(0, 1), up.flatten(2).flatten(0, 1))


def _apply(
    x: Float[Tensor, "batch H W in"], transforms: _Transforms, weight: Float[Tensor, "rows cols in out 2"]
) -> Float[Tensor, "batch H W out"]:
    """Transform, multiply mode by mode, transform back.

    Matrix products alone, each of contiguous arrays, and two copies that bring the modes to the front and back again.
    """
    batch, height, width, channels = x.shape
    rows, cols, _, out, _ = weight.shape
    x = as_single(x)
    with single_precision(x):
        lines = torch.matmul(transforms.across, x).reshape(batch, height * 2, cols * channels)
        modes = torch.matmul(transforms.down, lines).reshape(batch, rows, 2, cols, channels)
    modes = modes.permute(1, 3, 2, 0, 4).reshape(rows * cols, 2 * batch, channels)
    # One real product per mode, of (real; imaginary) with (real, imaginary), holds the four that a complex one needs.
    products = torch.bmm(modes, weight.reshape(rows * cols, channels, out * 2)).reshape(rows, cols, 2, batch, out, 2)
    products = as_single(products.permute(3, 0, 2, 5, 1, 4).reshape(batch, rows * 4, cols * out))
    with single_precision(x):
        lines = torch.matmul(transforms.up, products).reshape(batch, height, 2 * cols, out)
        return torch.matmul(transforms.across.t(), lines)
