"""GroupNormalization lowered to LayerNormalization means what it meant, at any mean."""

from __future__ import annotations

import numpy as np
import pytest
from image_groups import SHAPES
from onnx import TensorProto, helper

from tintype.kernels.cpu.group_norm import GroupNormAsLayerNorm


def _model(model_of, shape, groups, scale, bias, epsilon):
    dims = ["batch", shape[1], *(f"dim_{axis}" for axis in range(2, len(shape)))]
    node = helper.make_node("GroupNormalization", ["x", "scale", "bias"], ["y"], num_groups=groups, epsilon=epsilon)
    x = (TensorProto.FLOAT, dims)
    return model_of([node], {"x": x}, {"y": x}, {"scale": scale, "bias": bias})


@pytest.mark.parametrize(("shape", "groups"), SHAPES, ids=str)
@pytest.mark.parametrize("epsilon", [1e-5, 1e-6])
def test_group_normalization_in_any_rank_and_size(model_of, lowered, random, shape, groups, epsilon):
    scale, bias = random.standard_normal((2, shape[1]), np.float32)
    x = random.standard_normal(shape, np.float32)
    result = lowered(_model(model_of, shape, groups, scale, bias, epsilon), {"x": x})
    assert "GroupNormalization" not in result.operators
    assert result.operators.count("LayerNormalization") == 1
    expected = GroupNormAsLayerNorm.reference(x, scale, bias, groups, epsilon)
    np.testing.assert_allclose(result.after["y"], expected, atol=1e-5)
    assert result.after["y"].shape == shape


@pytest.mark.parametrize("mean", [10.0, 100.0, 1000.0])
def test_a_far_mean_costs_little_accuracy(model_of, lowered, random, mean):
    shape, groups = (2, 32, 16, 16), 8
    scale, bias = random.standard_normal((2, shape[1]), np.float32)
    x = (mean + random.standard_normal(shape)).astype(np.float32)
    result = lowered(_model(model_of, shape, groups, scale, bias, 1e-5), {"x": x})
    expected = GroupNormAsLayerNorm.reference(x, scale, bias, groups, 1e-5)
    np.testing.assert_allclose(result.after["y"], expected, atol=2e-7 * mean + 1e-5)


def test_two_norms_of_one_bias_share_it(model_of, lowered, random):
    scale, bias = random.standard_normal((2, 6), np.float32)
    nodes = [
        helper.make_node("GroupNormalization", ["x", "scale", "bias"], ["m"], num_groups=2),
        helper.make_node("GroupNormalization", ["m", "scale", "bias"], ["y"], num_groups=3),
    ]
    x = random.standard_normal((2, 6, 4, 4), np.float32)
    kind = (TensorProto.FLOAT, ["batch", 6, "height", "width"])
    model = model_of(nodes, {"x": kind}, {"m": kind, "y": kind}, {"scale": scale, "bias": bias})
    result = lowered(model, {"x": x})
    assert result.report.as_dict() == {"group_norm": 2}
    np.testing.assert_allclose(result.after["m"], result.before["m"], atol=1e-5)
    np.testing.assert_allclose(result.after["y"], result.before["y"], atol=1e-5)


def test_a_scale_that_is_computed_is_left_alone(model_of, lowered, random):
    node = helper.make_node("GroupNormalization", ["x", "scale", "bias"], ["y"], num_groups=2)
    kind = TensorProto.FLOAT
    inputs = {"x": (kind, [1, 4, 3, 3]), "scale": (kind, [4]), "bias": (kind, [4])}
    model = model_of([node], inputs, {"y": inputs["x"]}, {})
    feed = {
        "x": random.standard_normal((1, 4, 3, 3), np.float32),
        "scale": random.standard_normal(4, np.float32),
        "bias": random.standard_normal(4, np.float32),
    }
    result = lowered(model, feed)
    assert result.operators == ["GroupNormalization"]
    np.testing.assert_array_equal(result.after["y"], result.before["y"])
