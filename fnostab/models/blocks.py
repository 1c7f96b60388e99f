"""The parts that the networks are built from: residual spectral blocks, lifter, decoder stage, widths by level.

Inside the networks images have their channels last in memory: the lifter puts them there, and every layer keeps it.
"""

from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fnostab.models.precision import as_single
from fnostab.models.spectral import OneSidedSpectralConv2d, SpectralConv2d, require_at_least


class PtychoBlock(nn.Module):
    """Residual block y = x + GELU(Spectral(x) + Conv3x3(x)): global and local paths in parallel.

    Shapes: `(B, channels, H, W)` -> the same. `resolution` is the grid (an int, or H and W) that the spectral weights
    are made for. The block is an FNO layer (Li et al. 2021, eq. 2) with a 3x3 in place of the 1x1 convolution, inside
    a residual connection.
    """

    spectral_cls: ClassVar[type[SpectralConv2d]] = SpectralConv2d

    def __init__(self, channels: int, modes: int = 12, resolution: int | tuple[int, int] = 64) -> None:
        super().__init__()
        self.spectral = self.spectral_cls(channels, channels, modes, resolution)
        self.local = conv3x3(channels, channels)
        self.activation = nn.GELU()

    def update(self, x: Float[Tensor, "batch channels H W"]) -> Float[Tensor, "batch channels H W"]:
        """What the block adds to `x`."""
        update: Tensor = self.activation(self.spectral(x) + self.local(x))
        return update

    def forward(self, x: Float[Tensor, "batch channels H W"]) -> Float[Tensor, "batch channels H W"]:
        """Apply the block to `x`."""
        return as_single(x) + self.update(x)


class OneSidedPtychoBlock(PtychoBlock):
    """`PtychoBlock` with the one-sided spectral layer of the original study."""

    spectral_cls = OneSidedSpectralConv2d


class StablePtychoBlock(PtychoBlock):
    """Norm-last residual block y = x + InstanceNorm(GELU(Spectral(x) + Conv3x3(x))), at first the identity.

    Shapes as in `PtychoBlock`. `norm` is affine with weight `gamma_init` and bias 0, so that each channel's update has
    spatial mean 0 until the bias is learnt, and with `gamma_init=0` there is no update at step 0. `layerscale_init`
    adds a factor per channel to the update (LayerScale, Touvron et al. 2021, eq. 3), usually with `gamma_init=1`.
    If not `norm_centred`, the norm divides by each channel's root mean square and leaves its mean; without
    `norm_bias`, the bias stays 0. Raises ValueError where weight and LayerScale start at 0: neither would ever get a
    gradient.
    """

    def __init__(
        self,
        channels: int,
        modes: int = 12,
        resolution: int | tuple[int, int] = 64,
        gamma_init: float = 0.0,
        layerscale_init: float | None = None,
        norm_centred: bool = True,
        norm_bias: bool = True,
    ) -> None:
        super().__init__(channels, modes, resolution)
        if gamma_init == 0 and layerscale_init == 0:
            raise ValueError("`layerscale_init` (=0) must not be 0 where `gamma_init` is 0: neither would ever learn")
        self.norm = nn.InstanceNorm2d(channels, affine=True, eps=1e-5)
        nn.init.constant_(self.norm.weight, gamma_init)
        nn.init.zeros_(self.norm.bias)
        self.norm.bias.requires_grad_(norm_bias)
        self.norm_centred = norm_centred
        self.layerscale: nn.Parameter | None = None
        if layerscale_init is not None:
            self.layerscale = nn.Parameter(torch.full((channels, 1, 1), float(layerscale_init)))

    def update(self, x: Float[Tensor, "batch channels H W"]) -> Float[Tensor, "batch channels H W"]:
        """What the block adds to `x`."""
        update: Tensor = as_single(super().update(x))
        update = self.norm(update) if self.norm_centred else self._scaled(update)
        return update if self.layerscale is None else self.layerscale * update

    def _scaled(self, update: Tensor) -> Tensor:
        """The norm without its subtraction: RMSNorm (Zhang and Sennrich 2019, eq. 4) over the pixels of a channel."""
        size = (update.square().mean((-2, -1), keepdim=True) + self.norm.eps).rsqrt()
        return update * (size * self.norm.weight[:, None, None]) + self.norm.bias[:, None, None]


class OneSidedStablePtychoBlock(StablePtychoBlock):
    """`StablePtychoBlock` with the one-sided spectral layer of the original study."""

    spectral_cls = OneSidedSpectralConv2d


class PreNormPtychoBlock(PtychoBlock):
    """Residual block y = x + GELU(Spectral(n(x)) + Conv3x3(n(x))): what it reads is normalised, what it adds is not.

    Shapes as in `PtychoBlock`. n is an affine InstanceNorm, weight 1 and bias 0 at first. Why there: an identity path
    that nothing stands in carries channel means and magnitudes on to the decoder, which needs them, while the branch
    sees every channel with mean 0 and variance 1 whatever the blocks before have added to it. A norm at the end of the
    branch, as in `StablePtychoBlock`, takes the mean out of what is written instead, and with weight 0 gives the branch
    no gradient at first. The order is that of pre-norm transformers (Xiong et al. 2020, "On Layer Normalization in the
    Transformer Architecture"); docs/results has the measurements.
    """

    def __init__(self, channels: int, modes: int = 12, resolution: int | tuple[int, int] = 64) -> None:
        super().__init__(channels, modes, resolution)
        self.pre_norm = nn.GroupNorm(channels, channels)  # a group a channel is an InstanceNorm

    def update(self, x: Float[Tensor, "batch channels H W"]) -> Float[Tensor, "batch channels H W"]:
        """What the block adds to `x`."""
        return super().update(self.pre_norm(as_single(x)))


