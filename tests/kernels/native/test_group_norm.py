"""GroupNorm and SiLU as one node of our own: what it means, at odd shapes, by every set of instructions."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from image_groups import SHAPES as PLAIN
from onnx import TensorProto, helper

from tintype.engine.device import native
from tintype.kernels.base import OWN
from tintype.kernels.graph import choice
from tintype.kernels.graph.dims import pin
from tintype.kernels.native.group_norm import NativeGroupNorm
from tintype.kernels.registry import lower, measured_kernels

KERNEL = NativeGroupNorm()
SHAPES = [*PLAIN, ((1, 6, 1025), 2)]  # pieces are of 1,024 numbers, vectors of 4, 8 and 16


def _node(shape, groups, epsilon=1e-5, silu=1):
    """GroupNormSilu of x, scale and bias as a model."""
    node = helper.make_node("GroupNormSilu", ["x", "scale", "bias"], ["y"], domain=OWN, groups=groups, silu=silu)
    node.attribute.append(helper.make_attribute("epsilon", epsilon))
    ports = {"x": shape, "scale": [shape[1]], "bias": [shape[1]]}
    graph = helper.make_graph(
        [node],
        "graph",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name, dims in ports.items()],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20), helper.make_opsetid(OWN, 1)])


def _feed(random, shape, mean=0.0):
    scale, bias = random.standard_normal((2, shape[1]), np.float32)
    return {"x": (mean + random.standard_normal(shape)).astype(np.float32), "scale": scale, "bias": bias}


@pytest.mark.parametrize(("shape", "groups"), SHAPES, ids=str)
@pytest.mark.parametrize("silu", [0, 1])
def test_it_is_the_reference_by_every_set_of_instructions(instructions, run, random, shape, groups, silu):
    feed = _feed(random, shape)
    expected = KERNEL.reference(*feed.values(), groups, 1e-6, bool(silu))
    for model in instructions(_node(shape, groups, 1e-6, silu)):
        one, two = run(model, feed, 1)["y"], run(model, feed, 2)["y"]
        np.testing.assert_allclose(one, expected, atol=3e-6)
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("mean", [100.0, -10000.0])
def test_a_far_mean_costs_no_accuracy(instructions, run, random, mean):
    feed = _feed(random, (2, 32, 16, 16), mean)
    expected = KERNEL.reference(*feed.values(), 8, 1e-5, False)
    for model in instructions(_node((2, 32, 16, 16), 8, silu=0)):
        np.testing.assert_allclose(run(model, feed)["y"], expected, atol=3e-6)


def test_large_numbers_nan_and_infinity_come_out_as_elsewhere(instructions, run):
    x = np.array([[[0.0, 0, 0, 0]] * 3, [[-1, 1, -1, 1]] * 3, [[np.nan, 1, 2, 3]] * 3, [[np.inf, 1, 2, 3]] * 3])
    feed = {"x": x.astype(np.float32), "scale": np.array([1, 500, 1e30], np.float32), "bias": np.zeros(3, np.float32)}
    for model in instructions(_node((4, 3, 4), 1)):
        flat, steep, *broken = run(model, feed)["y"]
        assert (flat == 0).all()
        np.testing.assert_allclose(steep[1:, 1::2], [[500, 500], [1e30, 1e30]], rtol=1e-4)
        assert (steep[1:, ::2] <= 0).all()
        assert (steep[1:, ::2] > -1e-6).all()
        assert np.isnan(broken).all()


def test_the_output_has_the_shape_of_the_input_in_the_graph(instructions):
    options = onnxruntime.SessionOptions()
    native.register(options)
    model = _node(("batch", 6, "height", 5), 3)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    assert session.get_outputs()[0].shape == ["batch", 6, "height", 5]


@pytest.mark.parametrize(
    ("shape", "groups", "channels", "said"),
    [((1, 6), 2, 6, "dimensions"), ((1, 6, 4), 4, 6, "groups"), ((1, 6, 4), 0, 6, "groups"), ((1, 6, 4), 2, 5, "each")],
)
def test_a_node_that_makes_no_sense_is_an_error(instructions, run, random, shape, groups, channels, said):
    feed = _feed(random, shape) | {"scale": np.ones(channels, np.float32), "bias": np.ones(channels, np.float32)}
    model = _node(shape, groups)
    for port in model.graph.input[1:]:
        port.type.tensor_type.shape.dim[0].dim_value = channels
    with pytest.raises(Exception, match=said):
        run(model, feed)


def test_a_set_of_instructions_that_is_not_there_is_an_error(instructions, run, random):
    model = _node((1, 6, 4), 2)
    model.graph.node[0].attribute.append(helper.make_attribute("instructions", 7))
    with pytest.raises(Exception, match="instructions"):
        run(model, _feed(random, (1, 6, 4)))


def _canonical(model_of, shape, groups, nodes, outputs=("y",), **constants):
    """GroupNormalization of x, here m, and what nodes make of it; shapes are numbers."""
    norm = helper.make_node("GroupNormalization", ["x", "scale", "bias"], ["m"], num_groups=groups, epsilon=1e-5)
    kind = (TensorProto.FLOAT, list(shape))
    told = dict.fromkeys(outputs, kind)
    return model_of([norm, *nodes], {"x": kind}, told, constants, {"m": kind} if "m" not in outputs else {})


SILU = (helper.make_node("Sigmoid", ["m"], ["s"]), helper.make_node("Mul", ["m", "s"], ["y"]))
RELU = (helper.make_node("Relu", ["m"], ["y"]),)


def _lowered(model):
    rewritten = ir.from_proto(model)
    pin(rewritten, {})
    lower(rewritten, "cpu")
    return rewritten


@pytest.mark.parametrize(("nodes", "left"), [(SILU, []), (RELU, ["Relu"])], ids=["silu", "relu"])
@pytest.mark.parametrize(("shape", "groups"), [((2, 30, 7, 5), 5), ((1, 64, 16, 16), 32), ((3, 4, 9), 1)], ids=str)
def test_a_lowered_norm_becomes_one_node(instructions, model_of, applied, random, shape, groups, nodes, left):
    feed = _feed(random, shape)
    model = _canonical(model_of, shape, groups, nodes, scale=feed["scale"], bias=feed["bias"])
    result = applied(ir.to_proto(_lowered(model)), {"x": feed["x"]}, KERNEL)
    assert result.operators == ["GroupNormSilu", *left]
    np.testing.assert_allclose(result.after["y"], result.before["y"], atol=5e-6)


@pytest.mark.parametrize(
    "nodes",
    [
        (*SILU, helper.make_node("Neg", ["m"], ["z"])),
        (*SILU, helper.make_node("Neg", ["s"], ["z"])),
        (helper.make_node("Sigmoid", ["m"], ["s"]), helper.make_node("Mul", ["s", "s"], ["y"]), RELU[0]),
    ],
    ids=["norm read twice", "sigmoid read twice", "no silu"],
)
def test_a_silu_that_something_else_needs_stays_as_it_is(model_of, random, nodes):
    feed = _feed(random, (1, 6, 4, 4))
    nodes = list(nodes)
    if nodes[-1] is RELU[0]:
        nodes[-1] = helper.make_node("Relu", ["m"], ["z"])
    model = _canonical(model_of, (1, 6, 4, 4), 3, nodes, ("y", "z"), scale=feed["scale"], bias=feed["bias"])
    (layer,) = choice.layers(_lowered(model).graph, [KERNEL])
    assert layer.kind == "GroupNorm"
    assert "Sigmoid" not in {node.op_type for node in KERNEL.cluster(layer.node)}


def test_any_other_layer_normalization_is_left_alone(model_of):
    nodes = [
        helper.make_node("Reshape", ["x", "groups"], ["grouped"]),
        helper.make_node("LayerNormalization", ["grouped", "twos"], ["normed"], axis=-1),
        helper.make_node("Reshape", ["normed", "whole"], ["back"]),
        helper.make_node("Mul", ["back", "scale"], ["scaled"]),
        helper.make_node("Add", ["scaled", "scale"], ["y"]),
    ]
    constants = {
        "groups": np.array([0, 2, -1]),
        "whole": np.array([1, 6, 4, 4]),
        "twos": np.full(48, 2, np.float32),
        "scale": np.ones((6, 1, 1), np.float32),
    }
    model = model_of(nodes, {"x": (TensorProto.FLOAT, [1, 6, 4, 4])}, ["y"], constants)
    assert list(choice.layers(ir.from_proto(model).graph, [KERNEL])) == []
    del model.graph.initializer[:]
    ones = constants | {"twos": np.ones(48, np.float32)}
    model.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in ones.items())
    assert len(list(choice.layers(ir.from_proto(model).graph, [KERNEL]))) == 1


def test_it_is_offered_only_where_the_operators_work():
    assert KERNEL.name not in {kernel.name for kernel in measured_kernels("cpu")}
    for exactness in ("exact", "balanced"):
        assert KERNEL.name in {kernel.name for kernel in measured_kernels("cpu", ["native"], exactness=exactness)}
