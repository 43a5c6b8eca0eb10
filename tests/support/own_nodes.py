"""Models of one node of our own, whose inputs are those that it will be run with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import TensorProto, helper
from onnx_ir.passes.common import RemoveUnusedNodesPass

from tintype.kernels.base import DOMAINS, OWN, Kernel, Shapes


def port_of(name: str, array: NDArray[Any]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)


def model_of_node(node: onnx.NodeProto, arrays: Mapping[str, NDArray[Any]]) -> onnx.ModelProto:
    """The model: the arrays' names are those of its inputs; its output `y` is of floats."""
    ports = [port_of(name, array) for name, array in arrays.items()]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    imports = [helper.make_opsetid("", 20), helper.make_opsetid(OWN, 1)]
    return helper.make_model(helper.make_graph([node], "graph", ports, [output]), opset_imports=imports, ir_version=10)


def give(model: onnx.ModelProto, feed: dict[str, NDArray[Any]], name: str, array: NDArray[Any]) -> None:
    """Another array for an input, whose type and shape it then has."""
    feed[name] = array
    port = next(port for port in model.graph.input if port.name == name)
    port.type.CopyFrom(port_of(name, array).type)


def conv_arrays(random: np.random.Generator, sizes: tuple[int, ...], side: int) -> tuple[NDArray[np.float32], ...]:
    """x, weight and bias. sizes: batch, inputs, outputs, height, width."""
    batch, inputs, outputs, height, width = sizes
    weight = (random.standard_normal((outputs, inputs, side, side)) / (side * np.sqrt(inputs))).astype(np.float32)
    x = random.standard_normal((batch, inputs, height, width), np.float32)
    return x, weight, random.standard_normal(outputs, np.float32)


def conv_node(
    operator: str, x: NDArray[Any], weights: NDArray[Any], bias: NDArray[Any], **added: NDArray[Any]
) -> tuple[onnx.ModelProto, dict[str, NDArray[Any]]]:
    """A convolution of our own with packed weights, and what to run it with. added: the inputs `shift` and `added`,
    where there are any."""
    arrays = {"x": x, "weights": weights, "bias": bias} | added
    names = ["x", "weights", "bias", *(name if name in added else "" for name in ("shift", "added"))]
    return model_of_node(helper.make_node(operator, names, ["y"], domain=OWN), arrays), arrays


def rewritten(model: ir.Model, *kernels: Kernel) -> ir.Model:
    """The model with each kernel put in wherever it matches, one kernel after another."""
    for kernel in kernels:
        for node in list(model.graph):
            if node.graph is not None and kernel.matches(node, Shapes()):
                kernel.rewrite(node, model.graph)
                RemoveUnusedNodesPass()(model)
    model.opset_imports.update(DOMAINS)
    return model
