"""A graph in segments computes what it did, holds no more weights at a time than it may, and hands on little."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from tintype.kernels.graph.analysis import analyse
from tintype.kernels.graph.segments import cut, layer_bytes, touched_bytes, value_nbytes

WIDE, NARROW, ROWS = 64, 8, 5


def _value(name, shape, dtype=ir.DataType.FLOAT):
    return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))


def _weight(graph, name, array):
    value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
    value.shape, value.dtype = ir.Shape(array.shape), ir.DataType.from_numpy(array.dtype)
    graph.register_initializer(value)
    return value


def blocks(count, seed=0, skips=True):
    """`count` blocks that widen and narrow again; the first block's output is also read by the last."""
    random = np.random.default_rng(seed)
    x = _value("x", [ROWS, NARROW])
    graph = ir.Graph([x], [], nodes=[], opset_imports={"": 23}, name="blocks")
    current, first = x, None
    for number in range(count):
        for kind, shape in (("up", (NARROW, WIDE)), ("down", (WIDE, NARROW))):
            weight = _weight(graph, f"{kind}{number}", (random.standard_normal(shape) / 8).astype(np.float32))
            node = ir.node("MatMul", [current, weight], name=f"{kind}{number}")
            node.outputs[0].name, node.outputs[0].shape = f"{kind}_{number}", ir.Shape([ROWS, shape[1]])
            node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
            graph.append(node)
            current = node.outputs[0]
        first = first or current
    if skips:
        node = ir.node("Add", [current, first], name="skip")
        node.outputs[0].name, node.outputs[0].shape = "y", ir.Shape([ROWS, NARROW])
        node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        graph.append(node)
        current = node.outputs[0]
    graph.outputs.append(current)
    return ir.Model(graph, ir_version=10)


def run(model, feed):
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    names = [port.name for port in session.get_outputs()]
    return dict(zip(names, session.run(names, feed), strict=True))


def weights_of(model):
    return sum(value.const_value.nbytes for value in model.graph.initializers.values())


ONE_BLOCK = 2 * WIDE * NARROW * 4


