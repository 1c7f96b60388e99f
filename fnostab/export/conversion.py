"""From a network in torch to the content of an ONNX file, its description inside."""

import io
import re
import warnings
from collections.abc import Mapping
from contextlib import redirect_stdout
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from fnostab.export.description import PREFIX, with_checksum
from fnostab.export.layouts import Layout
from fnostab.io.untrusted import shown
from fnostab.models.neuralop import batches_of_any_size
from fnostab.training.shipped_model import EXAMPLE_PATTERNS, quietly

#: The version of ONNX's operators that files are written in.
OPSET: Final = 18
#: Protobuf holds no larger message.
_MAX_BYTES: Final = 2**31 - 1


def convert(layout: Layout) -> Any:
    """The network of `layout` as an `onnx.ModelProto` of opset 18, the first axis free unless the layout fixes it.

    Raises ValueError, in one line, if torch cannot export it, as networks with complex weights.
    """
    batch = layout.batch_size or EXAMPLE_PATTERNS
    example = torch.ones(batch, *layout.shape)
    free = None if layout.batch_size else ({0: torch.export.Dim("batch")},)
    network = layout.network
    for module in network.modules():  # `eval` is refused by what torch.export made, which is in no other mode
        module.training = False
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), quietly(), batches_of_any_size():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                network,
                (example,),
                dynamo=True,
                opset_version=OPSET,
                input_names=[layout.input_name],
                output_names=[layout.output_name],
                dynamic_shapes=free,
                verbose=False,
            )
            assert program is not None
            return program.model_proto
    except Exception as error:
        plain = re.sub(r"\x1b\[\d*m", "", str(error)).strip().partition("\n")[0]  # torch's text is in colours
        why = f"{type(error).__name__}: {shown(plain)}"
        raise ValueError(f"the network must export to ONNX, and torch.onnx.export raised {why}") from error


def add_arrays(model: Any, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Add constants to an `onnx.ModelProto`, as initializers that are outputs too.

    So a program finds them in the file without running it, and any runtime gives them by name; an initializer that
    nothing refers to would make onnxruntime warn, and optimizers drop it.
    """
    from onnx import helper, numpy_helper

    for name, array in arrays.items():
        tensor = numpy_helper.from_array(np.ascontiguousarray(array), name)
        model.graph.initializer.append(tensor)
        model.graph.output.append(helper.make_tensor_value_info(name, tensor.data_type, array.shape))


def content_of(model: Any, description: Mapping[str, str], program: str) -> bytes:
    """The content of a file: the model without torch's notes on it, `description` as its metadata, a checksum last.

    torch's notes say which line of which file of this machine made a node, and double the size of a small network.
    Raises ValueError for a network that ONNX cannot hold in one file, 2 GiB.
    """
    _drop_notes(model)
    model.producer_name, model.producer_version = program.split(" ", 1)
    model.graph.name = "fnostab"
    for key, value in {**description, "checksum": 64 * "0"}.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = f"{PREFIX}{key}", value
    if model.ByteSize() > _MAX_BYTES:
        raise ValueError(f"the network must fit into one ONNX file, 2 GiB, and has {model.ByteSize()} bytes")
    return with_checksum(model.SerializeToString())


def _drop_notes(model: Any) -> None:
    graph = model.graph
    for entries in (model, graph, *graph.node, *graph.initializer, *graph.input, *graph.output):
        del entries.metadata_props[:]
        entries.doc_string = ""
    del graph.value_info[:]  # shapes of what lies between: a runtime finds them by itself
