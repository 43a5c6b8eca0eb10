"""GEGLU on CUDA: bias, split, Gelu and product as com.microsoft BiasSplitGelu, one pass over the wide tensor."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from tintype.kernels.base import MICROSOFT, Kernel, Shapes, insert, note_inside, only_reader, producer, rank_of, replace
from tintype.kernels.graph.linear import fixed_bias
from tintype.kernels.portable.gelu import GeluAsMicrosofts

WIDTHS = (2560, 5120, 10240)  # of the tensor before it is split: the kernel has these and no other


class BiasSplitGelu(Kernel):
    """Add(bias), Split in two, Gelu of the second half, product, as one node on (batch, tokens, width).

    GLU variants: Shazeer 2020. Not run on a GPU yet.
    """

    name = "bias_split_gelu"
    targets: ClassVar[tuple[str, ...]] = ("cuda",)
    exactness = "the same function, computed in fp32 inside"

    def matches(self, node: ir.Node, shapes: Shapes) -> bool:
        """The product of one half and the Gelu of the other, nobody else reading what is between."""
        if node.op_type != "Mul" or node.domain != "":
            return False
        found = _parts(node)
        if found is None:
            return False
        source = found[0].outputs[0]
        shape = shapes.of(source)
        return rank_of(shape) == 3 and shape is not None and shape[2] in WIDTHS

    def rewrite(self, node: ir.Node, graph: ir.Graph) -> None:
        found = _parts(node)
        if found is None:
            raise ValueError(f"{node.name} is no GEGLU")
        add, product, bias = found
        joined = insert(node, "BiasSplitGelu", [product, bias], domain=MICROSOFT, like=node.outputs[0])
        note_inside(joined, add.outputs[0])
        replace(node.outputs[0], joined)

    @staticmethod
    def reference(x: NDArray[Any], bias: NDArray[Any]) -> NDArray[Any]:
        """x (batch, tokens, 2 * width), bias (2 * width,): value * gelu(gate), the value first."""
        value, gate = np.split(x.astype(np.float64) + bias, 2, axis=-1)
        return value * GeluAsMicrosofts.reference(gate)


def _parts(node: ir.Node) -> tuple[ir.Node, ir.Value, ir.Value] | None:
    """The Add, what it adds to, and the bias."""
    for value, gated in (tuple(node.inputs), tuple(reversed(node.inputs))):
        gelu = producer(gated, "Gelu")
        if gelu is None or gelu.attributes.get_string("approximate", "none") != "none":
            continue
        split = producer(value, "Split")
        if split is None or len(split.outputs) != 2 or gelu.inputs[0] is not split.outputs[1]:
            continue
        alone = (split.outputs[0], "Mul"), (split.outputs[1], "Gelu"), (gelu.outputs[0], "Mul")
        if value is not split.outputs[0] or any(only_reader(output, reader) is None for output, reader in alone):
            continue
        add = producer(split.inputs[0], "Add")
        halves = [output.shape[-1] if output.shape is not None else None for output in split.outputs]
        if add is None or only_reader(add.outputs[0], "Split") is None or halves[0] is None or halves[0] != halves[1]:
            continue
        axis = split.attributes.get_int("axis", 0)
        width = 2 * halves[0] if isinstance(halves[0], int) else 0
        if axis not in (-1, 2):
            continue
        for product in add.inputs:
            bias = fixed_bias(add, product, width) if product is not None and width else None
            if product is not None and bias is not None:
                return add, product, bias
    return None
