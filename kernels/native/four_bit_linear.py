"""Linear layers with 4-bit weights by block as one node of our own, with products of floats or of integers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from tintype.kernels.base import Shapes, add_constant, constant_of, producer
from tintype.kernels.cpu.nbits_linear import rounded_by_block
from tintype.kernels.graph.blocks import BlockedWeight, bits_of, blocked_weight, is_blocked
from tintype.kernels.graph.four_bits import BLOCK, spread
from tintype.kernels.native.layers import GEGLU, PLAIN, FoundLayer, LayerKernel, biases_of
from tintype.kernels.native.library import ABILITY, FOUR_BITS
from tintype.kernels.native.linear import COLUMNS, NativeLinear, packed_weights

EIGHT = 8  # inputs whose weights lie in four bytes


class NativeFourBitLinear(LayerKernel):
    """MatMul with a weight of four bits by block of 32, and what alone reads it in turn, as FourBitLinear
    (src/four_bits.h).

    Weights stay four bits wide, in the order in which they are read, with their scales as float16 and zero points of
    four bits: 4.625 bits each. A panel of 32 outputs at a time becomes floats, in a core's cache, for up to 192 rows.
    """

    name = "native_four_bit_linear"
    needs: ClassVar[Mapping[str, str]] = {"cpu": ABILITY}
    exactness = "the same weights, sums in another order; fp32 error below 1e-5 on unit-variance data"
    operator = "FourBitLinear"
    rounded: ClassVar[bool] = False

    def accepts(self, node: ir.Node, shapes: Shapes) -> bool:
        """Blocks of 32, whose scales float16 holds."""
        stored = producer(node.inputs[1], "DequantizeLinear")
        if node.op_type != "MatMul" or stored is None or stored.attributes.get_int("block_size", 0) != BLOCK:
            return False
        if not is_blocked(node.inputs[1]) or bits_of(node.inputs[1]) != 4:
            return False
        scale = constant_of(stored.inputs[1])
        return scale is not None and fits_half(scale)

    def constants(self, layers: tuple[FoundLayer, ...], graph: ir.Graph) -> list[ir.Value]:
        known = [blocked_weight(layer.weight) for layer in layers]
        weights = [each for each in known if each is not None]
        name = f"{weights[0].name}_{'gated' if self.gated else 'native'}"
        parts = packed_four_bits(*weights)
        packed, scales, zeros = (
            graph.initializers.get(f"{name}{suffix}") or add_constant(graph, part, f"{name}{suffix}")
            for part, suffix in zip(parts, ("", "_scale", "_zero"), strict=True)
        )
        return [packed, add_constant(graph, biases_of(layers), f"{name}_bias"), scales, zeros]

    def attributes(self) -> dict[str, int]:
        return {"rounded": int(self.rounded)}

    @classmethod
    def reference(
        cls,
        x: NDArray[Any],
        integers: NDArray[Any],
        scale: NDArray[Any],
        zero_point: NDArray[Any],
        bias: NDArray[Any],
        activation: int = PLAIN,
    ) -> NDArray[Any]:
        """x (..., inputs), integers (inputs, outputs), scale and zero_point (blocks, outputs), bias (outputs,); with
        GEGLU each but x of two, the value's first."""
        read = rounded_by_block(x, x.shape[-1] // BLOCK) if cls.rounded else x
        scale = scale.astype(np.float32)
        if activation == GEGLU:
            weights = np.stack([spread(*each) for each in zip(integers, scale, zero_point, strict=True)])
        else:
            weights = spread(integers, scale, zero_point)
        return NativeLinear.reference(read, weights, bias, activation)


class NativeFourBitGeglu(NativeFourBitLinear):
    """The two such layers that `geglu` has made of one, the gate's Gelu and the product of both, as one node."""

    name = "native_four_bit_geglu"
    likely_seconds = 0.8
    kind = "Geglu"
    gated = True


class NativeFourBitIntegerLinear(NativeFourBitLinear):
    """The same with products of integers: each 32 inputs of a row are rounded to 8 bits by their own largest, as
    MatMulNBits does where it may.

    What is added by low rank stays as exact as it is.
    """

    name = "native_four_bit_integer_linear"
    needs: ClassVar[Mapping[str, str]] = {"cpu": FOUR_BITS}
    exactness = "inputs rounded to 8 bits by the largest of each 32: below half a percent of the output's deviation"
    likely_seconds = 0.45
    lossy = True
    rounded = True


class NativeFourBitIntegerGeglu(NativeFourBitIntegerLinear, NativeFourBitGeglu):
    """The two such layers of a GEGLU with products of integers."""

    name = "native_four_bit_integer_geglu"
    likely_seconds = 0.35


def fits_half(scale: NDArray[np.float32]) -> bool:
    """Whether float16 holds these scales as they are, none of them below 0."""
    with np.errstate(over="ignore"):
        half = scale.astype(np.float16)
    return bool(np.isfinite(half).all() and (half == scale).all() and not np.signbit(half).any())


def packed_four_bits(*weights: BlockedWeight) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Weights (panels, groups, 4, 32, 4), uint8, scales (panels, groups, 32), float16, and zero points (panels, groups,
    16), uint8, of blocks of 32; of a value and its gate 16 columns of each.

    Of each eight inputs one of the first four lies in a byte's lower half, one of the others in its upper half; of zero
    points those of the first 16 columns in lower halves.
    """
    whole = packed_weights(*(each.integers for each in weights))
    panels, inputs, _ = whole.shape
    halves = whole.reshape(panels, inputs // BLOCK, BLOCK // EIGHT, 2, EIGHT // 2, COLUMNS).swapaxes(-1, -2)
    zeros = packed_weights(*(each.zero_point for each in weights))
    scales = packed_weights(*(each.scale for each in weights)).astype(np.float16)
    packed = halves[:, :, :, 0] | halves[:, :, :, 1] << 4
    return packed, scales, zeros[..., : COLUMNS // 2] | zeros[..., COLUMNS // 2 :] << 4
