"""A cascade: Fourier neural operator on the full grid, then a small convolutional network."""

from jaxtyping import Float
from torch import Tensor, nn

from fnostab.models.blocks import Lifter, PtychoBlock, conv_pair, to_patches
from fnostab.models.spectral import require_at_least, require_modes


class CascadedFNOGenerator(nn.Module):
    """FNO (Li et al. 2021) then CNN: nothing is downsampled, the width never changes.

    Shapes: diffraction amplitudes `(B, in_channels * C, N, N)` -> object patches `(B, N, N, C, out_channels)`, whose
    last axis is (real, imaginary). It also runs on grids of other sizes than `N`.

    Lifter, `n_blocks` `PtychoBlock`s, 1x1 convolution, two 3x3 convolutions with GELU that refine, 1x1 convolution.
    Raises ValueError for counts less than 1, and for `modes` that the grid lacks.
    """

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 2,
        hidden_channels: int = 32,
        n_blocks: int = 4,
        modes: int = 12,
        C: int = 1,
        N: int = 64,
    ) -> None:
        super().__init__()
        require_at_least(1, in_channels=in_channels, out_channels=out_channels, C=C)
        require_at_least(1, hidden_channels=hidden_channels, n_blocks=n_blocks)
        require_at_least(2, N=N)
        require_modes(modes, N)
        self.C = C
        self.lifter = Lifter(in_channels * C, hidden_channels)
        self.blocks = nn.Sequential(*(PtychoBlock(hidden_channels, modes, N) for _ in range(n_blocks)))
        self.project = nn.Conv2d(hidden_channels, hidden_channels, kernel_size=1)
        self.refine = conv_pair(hidden_channels, hidden_channels)
        self.out = nn.Conv2d(hidden_channels, out_channels * C, kernel_size=1)

    def forward(self, x: Float[Tensor, "batch in_channels H W"]) -> Float[Tensor, "batch H W C out_channels"]:
        """Predict the object patches of diffraction patterns `x`."""
        x = self.project(self.blocks(self.lifter(x)))
        return to_patches(self.out(self.refine(x)), self.C)
