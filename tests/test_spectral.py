import io
import math
import warnings
from collections import OrderedDict

import numpy as np
import pytest
import torch

from fnostab.models.spectral import OneSidedSpectralConv2d, SpectralConv2d

# (H, W, modes): even and odd sides, few modes and every mode that the grid has.
GRIDS = [(6, 6, 2), (6, 6, 4), (7, 7, 3), (7, 7, 4), (5, 8, 5), (8, 5, 5), (9, 4, 2), (2, 2, 1), (2, 3, 2)]


def frequencies(modes, H):
    h = min(modes, H // 2)
    return [*range(h), *range(-h, 0)]


def dense(x, w, rows, cols):
    """The documented sum, written out in float64: `x` (B, in, H, W), complex `w` (out, in, rows, cols)."""
    H, W = x.shape[-2:]
    m, n = np.meshgrid(np.arange(H), np.arange(W), indexing="ij")
    y = np.zeros((x.shape[0], w.shape[0], H, W))
    for i, r in enumerate(rows):
        for c in range(cols):
            wave = np.exp(2j * np.pi * (r * m / H + c * n / W))
            product = w[:, :, i, c] @ (x * wave.conj()).sum(axis=(-2, -1)).T  # (out, B)
            multiplicity = 1 if c == 0 or 2 * c == W else 2
            y += multiplicity * (product.T[:, :, None, None] * wave).real / (H * W)
    return y


def complex_weight(layer):
    """The weight as (out, in, rows, cols)."""
    return torch.view_as_complex(layer.weight.detach().double()).permute(3, 2, 0, 1).numpy()


@pytest.mark.parametrize(("H", "W", "modes"), GRIDS)
def test_layer_equals_dense_fourier_sums(H, W, modes):
    torch.manual_seed(0)
    layer = SpectralConv2d(3, 2, modes, (H, W)).double()
    x = torch.randn(4, 3, H, W, dtype=torch.float64)
    rows, cols = frequencies(modes, H), min(modes, W // 2 + 1)
    assert layer.weight.shape == (len(rows), cols, 3, 2, 2)
    expected = dense(x.numpy(), complex_weight(layer), rows, cols)
    np.testing.assert_allclose(layer(x).detach().numpy(), expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(layer.float()(x.float()).detach().numpy(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("H", "W", "modes"), GRIDS)
def test_every_weight_matters_but_imaginary_parts_of_self_conjugate_bins(H, W, modes):
    torch.manual_seed(0)
    layer = SpectralConv2d(2, 3, modes, (H, W)).double()
    target = torch.randn(4, 3, H, W, dtype=torch.float64)
    (layer(torch.randn(4, 2, H, W, dtype=torch.float64)) * target).sum().backward()
    alive = layer.weight.grad.abs().amin(dim=(2, 3)) > 1e-6
    dead = layer.weight.grad.abs().amax(dim=(2, 3)) < 1e-12
    for i, r in enumerate(frequencies(modes, H)):
        for c in range(layer.weight.shape[1]):
            self_conjugate = 2 * r % H == 0 and 2 * c % W == 0
            assert alive[i, c, 0]
            assert dead[i, c, 1] if self_conjugate else alive[i, c, 1]


def test_mean_square_weight_is_one_over_in_channels():
    torch.manual_seed(0)
    squares = SpectralConv2d(20, 50, 12, 64).weight.detach().square().sum(-1)
    error = squares.std() / math.sqrt(squares.numel())
    assert abs(squares.mean() - 1 / 20) < 4 * error


def test_finer_grid_has_the_same_operator():
    torch.manual_seed(0)
    layer = SpectralConv2d(2, 2, 3, 12).double()
    coefficients = torch.randn(1, 2, 5, 5, dtype=torch.complex128)

    def sample(n):  # a function without frequencies above 2, on n x n points
        spectrum = torch.zeros(1, 2, n, n, dtype=torch.complex128)
        index = torch.arange(-2, 3)
        spectrum[:, :, index[:, None], index] = coefficients
        return torch.fft.ifft2(spectrum, norm="forward").real

    torch.testing.assert_close(layer(sample(24))[..., ::2, ::2], layer(sample(12)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("H", [6, 7])
@pytest.mark.parametrize("layer_class", [SpectralConv2d, OneSidedSpectralConv2d])
def test_coarser_grid_uses_the_modes_it_has(layer_class, H):
    torch.manual_seed(0)
    layer = layer_class(2, 2, 8, 32).double()
    rows = frequencies(8, H) if layer_class is SpectralConv2d else list(range(H))
    x = torch.randn(3, 2, H, H, dtype=torch.float64)
    cols = H // 2 + 1
    expected = dense(x.numpy(), complex_weight(layer)[:, :, rows, :cols], rows, cols)
    np.testing.assert_allclose(layer(x).detach().numpy(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [16, 24, 64])
def test_one_sided_layer_keeps_the_first_rows_of_the_fft(size):
    torch.manual_seed(0)
    layer = OneSidedSpectralConv2d(2, 3, 12, size)
    assert layer.weight.shape == (12, 12, 2, 3, 2)
    x = torch.randn(2, 2, size, size)
    cols = min(12, size // 2 + 1)
    spectrum = torch.zeros(2, 3, size, size // 2 + 1, dtype=torch.complex64)
    weight = torch.view_as_complex(layer.weight.detach())[:, :cols]
    spectrum[:, :, :12, :cols] = torch.einsum("birc,rcio->borc", torch.fft.rfft2(x)[:, :, :12, :cols], weight)
    torch.testing.assert_close(layer(x), torch.fft.irfft2(spectrum, s=(size, size)), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("H", "W", "modes"), [(16, 16, 5), (16, 16, 8), (12, 15, 4), (12, 16, 6)])
def test_layer_equals_neuraloperator(H, W, modes):
    """Ours is neuraloperator's `SpectralConv` on grids of even height.

    What differs: its weights are complex, (in, out, rows, cols), with rows centred (-h..h-1) and a bias; its `n_modes`
    counts rows and, before halving, columns; it scales the forward transform, which cancels. Where H is odd its
    second `fftshift` does not undo the first, so that rows move by one; ours is the plain sum there too.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its optional dependencies warn when imported
        spectral_convolution = pytest.importorskip(
            "neuralop.layers.spectral_convolution", reason="needs neuraloperator 2 (a test dependency)"
        )
    torch.manual_seed(0)
    ours = SpectralConv2d(3, 2, modes, (H, W))
    theirs = spectral_convolution.SpectralConv(3, 2, n_modes=(2 * modes, 2 * (modes - 1)), bias=False)
    weight = torch.view_as_complex(ours.weight.detach())
    with torch.no_grad():
        theirs.weight.tensor.copy_(torch.fft.fftshift(weight, dim=0).permute(2, 3, 0, 1))
        x = torch.randn(4, 3, H, W)
        torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-5)


def test_gradients_are_exact_and_lie_in_memory_as_the_weight_does():
    torch.manual_seed(0)
    layer = SpectralConv2d(2, 3, 2, 5).double()
    x = torch.randn(2, 2, 5, 5, dtype=torch.float64, requires_grad=True)
    direction = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    (layer(x) * direction).sum().backward()
    assert layer.weight.is_contiguous()
    assert layer.weight.grad.is_contiguous()
    with torch.no_grad():  # linear in the input and in the weight: the gradient predicts the change for any other
        other = torch.randn_like(x)
        torch.testing.assert_close((layer(other) * direction).sum(), (x.grad * other).sum())
        layer.weight.normal_()
        torch.testing.assert_close((layer(x) * direction).sum(), (layer.weight.grad * layer.weight).sum())


def test_layer_runs_under_autocast():
    torch.manual_seed(0)
    layer, x = SpectralConv2d(8, 8, 5, 16), torch.randn(4, 8, 16, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = layer(x)
    low.float().square().sum().backward()
    assert torch.isfinite(layer.weight.grad).all()
    assert (low.float() - layer(x)).abs().max() < 0.05 * layer(x).abs().max()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1, 1, 0, 8), r"^`modes` \(=0\) must be >= 1$"),
        ((0, 1, 3, 8), r"^`in_channels` \(=0\) must be >= 1$"),
        ((1, 1, 3, (8, 1)), r"^`resolution` \(=1\) must be >= 2$"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(arguments, message):
    with pytest.raises(ValueError, match=message):
        SpectralConv2d(*arguments)


@pytest.mark.parametrize("version", [{}, {"version": 1}], ids=["no version", "version 1"])
@pytest.mark.parametrize(
    "make",
    [lambda: SpectralConv2d(3, 5, 2, 8), lambda: OneSidedSpectralConv2d(4, 4, 4, 16)],
    ids=["all axes differ", "square"],
)
def test_a_weight_with_output_channels_first_is_loaded_into_the_order_of_today(make, version):
    layer = make()
    rows, cols, ins, outs, _ = layer.weight.shape
    old = OrderedDict(weight=torch.randn(outs, ins, rows, cols, 2))
    old._metadata = OrderedDict({"": version})
    layer.load_state_dict(old)
    assert torch.equal(layer.weight[1, 0, 2, 3], old["weight"][3, 2, 1, 0])
    assert layer.weight.is_contiguous()
    assert old["weight"].shape == (outs, ins, rows, cols, 2)  # the caller's is left alone


def test_a_state_dict_of_today_is_loaded_as_it_is_where_shapes_cannot_tell():
    written, read = OneSidedSpectralConv2d(4, 4, 4, 16), OneSidedSpectralConv2d(4, 4, 4, 16)
    file = io.BytesIO()
    torch.save(written.state_dict(), file)
    file.seek(0)
    read.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(read.weight, written.weight)


def test_a_weight_of_another_shape_is_refused_in_torchs_words():
    with pytest.raises(RuntimeError, match="size mismatch for weight"):
        SpectralConv2d(3, 5, 2, 8).load_state_dict({"weight": torch.zeros(5, 3, 4, 7, 2)})


def test_a_seed_gives_the_weights_that_it_gave_with_output_channels_first():
    torch.manual_seed(0)
    weight = SpectralConv2d(3, 5, 2, 8).weight
    torch.manual_seed(0)
    assert torch.equal(weight.permute(3, 2, 0, 1, 4), torch.randn(5, 3, 4, 2, 2) * math.sqrt(0.5 / 3))
