"""Networks to compare with: the same topology with other spectral layers.

`plain` is also what the tests hold the package's training against.
"""

import copy
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from fnostab.models.blocks import PtychoBlock
from fnostab.models.spectral import SpectralConv2d


class Nothing(nn.Module):
    """In place of a spectral layer: gives 0."""

    def forward(self, x: Tensor) -> float:
        return 0.0


class FFTConv(nn.Module):
    """The spectral layer as textbooks have it: `rfft2`, a padded spectrum, `einsum`, `irfft2`; the same weights."""

    def __init__(self, layer: SpectralConv2d) -> None:
        super().__init__()
        self.weight = nn.Parameter(layer.weight.detach().permute(3, 2, 0, 1, 4).contiguous())

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        weight = torch.view_as_complex(self.weight)
        rows, cols = weight.shape[2:]
        half = rows // 2
        spectrum = torch.fft.rfft2(x)
        padded = spectrum.new_zeros(len(x), len(weight), *spectrum.shape[2:])
        kept = torch.cat([spectrum[:, :, :half, :cols], spectrum[:, :, height - half :, :cols]], dim=2)
        product = torch.einsum("birc,oirc->borc", kept, weight)
        padded[:, :, :half, :cols] = product[:, :, :half]
        padded[:, :, height - half :, :cols] = product[:, :, half:]
        return torch.fft.irfft2(padded, s=(height, width))


class OriginalConv(nn.Module):
    """The original study's spectral layer: rows >= 0 only, complex weights for `modes` x `modes` at every level."""

    def __init__(self, layer: SpectralConv2d) -> None:
        super().__init__()
        in_channels, out_channels = layer.weight.shape[2:4]
        shape = (in_channels, out_channels, layer.modes, layer.modes)
        self.modes = layer.modes
        self.weight = nn.Parameter(torch.randn(shape, dtype=torch.complex64) * in_channels**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        rows, cols = min(self.modes, height), min(self.modes, width // 2 + 1)
        spectrum = torch.fft.rfft2(x)
        padded = spectrum.new_zeros(len(x), self.weight.shape[1], *spectrum.shape[2:])
        weight = self.weight[:, :, :rows, :cols]
        padded[:, :, :rows, :cols] = torch.einsum("birc,iorc->borc", spectrum[:, :, :rows, :cols], weight)
        return torch.fft.irfft2(padded, s=(height, width))


def neuraloperator_layer(layer: SpectralConv2d) -> nn.Module:
    """neuraloperator's `SpectralConv` for as many modes, which it keeps at every level."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its optional dependencies warn when imported
        from neuralop.layers.spectral_convolution import SpectralConv
    in_channels, out_channels = layer.weight.shape[2:4]
    return SpectralConv(in_channels, out_channels, n_modes=(2 * layer.modes, 2 * layer.modes), bias=False)


def without_spectral(network: nn.Module) -> nn.Module:
    """A copy of `network` whose blocks have their local branch alone: the floor."""
    return _with_spectral(copy.deepcopy(network), lambda layer: Nothing())


def plain(network: nn.Module, spectral: Callable[[SpectralConv2d], nn.Module] = FFTConv) -> nn.Module:
    """A copy of `network` that keeps channels first in memory, and has `spectral` for its spectral layers."""
    network = _with_spectral(copy.deepcopy(network), spectral)
    network.lifter = nn.Sequential(*network.lifter)  # ours puts the channels last
    return network


def _with_spectral(network: nn.Module, spectral: Callable[[SpectralConv2d], nn.Module]) -> nn.Module:
    for block in network.modules():
        if isinstance(block, PtychoBlock):
            block.spectral = spectral(block.spectral)  # type: ignore[assignment]
    return network
