"""New nodes and initializers of a canonical graph while it is quantized."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray


def insert_before(
    graph: ir.Graph,
    before: ir.Node,
    kind: str,
    inputs: list[ir.Value],
    attributes: dict[str, Any],
    like: ir.Value | None,
) -> ir.Value:
    """A new node in front of `before`; its output has the shape of `like`, as float."""
    name = f"{inputs[0].name}/{kind}"
    node = ir.node(kind, inputs=inputs, attributes=attributes, name=name)
    output = node.outputs[0]
    output.name = f"{name}_output"
    if like is not None:
        output.shape, output.type = like.shape, ir.TensorType(ir.DataType.FLOAT)
    graph.insert_before(before, node)
    return output


def initializer(graph: ir.Graph, name: str, array: NDArray[Any]) -> ir.Value:
    """One that holds these numbers."""
    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def lazy_initializer(
    graph: ir.Graph,
    name: str,
    tensor: ir.TensorProtocol,
    dtype: ir.DataType,
    convert: Callable[[NDArray[np.float32]], NDArray[Any]],
) -> ir.Value:
    """An initializer that is rounded when it is written, so that only one of them is ever in memory."""
    lazy = ir.LazyTensor(
        lambda: ir.tensor(convert(tensor.numpy()), name=name),
        dtype=dtype,
        shape=ir.Shape(tensor.shape.numpy()),
        name=name,
    )
    value = ir.Value(name=name, shape=lazy.shape, type=ir.TensorType(dtype), const_value=lazy)
    graph.register_initializer(value)
    return value