class UpStage(nn.Module):
    """Decoder stage: transposed convolution to twice the grid, concatenated skip, two 3x3 convolutions with GELU.

    Shapes: `(B, in_channels, h, w)` and a skip `(B, skip_channels, H, W)` -> `(B, skip_channels, H, W)`, where H is 2h,
    or 2h - 1 (cropped), and W likewise. Unless `last_activation`, the second convolution has no GELU.
    """

    def __init__(self, in_channels: int, skip_channels: int, last_activation: bool = True) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(in_channels, skip_channels, kernel_size=2, stride=2)
        self.convs = conv_pair(2 * skip_channels, skip_channels)
        if not last_activation:
            self.convs.pop(-1)

    def forward(
        self, x: Float[Tensor, "batch in_channels h w"], skip: Float[Tensor, "batch skip_channels H W"]
    ) -> Float[Tensor, "batch skip_channels H W"]:
        """Bring `x` to the grid of `skip` and merge the two."""
        height, width = skip.shape[-2:]
        merged: Tensor = self.convs(torch.cat([self.up(x)[..., :height, :width], skip], dim=1))
        return merged


class Level(NamedTuple):
    """The part of an encoder that runs on one grid."""

    channels: int
    resolution: int
    blocks: int


def encoder_levels(N: int, hidden_channels: int, n_blocks: int, min_resolution: int, max_channels: int) -> list[Level]:
    """Share `n_blocks` blocks among grids: one a level, and what is left stays on the last.

    From one level to the next the resolution is halved (rounded up) as long as it stays at least `min_resolution`,
    and the width doubled up to `max_channels`, which never narrows it. Raises ValueError for values less than 1, and
    for grids under 2 px.
    """
    require_at_least(1, hidden_channels=hidden_channels, n_blocks=n_blocks, max_channels=max_channels)
    require_at_least(2, N=N, min_resolution=min_resolution)
    levels = [Level(hidden_channels, N, 1)]
    for _ in range(n_blocks - 1):
        channels, resolution, blocks = levels[-1]
        halved = (resolution + 1) // 2
        if halved < min_resolution:
            levels[-1] = Level(channels, resolution, blocks + 1)
        else:
            levels.append(Level(max(channels, min(2 * channels, max_channels)), halved, 1))
    return levels


class Lifter(nn.Sequential):
    """Two 3x3 convolutions with a GELU between: `(B, in_channels, H, W)` -> `(B, channels, H, W)`, channels last."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__(conv3x3(in_channels, channels), nn.GELU(), conv3x3(channels, channels))

    def forward(self, x: Float[Tensor, "batch in_channels H W"]) -> Float[Tensor, "batch channels H W"]:
        """Lift `x`, in whatever order it lies in memory."""
        # With one channel every order counts as `contiguous`; torch then goes by the strides, which only a copy sets.
        # (`torch.vmap` does not know the copy `clone(memory_format=torch.channels_last)`, which is the same.)
        rows = x.permute(0, 2, 3, 1).clone(memory_format=torch.contiguous_format)
        lifted: Tensor = super().forward(rows.permute(0, 3, 1, 2))  # type: ignore[no-untyped-call]
        return lifted


class Conv2x2(nn.Conv2d):
    """2x2 convolution of stride 2: `(B, in_channels, H, W)` -> `(B, channels, ceil(H / 2), ceil(W / 2))`.

    A grid of an odd size gets a row or a column of zeros at its end.
    """

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__(in_channels, channels, kernel_size=2, stride=2)

    def forward(self, x: Float[Tensor, "batch in_channels H W"]) -> Float[Tensor, "batch channels half_H half_W"]:
        """Apply the layer to `x`."""
        height, width = x.shape[-2:]
        if height % 2 or width % 2:
            x = nn.functional.pad(x, (0, width % 2, 0, height % 2))
        return super().forward(x)


def conv3x3(in_channels: int, channels: int, stride: int = 1) -> nn.Conv2d:
    """3x3 convolution: `(B, in_channels, H, W)` -> `(B, channels, ceil(H / stride), ceil(W / stride))`."""
    return nn.Conv2d(in_channels, channels, kernel_size=3, stride=stride, padding=1)


def conv_pair(in_channels: int, channels: int) -> nn.Sequential:
    """Two 3x3 convolutions, each with its GELU: `(B, in_channels, H, W)` -> `(B, channels, H, W)`."""
    return nn.Sequential(conv3x3(in_channels, channels), nn.GELU(), conv3x3(channels, channels), nn.GELU())


def to_patches(x: Float[Tensor, "batch channels H W"], C: int) -> Float[Tensor, "batch H W C parts"]:
    """Channels to object patches (real, imaginary): `(B, 2 * C, H, W)` -> `(B, H, W, C, 2)`, contiguous."""
    batch, channels, height, width = x.shape
    return x.reshape(batch, channels // C, C, height, width).permute(0, 3, 4, 2, 1).contiguous()
