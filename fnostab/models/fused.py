"""Networks of one architecture and different weights, computed as one: horizontal fusion."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call


def fused_forward(networks: Sequence[nn.Module], inputs: Sequence[Tensor]) -> list[Tensor]:
    """The output of each of K networks for its own input, all computed together; gradients reach each one's parameters.

    The networks are built by one constructor with the same arguments, treat the samples of a batch independently, and
    have buffers that do not depend on the run, as all built-in ones do. Inputs are `(B_k, ...)` and alike but for their
    batch sizes; outputs are `(B_k, ...)`. `torch.vmap` over the stacked weights makes K convolutions one grouped
    convolution, and K products one product of a larger batch (HFTA: Wang et al. 2021, https://arxiv.org/abs/2102.02344,
    section 3). The numbers are those of each network alone up to rounding. What is not finite in one network stays
    there. One network alone is called as it is.
    """
    if len(networks) == 1:
        return [networks[0](inputs[0])]
    named = [dict(network.named_parameters()) for network in networks]
    # Stacked anew at each call: the networks keep their own parameters, and any of them may be left out the next time.
    weights = {name: torch.stack([parameters[name] for parameters in named]) for name in named[0]}

    def one(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        output: Tensor = functional_call(networks[0], parameters, (x,))
        return output

    outputs = torch.vmap(one)(weights, _stacked(inputs))
    return [output[: len(x)] for output, x in zip(outputs, inputs, strict=True)]


def _stacked(inputs: Sequence[Tensor]) -> Tensor:
    """The inputs `(K, B, ...)`; smaller batches are filled with zeros, whose outputs nobody uses."""
    size = max(map(len, inputs))
    return torch.stack(
        [x if len(x) == size else torch.cat([x, x.new_zeros(size - len(x), *x.shape[1:])]) for x in inputs]
    )
