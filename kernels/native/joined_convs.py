"""What lies between 8-bit convolutions of our own, done by them: norms, ReLUs, and rounding for the next one."""

from __future__ import annotations

from collections import Counter

import onnx_ir as ir

from tintype.kernels.base import OWN, GraphPass, only_reader, producer

X, NORM_SCALE, NORM_BIAS, BYTES, INPUTS = 0, 7, 8, 9, 10  # places of an IntegerConv's inputs, and how many it has
_Rounding = tuple[float, int, int]  # step, zero point, and the padding around


class JoinedIntegerConvs(GraphPass):
    """IntegerConv nodes that take along what would pass through memory as floats: the GroupNormSilu before, the ReLU
    behind it, and the rounding for the next one, which then reads bytes.

    Each byte is what it was: the same operations on the same numbers, in the same order.
    """

    name = "joined_integer_convs"
    targets = ("cpu",)
    exactness = "the same bytes"

    def apply(self, model: ir.Model) -> int:
        convs = [node for node in model.graph if _is_conv(node)]
        return sum(taken(conv) for taken in (_take_norm, _take_relu, _pass_bytes) for conv in convs)


def _is_conv(node: ir.Node) -> bool:
    return node.op_type == "IntegerConv" and node.domain == OWN


def _take_norm(conv: ir.Node) -> bool:
    """The norm that makes the input, where nobody else wants what it makes."""
    norm = producer(conv.inputs[X], "GroupNormSilu", OWN)
    if norm is None or only_reader(norm.outputs[0], "IntegerConv", OWN) is None:
        return False
    conv.resize_inputs(INPUTS)
    for place, value in zip((X, NORM_SCALE, NORM_BIAS), norm.inputs, strict=True):
        conv.replace_input_with(place, value)
    conv.attributes.update({name: norm.attributes[name] for name in ("groups", "epsilon", "silu")})
    return True


def _take_relu(conv: ir.Node) -> bool:
    """The ReLU that reads the output, where nobody else has a use for what is below 0: all others round it to bytes of
    which 0 is the least."""
    output = conv.outputs[0]
    uses = list(output.uses())
    relus = [node for node, _ in uses if producer(node.outputs[0], "Relu") is not None]
    others = [(node, place) for node, place in uses if node not in relus]
    if len(relus) != 1 or output.is_graph_output() or relus[0].outputs[0].is_graph_output():
        return False
    if not all(_rounds(node, place) and not node.attributes.get_int("zero", 0) for node, place in others):
        return False
    conv.attributes.add(ir.AttrInt64("rectified", 1))
    relus[0].outputs[0].replace_all_uses_with(output)
    return True


def _pass_bytes(conv: ir.Node) -> bool:
    """Bytes for those convolutions that read the output and round it alike, most of them if they differ."""
    output = conv.outputs[0]
    readers = {node: _rounding_of(node) for node, place in output.uses() if _rounds(node, place)}
    if not readers:
        return False
    rounding, _ = Counter(readers.values()).most_common(1)[0]
    step, zero, padding = rounding
    conv.attributes.add(ir.AttrFloat32("next_scale", step))
    for name, number in (("next_zero", zero), ("next_padding", padding)):
        conv.attributes.add(ir.AttrInt64(name, number))
    conv.resize_outputs(2)
    made = conv.outputs[1]
    made.name, made.dtype, made.shape = f"{output.name}_bytes", ir.DataType.UINT8, _shape_of(output, padding)
    for reader, its in readers.items():
        if its == rounding:
            reader.replace_input_with(X, None)
            reader.resize_inputs(INPUTS)
            reader.replace_input_with(BYTES, made)
    if not output.uses() and not output.is_graph_output():
        output.name = ""  # ONNX's way to say that it is not made
    return True


def _rounds(node: ir.Node, place: int) -> bool:
    """Whether a node is an IntegerConv which rounds that input as it is."""
    return place == X and _is_conv(node) and all(value is None for value in node.inputs[NORM_SCALE:])


def _rounding_of(conv: ir.Node) -> _Rounding:
    get = conv.attributes
    return get.get_float("scale", 1.0), get.get_int("zero", 0), get.get_int("padding", 0)


def _shape_of(output: ir.Value, padding: int) -> ir.Shape:
    """Of the bytes: channels last, by fours, with what is around."""
    if output.shape is None:
        raise ValueError(f"{output.name} has no shape")
    batch, channels, height, width = (int(str(dim)) for dim in output.shape)
    return ir.Shape((batch, height + 2 * padding, width + 2 * padding, -(-channels // 4) * 4))
