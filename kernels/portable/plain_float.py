"""A graph without integers, for devices that compute in floats: weights stored small, and rounded inputs, as floats."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from tintype.kernels.base import (
    Kernel,
    Shapes,
    add_constant,
    constant_of,
    insert,
    producer,
    replace,
)
from tintype.kernels.graph.blocks import blocked_weight, is_blocked

PLAIN = ("webgpu", "directml", "openvino", "coreml", "qnn", "tensorrt-rtx")
FLOAT_TARGETS = (*PLAIN, "cuda")


class FloatWeights(Kernel):
    """DequantizeLinear or Cast of what is fixed in the graph, as the float tensor that it gives.

    It costs the memory that the small form saved; in exchange nothing is converted at each step, and devices that have
    no float16 at all (WebGPU says so only when it runs the node) open the graph.
    """

    name = "float_weights"
    targets: ClassVar[tuple[str, ...]] = PLAIN
    exactness = "the same bytes"

    def matches(self, node: ir.Node, shapes: Shapes) -> bool:
        """A fixed tensor, by tensor, by axis or by block of inputs, and an output in float32."""
        if node.domain != "" or not node.inputs or constant_of(node.inputs[0]) is None:
            return False
        if node.op_type == "Cast":
            known = constant_of(node.inputs[0])
            to_float = node.attributes.get_int("to", 0) == ir.DataType.FLOAT.value
            return to_float and known is not None and known.dtype == np.float16
        if node.op_type != "DequantizeLinear":
            return False
        if node.attributes.get_int("block_size", 0) != 0:
            return is_blocked(node.outputs[0])
        scale = constant_of(node.inputs[1])
        zero = node.inputs[2] if len(node.inputs) > 2 else None
        return scale is not None and scale.dtype == np.float32 and (zero is None or constant_of(zero) is not None)

    def rewrite(self, node: ir.Node, graph: ir.Graph) -> None:
        stored = constant_of(node.inputs[0])
        if stored is None or node.inputs[0] is None:
            raise ValueError(f"{node.name} has no fixed input")
        name = f"{node.inputs[0].name}_as_float"
        if node.op_type == "Cast":
            replace(node.outputs[0], add_constant(graph, stored.astype(np.float32), name))
            return
        if node.attributes.get_int("block_size", 0) != 0:
            replace(node.outputs[0], self.constant(graph, name, stored.shape, lambda: _of_blocks(node.outputs[0])))
            return
        scale = constant_of(node.inputs[1])
        zero = constant_of(node.inputs[2]) if len(node.inputs) > 2 else None
        if scale is None:
            raise ValueError(f"{node.name} has no fixed scale")
        shape = [1] * stored.ndim
        if scale.size > 1:
            shape[node.attributes.get_int("axis", 1)] = scale.size
        known = scale  # narrowed for the function below

        def values() -> NDArray[np.float32]:
            lowest = 0 if zero is None else zero.astype(np.int64).reshape(_shape_for(zero, shape))
            whole = stored.astype(np.int64) - lowest
            return (whole.astype(np.float32) * known.reshape(_shape_for(known, shape))).astype(np.float32)

        replace(node.outputs[0], self.constant(graph, name, stored.shape, values))

    @staticmethod
    def constant(
        graph: ir.Graph, name: str, shape: tuple[int, ...], values: Callable[[], NDArray[np.float32]]
    ) -> ir.Value:
        """The initializer with these values; a subclass may put off making them."""
        return add_constant(graph, values(), name)

    @staticmethod
    def reference(stored: NDArray[Any], scale: NDArray[Any], zero_point: NDArray[Any] | int = 0) -> NDArray[Any]:
        """stored of any rank; scale and zero point broadcast against it."""
        return (stored.astype(np.float64) - zero_point) * scale.astype(np.float64)


class FloatScales(Kernel):
    """Scales of stored weights that are kept as float16, as float32: what every other kernel reads them as."""

    name = "float_scales"
    targets = ("cpu", *FLOAT_TARGETS)
    exactness = "the same numbers"

    def matches(self, node: ir.Node, shapes: Shapes) -> bool:
        """Cast to float32 of fixed float16 that DequantizeLinear alone reads, as its scale."""
        known = constant_of(node.inputs[0]) if node.op_type == "Cast" and node.domain == "" else None
        if known is None or known.dtype != np.float16 or node.outputs[0].is_graph_output():
            return False
        uses = list(node.outputs[0].uses())
        scales = all(use.node.op_type == "DequantizeLinear" and use.idx == 1 for use in uses)
        return bool(uses) and scales and node.attributes.get_int("to", 0) == ir.DataType.FLOAT.value

    def rewrite(self, node: ir.Node, graph: ir.Graph) -> None:
        known = constant_of(node.inputs[0])
        if known is None or node.inputs[0] is None:
            raise ValueError(f"{node.name} has no fixed input")
        replace(node.outputs[0], add_constant(graph, self.reference(known), f"{node.inputs[0].name}_as_float"))

    @staticmethod
    def reference(scale: NDArray[Any]) -> NDArray[np.float32]:
        """Of any shape."""
        return scale.astype(np.float32)


class FloatRows(Kernel):
    """Cast of rows picked from a table of float16, as rows of the table in float32: see FloatWeights."""

    name = "float_rows"
    targets = PLAIN
    exactness = "the same bytes"

    def matches(self, node: ir.Node, shapes: Shapes) -> bool:
        """Cast to float32 of a Gather from a fixed table."""
        gather = producer(node.inputs[0], "Gather") if node.op_type == "Cast" and node.domain == "" else None
        if gather is None or node.attributes.get_int("to", 0) != ir.DataType.FLOAT.value:
            return False
        table = constant_of(gather.inputs[0])
        return table is not None and table.dtype == np.float16

    def rewrite(self, node: ir.Node, graph: ir.Graph) -> None:
        gather = producer(node.inputs[0], "Gather")
        table = constant_of(gather.inputs[0]) if gather is not None else None
        if gather is None or table is None or gather.inputs[0] is None:
            raise ValueError(f"{node.name} casts no rows of a fixed table")
        whole = add_constant(graph, table.astype(np.float32), f"{gather.inputs[0].name}_as_float")
        output = node.outputs[0]
        replace(output, insert(node, "Gather", [whole, gather.inputs[1]], attributes=gather.attributes, like=output))

    @staticmethod
    def reference(table: NDArray[Any], ids: NDArray[Any]) -> NDArray[Any]:
        """table (rows, columns), ids of any shape."""
        return table.astype(np.float64)[ids]


class FloatActivations(Kernel):
    """QuantizeLinear and the DequantizeLinear that reads it, left out: the float that they rounded goes on.

    The result is the float graph that was quantized, to within what its weights lost. A rounded one can't be had twice:
    sums in another order differ by 1e-7, a value goes to the other step, and pictures differ by 45 dB and less. So an
    `exact` build rounds on no target; a `balanced` one does where that is faster, on the processor.
    """

    name = "float_activations"
    targets = (*FLOAT_TARGETS, "cpu")
    exact_only = ("cpu",)
    exactness = "nothing is rounded to 8 bits or cut off at their range: nearer to the model that was quantized"

    def matches(self, node: ir.Node, shapes: Shapes) -> bool:
        """DequantizeLinear of a QuantizeLinear with the same scale and zero point."""
        if node.op_type != "DequantizeLinear" or node.domain != "":
            return False
        quantize = producer(node.inputs[0], "QuantizeLinear")
        return quantize is not None and list(quantize.inputs[1:]) == list(node.inputs[1:])

    def rewrite(self, node: ir.Node, graph: ir.Graph) -> None:
        quantize = producer(node.inputs[0], "QuantizeLinear")
        if quantize is None or quantize.inputs[0] is None:
            raise ValueError(f"{node.name} reads no QuantizeLinear")
        output = node.outputs[0]
        if output.is_graph_output():
            same = ir.node("Identity", [quantize.inputs[0]])
            graph.insert_before(node, same)
            replace(output, same.outputs[0])
            return
        output.replace_all_uses_with(quantize.inputs[0])

    @staticmethod
    def reference(x: NDArray[Any]) -> NDArray[Any]:
        """The identity."""
        return x


def _of_blocks(value: ir.Value) -> NDArray[np.float32]:
    weight = blocked_weight(value)
    if weight is None:
        raise ValueError(f"{value.name} is no weight in blocks")
    return weight.floats()


def _shape_for(by_axis: NDArray[Any], shape: list[int]) -> list[int] | tuple[()]:
    """The shape in which a scale or zero point broadcasts: along its axis, or a scalar."""
    return shape if by_axis.size > 1 else ()
