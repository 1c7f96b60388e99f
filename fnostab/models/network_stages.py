"""The stages of any network, and what each of them makes of a batch."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn

from fnostab.gradients import as_real, norm_of_norms, tensor_norms
from fnostab.models.blocks import PtychoBlock
from fnostab.models.layers import watching

#: A channel is dead if its deviation is under this share of the output's root mean square: rounding alone is 1e-7.
_ROUNDING: Final = 1e-6


def find_stages(network: nn.Module) -> dict[str, nn.Module]:
    """The stages of `network`, by their qualified names, in the order in which they are built.

    They are the layers directly under the network, or under the one layer that it wraps. In place of a list or plain
    sequence of layers stand its entries, and in place of an entry that is a sequence of several residual blocks these
    blocks. A parameter of the network's own belongs to no stage.
    """
    prefix, children = "", dict(network.named_children())
    while len(children) == 1:
        ((name, only),) = children.items()
        inner = dict(only.named_children())
        if not inner:
            break
        prefix, children = f"{prefix}{name}.", inner
    return {
        f"{prefix}{name}": stage
        for child_name, child in children.items()
        for entry_name, entry in _entries(child_name, child, _is_container(child))
        for name, stage in _entries(entry_name, entry, entry is not child and _holds_blocks(entry))
    }


def _entries(name: str, layer: nn.Module, opened: bool) -> Iterator[tuple[str, nn.Module]]:
    if not opened:
        yield name, layer
        return
    for place, entry in layer.named_children():
        yield f"{name}.{place}", entry


def _is_container(layer: nn.Module) -> bool:
    return type(layer) in (nn.ModuleList, nn.Sequential) and next(layer.children(), None) is not None


def _holds_blocks(layer: nn.Module) -> bool:
    return _is_container(layer) and sum(isinstance(entry, PtychoBlock) for entry in layer.children()) > 1


@torch.no_grad()
def stage_statistics(network: nn.Module, run: Callable[[], object]) -> dict[str, Tensor]:
    """Statistics of the stages while `run()` calls `network`, 0-d tensors on its device, stages in the order they ran.

    Of an output `(B, C, ...)`, the values are `act_std/<stage>`, its standard deviation over all;
    `pattern_std/<stage>`, that over the batch, averaged over all else: 0 says that the output does not depend on the
    input; `middle_std/<stage>`, the same over the middle half of both axes of an image, where the probe's light is, and
    which the borders, that zero padding makes different, do not reach; and `dead_channels/<stage>`, the share of
    channels whose deviation over batch and pixels is nothing but rounding (1e-6 of the root mean square of the output).
    A batch of one has no `pattern_std`: NaN. `weight_norm/<stage>` is the 2-norm of the stage's parameters, NaN where
    it has none. A stage that ran several times counts as it ran last. One that did not run, or whose output is no batch
    of floating-point numbers, is absent.
    """
    found: dict[str, dict[str, Tensor]] = {}

    def watch(name: str, layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        if output.dim() > 1 and (output.is_floating_point() or output.is_complex()):
            found[name] = _of_output(as_real(output).float()) | {"weight_norm": _weight_norm(layer, output.device)}

    with watching(find_stages(network).items(), watch):
        run()
    kinds = dict.fromkeys(kind for values in found.values() for kind in values)
    return {f"{kind}/{name}": values[kind] for kind in kinds for name, values in found.items()}


@torch.no_grad()
def pattern_shares(network: nn.Module, run: Callable[[], object]) -> dict[str, float]:
    """How much of what each stage gives depends on the pattern, while `run()` calls `network` with a batch of patterns.

    The values are `pattern_share/<stage>`: `middle_std` of `stage_statistics` over `act_std`, and 0 where the output is
    constant. Some tenths are usual, and 0 says that the stage gives the same for every pattern where the light is, so
    that nothing after it can learn from it. NaN for a batch of one. One copy from the device.
    """
    found = stage_statistics(network, run)
    whole = {name.removeprefix("act_std/"): value for name, value in found.items() if name.startswith("act_std/")}
    shares = [torch.where(of_all > 0, found[f"middle_std/{stage}"] / of_all, 0.0) for stage, of_all in whole.items()]
    values = torch.stack(shares).tolist() if shares else []
    return {f"pattern_share/{stage}": value for stage, value in zip(whole, values, strict=True)}


def _of_output(output: Tensor) -> dict[str, Tensor]:
    """The statistics of an output `(B, C, ...)`, which is read once: variances of parts add up to that of the whole."""
    variance, mean = torch.var_mean(output, 0, correction=0)
    of_channels, channel_means = mean.reshape(len(mean), -1).var(1, correction=0), mean.reshape(len(mean), -1).mean(1)
    of_channels = of_channels + variance.reshape(len(mean), -1).mean(1)
    of_all = of_channels.mean() + channel_means.var(correction=0)
    floor = _ROUNDING**2 * (of_all + channel_means.mean().square())
    of_patterns = variance.sqrt() if len(output) > 1 else torch.full_like(variance, math.nan)
    return {
        "act_std": of_all.sqrt(),
        "pattern_std": of_patterns.mean(),
        "middle_std": _middle(of_patterns).mean(),
        "dead_channels": (of_channels <= floor).float().mean(),
    }


def _middle(of_channels: Tensor) -> Tensor:
    """The middle half of both axes of the images (C, H, W); anything else as it is."""
    if of_channels.dim() != 3:
        return of_channels
    height, width = of_channels.shape[1:]
    return of_channels[:, height // 4 : height - height // 4, width // 4 : width - width // 4]


def _weight_norm(layer: nn.Module, device: torch.device) -> Tensor:
    norms = tensor_norms([as_real(parameter.detach()) for parameter in layer.parameters()])
    return norm_of_norms(norms).to(device) if norms else torch.tensor(math.nan, device=device)


def stage_grad_norms(network: nn.Module, norms: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The 2-norm of each stage's gradient, 0-d, from the `norms` of parameters by name, as `gradients.layer_norms` has.

    The names are `grad_norm/<stage>`; stages without a gradient are absent.
    """
    own = {
        stage: [norm for name, norm in norms.items() if name.startswith(f"{stage}.")] for stage in find_stages(network)
    }
    return {f"grad_norm/{stage}": norm_of_norms(of_stage) for stage, of_stage in own.items() if of_stage}
