"""Graphs lowered for CUDA in operators that a processor has, so that what a GPU would run can be checked without one.

`expand` writes every com.microsoft operator of CUDA's lowering out by its definition. `in_float` before it turns a
float16 graph into a float32 one that rounds to float16 wherever a GPU would write float16 to memory: inside a node
CUDA's kernels add up in float32, as the processor does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

from tintype.kernels.base import MICROSOFT, add_constant, constant_of, describe, insert, replace
from tintype.kernels.cuda.nhwc_conv import CHANNELS_LAST, CHANNELS_SECOND

FLOAT, HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16


def expand(model: ir.Model) -> Counter[str]:
    """Write out what a processor has no kernel for, in place; returns how often each operator was."""
    counts = Counter[str]()
    for node in list(model.graph):
        if node.domain == MICROSOFT and node.op_type in _FORMS:
            _FORMS[node.op_type](node, model.graph)
            counts[node.op_type] += 1
    RemoveUnusedNodesPass()(model)
    return counts


def in_float(model: ir.Model) -> int:
    """A float16 graph as a float32 one that rounds at every value, in place; returns how many it rounds."""
    graph = model.graph
    for value in list(graph.initializers.values()):
        stored = constant_of(value)
        if stored is not None and stored.dtype == np.float16:
            value.replace_all_uses_with(add_constant(graph, stored.astype(np.float32), f"{value.name}_in_float"))
    rounded = 0
    for node in list(graph):
        if node.op_type == "Cast" and node.attributes.get_int("to", 0) == HALF.value:
            node.attributes["to"] = ir.AttrInt64("to", FLOAT.value)
        if node.op_type == "ConstantOfShape" and "value" in node.attributes:
            filling = node.attributes["value"].as_tensor().numpy()
            node.attributes["value"] = ir.AttrTensor("value", ir.tensor(filling.astype(np.float32)))
        for output in node.outputs:
            if output.dtype == HALF:
                _round(output, node, graph)
                rounded += 1
    return rounded


def _round(output: ir.Value, node: ir.Node, graph: ir.Graph) -> None:
    """Let every reader read the value rounded to float16."""
    output.dtype = FLOAT
    readers = [(use.node, use.idx) for use in output.uses()]
    down = ir.node("Cast", [output], attributes={"to": HALF.value})
    up = ir.node("Cast", down.outputs, attributes={"to": FLOAT.value})
    for cast, kind in ((down, HALF), (up, FLOAT)):
        cast.outputs[0].shape, cast.outputs[0].dtype = output.shape, kind
    graph.insert_after(node, [down, up])
    for reader, index in readers:
        reader.replace_input_with(index, up.outputs[0])


def _group_norm(node: ir.Node, graph: ir.Graph) -> None:
    source = node.inputs[0]
    if node.op_type == "SkipGroupNorm":
        skip = node.inputs[3]
        if skip is not None and skip.shape is not None and len(skip.shape) == 2:
            skip = insert(node, "Unsqueeze", [skip, add_constant(graph, np.array([1, 2], np.int64), "middle_axes")])
        source = insert(node, "Add", [source, skip], like=node.inputs[0])
        if len(node.outputs) > 1:
            replace(node.outputs[1], source)
    get, output = node.attributes, node.outputs[0]
    if get.get_int("channels_last", 1) != 1:
        raise ValueError(f"{node.name} has its channels second")
    normed = _normalized(node, source, get.get_int("groups", 1), get.get_float("epsilon", 1e-5), graph)
    back = insert(node, "Transpose", [normed], attributes={"perm": list(CHANNELS_LAST)})
    affine = insert(node, "Add", [insert(node, "Mul", [back, node.inputs[1]]), node.inputs[2]], like=output)
    if get.get_int("activation", 0):
        affine = insert(node, "Mul", [affine, insert(node, "Sigmoid", [affine])], like=output)
    replace(output, affine)


def _normalized(node: ir.Node, source: ir.Value | None, groups: int, epsilon: float, graph: ir.Graph) -> ir.Value:
    """(batch, height, width, channels) -> normalized by group, channels second."""
    second = insert(node, "Transpose", [source], attributes={"perm": list(CHANNELS_SECOND)})
    by_group = add_constant(graph, np.array([0, groups, -1], np.int64), f"by_group_{groups}")
    last = add_constant(graph, np.array([2], np.int64), "last_axis")
    grouped = insert(node, "Reshape", [second, by_group])
    centred = insert(node, "Sub", [grouped, insert(node, "ReduceMean", [grouped, last])])
    variance = insert(node, "ReduceMean", [insert(node, "Mul", [centred, centred]), last])
    least = add_constant(graph, np.array([epsilon], np.float32), f"epsilon_{epsilon:g}")
    deviation = insert(node, "Sqrt", [insert(node, "Add", [variance, least])])
    return insert(node, "Reshape", [insert(node, "Div", [centred, deviation]), insert(node, "Shape", [second])])


def _nhwc_conv(node: ir.Node, graph: ir.Graph) -> None:
    source = insert(node, "Transpose", [node.inputs[0]], attributes={"perm": list(CHANNELS_SECOND)})
    weight = insert(node, "Transpose", [node.inputs[1]], attributes={"perm": list(CHANNELS_SECOND)})
    conv = insert(node, "Conv", [source, weight, *node.inputs[2:]], attributes=dict(node.attributes))
    turned = insert(node, "Transpose", [conv], attributes={"perm": list(CHANNELS_LAST)}, like=node.outputs[0])
    replace(node.outputs[0], turned)


def _bias_split_gelu(node: ir.Node, graph: ir.Graph) -> None:
    biased = insert(node, "Add", list(node.inputs))
    attributes = {"axis": -1, "num_outputs": 2}
    value = insert(node, "Split", [biased], attributes=attributes, outputs=2)
    split = value.producer()
    if split is None:
        raise ValueError(f"{node.name} could not be split")
    gate = insert(node, "Gelu", [split.outputs[1]])
    replace(node.outputs[0], insert(node, "Mul", [value, gate], like=node.outputs[0]))


def _bias_add(node: ir.Node, graph: ir.Graph) -> None:
    biased = insert(node, "Add", list(node.inputs[:2]))
    replace(node.outputs[0], insert(node, "Add", [biased, node.inputs[2]], like=node.outputs[0]))


def _matmul_nbits(node: ir.Node, graph: ir.Graph) -> None:
    get = node.attributes
    inputs, outputs, bits, block = (get.get_int(name, 0) for name in ("K", "N", "bits", "block_size"))
    stored, scale = constant_of(node.inputs[1]), constant_of(node.inputs[2])
    if stored is None or scale is None:
        raise ValueError(f"{node.name} has no fixed weight")
    blocks = inputs // block
    zero = constant_of(node.inputs[3]) if len(node.inputs) > 3 else None
    if zero is None:
        lowest = np.full((outputs, blocks), 2.0 ** (bits - 1))
    else:
        lowest = _unpacked(zero.reshape(outputs, -1), bits)[:, :blocks].astype(np.float64)
    integers = _unpacked(stored, bits).reshape(outputs, blocks, block)
    whole = (integers - lowest[..., None]) * scale.astype(np.float64).reshape(outputs, blocks, 1)
    weight = whole.reshape(outputs, inputs).T.astype(np.float32)
    name = node.inputs[1].name if node.inputs[1] is not None else "weight"
    product = insert(node, "MatMul", [node.inputs[0], add_constant(graph, weight, f"{name}_plain")])
    describe(product, node.outputs[0].shape, node.outputs[0].dtype)
    replace(node.outputs[0], product)


def _unpacked(stored: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """4-bit integers that lie two a byte, the first in the lower half; 8-bit ones as they are."""
    if bits == 8:
        return stored
    return np.stack([stored & 15, stored >> 4], axis=-1).reshape(*stored.shape[:-1], -1)


_FORMS: dict[str, Callable[[ir.Node, ir.Graph], None]] = {
    "GroupNorm": _group_norm,
    "SkipGroupNorm": _group_norm,
    "NhwcConv": _nhwc_conv,
    "BiasSplitGelu": _bias_split_gelu,
    "BiasAdd": _bias_add,
    "MatMulNBits": _matmul_nbits,
}
