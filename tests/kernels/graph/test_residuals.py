"""Residuals at skip connections: added to the way up alone, from the outermost in; zeros change nothing."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from tintype.kernels.graph.dims import fold_sizes, pin
from tintype.kernels.graph.residuals import skip_channels, take_residuals
from tintype.kernels.graph.reuse import deep_features, give_values, take_values

NAMES = ["outer_residual", "inner_residual", "middle_residual"]


@pytest.fixture(params=["middle", "no-middle"])
def unet(request, model_of):
    """x -> down -> deeper (-> middle), and back up over two skip connections."""
    lowest = "middle" if request.param == "middle" else "deeper"
    nodes = [
        helper.make_node("Sin", ["x"], ["down"]),
        helper.make_node("Sigmoid", ["down"], ["deeper"]),
        *([helper.make_node("Tanh", ["deeper"], ["middle"])] if lowest == "middle" else []),
        helper.make_node("Concat", [lowest, "deeper"], ["inner"], axis=1),
        helper.make_node("Conv", ["inner", "w1"], ["up"]),
        helper.make_node("Concat", ["up", "down"], ["outer"], axis=1),
        helper.make_node("Conv", ["outer", "w0"], ["out_sample"]),
    ]
    random = np.random.default_rng(0)
    weights = {name: random.standard_normal((3, 6, 1, 1)).astype(np.float32) for name in ("w0", "w1")}
    inputs = {"x": (TensorProto.FLOAT, ["batch", 3, 4, 4])}

    def made() -> ir.Model:
        model = ir.from_proto(model_of(nodes, inputs, ["out_sample"], weights))
        pin(model, {"batch": 2})
        fold_sizes(model)
        return model

    def by_hand(x, outer, inner, middle):
        down = np.sin(x)
        deeper = 1 / (1 + np.exp(-down))
        below = np.tanh(deeper) if lowest == "middle" else deeper

        def conv(image, name):
            return np.einsum("oi,bihw->bohw", weights[name][:, :, 0, 0], image)

        up = conv(np.concatenate([below + middle, deeper + inner], axis=1), "w1")
        return conv(np.concatenate([up, down + outer], axis=1), "w0")

    return made, by_hand


def test_residuals_are_added_where_the_way_up_takes_them(unet, run, random):
    made, by_hand = unet
    model = made()
    assert skip_channels(model.graph) == [3, 3, 3]
    assert [value.name for value in take_residuals(model, NAMES)] == NAMES
    feed = {name: random.standard_normal((2, 3, 4, 4)).astype(np.float32) for name in ("x", *NAMES)}
    np.testing.assert_allclose(
        run(ir.to_proto(model), feed)["out_sample"], by_hand(feed["x"], *(feed[name] for name in NAMES)), rtol=1e-4,
        atol=1e-5,
    )  # fmt: skip
    zeros = {**feed, **{name: np.zeros((2, 3, 4, 4), np.float32) for name in NAMES}}
    plain = run(ir.to_proto(made()), {"x": feed["x"]})["out_sample"]
    np.testing.assert_array_equal(run(ir.to_proto(model), zeros)["out_sample"], plain)


@pytest.mark.parametrize("branch", [0, 1])
def test_a_cut_graph_takes_them_at_the_connections_that_it_still_has(unet, run, random, branch):
    made, _ = unet
    feed = {name: random.standard_normal((2, 3, 4, 4)).astype(np.float32) for name in ("x", *NAMES)}
    giving, taking = made(), made()
    for model, use in ((giving, give_values), (taking, take_values)):
        take_residuals(model, NAMES)
        use(model, [deep_features(model.graph)[branch]])
    given = run(ir.to_proto(giving), feed)
    (deep,) = (value for name, value in given.items() if name != "out_sample")
    (name,) = (str(value.name) for value in taking.graph.inputs if str(value.name) not in feed)
    found = run(ir.to_proto(taking), {**feed, name: deep})
    np.testing.assert_array_equal(found["out_sample"], given["out_sample"])


def test_a_graph_without_skip_connections_has_no_place_for_them(model_of):
    nodes = [helper.make_node("Sin", ["x"], ["out_sample"])]
    model = ir.from_proto(model_of(nodes, {"x": (TensorProto.FLOAT, [1, 3, 4, 4])}, ["out_sample"], {}))
    assert skip_channels(model.graph) == []
    assert take_residuals(model, []) == []
