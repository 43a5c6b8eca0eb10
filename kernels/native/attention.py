"""Attention as one node of our own, which packs keys and values once a call: in float32, or with bfloat16 products."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from tintype.kernels.base import MICROSOFT, OWN, Kernel, Shapes, insert, replace
from tintype.kernels.native.library import ABILITY, BFLOAT16
from tintype.kernels.portable.attention import AttentionAsMultiHead

MOST_SIZE = 512  # numbers of a head: what a block of queries needs lies on a thread's stack


class NativeAttention(Kernel):
    """A MultiHeadAttention that `attention` has made, without a mask, as HeadsAttention (src/attention.h).

    ONNX Runtime's own leaves its two products to a matrix product, which 40 columns fill badly. Here a lane of each
    vector is a query. Beside its output it takes a copy of keys and values for the time of the call.
    """

    name = "native_attention"
    targets = ("cpu",)
    needs: ClassVar[Mapping[str, str]] = {"cpu": ABILITY}
    exactness = "the same sums in another order: fp32 error below 1e-5 on unit-variance data"
    measured = True
    kind = "Attention"
    attributes: ClassVar[Mapping[str, int]] = {}

    def matches(self, node: ir.Node, shapes: Shapes) -> bool:
        """Queries, keys and values alone, (batch, length, heads * size) of known sizes, size 512 at most."""
        if node.op_type != "MultiHeadAttention" or node.domain != MICROSOFT or len(node.outputs) > 1:
            return False
        if len(node.inputs) < 3 or any(value is not None for value in node.inputs[3:]):
            return False
        if node.attributes.get_int("unidirectional", 0):
            return False
        query, key, value = (shapes.of(tensor) for tensor in node.inputs[:3])
        if query is None or key is None or value is None or not len(query) == len(key) == len(value) == 3:
            return False
        if not all(isinstance(dim, int) for dim in (*query, *key)) or key != value or query[::2] != key[::2]:
            return False
        width, heads = int(str(query[2])), node.attributes.get_int("num_heads", 1)
        return width % heads == 0 and width // heads <= MOST_SIZE

    def rewrite(self, node: ir.Node, graph: ir.Graph) -> None:
        output, heads = node.outputs[0], node.attributes.get_int("num_heads", 1)
        shape = Shapes().of(node.inputs[0])
        if shape is None:
            raise ValueError(f"{node.name} has no known sizes")
        default = 1.0 / math.sqrt(int(str(shape[2])) // heads)
        attributes = {"heads": heads, "scale": node.attributes.get_float("scale", default), **self.attributes}
        inputs = list(node.inputs[:3])
        replace(output, insert(node, "HeadsAttention", inputs, domain=OWN, attributes=attributes, like=output))

    @staticmethod
    def reference(
        query: NDArray[Any], key: NDArray[Any], value: NDArray[Any], heads: int, scale: float = 0.0
    ) -> NDArray[Any]:
        """(batch, length, heads * size) each; scale 0 is 1/sqrt(size)."""
        q, k, v = (tensor.reshape(*tensor.shape[:2], heads, -1).swapaxes(1, 2) for tensor in (query, key, value))
        attended = AttentionAsMultiHead.reference(q, k, v, scale=scale)
        return np.ascontiguousarray(attended.swapaxes(1, 2)).reshape(query.shape)


class NativeAttentionBfloat16(NativeAttention):
    """The same with queries, keys, weights and values rounded to bfloat16 (src/attention_bf16.h); sums are floats.

    AVX512_BF16 multiplies two pairs in the time of one product of floats.
    """

    name = "native_attention_bf16"
    needs: ClassVar[Mapping[str, str]] = {"cpu": BFLOAT16}
    exactness = "rounded to 8 significant bits: 0.3 % of the output's deviation"
    lossy = True
    attributes: ClassVar[Mapping[str, int]] = {"bfloat16": 1}
