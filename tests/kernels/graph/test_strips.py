"""Which operators are local, how far they reach, and where a graph is cut."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from tintype.kernels.graph.locality import Rows, fixed_values, reach
from tintype.kernels.graph.strips import cut_in_strips

SHAPE = (1, 4, 12, 6)
NEAREST = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
PIXELS = {"mode": "nearest", "coordinate_transformation_mode": "half_pixel", "nearest_mode": "round_prefer_floor"}


def weight(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


def conv(side: int, pad: int, after: int | None = None, **attributes):
    """after: padding below and to the right, where it is another."""
    pads = [pad] * 2 + [pad if after is None else after] * 2
    return helper.make_node("Conv", ["x", "w"], ["y"], kernel_shape=[side] * 2, pads=pads, **attributes)


SCALES, TRIPLED, HALVED = (np.array([1, 1, rows, 2], np.float32) for rows in (2, 3, 0.5))
CASES = {
    "3x3": (conv(3, 1), weight(4, 4, 3, 3), Rows(1, 1)),
    "1x1": (conv(1, 0), weight(4, 4, 1, 1), Rows(1, 0)),
    "5x5 dilated": (conv(5, 4, dilations=[2, 2]), weight(4, 4, 5, 5), Rows(1, 4)),
    "by channel": (conv(3, 1, group=4), weight(4, 1, 3, 3), Rows(1, 1)),
    "stride 2": (conv(3, 1, strides=[2, 2]), weight(4, 4, 3, 3), Rows(Fraction(1, 2), 1)),
    "stride 2 padded below": (conv(3, 0, 1, strides=[2, 2]), weight(4, 4, 3, 3), Rows(Fraction(1, 2), 1)),
    "stride 3 of a wide kernel": (conv(7, 2, 3, strides=[3, 3]), weight(4, 4, 7, 7), Rows(Fraction(1, 3), 1)),
    "patches": (conv(2, 0, strides=[2, 2]), weight(4, 4, 2, 2), Rows(Fraction(1, 2), 0)),
    "padded below": (conv(2, 0, 1), weight(4, 4, 2, 2), Rows(1, 1)),
    "stride 2 with too few rows": (conv(5, 0, 1, strides=[2, 2]), weight(4, 4, 5, 5), None),
    "stride 2 with too many rows": (conv(3, 2, strides=[2, 2]), weight(4, 4, 3, 3), None),
    "no padding": (conv(3, 0), weight(4, 4, 3, 3), None),
    "even kernel": (conv(2, 1), weight(4, 4, 2, 2), None),
    "nearest": (helper.make_node("Resize", ["x", "", "w"], ["y"], **NEAREST), SCALES, Rows(2, 0)),
    "nearest by pixels": (
        helper.make_node("Resize", ["x", "", "w"], ["y"], **PIXELS),
        TRIPLED,
        Rows(3),
    ),
    "linear": (helper.make_node("Resize", ["x", "", "w"], ["y"], mode="linear"), SCALES, None),
    "halved": (helper.make_node("Resize", ["x", "", "w"], ["y"], **NEAREST), HALVED, None),
    "depth to space": (helper.make_node("DepthToSpace", ["x"], ["y"], blocksize=2), weight(1), Rows(2)),
    "sigmoid": (helper.make_node("Sigmoid", ["x"], ["y"]), weight(1), Rows()),
    "add by channel": (helper.make_node("Add", ["x", "w"], ["y"]), weight(4, 1, 1), Rows()),
    "add by row": (helper.make_node("Add", ["x", "w"], ["y"]), weight(12, 1), None),
    "joined channels": (helper.make_node("Concat", ["x", "x"], ["y"], axis=1), weight(1), Rows()),
    "joined rows": (helper.make_node("Concat", ["x", "x"], ["y"], axis=2), weight(1), None),
    "softmax over columns": (helper.make_node("Softmax", ["x"], ["y"], axis=3), weight(1), None),
    "mean of all": (helper.make_node("ReduceMean", ["x"], ["y"]), weight(1), None),
    "turned": (helper.make_node("Transpose", ["x"], ["y"], perm=[0, 1, 3, 2]), weight(1), None),
}


@pytest.mark.parametrize("name", CASES)
def test_an_operator_is_local_only_if_it_is(model_of, name):
    node, fixed, expected = CASES[name]
    model = ir.from_proto(model_of([node], {"x": (TensorProto.FLOAT, SHAPE)}, ["y"], {"w": fixed}))
    assert reach(next(iter(model.graph)), fixed_values(model.graph)) == expected


@pytest.mark.parametrize("name", [name for name, (_, _, rows) in CASES.items() if rows is not None])
def test_rows_beyond_the_reach_do_not_count(model_of, run, random, name):
    node, fixed, rows = CASES[name]
    fixed = random.standard_normal(fixed.shape).astype(np.float32) if fixed.ndim > 1 else fixed
    x = random.standard_normal(SHAPE).astype(np.float32)

    def given(first, last):
        piece = x[:, :, first:last]
        return run(model_of([node], {"x": (TensorProto.FLOAT, piece.shape)}, ["y"], {"w": fixed}), {"x": piece})["y"]

    whole = given(0, 12)
    ends = [(6, 12), (0, 6)]  # strips that end or begin at the picture's edge
    for first, last in [*ends, (3, 12)] if rows.scale >= 1 else ends:
        there = slice(int(first * rows.scale), int(last * rows.scale))
        kept = slice(rows.margin if first else 0, None if last == 12 or not rows.margin else -rows.margin)
        np.testing.assert_allclose(given(first, last)[:, :, kept], whole[:, :, there][:, :, kept], rtol=1e-5, atol=1e-5)


def test_a_norms_output_may_be_read_later():
    nodes = [
        helper.make_node("GroupNormalization", ["x", "s", "b"], ["first"], num_groups=2),
        helper.make_node("Conv", ["first", "w"], ["inner"], kernel_shape=[3, 3], pads=[1] * 4),
        helper.make_node("GroupNormalization", ["inner", "s", "b"], ["second"], num_groups=2),
        helper.make_node("Add", ["second", "first"], ["y"]),
    ]
    fixed = {"w": weight(4, 4, 3, 3), "s": weight(4), "b": weight(4)}
    x, *inner, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, SHAPE) for name in ("x", "first", "inner", "second", "y")
    )
    weights = [numpy_helper.from_array(array, name) for name, array in fixed.items()]
    graph = helper.make_graph(nodes, "graph", [x], [y], weights, value_info=inner)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    cut = cut_in_strips(ir.from_proto(model), 1)
    assert cut.head is None
    assert [[each.name for each in stage.reads] for stage in cut.stages] == [["x"], ["inner", "first"]]
    assert [[each.name for each in stage.gives] for stage in cut.stages] == [["first", "inner"], ["y"]]
    assert [[norm.source for norm in stage.norms] for stage in cut.stages] == [["x"], ["inner"]]
    assert [stage.strip_rows for stage in cut.stages] == [4, 2]
    assert cut.stages[0].gives[1].seen == ("inner_row_means", "inner_row_squares")
