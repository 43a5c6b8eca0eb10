"""GroupNormalization whose statistics can come from outside, so that tiles of an image are normalized as one image.

A graph that is run tile by tile normalizes each tile by itself, and that, not the missing neighbourhood, is what tells
tiles from the whole. `share_statistics` gives a graph two more inputs and one more output:

    norm_share        (1,)                 0: normalize by what is seen; 1: by what is given; between: a mixture
    norm_statistics   (norms, 2, groups)   what is given: mean, then variance
    norms_seen        (norms, 2, groups)   the graph's own, of this input

With norm_share 0 the graph computes what it did before. Batches of one only: statistics are of one image.

postcard's decoder against the picture decoded whole, tile and overlap in latent cells, plain and shared: 256 px in
tiles of 32/8 39.6 and 44.9 dB; 512 px in 32/8 35.3 and 43.9, 48/12 38.0 and 44.2, 64/16 40.6 and 45.9 dB. Statistics
gathered once more with the shared ones in use gain nothing dependable; the overlap changes less than 1 dB.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from tintype.kernels.base import add_constant, constant_of, insert, replace

SHARE, GIVEN, SEEN = "norm_share", "norm_statistics", "norms_seen"


def share_statistics(model: ir.Model) -> int:
    """Rewrite every GroupNormalization in place; how many there are. Nothing is changed when they can't share.

    They can when all have as many groups, and scale and bias fixed in the graph.
    """
    graph = model.graph
    norms = [node for node in graph if node.op_type == "GroupNormalization" and node.domain == ""]
    groups = {node.attributes.get_int("num_groups", 1) for node in norms}
    if len(groups) != 1 or any(constant_of(node.inputs[index]) is None for node in norms for index in (1, 2)):
        return 0
    shape = ir.Shape([len(norms), 2, groups.pop()])
    share = ir.Value(name=SHARE, shape=ir.Shape([1]), type=ir.TensorType(ir.DataType.FLOAT))
    given = ir.Value(name=GIVEN, shape=shape, type=ir.TensorType(ir.DataType.FLOAT))
    graph.inputs.extend([share, given])
    seen = [_rewrite(node, graph, number, share, given) for number, node in enumerate(norms)]
    last = ir.node("Concat", inputs=seen, attributes={"axis": 0})
    graph.append(last)
    last.outputs[0].name, last.outputs[0].shape = SEEN, shape
    last.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    graph.outputs.append(last.outputs[0])
    for node in norms:
        graph.remove(node, safe=True)
    return len(norms)


def reference(
    x: NDArray[Any], scale: NDArray[Any], bias: NDArray[Any], statistics: NDArray[Any], epsilon: float
) -> NDArray[Any]:
    """x (1, channels, ...) normalized by statistics (2, groups), float64 inside."""
    mean, variance = statistics.astype(np.float64)[:, :, np.newaxis]
    grouped = x.astype(np.float64).reshape(len(mean), -1)
    normed = (grouped - mean) / np.sqrt(variance + epsilon)
    broadcast = (-1,) + (1,) * (x.ndim - 2)
    return normed.reshape(x.shape) * scale.reshape(broadcast) + bias.reshape(broadcast)


def _rewrite(node: ir.Node, graph: ir.Graph, number: int, share: ir.Value, given: ir.Value) -> ir.Value:
    """One norm; returns what it saw, (1, 2, groups)."""
    source, output = node.inputs[0], node.outputs[0]
    groups = node.attributes.get_int("num_groups", 1)
    by_group = add_constant(graph, np.array([1, groups, -1], np.int64), f"by_group_{groups}")
    last = add_constant(graph, np.array([2], np.int64), "last_axis")
    grouped = insert(node, "Reshape", [source, by_group])
    mean = insert(node, "ReduceMean", [grouped, last])
    mean_used = _mixed(node, graph, mean, given, number, 0, share, by_group)
    centred = insert(node, "Sub", [grouped, mean_used])
    # Around the mean that is used: with a share of 0, when it counts, that is the variance.
    square = insert(node, "ReduceSumSquare", [centred, last])
    length = insert(node, "Shape", [grouped], attributes={"start": 2, "end": 3})
    count = insert(node, "Cast", [length], attributes={"to": int(ir.DataType.FLOAT)})
    variance = insert(node, "Div", [square, count])
    variance_used = _mixed(node, graph, variance, given, number, 1, share, by_group)
    epsilon = node.attributes.get_float("epsilon", 1e-5)
    least = add_constant(graph, np.array([epsilon], np.float32), f"epsilon_{epsilon:g}")
    deviation = insert(node, "Sqrt", [insert(node, "Add", [variance_used, least])])
    normed = insert(node, "Div", [centred, deviation])
    normed = insert(node, "Reshape", [normed, insert(node, "Shape", [source])], like=output)
    normed = insert(node, "Mul", [normed, _by_channel(node, 1, graph)], like=output)
    replace(output, insert(node, "Add", [normed, _by_channel(node, 2, graph)], like=output))
    told = insert(node, "Concat", [mean, variance], attributes={"axis": 2})  # (1, groups, 2)
    return insert(node, "Transpose", [told], attributes={"perm": [0, 2, 1]})


def _mixed(
    node: ir.Node,
    graph: ir.Graph,
    own: ir.Value,
    given: ir.Value,
    number: int,
    which: int,
    share: ir.Value,
    by_group: ir.Value,
) -> ir.Value:
    """own + share * (given - own), (1, groups, 1)."""
    row = insert(node, "Gather", [given, add_constant(graph, np.array([number], np.int64), f"norm_{number}")])
    at = add_constant(graph, np.array([which], np.int64), f"statistic_{which}")
    row = insert(node, "Gather", [row, at], attributes={"axis": 1})
    difference = insert(node, "Sub", [insert(node, "Reshape", [row, by_group]), own])
    return insert(node, "Add", [own, insert(node, "Mul", [difference, share])])


def _by_channel(node: ir.Node, index: int, graph: ir.Graph) -> ir.Value:
    value, source = node.inputs[index], node.inputs[0]
    data = constant_of(value)
    if data is None or value is None or source is None or source.shape is None:
        raise ValueError(f"{node.name} has no fixed scale or bias")
    return add_constant(graph, data.reshape((-1,) + (1,) * (len(source.shape) - 2)), f"{value.name}_by_channel")
