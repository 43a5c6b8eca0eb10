"""Linear layers with 8-bit weights as one node of our own: rounding, the product, bias, activation and residual."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from tintype.kernels.base import Shapes, add_constant
from tintype.kernels.graph.linear import quantized_weight
from tintype.kernels.native.layers import GEGLU, GELU, PLAIN, FoundLayer, LayerKernel, biases_of, is_turned
from tintype.kernels.native.library import INTEGERS
from tintype.kernels.native.linear import COLUMNS, NativeLinear, packed_weights

MOST_INPUTS = 2**16  # whose sums of products surely fit in 32 bits
STEPS = np.float32(255.0)


class NativeIntegerLinear(LayerKernel):
    """MatMul or Gemm with an int8 weight, and what alone reads it in turn, as IntegerLinear (src/integer_linear.h).

    Each row is rounded by its own range: nearer than one range for all rows, and no pass over all of them before.
    """

    name = "native_integer_linear"
    needs: ClassVar[Mapping[str, str]] = {"cpu": INTEGERS}
    exactness = "rows of inputs rounded to 8 bits over the range of each; half to all of dynamic_linear's error"
    lossy = True
    operator = "IntegerLinear"

    def accepts(self, node: ir.Node, shapes: Shapes) -> bool:
        """A weight by column or by tensor around 0."""
        weight = quantized_weight(node.inputs[1], transposed=is_turned(node))
        if weight is None or weight.integers.dtype != np.int8 or bool(weight.zero_point.any()):
            return False
        return len(weight.integers) <= MOST_INPUTS

    def constants(self, layers: tuple[FoundLayer, ...], graph: ir.Graph) -> list[ir.Value]:
        stored = [quantized_weight(layer.node.inputs[1], transposed=is_turned(layer.node)) for layer in layers]
        weights = [each for each in stored if each is not None]
        scales = [np.broadcast_to(each.scale, (1, layer.width)) for each, layer in zip(weights, layers, strict=True)]
        totals = [each.integers.sum(axis=0, dtype=np.int32, keepdims=True) for each in weights]
        name = f"{weights[0].name}_{'gated' if self.gated else 'native'}"
        packed = graph.initializers.get(name)  # of another layer with the same weight
        return [
            packed or add_constant(graph, packed_integers(*(each.integers for each in weights)), name),
            add_constant(graph, biases_of(layers), f"{name}_bias"),
            add_constant(graph, packed_weights(*scales).reshape(-1, COLUMNS), f"{name}_scale"),
            add_constant(graph, packed_weights(*totals).reshape(-1, COLUMNS), f"{name}_totals"),
        ]

    @staticmethod
    def reference(
        x: NDArray[Any], integers: NDArray[Any], scale: NDArray[Any], bias: NDArray[Any], activation: int = PLAIN
    ) -> NDArray[Any]:
        """x (..., inputs), integers (inputs, outputs), scale and bias (outputs,); with GEGLU each of two, the value's
        first."""
        if activation == GEGLU:
            value, gate = (
                NativeIntegerLinear.reference(x, integers[part], scale[part], bias[part], part * GELU)
                for part in (0, 1)
            )
            return np.asarray(value * gate)
        low, high = np.minimum(x.min(-1, keepdims=True), 0), np.maximum(x.max(-1, keepdims=True), 0)
        span = (high - low).astype(np.float32)
        each = np.divide(STEPS, span, out=np.zeros_like(span), where=span > 2.0**-100)
        rounded = np.clip(np.rint(x * each) + np.rint(-low * each), 0, 255) - np.rint(-low * each)
        product = (rounded.astype(np.float64) @ integers) * (span.astype(np.float64) / 255 * scale)
        return NativeLinear.reference(product, np.eye(len(scale)), bias, activation)


class NativeIntegerGeglu(NativeIntegerLinear):
    """The two layers that `geglu` has made of one, the gate's Gelu and the product of both, as one IntegerLinear."""

    name = "native_integer_geglu"
    kind = "Geglu"
    gated = True


def packed_integers(*weights: NDArray[np.int8]) -> NDArray[np.int8]:
    """(inputs, outputs) -> (panels, inputs / 4, 32, 4), zeros beyond the last; of a value and its gate 16 of each."""
    each = [np.pad(weight, ((0, -len(weight) % 4), (0, 0))) for weight in weights]
    packed = packed_weights(*each)
    panels, inputs, columns = packed.shape
    return packed.reshape(panels, inputs // 4, 4, columns).swapaxes(2, 3)
