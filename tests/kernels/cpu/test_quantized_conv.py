"""Convolutions stored as QuantizeLinear/DequantizeLinear run as QLinearConv."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from tintype.engine import graph_session


def _model(model_of, weight, bias, input_step, output_step, stride):
    channels = weight.shape[0]
    scale = (np.abs(weight).max(axis=(1, 2, 3)) / 127).astype(np.float32)
    bias_scale = (scale * input_step).astype(np.float32)
    constants = {
        "weight": np.rint(weight / scale[:, None, None, None]).astype(np.int8),
        "weight_scale": scale,
        "weight_zero": np.zeros(channels, np.int8),
        "bias": np.rint(bias / bias_scale).astype(np.int32),
        "bias_scale": bias_scale,
        "bias_zero": np.zeros(channels, np.int32),
        "input_step": np.array(input_step, np.float32),
        "output_step": np.array(output_step, np.float32),
        "middle": np.array(128, np.uint8),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "input_step", "middle"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "input_step", "middle"], ["xd"]),
        helper.make_node("DequantizeLinear", ["weight", "weight_scale", "weight_zero"], ["wd"], axis=0),
        helper.make_node("DequantizeLinear", ["bias", "bias_scale", "bias_zero"], ["bd"], axis=0),
        helper.make_node("Conv", ["xd", "wd", "bd"], ["c"], pads=[1, 1, 1, 1], strides=[stride, stride]),
        helper.make_node("QuantizeLinear", ["c", "output_step", "middle"], ["cq"]),
        helper.make_node("DequantizeLinear", ["cq", "output_step", "middle"], ["y"]),
    ]
    inputs = {"x": (TensorProto.FLOAT, ["batch", weight.shape[1], "height", "width"])}
    return model_of(nodes, inputs, ["y"], constants)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_quantized_convolution_is_one_integer_node_at_every_size(model_of, tmp_path, random, stride):
    weight = random.standard_normal((6, 5, 3, 3)).astype(np.float32) / 7
    bias = random.standard_normal(6).astype(np.float32)
    path, step = tmp_path / "model.onnx", 14 / 255
    model = _model(model_of, weight, bias, 10 / 255, step, stride)
    onnx.save(model, path)
    # Not ONNX Runtime as it comes, whose sums saturate on a processor with AVX2 and without VNNI.
    rounded = ReferenceEvaluator(model)
    with graph_session(path, threads=1) as lowered:
        assert lowered.placement.count("QLinearConv") == 1
        assert lowered.placement.count("Conv") == 0
        for batch, height, width in ((1, 8, 8), (2, 7, 13), (4, 1, 1), (3, 32, 20)):
            x = random.standard_normal((batch, 5, height, width)).astype(np.float32)
            result = lowered.run({"x": x})["y"]
            off = np.abs(result - rounded.run(None, {"x": x})[0])
            assert off.max() < 1.01 * step
            assert (off > 0.01 * step).mean() < 0.01  # what lies between two steps may go to either
            np.testing.assert_allclose(result, _reference(x, weight, bias, stride), atol=0.2)


def _reference(x, weight, bias, stride):
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))[:, :, ::stride, ::stride]
    return np.einsum("bchwij,kcij->bkhw", windows, weight) + bias[:, None, None]
