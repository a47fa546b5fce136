"""PyTorch modules as ONNX files: written, named, in int8, and held against PyTorch."""

import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from espnet_omnisparse.errors import UserError
from espnet_omnisparse.export.onnx_session import session

#: The first with LayerNormalization as one operation.
OPSET = 17
DTYPES = ("fp32", "int8")
#: How far onnxruntime and PyTorch may differ in fp32.
TOLERANCE = 1e-3


@dataclass
class Graph:
    """A module, and how its graph is called.

    Attributes:
        module: What is computed.
        inputs: Name -> an example, in the order of the module's arguments.
        other: Examples of other sizes, of those that may have them.
        outputs: Names.
        dynamic: Name of an input or output -> its dimensions of any size, by name.
        metadata: Written into the file.
        unused: Inputs that a contract has and the module has not, with their places.
    """

    module: torch.nn.Module
    inputs: dict[str, torch.Tensor]
    outputs: Sequence[str]
    other: Mapping[str, torch.Tensor] = field(default_factory=dict)
    dynamic: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    unused: Mapping[str, int] = field(default_factory=dict)


def write_graph(path: Path, graph: Graph, dtype: str = "fp32") -> None:
    """Writes a graph, and holds the file against the module.

    Args:
        path: File to write.
        graph: What it computes.
        dtype: `fp32`, or `int8`: constant matrices are, and activations become so as
            they come (onnxruntime's dynamic quantisation).

    Raises:
        UserError: If onnxruntime computes something else.
    """
    import onnx

    module = graph.module.eval().requires_grad_(False)
    with warnings.catch_warnings(), torch.no_grad():
        # that the exporter by tracing is the older one, and what it takes as constant
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            tuple(graph.inputs.values()),
            str(path),
            input_names=list(graph.inputs),
            output_names=list(graph.outputs),
            dynamic_axes={name: dict(axes) for name, axes in graph.dynamic.items()},
            opset_version=OPSET,
            dynamo=False,
        )
    _check(path, graph)
    if dtype == "int8":
        _quantise(path)
    model = onnx.load(path)
    for name, place in graph.unused.items():
        value = onnx.helper.make_tensor_value_info(name, onnx.TensorProto.INT64, [1])
        model.graph.input.insert(place, value)
    told = {name: str(value) for name, value in graph.metadata.items()}
    onnx.helper.set_model_props(model, told)
    onnx.save(model, path)


def _quantise(path: Path) -> None:
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    graph = onnx.load(path).graph
    weights = {one.name for one in graph.initializer if len(one.dims) == 2}
    # the table of a stream's positions is constant as well, and no weight
    others = [
        node.name
        for node in graph.node
        if node.op_type == "MatMul" and node.input[1] not in weights
    ]
    logging.disable(logging.WARNING)  # that graphs may be prepared: nothing is fused
    try:
        quantize_dynamic(
            path,
            path,
            op_types_to_quantize=["MatMul"],
            nodes_to_exclude=others,
            weight_type=QuantType.QInt8,
            per_channel=True,
        )
    finally:
        logging.disable(logging.NOTSET)


def _check(path: Path, graph: Graph) -> None:
    """Refuses a file that computes something else, at other sizes as well."""
    feed = {**graph.inputs, **graph.other}
    with torch.no_grad():
        expected = graph.module(*feed.values())
    if isinstance(expected, torch.Tensor):
        expected = (expected,)
    values = {name: tensor.numpy() for name, tensor in feed.items()}
    found = session(path).run(None, values)
    for name, ours, theirs in zip(graph.outputs, expected, found, strict=True):
        same = ours.shape == theirs.shape
        error = np.abs(ours.numpy() - theirs).max(initial=0.0) if same else np.inf
        if not error < TOLERANCE:
            raise UserError(
                f"onnxruntime computes another {name} than PyTorch (they differ by "
                f"{error:.2g}): try another version of either (omnisparse info)."
            )
