"""Who reads an exported file: what its input and output are, by the name of the layout.

Sources of the contract of holoptycho, facts only: docs/using-a-model.md.
"""

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

LAYOUTS: Final = ("fnostab", "holoptycho")
#: The patterns that a file of the layout holoptycho takes at once, unless one says otherwise.
HOLOPTYCHO_BATCH: Final = 64
#: holoptycho scales the largest count of a scan to this before it takes the square root.
_HOLOPTYCHO_SCALE: Final = 10_000.0


@dataclass(frozen=True)
class Layout:
    """A network as a consumer wants it.

    `network` maps the input `input_name`, of the `shape` of one pattern or group, to the output `output_name`;
    `batch_size` is None where any will do. `make_input` turns counts, float32 (B, N, N) or (B, 4, N, N), into the
    input, `to_patches` an output into complex patches of the counts' shape; those of an ensemble have a further axis of
    two, the patch and its deviation.
    """

    name: str
    network: nn.Module
    input_name: str
    output_name: str
    shape: tuple[int, ...]
    signature: str
    batch_size: int | None
    make_input: Callable[[NDArray[np.float32]], NDArray[np.float32]]
    to_patches: Callable[[NDArray[np.float32]], NDArray[np.complex64]]


def fnostab_layout(network: nn.Module, N: int, C: int, *, has_deviation: bool = False) -> Layout:
    """The contract of this package's MLflow models: counts in, real and imaginary part of patches out.

    Of an ensemble, the deviation is the third value.
    """
    shape = (N, N) if C == 1 else (C, N, N)
    axes = ", ".join(map(str, ("batch", *shape)))
    values, further = (3, ", and their standard deviation") if has_deviation else (2, "")
    signature = (
        f"counts float32 ({axes}), zero frequency at pixel {N // 2}, to patches float32 ({axes}, {values}): "
        f"real and imaginary part{further}"
    )
    to_patches = _with_deviation if has_deviation else _of_parts
    return Layout("fnostab", network, "counts", "patches", shape, signature, None, lambda counts: counts, to_patches)


def holoptycho_layout(
    network: nn.Module, N: int, probe: NDArray[np.complex64], normalization: float, batch_size: int
) -> Layout:
    """The contract of holoptycho at NSLS-II: amplitudes of a fixed batch in, amplitude and phase of patches out.

    holoptycho feeds sqrt(10,000 counts / `normalization`), `normalization` the largest count of the scan, and averages
    the phases of overlapping patches as they are; so the phase of each patch is counted from its mean in the light of
    `probe` (N, N). Raises ValueError where the network's square root is not found.
    """
    factor = float(np.sqrt(normalization / _HOLOPTYCHO_SCALE))
    signature = (
        f"input float32 ({batch_size}, 1, {N}, {N}): sqrt({_HOLOPTYCHO_SCALE:g} * counts / {normalization:g}), zero "
        f"frequency at pixel {N // 2}, to output float32 ({batch_size}, 2, {N}, {N}): amplitude and phase in rad"
    )

    def make_input(counts: NDArray[np.float32]) -> NDArray[np.float32]:
        amplitudes: NDArray[np.float32] = np.sqrt(counts.clip(0)) / np.float32(factor)
        return amplitudes[:, None]

    adapter = _AmplitudeAndPhase(without_square_root(network), factor, probe)
    return Layout(
        "holoptycho", adapter, "input", "output", (1, N, N), signature, batch_size, make_input, _of_amplitude_and_phase
    )


class _AmplitudeAndPhase(nn.Module):
    """Amplitudes (B, 1, N, N) times a factor, through `network`, to amplitude and phase (B, 2, N, N)."""

    def __init__(self, network: nn.Module, factor: float, probe: NDArray[np.complex64]) -> None:
        super().__init__()
        self.network, self.factor = network, factor
        light = torch.from_numpy(np.abs(probe).astype(np.float32) ** 2)
        self.register_buffer("light", light / light.sum())

    def forward(self, amplitudes: Tensor) -> Tensor:
        parts = self.network(amplitudes.squeeze(1) * self.factor)
        real, imag = parts[..., 0], parts[..., 1]
        mean_real = (real * self.light).sum((1, 2), keepdim=True)
        mean_imag = (imag * self.light).sum((1, 2), keepdim=True)
        phase = torch.atan2(imag * mean_real - real * mean_imag, real * mean_real + imag * mean_imag)
        return torch.stack([(real.square() + imag.square()).sqrt(), phase], dim=1)


def without_square_root(network: nn.Module) -> nn.Module:
    """A copy of a shipped `network` that takes amplitudes, sqrt(counts), in the place of counts.

    In half precision, which holoptycho compiles with, counts over 65,504 would overflow before their square root is
    taken. Raises ValueError if there is no square root right behind the input, its mask and its clamp.
    """
    with warnings.catch_warnings():  # torch's, about a way of its own to look into what it exported
        warnings.simplefilter("ignore")
        made = copy.deepcopy(network)
    if isinstance(made, torch.fx.GraphModule):
        (place,) = (node for node in made.graph.nodes if node.op == "placeholder")
        for target in ("where", "clamp_min", "sqrt"):
            users = [node for node in place.users if _computes(node, target)]
            if len(users) != 1:
                if target == "where":  # only where there is a mask
                    continue
                raise ValueError("the network must begin with the square root of its counts, and does not")
            place = users[0]
        place.replace_all_uses_with(place.args[0])
        made.graph.erase_node(place)
        made.recompile()
        return made
    raise ValueError("the network must be a pt2 export, and is none")


def _computes(node: torch.fx.Node, name: str) -> bool:
    return node.op == "call_function" and str(node.target).startswith(f"aten.{name}.")


def _of_parts(parts: NDArray[np.float32]) -> NDArray[np.complex64]:
    return np.ascontiguousarray(parts).view(np.complex64)[..., 0]


def _with_deviation(parts: NDArray[np.float32]) -> NDArray[np.complex64]:
    return np.stack([_of_parts(parts[..., :2]), parts[..., 2]], axis=-1).astype(np.complex64)


def _of_amplitude_and_phase(output: NDArray[np.float32]) -> NDArray[np.complex64]:
    patches: NDArray[np.complex64] = (output[:, 0] * np.exp(1j * output[:, 1])).astype(np.complex64)
    return patches
