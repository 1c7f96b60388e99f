"""The hybrid U-shaped neural operator: spectral blocks in the encoder, convolutions in the decoder."""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn

from fnostab.config import ModelConfig
from fnostab.models.blocks import (
    Lifter,
    OriginalPtychoBlock,
    PreNormPtychoBlock,
    PtychoBlock,
    StablePtychoBlock,
    UpStage,
    encoder_levels,
    halving_conv,
    to_patches,
)
from fnostab.models.spectral import require_at_least, require_modes


class HybridUNOGenerator(nn.Module):
    """U-shaped neural operator (after U-NO, Rahman et al. 2022) with a convolutional decoder (U-Net).

    Shapes: diffraction amplitudes `(B, in_channels * C, N, N)` -> object patches `(B, N, N, C, out_channels)`, whose
    last axis is (real, imaginary). Other grid sizes than the `N` it is built for run too.

    Lifter, `n_blocks` encoder blocks of `block_cls(channels, modes, resolution)`, a bottleneck block with `modes // 2`
    (at least 1), a decoder stage with a skip for each halving, 1x1 convolution. Between encoder blocks a convolution
    of stride 2 halves the grid and doubles the width, as long as the grid stays at least `min_resolution` and the
    width at most `max_channels`; further blocks stay on the last grid. At N=64 four blocks work at 64, 32, 16 and
    8 px. Raises ValueError for counts less than 1, for `modes` that the grid lacks, and for grids under 2 px.
    """

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 2,
        hidden_channels: int = 32,
        n_blocks: int = 4,
        modes: int = 12,
        C: int = 1,
        block_cls: Callable[..., nn.Module] = PtychoBlock,
        N: int = 64,
        min_resolution: int = 8,
        max_channels: int = 256,
    ) -> None:
        super().__init__()
        require_at_least(1, in_channels=in_channels, out_channels=out_channels, C=C)
        levels = encoder_levels(N, hidden_channels, n_blocks, min_resolution, max_channels)
        require_modes(modes, N)
        self.C = C
        self.lifter = Lifter(in_channels * C, hidden_channels, N)
        self.encoder = nn.ModuleList(
            nn.Sequential(*(block_cls(level.channels, modes, level.resolution) for _ in range(level.blocks)))
            for level in levels
        )
        steps = list(zip(levels, levels[1:], strict=False))
        self.downs = nn.ModuleList(halving_conv(fine.channels, coarse.channels) for fine, coarse in steps)
        self.bottleneck = block_cls(levels[-1].channels, max(1, modes // 2), levels[-1].resolution)
        self.ups = nn.ModuleList(
            UpStage(coarse.channels, fine.channels, fine.resolution) for fine, coarse in reversed(steps)
        )
        self.out = nn.Conv2d(hidden_channels, out_channels * C, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        """Predict the object patches of diffraction patterns `x`, `(B, in_channels * C, N, N)`."""
        x = self.encoder[0](self.lifter(x))
        skips = []
        for down, level in zip(self.downs, self.encoder[1:], strict=True):
            skips.append(x)
            x = level(down(x))
        x = self.bottleneck(x)
        for up in self.ups:
            x = up(x, skips.pop())
        return to_patches(self.out(x), self.C)

    @classmethod
    def from_config(cls, config: ModelConfig, N: int) -> "HybridUNOGenerator":
        """The network that `config` describes, for patterns of N x N pixels."""
        return cls(**_arguments(config, N))


class StableHybridUNOGenerator(HybridUNOGenerator):
    """`HybridUNOGenerator` with `StablePtychoBlock`s, whose arguments the first four are."""

    def __init__(
        self,
        *,
        gamma_init: float = 0.0,
        layerscale_init: float | None = None,
        norm_centred: bool = True,
        norm_bias: bool = True,
        **hybrid: Any,
    ) -> None:
        block_cls = partial(
            StablePtychoBlock,
            gamma_init=gamma_init,
            layerscale_init=layerscale_init,
            norm_centred=norm_centred,
            norm_bias=norm_bias,
        )
        super().__init__(block_cls=block_cls, **hybrid)

    @classmethod
    def from_config(cls, config: ModelConfig, N: int) -> "StableHybridUNOGenerator":
        """The network that `config` describes, for patterns of N x N pixels."""
        keys = ("gamma_init", "layerscale_init", "norm_centred", "norm_bias")
        return cls(**{key: getattr(config, key) for key in keys}, **_arguments(config, N))


class PreNormHybridUNOGenerator(HybridUNOGenerator):
    """`HybridUNOGenerator` with `PreNormPtychoBlock`s, whose arguments `block` holds."""

    def __init__(self, *, block: Mapping[str, Any] = MappingProxyType({}), **hybrid: Any) -> None:
        super().__init__(block_cls=partial(PreNormPtychoBlock, **block), **hybrid)

    @classmethod
    def from_config(cls, config: ModelConfig, N: int) -> "PreNormHybridUNOGenerator":
        """The network that `config` describes, for patterns of N x N pixels."""
        keys = ("pre_norm", "gate", "gate_init", "mix", "spectral_gain")
        return cls(block={key: getattr(config, key) for key in keys}, **_arguments(config, N))


class OriginalHybridUNOGenerator(HybridUNOGenerator):
    """`HybridUNOGenerator` with the spectral layer of the original study: see `OneSidedSpectralConv2d`."""

    def __init__(self, **hybrid: Any) -> None:
        super().__init__(block_cls=OriginalPtychoBlock, **hybrid)


def _arguments(config: ModelConfig, N: int) -> dict[str, Any]:
    return {
        "hidden_channels": config.width,
        "n_blocks": config.fno_blocks,
        "modes": config.modes,
        "N": N,
        "min_resolution": config.min_resolution,
        "max_channels": config.max_channels,
    }
