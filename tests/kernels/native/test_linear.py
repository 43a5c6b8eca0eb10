"""A linear layer as one node of our own: what it means, by every set of instructions, and what it takes along."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper
from onnx_ir.passes.common import RemoveUnusedNodesPass
from own_nodes import give, model_of_node

from tintype.engine.device import native
from tintype.kernels.base import DOMAINS, OWN, Shapes
from tintype.kernels.cpu.geglu import GegluAsTwoLinears
from tintype.kernels.graph import choice
from tintype.kernels.native.layers import GEGLU, GELU, PLAIN, SILU
from tintype.kernels.native.linear import NativeGeglu, NativeLinear, packed_weights

LINEAR, GATED = NativeLinear(), NativeGeglu()
# rows, inputs, outputs. Panels are of 32 columns, or 16 and 16; rows go through by 4 or 8, tasks have 192 at most.
SIZES = [(1, 1, 1), (3, 5, 7), (8, 33, 32), (13, 64, 17), (31, 7, 65), (205, 40, 48), (16, 1280, 20)]
LONG = (5, 1400, 40)  # more inputs than a sum is made of at once


def _arrays(random, sizes, activation):
    rows, inputs, outputs = sizes
    halves = 2 if activation == GEGLU else 1
    x = random.standard_normal((rows, inputs), np.float32)
    weight = (random.standard_normal((halves, inputs, outputs)) / np.sqrt(inputs)).astype(np.float32)
    return x, weight, random.standard_normal((halves, outputs), np.float32)


def _node(x, weight, bias, activation, added=None):
    arrays = {"x": x, "weights": packed_weights(*weight), "bias": bias}
    if added is not None:
        arrays["added"] = added
    node = helper.make_node("LinearLayer", list(arrays), ["y"], domain=OWN, activation=activation)
    return model_of_node(node, arrays), arrays


def _expected(x, weight, bias, activation):
    if activation == GEGLU:
        return LINEAR.reference(x, weight, bias, GEGLU)
    return LINEAR.reference(x, weight[0], bias[0], activation)


@pytest.mark.parametrize("activation", [PLAIN, GELU, SILU, GEGLU])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_it_is_the_layer_by_every_set_of_instructions(instructions, run, random, sizes, activation):
    x, weight, bias = _arrays(random, sizes, activation)
    expected = _expected(x, weight, bias, activation)
    model, feed = _node(x, weight, bias, activation)
    for each in instructions(model):
        one, two = run(each, feed, 1)["y"], run(each, feed, 2)["y"]
        np.testing.assert_allclose(one, expected, atol=2e-5)
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("activation", [PLAIN, GELU])
def test_sums_of_many_inputs_are_made_in_parts(instructions, run, random, activation):
    x, weight, bias = _arrays(random, LONG, activation)
    added = random.standard_normal((5, 40), np.float32)
    expected = _expected(x, weight, bias, activation) + added
    model, feed = _node(x, weight, bias, activation, added)
    for each in instructions(model):
        np.testing.assert_allclose(run(each, feed)["y"], expected, atol=2e-5)


@pytest.mark.parametrize("activation", [PLAIN, GELU, SILU])
def test_the_reference_is_the_layer_in_torchs_words(random, activation):
    torch = pytest.importorskip("torch")
    x, weight, bias = _arrays(random, (6, 9, 11), activation)
    functional = torch.nn.functional
    made = functional.linear(*(torch.from_numpy(each).double() for each in (x, weight[0].T, bias[0])))
    after = {PLAIN: made, GELU: functional.gelu(made), SILU: functional.silu(made)}[activation]
    np.testing.assert_allclose(LINEAR.reference(x, weight[0], bias[0], activation), after.numpy(), atol=1e-10)


@pytest.mark.parametrize("x", [-60.0, -13.0, -6.1, -5.9, -1.0, -1e-30, 0.0, 1e-30, 1.0, 5.9, 6.1, 60.0, np.inf, np.nan])
def test_gelu_is_right_at_any_number(instructions, run, x):
    model, feed = _node(
        np.full((1, 1), x, np.float32), np.ones((1, 1, 1), np.float32), np.zeros((1, 1), np.float32), GELU
    )
    expected = np.inf if x == np.inf else LINEAR.reference(feed["x"], np.ones((1, 1)), np.zeros(1), GELU)
    for each in instructions(model):
        np.testing.assert_allclose(run(each, feed)["y"], expected, rtol=2e-6, atol=1e-7)


def test_the_output_has_its_shape_in_the_graph(instructions, random):
    options = onnxruntime.SessionOptions()
    native.register(options)
    model, _ = _node(*_arrays(random, (3, 5, 7), GEGLU), GEGLU)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    assert session.get_outputs()[0].shape == [3, 7]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": (2, 6, 32)}, "such a layer"),
        ({"weights": (1, 5, 32)}, "such a layer"),
        ({"weights": (2, 5, 16)}, "such a layer"),
        ({"bias": (2, 40)}, "such a layer"),
        ({"added": (3, 39)}, "another shape"),
        ({"added": (1, 3, 40)}, "another shape"),
    ],
    ids=str,
)
@pytest.mark.usefixtures("library")
def test_what_does_not_go_together_is_an_error(run, random, change, message):
    x, weight, bias = _arrays(random, (3, 5, 40), PLAIN)
    model, feed = _node(x, weight, bias, PLAIN, np.zeros((3, 40), np.float32))
    ((name, shape),) = change.items()
    give(model, feed, name, np.zeros(shape, np.float32))
    with pytest.raises(Exception, match=message):
        run(model, feed)


@pytest.mark.parametrize("activation", [-1, 4])
@pytest.mark.usefixtures("library")
def test_an_activation_that_there_is_not_is_an_error(run, random, activation):
    x, weight, bias = _arrays(random, (3, 5, 7), PLAIN)
    with pytest.raises(Exception, match="no such activation"):
        run(*_node(x, weight, bias, activation))


@pytest.mark.usefixtures("library")
def test_a_gated_layer_of_too_many_inputs_is_an_error(run, random):
    with pytest.raises(Exception, match="more than 1280"):
        run(*_node(*_arrays(random, (2, 1281, 3), GEGLU), GEGLU))


def _chain(*operators):
    """MatMul and what follows, from x to y: nodes."""
    nodes, last = [helper.make_node("MatMul", ["x", "weight"], ["0"], name="layer")], "0"
    for number, operator in enumerate(operators, 1):
        inputs = {"bias": [last, "bias"], "residual": ["residual", last], "Gelu": [last], "Sigmoid": [last]}[operator]
        kind = "Add" if operator in ("bias", "residual") else operator
        nodes.append(helper.make_node(kind, inputs, [str(number)]))
        if operator == "Sigmoid":
            nodes.append(helper.make_node("Mul", [last, str(number)], [f"{number}*"]))
        last = f"{number}*" if operator == "Sigmoid" else str(number)
    nodes[-1].output[0] = "y"
    return nodes


@pytest.mark.parametrize(
    ("operators", "left"),
    [
        ((), []),
        (("bias",), []),
        (("residual",), []),
        (("bias", "residual"), []),
        (("bias", "Gelu"), []),
        (("Gelu", "residual"), []),
        (("bias", "Sigmoid"), []),
        (("bias", "residual", "Gelu"), ["Gelu"]),
        (("bias", "residual", "residual"), ["Add"]),
    ],
    ids=str,
)
def test_it_takes_along_what_follows(instructions, model_of, applied, random, operators, left):
    x, weight, bias = _arrays(random, (2 * 9, 16, 24), PLAIN)
    feed = {"x": x.reshape(2, 9, 16), "residual": random.standard_normal((2, 9, 24), np.float32)}
    names = ["x", *(["residual"] if "residual" in operators else [])]
    inputs = {name: (TensorProto.FLOAT, list(feed[name].shape)) for name in names}
    model = model_of(_chain(*operators), inputs, ["y"], {"weight": weight[0], "bias": bias[0]})
    result = applied(model, {name: feed[name] for name in names}, LINEAR)
    assert result.operators == ["LinearLayer", *left]
    np.testing.assert_allclose(result.after["y"], result.before["y"], atol=2e-5)


@pytest.mark.parametrize("turned", [0, 1])
def test_it_takes_a_gemm(instructions, model_of, applied, random, turned):
    x, weight, bias = _arrays(random, (9, 16, 24), PLAIN)
    stored = weight[0].T if turned else weight[0]
    nodes = [helper.make_node("Gemm", ["x", "weight", "bias"], ["y"], name="layer", transB=turned)]
    model = model_of(nodes, {"x": (TensorProto.FLOAT, [9, 16])}, ["y"], {"weight": stored, "bias": bias[0]})
    result = applied(model, {"x": x}, LINEAR)
    assert result.operators == ["LinearLayer"]
    np.testing.assert_allclose(result.after["y"], result.before["y"], atol=2e-5)


def _geglu(gate_reads="x", gelu="none"):
    return [
        helper.make_node("MatMul", ["x", "weight"], ["v"], name="layer"),
        helper.make_node("Add", ["v", "bias"], ["value"]),
        helper.make_node("MatMul", [gate_reads, "gate_weight"], ["g"], name="gate"),
        helper.make_node("Add", ["g", "gate_bias"], ["b"]),
        helper.make_node("Gelu", ["b"], ["gelu"], approximate=gelu),
        helper.make_node("Mul", ["value", "gelu"], ["y"]),
    ]


def test_a_gated_layer_is_one_node(instructions, model_of, applied, random):
    x, weight, bias = _arrays(random, (2 * 9, 16, 24), GEGLU)
    constants = {"weight": weight[0], "bias": bias[0], "gate_weight": weight[1], "gate_bias": bias[1]}
    model = model_of(_geglu(), {"x": (TensorProto.FLOAT, [2, 9, 16])}, ["y"], constants)
    result = applied(model, {"x": x.reshape(2, 9, 16)}, GATED)
    assert result.operators == ["LinearLayer"]
    np.testing.assert_allclose(result.after["y"], result.before["y"], atol=2e-5)


def test_it_takes_what_became_of_a_split_one(instructions, model_of, run, random):
    x, weight, bias = _arrays(random, (9, 16, 24), GEGLU)
    nodes = [
        helper.make_node("MatMul", ["x", "weight"], ["m"], name="layer"),
        helper.make_node("Add", ["m", "bias"], ["both"]),
        helper.make_node("Split", ["both"], ["value", "gate"], axis=-1, num_outputs=2, name="split"),
        helper.make_node("Gelu", ["gate"], ["gelu"]),
        helper.make_node("Mul", ["value", "gelu"], ["y"]),
    ]
    constants = {"weight": np.concatenate(list(weight), axis=1), "bias": bias.reshape(-1)}
    model = ir.from_proto(model_of(nodes, {"x": (TensorProto.FLOAT, [9, 16])}, ["y"], constants))
    model.opset_imports.update(DOMAINS)
    two = GegluAsTwoLinears()
    two.rewrite(next(node for node in model.graph if two.matches(node, Shapes())), model.graph)
    (layer,) = choice.layers(model.graph, [GATED])
    GATED.rewrite(layer.node, model.graph)
    RemoveUnusedNodesPass()(model)
    assert [node.op_type for node in model.graph] == ["LinearLayer"]
    made = run(ir.to_proto(model), {"x": x})["y"]
    np.testing.assert_allclose(made, LINEAR.reference(x, weight, bias, GEGLU), atol=2e-5)


@pytest.mark.parametrize("changed", [{"gate_reads": "z"}, {"gelu": "tanh"}], ids=str)
def test_other_gates_are_left_alone(model_of, random, changed):
    _, weight, bias = _arrays(random, (9, 16, 24), GEGLU)
    constants = {"weight": weight[0], "bias": bias[0], "gate_weight": weight[1], "gate_bias": bias[1]}
    inputs = {name: (TensorProto.FLOAT, [9, 16]) for name in ("x", "z")}
    graph = ir.from_proto(model_of(_geglu(**changed), inputs, ["y"], constants)).graph
    assert list(choice.layers(graph, [GATED])) == []


@pytest.mark.parametrize("rows", [1, 7])
def test_few_rows_are_left_alone(model_of, random, rows):
    weight = random.standard_normal((16, 24), np.float32)
    model = model_of(_chain(), {"x": (TensorProto.FLOAT, [rows, 16])}, ["y"], {"weight": weight})
    assert list(choice.layers(ir.from_proto(model).graph, [LINEAR])) == []
