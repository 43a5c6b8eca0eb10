"""Float16 for devices other than CUDA, checked on a processor: what the graph means, and that overflow shows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper

from tintype.kernels.registry import HALF_TARGETS, complete_types, finish, kernels_for, lower

BUNDLE = Path(__file__).parents[3] / "models/postcard/bundle"
FEEDS = {
    "text_encoder": {"input_ids": ((2, 77), np.int64)},
    "unet": {
        "sample": ((2, 4, 16, 16), np.float32),
        "timestep": ((1,), np.float32),
        "encoder_hidden_states": ((2, 77, 128), np.float32),
    },
    "vae_decoder": {"latent_sample": ((1, 4, 16, 16), np.float32)},
    "vae_encoder": {"sample": ((1, 3, 64, 64), np.float32)},
}
HALF_GATE_DB = 50.0


def _run(model, feed, path):
    ir.save(model, path, external_data=f"{path.name}_data")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"]).run(None, feed)[0]


@pytest.mark.parametrize("attention", [True, False])
@pytest.mark.parametrize("role", FEEDS)
def test_webgpus_half_graph_means_the_same_and_its_weights_take_half_the_room(tmp_path, random, role, attention):
    feed = {name: random.standard_normal(shape).astype(kind) for name, (shape, kind) in FEEDS[role].items()}
    feed |= {name: np.array([601.0], np.float32) for name in feed if name == "timestep"}
    feed |= {name: random.integers(0, 900, shape) for name, (shape, kind) in FEEDS[role].items() if kind is np.int64}
    results, weights = [], []
    for able in ([], ["float16"]):
        model = ir.load(BUNDLE / role / "model.onnx")
        able = [*able, *(["attention"] if attention else [])]
        lower(model, "webgpu", kernels=kernels_for("webgpu", able))
        assert (finish(model, "webgpu", able) > 0) == ("float16" in able)
        results.append(_run(model, feed, tmp_path / f"{len(results)}.onnx"))
        weights.append((tmp_path / f"{len(weights)}.onnx_data").stat().st_size)
    assert results[1].dtype == np.float32
    error = np.mean((results[1].astype(np.float64) - results[0]) ** 2)
    assert 10 * np.log10(np.ptp(results[0]) ** 2 / error) >= HALF_GATE_DB
    assert weights[1] < 0.6 * weights[0]


@pytest.mark.parametrize("target", ["webgpu", "directml", "cpu", "openvino"])
def test_half_is_for_devices_that_have_it_and_for_balanced_builds(target):
    for able, exactness in ((["float16"], "balanced"), (["float16"], "exact"), ([], "balanced")):
        model = ir.load(BUNDLE / "vae_decoder/model.onnx")
        lower(model, target, kernels=kernels_for(target, able, exactness=exactness))
        wanted = target in HALF_TARGETS and able and exactness == "balanced"
        assert (finish(model, target, able, exactness=exactness) > 0) == bool(wanted)


def test_values_past_the_range_overflow_in_half_and_not_in_float(model_of, tmp_path):
    nodes = [
        helper.make_node("Mul", ["x", "large"], ["big"]),
        # Two that move numbers as they are: what a processor computes between them really lies in float16.
        helper.make_node("Transpose", ["big"], ["turned"], perm=[1, 0]),
        helper.make_node("Transpose", ["turned"], ["back"], perm=[1, 0]),
        helper.make_node("Mul", ["back", "small"], ["y"]),
    ]
    constants = {"large": np.float32(3000).reshape(()), "small": np.float32(1 / 3000).reshape(())}
    x = np.array([[1.0, 30.0], [-30.0, 2.0]], np.float32)
    given = model_of(nodes, {"x": (TensorProto.FLOAT, [2, 2])}, ["y"], constants)
    results = []
    for exactness in ("exact", "balanced"):
        model = ir.from_proto(given)
        finish(model, "webgpu", ["float16"], exactness=exactness)
        results.append(_run(model, {"x": x}, tmp_path / "model.onnx"))
    np.testing.assert_allclose(results[0], x, rtol=1e-6)
    np.testing.assert_array_equal(np.isinf(results[1]), [[False, True], [True, False]])


def test_nodes_that_kernels_put_in_get_the_type_of_what_they_take():
    model = ir.load(BUNDLE / "vae_decoder/model.onnx")
    lower(model, "webgpu", kernels=kernels_for("webgpu", ["attention"]))
    complete_types(model)
    for node in model.graph:
        for output in node.outputs:
            assert output.dtype in (ir.DataType.FLOAT, ir.DataType.INT64)
