"""A plain convolutional encoder-decoder, the network without any Fourier layer."""

from jaxtyping import Float
from torch import Tensor, nn

from fnostab.models.blocks import Lifter, conv3x3, conv_pair, encoder_levels, to_patches
from fnostab.models.spectral import require_at_least


class CNNGenerator(nn.Module):
    """Encoder-decoder of 3x3 convolutions without skips, as in PtychoNN (Cherukara et al. 2020).

    Shapes: diffraction amplitudes `(B, in_channels * C, N, N)` -> object patches `(B, N, N, C, out_channels)`, whose
    last axis is (real, imaginary). It also runs on grids of other sizes than `N`.

    Lifter, `n_blocks` pairs of convolutions on the grids and with the widths of `HybridUNOGenerator`, the same way
    back with transposed convolutions, 1x1 convolution. Raises ValueError for counts less than 1 and grids under 2 px.
    """

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 2,
        hidden_channels: int = 32,
        n_blocks: int = 4,
        C: int = 1,
        N: int = 64,
        min_resolution: int = 8,
        max_channels: int = 256,
    ) -> None:
        super().__init__()
        require_at_least(1, in_channels=in_channels, out_channels=out_channels, C=C)
        levels = encoder_levels(N, hidden_channels, n_blocks, min_resolution, max_channels)
        self.C = C
        self.lifter = Lifter(in_channels * C, hidden_channels)
        encoder: list[nn.Module] = [conv_pair(hidden_channels, hidden_channels) for _ in range(levels[0].blocks)]
        decoder: list[nn.Module] = []
        for fine, coarse in zip(levels, levels[1:], strict=False):
            encoder += [conv3x3(fine.channels, coarse.channels, stride=2), nn.GELU()]
            encoder += [conv_pair(coarse.channels, coarse.channels) for _ in range(coarse.blocks)]
            up = nn.ConvTranspose2d(coarse.channels, fine.channels, kernel_size=2, stride=2)
            decoder = [up, nn.GELU(), conv_pair(fine.channels, fine.channels), *decoder]
        self.encoder = nn.Sequential(*encoder)
        self.decoder = nn.Sequential(*decoder)
        self.out = nn.Conv2d(hidden_channels, out_channels * C, kernel_size=1)

    def forward(self, x: Float[Tensor, "batch in_channels H W"]) -> Float[Tensor, "batch H W C out_channels"]:
        """Predict the object patches of diffraction patterns `x`."""
        height, width = x.shape[-2:]
        x = self.decoder(self.encoder(self.lifter(x)))[..., :height, :width]
        return to_patches(self.out(x), self.C)
