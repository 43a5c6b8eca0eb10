"""A linear layer's bias and the residual behind it in one pass, as com.microsoft BiasAdd."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from tintype.kernels.base import (
    MICROSOFT,
    Kernel,
    Shapes,
    constant_of,
    insert,
    note_inside,
    only_reader,
    producer,
    replace,
)
from tintype.kernels.graph.linear import fixed_bias

CHANNELS = (320, 640, 1280)  # the kernel has these and no other


class BiasAdd(Kernel):
    """Add(Add(product, bias), residual) on (batch, tokens, channels) as one node. Not run on a GPU yet."""

    name = "bias_add"
    targets: ClassVar[tuple[str, ...]] = ("cuda",)
    exactness = "the same sums, the bias first"

    def matches(self, node: ir.Node, shapes: Shapes) -> bool:
        """A sum of two tensors of one shape, one of them a product with a fixed bias that nobody else reads."""
        if node.op_type != "Add" or node.domain != "" or len(node.inputs) != 2:
            return False
        found, shape = _parts(node), shapes.of(node.outputs[0])
        if found is None or shape is None or len(shape) != 3 or shape[2] not in CHANNELS:
            return False
        product, _, residual, _ = found
        return shapes.of(product) == shape == shapes.of(residual)

    def rewrite(self, node: ir.Node, graph: ir.Graph) -> None:
        found = _parts(node)
        if found is None:
            raise ValueError(f"{node.name} adds no residual to a linear layer")
        product, bias, residual, biased = found
        joined = insert(node, "BiasAdd", [product, bias, residual], domain=MICROSOFT, like=node.outputs[0])
        note_inside(joined, biased)
        replace(node.outputs[0], joined)

    @staticmethod
    def reference(x: NDArray[Any], bias: NDArray[Any], residual: NDArray[Any]) -> NDArray[Any]:
        """x, residual (batch, tokens, channels), bias (channels,)"""
        return x.astype(np.float64) + bias + residual


def _parts(node: ir.Node) -> tuple[ir.Value, ir.Value, ir.Value, ir.Value] | None:
    """Product, bias, residual, and the sum of the first two."""
    for biased, residual in (tuple(node.inputs), tuple(reversed(node.inputs))):
        add = producer(biased, "Add")
        if add is None or biased is None or residual is None or biased is residual or constant_of(residual) is not None:
            continue
        if only_reader(biased, "Add") is not node or biased.shape is None:
            continue
        width = biased.shape[-1]
        for product in add.inputs:
            made_by = product.producer() if product is not None else None
            if product is None or made_by is None or made_by.op_type not in ("MatMul", "MatMulNBits"):
                continue
            bias = fixed_bias(add, product, width) if isinstance(width, int) else None
            if bias is not None:
                return product, bias, residual, biased
    return None
