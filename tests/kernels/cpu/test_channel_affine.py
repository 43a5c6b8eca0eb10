"""Scale and shift by channel as one node: the same function in any size, and left alone where it is none."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from tintype.kernels.cpu.channel_affine import ChannelAffineAsBatchNorm
from tintype.kernels.graph import choice

KERNEL = ChannelAffineAsBatchNorm()


def _model(model_of, shape, scale, bias, *, scale_first=False, dims=None):
    order = ["scale", "x"] if scale_first else ["x", "scale"]
    nodes = [
        helper.make_node("Mul", order, ["scaled"], name="scale_it"),
        helper.make_node("Add", ["bias", "scaled"] if scale_first else ["scaled", "bias"], ["y"], name="shift_it"),
    ]
    inputs = {"x": (TensorProto.FLOAT, dims or list(shape))}
    return model_of(nodes, inputs, ["y"], {"scale": scale, "bias": bias})


@pytest.mark.parametrize("shape", [(1, 3, 5), (2, 7, 1, 1), (4, 16, 9, 11), (3, 5, 2, 3, 4)], ids=str)
@pytest.mark.parametrize("scale_first", [False, True])
def test_any_rank_and_size(model_of, applied, random, shape, scale_first):
    broadcast = (shape[1],) + (1,) * (len(shape) - 2)
    scale, bias = random.standard_normal((2, *broadcast), np.float32)
    x = random.standard_normal(shape, np.float32)
    result = applied(_model(model_of, shape, scale, bias[np.newaxis], scale_first=scale_first), {"x": x}, KERNEL)
    assert result.operators == ["BatchNormalization"]
    np.testing.assert_allclose(result.after["y"], KERNEL.reference(x, scale.ravel(), bias.ravel()), atol=1e-6)
    np.testing.assert_allclose(result.after["y"], result.before["y"], atol=1e-6)


def test_it_is_what_a_lowered_group_normalization_ends_with(model_of, lowered, random):
    scale, bias = random.standard_normal((2, 6), np.float32)
    node = helper.make_node("GroupNormalization", ["x", "scale", "bias"], ["y"], num_groups=3)
    kind = (TensorProto.FLOAT, [2, 6, 4, 4])
    model = model_of([node], {"x": kind}, {"y": kind}, {"scale": scale, "bias": bias})
    operators = lowered(model, {"x": random.standard_normal((2, 6, 4, 4), np.float32)}).operators
    assert operators[-2:] == ["Mul", "Add"]


@pytest.mark.parametrize("shape", [(6,), (1, 6), (1, 1), (6, 4, 6)], ids=str)
def test_what_is_no_number_by_channel_is_left_alone(model_of, random, shape):
    scale = random.standard_normal(shape, np.float32)
    bias = random.standard_normal((6, 1, 1), np.float32)
    model = ir.from_proto(_model(model_of, (2, 6, 4, 6), scale, bias))
    assert list(choice.layers(model.graph, [KERNEL])) == []


def test_an_image_of_any_size_is_left_alone(model_of, random):
    scale, bias = random.standard_normal((2, 6, 1, 1), np.float32)
    model = ir.from_proto(_model(model_of, (), scale, bias, dims=["batch", 6, "height", "width"]))
    assert list(choice.layers(model.graph, [KERNEL])) == []
