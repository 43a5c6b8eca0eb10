"""Float16 and its islands: chosen by how large values get, and right where float16 alone would give infinity."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from tintype.engine import measure_ranges
from tintype.engine.build.ranges import NOISE_MARGIN, noise_feeds, ranges_on_noise
from tintype.kernels.graph.half import SAFE, to_half
from tintype.kernels.graph.ranges import OUTPUT, watch

FLOAT, HALF = TensorProto.FLOAT, ir.DataType.FLOAT16


@pytest.fixture
def overflowing(model_of):
    """Two convolutions and a norm whose middle goes to 1e6: as a VAE that float16 turns black."""
    random = np.random.default_rng(3)
    wide = 5e4 * random.standard_normal((8, 8, 3, 3)).astype(np.float32)
    constants = {
        "w0": random.standard_normal((8, 8, 3, 3)).astype(np.float32),
        "w1": wide,
        "w2": random.standard_normal((4, 8, 1, 1)).astype(np.float32),
        "scale": np.ones(8, np.float32),
        "bias": np.zeros(8, np.float32),
    }
    pads = {"pads": [1, 1, 1, 1], "kernel_shape": [3, 3]}
    nodes = [
        helper.make_node("Conv", ["sample", "w0"], ["a"], "first", **pads),
        helper.make_node("Conv", ["a", "w1"], ["b"], "large", **pads),
        helper.make_node("Add", ["b", "a"], ["c"], "sum"),
        helper.make_node("GroupNormalization", ["c", "scale", "bias"], ["d"], "norm", num_groups=2),
        helper.make_node("Conv", ["d", "w2"], ["y"], "last", kernel_shape=[1, 1]),
    ]
    shape = (1, 8, 6, 6)
    return model_of(nodes, {"sample": (FLOAT, shape)}, {"y": (FLOAT, (1, 4, 6, 6))}, constants, {"d": (FLOAT, shape)})


@pytest.fixture
def feed():
    return {"sample": np.random.default_rng(4).standard_normal((1, 8, 6, 6)).astype(np.float32)}


def test_ranges_are_those_of_the_values(cuda, overflowing, feed, tmp_path):
    model = ir.from_proto(overflowing)
    names = watch(model)
    assert names == ["a", "b", "c", "d", "y"]
    result, seen = cuda.run(model, feed, tmp_path)
    assert [output.name for output in model.graph.outputs] == ["y", OUTPUT]
    (expected,) = cuda.run(ir.from_proto(overflowing), feed, tmp_path)
    np.testing.assert_array_equal(result, expected)
    assert seen[4] == np.abs(result).max()


def test_only_what_comes_near_the_end_of_float16_is_kept(overflowing, feed, tmp_path):
    path = tmp_path / "graph.onnx"
    ir.save(ir.from_proto(overflowing), path, external_data="graph.data")
    found = measure_ranges(path, [feed, {"sample": feed["sample"] * 2}])
    assert set(found) == {"b", "c"}
    assert found["b"] > 65504
    assert found["b"] == pytest.approx(2 * measure_ranges(path, [feed])["b"], rel=1e-4)


def test_a_graph_without_ranges_is_measured_on_noise_with_a_margin(overflowing, tmp_path):
    path = tmp_path / "graph.onnx"
    ir.save(ir.from_proto(overflowing), path, external_data="graph.data")
    feeds = noise_feeds(ir.load(path))
    measured = measure_ranges(path, feeds)
    assert ranges_on_noise(path) == {name: size * NOISE_MARGIN for name, size in measured.items()}
    assert set(measured) == {"b", "c"}


def test_noise_for_a_denoiser_has_times_words_and_small_sizes(cuda):
    feeds = noise_feeds(ir.load(cuda.BUNDLE / "unet/model.onnx"))
    assert [float(feed["timestep"][0]) for feed in feeds] == [999.0, 500.0, 1.0]
    assert feeds[0]["sample"].shape == (1, 4, 16, 16)
    assert feeds[0]["encoder_hidden_states"].shape == (1, 77, 128)


def test_an_island_is_what_gives_or_reads_a_large_value(cuda, overflowing, feed, tmp_path):
    (expected,) = cuda.run(ir.from_proto(overflowing), feed, tmp_path)
    largest = {"b": 1e6, "c": 1e6}
    results = {}
    for name, known in (("islands", largest), ("none", {})):
        model = ir.from_proto(overflowing)
        cuda.lowered_for_cuda(model, half=True, largest=known)
        kinds = {node.op_type: node.inputs[0].dtype for node in model.graph if node.op_type != "NhwcConv"}
        convolutions = [node.inputs[0].dtype for node in model.graph if node.op_type == "NhwcConv"]
        if known:
            assert convolutions == [HALF, ir.DataType.FLOAT, HALF]
            assert kinds["SkipGroupNorm"] == ir.DataType.FLOAT
        else:
            assert set(convolutions) == {HALF} == {kinds["SkipGroupNorm"]}
        cuda.plain(model)
        (results[name],) = cuda.run(model, feed, tmp_path)
    assert cuda.psnr_db(results["islands"], expected) >= 50.0
    assert not np.isfinite(results["none"]).all()


@pytest.mark.parametrize(("size", "kept"), [(SAFE * 0.99, False), (SAFE * 1.01, True)])
def test_a_value_is_large_from_a_quarter_of_float16s_end(cuda, overflowing, size, kept):
    model = ir.from_proto(overflowing)
    cuda.lowered_for_cuda(model, half=True, largest={"a": size})
    first = next(node for node in model.graph if node.op_type == "NhwcConv")
    assert (first.inputs[0].dtype == ir.DataType.FLOAT) == kept


def test_what_moves_a_large_value_is_of_its_island(cuda, model_of, random, tmp_path):
    nodes = [
        helper.make_node("Mul", ["x", "big"], ["a"], "grow"),
        helper.make_node("Reshape", ["a", "flat"], ["b"]),
        helper.make_node("Transpose", ["b"], ["c"], perm=[1, 0]),
        helper.make_node("Mul", ["c", "small"], ["y"], "shrink"),
    ]
    constants = {"big": np.array(1e6, np.float32), "flat": np.array([4, 6]), "small": np.array(1e-6, np.float32)}
    proto = model_of(nodes, {"x": (FLOAT, (2, 2, 6))}, ["y"], constants)
    model = ir.from_proto(proto)
    cuda.lowered_for_cuda(model, half=True, largest={"a": 4e6})
    cuda.plain(model)
    x = random.standard_normal((2, 2, 6)).astype(np.float32)
    (result,) = cuda.run(model, {"x": x}, tmp_path)
    np.testing.assert_allclose(result, x.reshape(4, 6).T, rtol=2e-3, atol=1e-6)


def test_weights_stored_as_float16_are_taken_as_they_lie(cuda):
    """Not turned to float32 and back: a UNet of SDXL's size would need 10 GB for that."""
    model = ir.load(cuda.BUNDLE / "unet/model.onnx")
    stored = {
        name: value.const_value for name, value in model.graph.initializers.items()
        if value.dtype == HALF and name.endswith("weight_T_fp16")
    }  # fmt: skip
    cuda.lowered_for_cuda(model, half=True)
    used = {name: value.const_value for name, value in model.graph.initializers.items() if name in stored}
    assert len(used) == len(stored) > 0
    assert all(used[name] is tensor for name, tensor in stored.items())


def test_the_timesteps_angles_stay_float32(cuda):
    model = ir.load(cuda.BUNDLE / "unet/model.onnx")
    cuda.lowered_for_cuda(model, half=True)
    angles = [node.inputs[0].dtype for node in model.graph if node.op_type in ("Sin", "Cos")]
    assert angles == [ir.DataType.FLOAT] * 2


def test_nodes_can_be_kept_by_name(model_of):
    nodes = [helper.make_node("Mul", ["x", "x"], ["a"], "one"), helper.make_node("Mul", ["a", "a"], ["y"], "two")]
    model = ir.from_proto(model_of(nodes, {"x": (FLOAT, (3,))}, ["y"], {}))
    assert to_half(model, islands=["two"]) == 1
    kinds = {node.name: node.inputs[0].dtype for node in model.graph if node.op_type == "Mul"}
    assert kinds == {"one": HALF, "two": ir.DataType.FLOAT}
