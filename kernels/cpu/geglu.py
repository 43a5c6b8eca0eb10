"""A linear layer whose output is split in two halves (GEGLU) as two linear layers: no copy of the wide tensor."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from tintype.kernels.base import (
    MICROSOFT,
    Kernel,
    Shapes,
    add_constant,
    constant_of,
    fixed_dim,
    insert,
    only_reader,
    producer,
    replace,
)
from tintype.kernels.graph.linear import columns_of, fixed_bias, width_of
from tintype.kernels.portable.gelu import GeluAsMicrosofts


class GegluAsTwoLinears(Kernel):
    """MatMul, Add, Split, Gelu as two MatMuls with half the columns each, the gate's bias and Gelu in one BiasGelu.

    GLU variants: Shazeer 2020. Saves writing and reading the wide tensor twice, and its memory.
    """

    name = "geglu"
    targets = ("cpu",)
    exactness = "the same sums, the same function; fp32 error below 1e-6 on unit-variance data"

    def matches(self, node: ir.Node, shapes: Shapes) -> bool:
        """Split in two equal halves along the last axis, of a linear layer that nobody else reads."""
        if node.op_type != "Split" or node.domain != "" or len(node.outputs) != 2:
            return False
        first, second = (shapes.of(output) for output in node.outputs)
        if first is None or len(first) < 2 or first != second or not isinstance(first[-1], int):
            return False
        return node.attributes.get_int("axis", 0) in (-1, len(first) - 1) and _linear(node) is not None

    def rewrite(self, node: ir.Node, graph: ir.Graph) -> None:
        found = _linear(node)
        if found is None:
            raise ValueError(f"{node.name} splits no linear layer")
        product, bias = found
        known = constant_of(bias)
        width = fixed_dim(node.outputs[0], -1)
        for index, output in enumerate(list(node.outputs)):
            columns, suffix = slice(index * width, (index + 1) * width), f"half_{index}"
            weight = columns_of(product.inputs[1], columns, suffix, node, graph)
            half = insert(node, "MatMul", [product.inputs[0], weight], like=output)
            if bias is not None and known is not None:
                part = add_constant(graph, known[columns], f"{bias.name}_{suffix}")
                gelu = only_reader(output, "Gelu")
                if gelu is not None and gelu.attributes.get_string("approximate", "none") == "none":
                    half = insert(node, "BiasGelu", [half, part], domain=MICROSOFT, like=output)
                    output = gelu.outputs[0]
                else:
                    half = insert(node, "Add", [half, part], like=output)
            replace(output, half)

    @staticmethod
    def reference(x: NDArray[Any], weight: NDArray[Any], bias: NDArray[Any]) -> NDArray[Any]:
        """x (..., inputs), weight (inputs, 2 * width), bias (2 * width,): value * gelu(gate), the value first."""
        value, gate = np.split(x.astype(np.float64) @ weight + bias, 2, axis=-1)
        return value * GeluAsMicrosofts.reference(gate)


def _linear(split: ir.Node) -> tuple[ir.Node, ir.Value | None] | None:
    """The MatMul behind a Split, and its bias if it has one; None when the weight isn't fixed or others read it."""
    source, bias = split.inputs[0], None
    if source is None or only_reader(source, "Split") is None:
        return None
    add = producer(source, "Add")
    if add is not None:
        product = next((node for node in (producer(value, "MatMul") for value in add.inputs) if node is not None), None)
        if product is None or only_reader(product.outputs[0], "Add") is None:
            return None
        width = width_of(product.inputs[1])
        bias = fixed_bias(add, product.outputs[0], width) if width else None
        return (product, bias) if bias is not None else None
    product = producer(source, "MatMul")
    return (product, None) if product is not None and width_of(product.inputs[1]) else None
