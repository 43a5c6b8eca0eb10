"""Linear layers with int8 weights as integer products; the input is quantized as it comes, once for all readers."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from tintype.kernels.base import MICROSOFT, Kernel, Shapes, add_constant, constant_of, only_reader, producer, replace
from tintype.kernels.graph.linear import QuantizedWeight, fixed_bias, quantized_weight, width_of


class DynamicLinear(Kernel):
    """MatMul or Gemm with a weight of DequantizeLinear(int8) as DynamicQuantizeLinear and MatMulIntegerToFloat.

    ONNX Runtime makes one DynamicQuantizeMatMul of the two where nobody else reads the quantized input.
    """

    name = "dynamic_linear"
    targets = ("cpu",)
    exactness = "inputs rounded to 8 bits over their range in this call: about 1 % of the output's deviation"
    lossy = True
    measured = True
    by_default = True

    def matches(self, node: ir.Node, shapes: Shapes) -> bool:
        """A weight by column or by tensor, a float input, and a bias by column if any."""
        if node.domain != "" or node.op_type not in ("MatMul", "Gemm"):
            return False
        weight = _weight(node)
        if weight is None or producer(node.inputs[0], "DequantizeLinear") is not None:
            return False
        if node.inputs[0] is None or node.inputs[0].dtype not in (None, ir.DataType.FLOAT):
            return False
        if node.op_type == "MatMul":
            return len(shapes.of(node.inputs[0]) or ()) >= 2
        get = node.attributes
        plain = get.get_float("alpha", 1.0) == get.get_float("beta", 1.0) == 1.0 and not get.get_int("transA", 0)
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        known = constant_of(bias)
        return plain and (bias is None or (known is not None and known.shape == (weight.integers.shape[1],)))

    def cluster(self, node: ir.Node) -> tuple[ir.Node, ...]:
        add = _bias_after(node)
        return (node,) if add is None else (node, add)

    def rewrite(self, node: ir.Node, graph: ir.Graph) -> None:
        weight, source, output = _weight(node), node.inputs[0], node.outputs[0]
        if weight is None or source is None:
            raise ValueError(f"{node.name} is no linear layer with an int8 weight")
        bias = node.inputs[2] if node.op_type == "Gemm" and len(node.inputs) > 2 else None
        add = _bias_after(node)
        if add is not None:
            bias, output = fixed_bias(add, output, weight.integers.shape[1]), add.outputs[0]
        quantized, scale, zero_point = _quantized_input(source, node, graph)
        product = ir.node(
            "MatMulIntegerToFloat",
            [
                quantized,
                add_constant(graph, weight.integers, f"{weight.name}_columns"),
                scale,
                add_constant(graph, weight.scale, f"{weight.name}_columns_scale"),
                zero_point,
                add_constant(graph, weight.zero_point, f"{weight.name}_columns_zero_point"),
                bias,
            ],
            domain=MICROSOFT,
        )
        graph.insert_before(node, product)
        product.outputs[0].shape, product.outputs[0].dtype = output.shape, ir.DataType.FLOAT
        replace(output, product.outputs[0])

    @staticmethod
    def reference(
        x: NDArray[Any], integers: NDArray[Any], scale: NDArray[Any], bias: NDArray[Any] | float = 0.0
    ) -> NDArray[Any]:
        """x (..., inputs), integers (inputs, outputs) around 0, scale (outputs,); rounds as DynamicQuantizeLinear."""
        low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
        step = np.float32((high - low) / 255.0) or np.float32(1.0)
        zero_point = np.clip(np.rint(-low / step), 0, 255)
        rounded = np.clip(np.rint(x / step) + zero_point, 0, 255) - zero_point
        return (rounded @ integers.astype(np.float64)) * (float(step) * scale) + bias


def _bias_after(node: ir.Node) -> ir.Node | None:
    """The Add of a bias that alone reads a MatMul."""
    add = only_reader(node.outputs[0], "Add") if node.op_type == "MatMul" else None
    return add if fixed_bias(add, node.outputs[0], width_of(node.inputs[1])) is not None else None


def _weight(node: ir.Node) -> QuantizedWeight | None:
    transposed = node.op_type == "Gemm" and node.attributes.get_int("transB", 0) == 1
    return quantized_weight(node.inputs[1], transposed=transposed)


def _quantized_input(source: ir.Value, node: ir.Node, graph: ir.Graph) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Integers, scale and zero point of a value; made where the value is made, so that every reader can share them."""
    for use in source.uses():
        if use.node.op_type == "DynamicQuantizeLinear" and use.node.domain == "":
            quantized, scale, zero_point = use.node.outputs
            return quantized, scale, zero_point
    quantize = ir.node("DynamicQuantizeLinear", [source], num_outputs=3)
    made_by = source.producer()
    if made_by is not None and made_by.graph is graph:
        graph.insert_after(made_by, quantize)
    else:
        graph.insert_before(graph[0], quantize)
    quantize.outputs[0].shape, quantize.outputs[0].dtype = source.shape, ir.DataType.UINT8
    return quantize.outputs[0], quantize.outputs[1], quantize.outputs[2]
