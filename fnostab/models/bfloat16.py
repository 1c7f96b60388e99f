"""Convolutions of an exported network in bfloat16, for machines that compute faster in it."""

import copy
import warnings
from typing import Final

import torch
from torch import nn

#: The operators that autocast takes in 16 bits among those of networks here, by their names in an export.
_CONVOLUTIONS: Final = ("aten.conv2d.", "aten.convolution.", "aten.conv_transpose2d.", "aten.linear.")
#: Their arguments that are tensors: input, weight and bias.
_TENSORS: Final = 3


def with_bfloat16_convolutions(network: nn.Module) -> nn.Module:
    """A copy of an exported `network` whose convolutions and linear layers are computed in bfloat16.

    Their input, weights and bias are rounded to 8 bits of precision, the kernels sum in single precision, and the
    output is single precision again: so transforms, the products of modes, norms and the sums along the residual path
    stay in it. Autocast itself would hand bfloat16 to the transforms, as an export holds no trace of
    `models.precision`. Raises ValueError for a network that is no pt2 export, or that has no convolution.
    """
    if not isinstance(network, torch.fx.GraphModule):
        raise ValueError("the network must be a pt2 export, and is none")
    with warnings.catch_warnings():  # torch's, about a way of its own to look into what it exported
        warnings.simplefilter("ignore")
        made = copy.deepcopy(network)
    graph = made.graph
    found = [node for node in graph.nodes if node.op == "call_function" and str(node.target).startswith(_CONVOLUTIONS)]
    if not found:
        raise ValueError("the network must have convolutions, and has none")
    to = torch.ops.aten.to.dtype
    for node in found:
        with graph.inserting_before(node):
            rounded = [
                graph.call_function(to, (each, torch.bfloat16)) if isinstance(each, torch.fx.Node) else each
                for each in node.args[:_TENSORS]
            ]
        node.args = (*rounded, *node.args[_TENSORS:])
        with graph.inserting_after(node):
            single = graph.call_function(to, (node, torch.float32))
        node.replace_all_uses_with(single, delete_user_cb=lambda user, made=single: user is not made)
    made.recompile()
    return made
