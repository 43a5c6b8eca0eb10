"""Models of one node of our own, whose inputs are those that it will be run with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from tintype.kernels.base import OWN


def port_of(name: str, array: NDArray[Any]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)


def model_of_node(node: onnx.NodeProto, arrays: Mapping[str, NDArray[Any]]) -> onnx.ModelProto:
    """The model: the arrays' names are those of its inputs; its output `y` is of floats."""
    ports = [port_of(name, array) for name, array in arrays.items()]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    imports = [helper.make_opsetid("", 20), helper.make_opsetid(OWN, 1)]
    return helper.make_model(helper.make_graph([node], "graph", ports, [output]), opset_imports=imports, ir_version=10)
