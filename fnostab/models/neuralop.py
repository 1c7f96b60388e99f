"""Networks of the library neuraloperator (extra `neuralop`), as arms to compare with: entry points of this package."""

import importlib
import io
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from typing import Any, ClassVar, Final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fnostab.models.blocks import encoder_levels, to_patches
from fnostab.models.spectral import require_at_least, require_modes

#: What stands for the size of a batch that is left open.
_SOME_BATCH: Final = 16


class _Adapter(nn.Module):
    """A `network` of the library that maps `(B, C, N, N)` to `(B, 2 * C, N, N)`, as this package takes it."""

    def __init__(self, network: nn.Module, C: int) -> None:
        super().__init__()
        self.network, self.C = network, C
        spectral = importlib.import_module("neuralop.layers.spectral_convolution").SpectralConv
        self.block_cls = spectral  # whose activations are recorded: a block of the library is no module of its own
        for layer in network.modules():
            if isinstance(layer, spectral) and hasattr(layer.weight, "tensor"):
                layer.weight.unit_axis = 1  # for AGC: dense weights are (in, out, rows, columns)
        self.register_state_dict_post_hook(_without_arguments)  # type: ignore[no-untyped-call]

    def forward(self, x: Float[Tensor, "batch C H W"]) -> Float[Tensor, "batch H W C 2"]:
        """Predict the object patches of diffraction patterns `x`."""
        return to_patches(self.network(x), self.C)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> "_Adapter":
        """Move to another device: without the grid that the library keeps, which would stay on the one before."""
        moved: _Adapter = super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for layer in self.modules():
            if hasattr(layer, "_grid"):
                layer._grid = None  # type: ignore[assignment]
        return moved


class NeuraloperatorFNO(_Adapter):
    """The FNO of neuraloperator (Li et al. 2021; Kossaifi et al. 2023), with that library's own defaults.

    Shapes: diffraction amplitudes `(B, C, N, N)` -> object patches `(B, N, N, C, 2)`. It is given `hidden_channels`,
    `n_blocks` as its `n_layers`, and `modes` per axis and sign; `options` are further arguments of that class, such as
    `norm` or `fno_skip`. Raises ValueError where the library is not installed.
    """

    #: What another variant adds to the arguments.
    extra: ClassVar[Mapping[str, Any]] = {}

    def __init__(
        self, hidden_channels: int = 32, n_blocks: int = 4, modes: int = 12, C: int = 1, N: int = 64, **options: Any
    ) -> None:
        require_at_least(1, hidden_channels=hidden_channels, n_blocks=n_blocks, C=C)
        require_modes(modes, N)
        network = _library().FNO(
            n_modes=(min(2 * modes, N), min(2 * modes, N)),
            in_channels=C,
            out_channels=2 * C,
            hidden_channels=hidden_channels,
            n_layers=n_blocks,
            **{**self.extra, **options},
        )
        super().__init__(network, C)


class NeuraloperatorTFNO(NeuraloperatorFNO):
    """`NeuraloperatorFNO` with Tucker-factorised spectral weights of rank 0.1 (Kossaifi et al. 2023)."""

    extra: ClassVar[Mapping[str, Any]] = {"factorization": "tucker", "rank": 0.1}


class NeuraloperatorUNO(_Adapter):
    """The U-NO of neuraloperator (Rahman et al. 2022), with as many levels as the built-in hybrids have.

    Shapes as in `NeuraloperatorFNO`. `n_blocks` layers downwards, of which all but the first halve the grid and double
    the width within `min_resolution` and `max_channels`, one at the bottom, and as many upwards, with horizontal skips;
    `options` are further arguments of that class. Raises ValueError where the library is not installed.
    """

    def __init__(
        self,
        hidden_channels: int = 32,
        n_blocks: int = 4,
        modes: int = 12,
        C: int = 1,
        N: int = 64,
        min_resolution: int = 8,
        max_channels: int = 256,
        **options: Any,
    ) -> None:
        require_modes(modes, N)
        levels = encoder_levels(N, hidden_channels, n_blocks, min_resolution, max_channels)
        down = [level for level in levels for _ in range(level.blocks)]
        layers = [*down, down[-1], *reversed(down)]
        grids = [N, *(level.resolution for level in layers)]
        with redirect_stdout(io.StringIO()):  # it prints two settings a layer
            network = _library().UNO(
                in_channels=C,
                out_channels=2 * C,
                hidden_channels=hidden_channels,
                lifting_channels=2 * hidden_channels,
                projection_channels=2 * hidden_channels,
                n_layers=len(layers),
                uno_out_channels=[level.channels for level in layers],
                uno_n_modes=[[min(2 * modes, level.resolution)] * 2 for level in layers],
                uno_scalings=[[after / before] * 2 for before, after in zip(grids, grids[1:], strict=False)],
                horizontal_skips_map={len(layers) - 1 - place: place for place in range(n_blocks)},
                # Soft gating, its default here, cannot change the width.
                **{"channel_mlp_skip": "linear", **options},
            )
        super().__init__(network, C)


def _without_arguments(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    """Keep a state to tensors: the library puts constructor arguments into it, which no safe reader of files takes."""
    state.pop("_metadata", None)


@contextmanager
def batches_of_any_size() -> Iterator[None]:
    """Let torch.export leave the size of a batch open inside the block, in networks that compute with tensorly.

    The library's einsum looks for the best order of its products with sizes as numbers, which ties an export to the
    batch of its example. Here it takes the order that is best for some batch. Nothing happens without tensorly.
    """
    tensorly = sys.modules.get("tensorly")
    if tensorly is None:
        yield
        return
    manager = tensorly.backend.BackendManager
    before = manager.current_backend().einsum
    manager.register_backend_method("einsum", _einsum)
    try:
        yield
    finally:
        manager.register_backend_method("einsum", before)


def _einsum(equation: str, *operands: Tensor) -> Tensor:
    """`torch.einsum`, two operands at a time, in an order that does not ask for symbolic sizes."""
    import opt_einsum

    shapes = [[size if type(size) is int else _SOME_BATCH for size in operand.shape] for operand in operands]
    left = list(operands)
    for places, _, step, *_ in opt_einsum.contract_path(equation, *shapes, shapes=True)[1].contraction_list:
        left.append(torch.einsum(step, *[left.pop(place) for place in places]))
    return left[0]


def _library() -> Any:
    """The library's models; its optional dependencies warn when they are missing."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import neuralop.models
    except ModuleNotFoundError:
        raise ValueError("it needs neuraloperator: pip install fnostab[neuralop]") from None
    return neuralop.models
