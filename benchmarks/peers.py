"""Networks to compare with: the same topology from plain PyTorch layers, and with other spectral layers.

`plain` is also what the tests hold the package's training against.
"""

import copy
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from fnostab.models import contiguous_copy
from fnostab.models.blocks import Lifter, PtychoBlock
from fnostab.models.convolution import Conv3x3
from fnostab.models.spectral import SpectralConv2d


class Nothing(nn.Module):
    """In place of a spectral layer: gives 0."""

    def forward(self, x: Tensor) -> float:
        return 0.0


class FFTConv(nn.Module):
    """The spectral layer as textbooks have it: `rfft2`, a padded spectrum, `einsum`, `irfft2`; the same weights."""

    def __init__(self, layer: SpectralConv2d) -> None:
        super().__init__()
        self.weight = nn.Parameter(layer.weight.detach().clone())

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
        out_channels, in_channels = layer.weight.shape[:2]
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
    out_channels, in_channels = layer.weight.shape[:2]
    return SpectralConv(in_channels, out_channels, n_modes=(2 * layer.modes, 2 * layer.modes), bias=False)


def without_spectral(network: nn.Module) -> nn.Module:
    """A copy of `network` whose blocks have their local branch alone: the floor."""
    return _with_spectral(copy.deepcopy(network), lambda layer: Nothing())


def plain(network: nn.Module, spectral: Callable[[SpectralConv2d], nn.Module] = FFTConv) -> nn.Module:
    """A copy of `network` from PyTorch's own convolutions, channels first, and `spectral` for its spectral layers."""
    network = _with_spectral(contiguous_copy(network), spectral)
    _replace(network, Lifter, lambda layer: nn.Sequential(*layer))
    _replace(network, Conv3x3, _direct)
    return network


def _with_spectral(network: nn.Module, spectral: Callable[[SpectralConv2d], nn.Module]) -> nn.Module:
    for block in network.modules():
        if isinstance(block, PtychoBlock):
            block.spectral = spectral(block.spectral)  # type: ignore[assignment]
    return network


def _direct(layer: Conv3x3) -> nn.Conv2d:
    direct = nn.Conv2d(layer.in_channels, layer.out_channels, kernel_size=3, padding=1, device=layer.weight.device)
    direct.load_state_dict(layer.state_dict())
    return direct


def _replace(network: nn.Module, kind: type[nn.Module], other: Callable[..., nn.Module]) -> None:
    for module in list(network.modules()):
        for name, layer in list(module.named_children()):
            if isinstance(layer, kind):
                setattr(module, name, other(layer))
