"""The hybrid U-shaped neural operator: spectral blocks in the encoder, convolutions in the decoder."""

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from fnostab.models.blocks import (
    Conv2x2,
    Lifter,
    OneSidedPtychoBlock,
    OneSidedStablePtychoBlock,
    PreNormPtychoBlock,
    PtychoBlock,
    StablePtychoBlock,
    UpStage,
    conv3x3,
    encoder_levels,
    to_patches,
)
from fnostab.models.spectral import require_at_least, require_modes


class HybridUNOGenerator(nn.Module):
    """U-shaped neural operator (after U-NO, Rahman et al. 2022) with a convolutional decoder (U-Net).

    Shapes: diffraction amplitudes `(B, in_channels * C, N, N)` -> object patches `(B, N, N, C, out_channels)`, whose
    last axis is (real, imaginary). It also runs on grids of other sizes than `N`.

    Lifter, `n_blocks` encoder blocks, a bottleneck block with `modes // 2` (at least 1), a decoder stage with a skip
    for each halving, 1x1 convolution. Between encoder blocks a convolution of stride 2 halves the grid and doubles the
    width, as long as the grid stays at least `min_resolution` and the width at most `max_channels`; further blocks stay
    on the last grid. At N=64 four blocks work at 64, 32, 16 and 8 px. Each block is
    `block_cls(channels, modes, resolution, **block_options)`; without a `block_cls`, of the class's own kind. Raises
    ValueError for counts less than 1, for `modes` that the grid lacks, and for grids under 2 px.
    """

    #: The blocks of this class, whose options `build_generator` takes from the config.
    block_cls: ClassVar[Callable[..., nn.Module]] = PtychoBlock

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 2,
        hidden_channels: int = 32,
        n_blocks: int = 4,
        modes: int = 12,
        C: int = 1,
        block_cls: Callable[..., nn.Module] | None = None,
        N: int = 64,
        min_resolution: int = 8,
        max_channels: int = 256,
        **block_options: Any,
    ) -> None:
        super().__init__()
        require_at_least(1, in_channels=in_channels, out_channels=out_channels, C=C)
        levels = encoder_levels(N, hidden_channels, n_blocks, min_resolution, max_channels)
        require_modes(modes, N)
        block = partial(block_cls or type(self).block_cls, **block_options)
        self.C = C
        self.lifter = Lifter(in_channels * C, hidden_channels)
        self.encoder = nn.ModuleList(
            nn.Sequential(*(block(level.channels, modes, level.resolution) for _ in range(level.blocks)))
            for level in levels
        )
        steps = list(zip(levels, levels[1:], strict=False))
        self.downs = nn.ModuleList(self._down(fine.channels, coarse.channels) for fine, coarse in steps)
        self.bottleneck = block(levels[-1].channels, max(1, modes // 2), levels[-1].resolution)
        self.ups = nn.ModuleList(self._up(coarse.channels, fine.channels) for fine, coarse in reversed(steps))
        self.out = nn.Conv2d(hidden_channels, out_channels * C, kernel_size=1)

    def forward(self, x: Float[Tensor, "batch in_channels H W"]) -> Float[Tensor, "batch H W C out_channels"]:
        """Predict the object patches of diffraction patterns `x`."""
        x = self.encoder[0](self.lifter(x))
        skips = []
        for down, level in zip(self.downs, self.encoder[1:], strict=True):
            skips.append(x)
            x = level(down(x))
        x = self.bottleneck(x)
        for up in self.ups:
            x = up(x, skips.pop())
        return to_patches(self.out(x), self.C)

    def _down(self, channels: int, coarse_channels: int) -> nn.Module:
        """The layer from one encoder level to the next."""
        return conv3x3(channels, coarse_channels, stride=2)

    def _up(self, channels: int, fine_channels: int) -> nn.Module:
        """The decoder stage that comes back from it."""
        return UpStage(channels, fine_channels)


class StableHybridUNOGenerator(HybridUNOGenerator):
    """`HybridUNOGenerator` with `StablePtychoBlock`s."""

    block_cls = StablePtychoBlock


class PreNormHybridUNOGenerator(HybridUNOGenerator):
    """`HybridUNOGenerator` with `PreNormPtychoBlock`s."""

    block_cls = PreNormPtychoBlock


class OneSidedHybridUNOGenerator(HybridUNOGenerator):
    """`HybridUNOGenerator` with the spectral layer of the original study alone: see `OneSidedSpectralConv2d`."""

    block_cls = OneSidedPtychoBlock


class OriginalHybridUNOGenerator(HybridUNOGenerator):
    """The network of the original study, whole.

    It differs from `HybridUNOGenerator` in three ways: downwards 2x2 convolutions of stride 2, no activation after a
    decoder stage's second convolution, and the spectral layers of `OneSidedSpectralConv2d`. At width 32, 4 blocks and
    N=64 it has 17,202,402 parameters, a complex weight counted as one, as the study's log says. There widths doubled
    without a limit, which is what the config's `max_channels` means by `auto` for it.
    """

    block_cls: ClassVar[Callable[..., nn.Module]] = OneSidedPtychoBlock

    def _down(self, channels: int, coarse_channels: int) -> nn.Module:
        return Conv2x2(channels, coarse_channels)

    def _up(self, channels: int, fine_channels: int) -> nn.Module:
        return UpStage(channels, fine_channels, last_activation=False)


class StableOriginalUNOGenerator(OriginalHybridUNOGenerator):
    """`OriginalHybridUNOGenerator` with norm-last blocks: the stable arm of the original study."""

    block_cls = OneSidedStablePtychoBlock
