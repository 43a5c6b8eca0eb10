"""Features on the way down: added for every reader of the last value of their shape, then in the middle; zeros change
nothing."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from tintype.kernels.graph.dims import fold_sizes, pin
from tintype.kernels.graph.features import feature_places, skip_sizes, take_features
from tintype.kernels.graph.residuals import take_residuals
from tintype.kernels.graph.reuse import deep_features, give_values, take_values

NAMES = ["outer", "inner", "middle"]
SIZES = [(3, 4, 4), (3, 2, 2), (3, 2, 2)]
SHAPES = dict(zip(NAMES, [(2, *size) for size in SIZES], strict=True))


@pytest.fixture
def unet(model_of):
    """x -> first -> down, halved -> deeper -> middle, and back up over three skip connections."""
    nodes = [
        helper.make_node("Sin", ["x"], ["first"]),
        helper.make_node("Sigmoid", ["first"], ["down"]),
        helper.make_node("AveragePool", ["down"], ["half"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Cos", ["half"], ["deeper"]),
        helper.make_node("Tanh", ["deeper"], ["lowest"]),
        helper.make_node("Concat", ["lowest", "deeper"], ["inner_join"], axis=1),
        helper.make_node("Conv", ["inner_join", "w"], ["up"]),
        helper.make_node("Resize", ["up", "", "scales"], ["up_again"], mode="nearest"),
        helper.make_node("Concat", ["up_again", "down"], ["outer_join"], axis=1),
        helper.make_node("Conv", ["outer_join", "w"], ["last"]),
        helper.make_node("Concat", ["last", "first"], ["outermost"], axis=1),
        helper.make_node("Conv", ["outermost", "w"], ["out_sample"]),
    ]
    random = np.random.default_rng(0)
    weights = {
        "w": random.standard_normal((3, 6, 1, 1)).astype(np.float32), "scales": np.array([1, 1, 2, 2], np.float32),
    }  # fmt: skip
    inputs = {"x": (TensorProto.FLOAT, ["batch", 3, 4, 4])}

    def made() -> ir.Model:
        model = ir.from_proto(model_of(nodes, inputs, ["out_sample"], weights))
        pin(model, {"batch": 2})
        fold_sizes(model)
        return model

    def by_hand(x, outer, inner, middle):
        def conv(*images):
            return np.einsum("oi,bihw->bohw", weights["w"][:, :, 0, 0], np.concatenate(images, axis=1))

        first = np.sin(x)
        down = 1 / (1 + np.exp(-first)) + outer
        deeper = np.cos(down.reshape(2, 3, 2, 2, 2, 2).mean(axis=(3, 5))) + inner
        up = conv(np.tanh(deeper) + middle, deeper).repeat(2, axis=2).repeat(2, axis=3)
        return conv(conv(up, down), first)

    return made, by_hand


def take(model: ir.Model, sizes=SIZES, names=NAMES):
    places = feature_places(model.graph, sizes)
    assert places is not None
    return take_features(model, places, names)


def test_features_are_added_for_all_that_is_computed_of_a_value(unet, run, random):
    made, by_hand = unet
    model = made()
    assert skip_sizes(model.graph) == [(3, 4, 4), (3, 2, 2)]
    assert [value.name for value in take(model)] == NAMES
    feed = {name: random.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}
    feed["x"] = random.standard_normal((2, 3, 4, 4)).astype(np.float32)
    np.testing.assert_allclose(
        run(ir.to_proto(model), feed)["out_sample"], by_hand(feed["x"], *(feed[name] for name in NAMES)), rtol=1e-4,
        atol=1e-5,
    )  # fmt: skip
    zeros = {**feed, **{name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}}
    plain = run(ir.to_proto(made()), {"x": feed["x"]})["out_sample"]
    np.testing.assert_array_equal(run(ir.to_proto(model), zeros)["out_sample"], plain)


def test_residuals_of_controlnets_come_on_top_on_the_way_up_alone(unet, run, random):
    made, by_hand = unet
    model, names = made(), ["r0", "r1", "r2", "rm"]
    take(model)
    residuals = take_residuals(model, names)
    shapes = {**SHAPES, "x": (2, 3, 4, 4)} | {
        str(value.name): tuple(value.shape.numpy()) for value in residuals if value.shape is not None
    }
    feed = {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    without = {**feed, **{name: np.zeros_like(feed[name]) for name in names}}
    expected = by_hand(feed["x"], *(feed[name] for name in NAMES))
    np.testing.assert_allclose(run(ir.to_proto(model), without)["out_sample"], expected, rtol=1e-4, atol=1e-5)
    assert np.abs(run(ir.to_proto(model), feed)["out_sample"] - expected).max() > 0.1


@pytest.mark.parametrize("branch", [0, 1, 2])
def test_a_cut_graph_takes_them_where_it_still_has_them(unet, run, random, branch):
    made, _ = unet
    feed = {name: random.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}
    feed["x"] = random.standard_normal((2, 3, 4, 4)).astype(np.float32)
    giving, taking = made(), made()
    for model, use in ((giving, give_values), (taking, take_values)):
        take(model)
        use(model, [deep_features(model.graph)[branch]])
    given = run(ir.to_proto(giving), feed)
    (deep,) = (value for name, value in given.items() if name != "out_sample")
    (name,) = (str(value.name) for value in taking.graph.inputs if str(value.name) not in feed)
    np.testing.assert_array_equal(run(ir.to_proto(taking), {**feed, name: deep})["out_sample"], given["out_sample"])


@pytest.mark.parametrize(
    "sizes", [[(4, 4, 4)], [(3, 8, 8)], [(3, 4, 4), (3, 4, 4)], [*SIZES, (3, 2, 2)], [(0, 0, 0)]], ids=str
)
def test_a_feature_without_a_place_is_told(unet, sizes):
    made, _ = unet
    assert feature_places(made().graph, sizes) is None