@pytest.mark.parametrize("per_segment", [1, 2, 3, 7])
@pytest.mark.parametrize("skips", [True, False])
def test_segments_in_turn_compute_what_the_whole_does(per_segment, skips):
    model = blocks(7, skips=skips)
    x = np.random.default_rng(1).standard_normal((ROWS, NARROW), np.float32)
    expected = run(model, {"x": x})
    values = {"x": x}
    segments = cut(model, per_segment * ONE_BLOCK)
    for segment in segments:
        values |= run(segment, {port.name: values[port.name] for port in segment.graph.inputs})
        assert weights_of(segment) <= per_segment * ONE_BLOCK
    for name, array in expected.items():
        np.testing.assert_array_equal(values[name], array)
    assert len(segments) == -(-7 // per_segment)


def test_cuts_go_where_little_is_handed_on():
    for segment in cut(blocks(6, skips=False), ONE_BLOCK):
        assert all(port.shape.numpy()[-1] == NARROW for port in (*segment.graph.inputs, *segment.graph.outputs))


def test_what_cannot_be_cut_is_larger_than_the_limit_and_the_rest_is_not():
    segments = cut(blocks(3), ONE_BLOCK // 4)
    assert max(weights_of(segment) for segment in segments) == ONE_BLOCK // 2  # one product
    assert len(segments) >= 6


def quantized(count):
    """`count` pairs of a product with int8 weights and a sum with an int8 row for each number of its input."""
    random = np.random.default_rng(3)
    x = _value("x", [NARROW, NARROW])
    graph = ir.Graph([x], [], nodes=[], opset_imports={"": 23}, name="quantized")
    scale = _weight(graph, "scale", np.array(0.01, np.float32))
    current = x
    for number in range(count):
        for kind in ("MatMul", "Add"):
            numbers = random.integers(-99, 99, (NARROW, NARROW), np.int8)
            real = ir.node("DequantizeLinear", [_weight(graph, f"{kind}{number}_int8", numbers), scale])
            node = ir.node(kind, [current, real.outputs[0]], name=f"{kind}{number}")
            for each, name in ((real, f"{kind}{number}_real"), (node, f"{kind}{number}_out")):
                each.outputs[0].name, each.outputs[0].shape = name, ir.Shape([NARROW, NARROW])
                each.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
                graph.append(each)
            current = node.outputs[0]
    graph.outputs.append(current)
    return ir.Model(graph, ir_version=10)


def test_what_comes_of_weights_alone_is_made_where_it_is_read_and_never_handed_on():
    model = quantized(3)
    x = np.random.default_rng(1).standard_normal((NARROW, NARROW), np.float32)
    expected = run(model, {"x": x})
    integers, reals = NARROW * NARROW, NARROW * NARROW * 4
    assert layer_bytes(model) == [integers, reals] * 3  # a product may take integers, a sum takes what they stand for
    segments = cut(model, integers + reals)
    assert len(segments) == 3
    values = {"x": x}
    for segment in segments:
        assert len(segment.graph.inputs) == len(segment.graph.outputs) == 1
        assert [node.op_type for node in segment.graph].count("DequantizeLinear") == 2
        values |= run(segment, {port.name: values[port.name] for port in segment.graph.inputs})
    for name, array in expected.items():
        np.testing.assert_array_equal(values[name], array)


def test_no_cut_where_a_shape_is_not_known():
    model = blocks(4, skips=False)
    inner = next(node for node in model.graph if node.name == "down1").outputs[0]
    inner.shape = None
    assert value_nbytes(inner) == float("inf")
    segments = cut(model, ONE_BLOCK)
    assert all(port.name != inner.name for segment in segments for port in segment.graph.outputs)


def test_of_a_table_only_the_rows_that_are_taken_count():
    ids = _value("ids", [3], ir.DataType.INT64)
    graph = ir.Graph([ids], [], nodes=[], opset_imports={"": 23}, name="table")
    table = _weight(graph, "table", np.zeros((1000, 4), np.float32))
    node = ir.node("Gather", [table, ids])
    node.outputs[0].name, node.outputs[0].shape = "rows", ir.Shape([3, 4])
    node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    graph.append(node)
    graph.outputs.append(node.outputs[0])
    assert touched_bytes(node, table) == 3 * 4 * 4
    assert analyse(graph).stored_bytes == 3 * 4 * 4


def test_an_analysis_counts_weights_activations_and_multiplications():
    found = analyse(blocks(5).graph)
    assert found.stored_bytes == found.float_bytes == 5 * ONE_BLOCK
    assert found.largest_bytes == ONE_BLOCK // 2
    assert found.multiplications == 5 * 2 * ROWS * WIDE * NARROW
    # A wide and two narrow ones: what a block makes, what it read, and the first block's output.
    assert found.live_bytes == 4 * ROWS * (WIDE + 2 * NARROW)


@pytest.mark.parametrize(("operator", "saved"), [("MatMul", 2 * 6 * 4), ("Add", 0)])
def test_an_analysis_knows_that_products_read_float16_as_it_is(operator, saved):
    x = _value("x", [6, 6])
    graph = ir.Graph([x], [], nodes=[], opset_imports={"": 23}, name="halves")
    shape = (6, 4) if operator == "MatMul" else (6, 6)
    stored = _weight(graph, "stored", np.ones(shape, np.float16))
    cast = ir.node("Cast", [stored], {"to": ir.DataType.FLOAT.value})
    made = ir.node(operator, [x, cast.outputs[0]])
    for node, name, sizes in ((cast, "floats", shape), (made, "y", (6, shape[1]))):
        node.outputs[0].name, node.outputs[0].shape = name, ir.Shape(sizes)
        node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        graph.append(node)
    graph.outputs.append(made.outputs[0])
    found = analyse(graph)
    assert (found.stored_bytes, found.float_bytes) == (2 * 6 * shape[1], 4 * 6 * shape[1])
    assert found.saved_bytes == saved


def test_an_output_is_held_to_the_end_so_that_nothing_made_of_it_is_handed_on_beside_it():
    model = blocks(2, skips=False)
    graph = model.graph
    first = next(node for node in graph if node.name == "down0").outputs[0]
    graph.outputs.append(first)
    little = ir.node("Identity", [_value("shift", [1])], name="little")  # what makes the cut behind `same` look cheaper
    graph.inputs.append(little.inputs[0])
    same = ir.node("Add", [first, little.outputs[0]], name="same")
    for node, shape in ((little, [1]), (same, [ROWS, NARROW])):
        node.outputs[0].name, node.outputs[0].shape = f"{node.name}_made", ir.Shape(shape)
        node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    graph.insert_before(next(iter(graph)), little)
    graph.insert_after(first.producer(), same)
    reader = next(node for node in graph if node.name == "up1")
    reader.replace_input_with(0, same.outputs[0])
    segments = cut(model, 2 * WIDE * NARROW * 4)
    assert [[value.name for value in segment.graph.outputs] for segment in segments] == [
        ["little_made", "down_0"],
        ["down_1"],
    ]


def test_a_product_and_its_layout_are_not_parted():
    """Behind the product, its transposed and its reshaped form the same bytes are handed on."""
    random = np.random.default_rng(0)
    x = _value("x", [ROWS, NARROW])
    graph = ir.Graph([x], [], nodes=[], opset_imports={"": 23}, name="layout")

    def add(operator, inputs, name, shape, **attributes):
        node = ir.node(operator, inputs, attributes=attributes)
        node.outputs[0].name, node.outputs[0].shape = name, ir.Shape(shape)
        node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        graph.append(node)
        return node.outputs[0]

    first = _weight(graph, "first", random.standard_normal((NARROW, NARROW)).astype(np.float32))
    second = _weight(graph, "second", random.standard_normal((ROWS, NARROW)).astype(np.float32))
    product = add("MatMul", [x, first], "product", [ROWS, NARROW])
    turned = add("Transpose", [product], "turned", [NARROW, ROWS], perm=[1, 0])
    again = add("Reshape", [turned, _weight(graph, "shape", np.array([NARROW, ROWS]))], "again", [NARROW, ROWS])
    graph.outputs.append(add("MatMul", [again, second], "y", [NARROW, NARROW]))
    segments = cut(ir.Model(graph, ir_version=10), first.const_value.nbytes + 64)
    assert [[node.op_type for node in segment.graph] for segment in segments] == [
        ["MatMul", "Transpose", "Reshape"],
        ["MatMul"],
    ]
