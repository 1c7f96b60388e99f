"""Observations of single layers: activations of blocks, norm weights, the first layer whose output is not finite."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, nn

from fnostab.gradients import total_norm
from fnostab.models.blocks import PtychoBlock, StablePtychoBlock

#: Called after a layer ran, with its name, its inputs and its output.
_Observer = Callable[[str, nn.Module, tuple[Any, ...], Tensor], None]
#: Integers as wide as the numbers of a tensor, by their bytes.
_INTEGERS: Final = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@torch.no_grad()
def block_statistics(network: nn.Module, run: Callable[[], object]) -> dict[str, float]:
    """Statistics of every residual block's output, and of what it adds, while `run()` calls `network`.

    The values are `act_mean/<block>` and `act_std/<block>`, mean and standard deviation of the output over batch,
    channels and pixels; and `update_std/<block>`, the deviation over batch and pixels of what the block adds to its
    input, averaged over channels: 0 says that it adds the same number everywhere, whatever the input. Blocks are in the
    order in which they ran. Blocks of other kinds, without the last value, are those of the class that the network
    calls `block_cls`. One copy from the device.
    """
    own = getattr(network, "block_cls", None)
    kinds = (PtychoBlock, own) if isinstance(own, type) else PtychoBlock
    names: list[str] = []
    statistics: list[Tensor] = []

    def watch(name: str, layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        if not isinstance(layer, kinds):
            return
        names.extend((f"act_mean/{name}", f"act_std/{name}"))
        statistics.extend((output.mean(), output.std(correction=0)))
        if isinstance(layer, PtychoBlock):
            # Computed once more: in output - x, rounding would make a constant update vary.
            names.append(f"update_std/{name}")
            statistics.append(layer.update(*inputs).std((0, 2, 3), correction=0).mean())

    with watching(network.named_modules(), watch):
        run()
    return _values(names, statistics)


@torch.no_grad()
def fingerprints(network: nn.Module) -> dict[str, list[int]]:
    """A number for each tensor that a residual block learns, by block; it changes when any bit of the tensor does.

    It is the sum of the tensor's numbers, read as integers: two changes of one tensor can cancel only by accident. A
    network without residual blocks counts as one without a name. One copy from the device.
    """
    blocks: list[tuple[str, nn.Module]]
    blocks = [(name, layer) for name, layer in network.named_modules() if isinstance(layer, PtychoBlock)]
    tensors = {
        name: [tensor.detach() for tensor in layer.parameters() if tensor.requires_grad]
        for name, layer in blocks or [("", network)]
    }
    values = iter(tensor_fingerprints([tensor for of_block in tensors.values() for tensor in of_block]))
    return {name: [next(values) for _ in of_block] for name, of_block in tensors.items() if of_block}


@torch.no_grad()
def tensor_fingerprints(tensors: Sequence[Tensor]) -> list[int]:
    """A number for each tensor, as `fingerprints` has them."""
    sums = [_integers(tensor).sum(dtype=torch.int64) for tensor in tensors]
    found: list[int] = torch.stack([total.to(sums[0].device) for total in sums]).tolist() if sums else []
    return found


def _integers(tensor: Tensor) -> Tensor:
    """The bits of `tensor` as integers."""
    real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    return real.view(_INTEGERS[real.element_size()])


def moved(before: Mapping[str, Sequence[int]], after: Mapping[str, Sequence[int]]) -> dict[str, float]:
    """Shares of the tensors that changed between two `fingerprints`: `parameters_moved`, and `moved/<block>` of each.

    `parameters_moved` is NaN where nothing is learnt.
    """
    changed = {name: [a != b for a, b in zip(before[name], now, strict=True)] for name, now in after.items()}
    of_all = [one for of_block in changed.values() for one in of_block]
    shares = {f"moved/{name}": sum(of_block) / len(of_block) for name, of_block in changed.items() if name}
    return {"parameters_moved": sum(of_all) / len(of_all) if of_all else math.nan} | shares


@torch.no_grad()
def norm_statistics(network: nn.Module) -> dict[str, float]:
    """Largest and mean magnitude of what scales the updates of stable blocks.

    The values are `norm_weight_absmax`, `norm_weight_absmean`, and `norm_weight_absmax_of/<block>` of each stable
    block; `layerscale_absmax` and `layerscale_absmean` where there is a LayerScale; nothing for other networks.
    """
    stable = {name: block for name, block in network.named_modules() if isinstance(block, StablePtychoBlock)}
    if not stable:
        return {}
    values = _magnitudes("norm_weight", [block.norm.weight for block in stable.values()])
    values |= {f"norm_weight_absmax_of/{name}": block.norm.weight.abs().max() for name, block in stable.items()}
    scales = [block.layerscale for block in stable.values() if block.layerscale is not None]
    if scales:
        values |= _magnitudes("layerscale", scales)
    return _values(list(values), list(values.values()))


def _magnitudes(kind: str, weights: Sequence[Tensor]) -> dict[str, Tensor]:
    sizes = torch.cat([weight.abs().flatten() for weight in weights])
    return {f"{kind}_absmax": sizes.max(), f"{kind}_absmean": sizes.mean()}


def first_bad_layer(network: nn.Module, loss: Callable[[], Tensor]) -> str | None:
    """Name the layer at which a number that is not finite first appears in a step; None if there is none.

    `loss` calls `network` and returns the loss. That is the first layer to give a non-finite output; `loss` if all of
    them are finite and the loss is not; else the layer that ran last among those whose parameters get a non-finite
    gradient, as `<layer> (gradient)`, since gradients come from behind; and if only the sum of all squared gradients
    overflows, the layer with the largest one. Without grad mode gradients are not looked at. There are none after.
    """
    ran: list[str] = []
    bad: list[str] = []

    def watch(name: str, layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        ran.append(name)
        if not output.isfinite().all():
            bad.append(name)

    network.zero_grad()
    with watching(network.named_modules(), watch):
        value = loss()
    if bad:
        return bad[0]
    if not value.isfinite():
        return "loss"
    if value.requires_grad:
        value.backward()  # type: ignore[no-untyped-call]
    gradients = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    norm = total_norm(network)
    network.zero_grad()
    owners = {name.rpartition(".")[0] for name, gradient in gradients.items() if not gradient.isfinite().all()}
    if not owners and not norm.isfinite():
        owners = {max(gradients, key=lambda name: float(gradients[name].abs().max())).rpartition(".")[0]}
    return next((f"{name} (gradient)" for name in reversed(ran) if name in owners), None)


@contextmanager
def watching(layers: Iterable[tuple[str, nn.Module]], watch: _Observer) -> Iterator[None]:
    """Call `watch` after each of the named `layers` that returns a tensor, inner layers before those that hold them."""

    def after(name: str, layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if isinstance(output, Tensor):
            watch(name, layer, inputs, output)

    handles = [layer.register_forward_hook(partial(after, name)) for name, layer in layers if name]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _values(names: list[str], tensors: list[Tensor]) -> dict[str, float]:
    return dict(zip(names, torch.stack(tensors).tolist(), strict=True)) if names else {}
