"""Builds for one shape whose kernels are timed: once, the choice is kept, and large weights are shared."""

from __future__ import annotations

import json
import os

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tintype.engine import BuildOptions, build_id, cache_entries, clear_cache, ensure_build, has_ability, open_role
from tintype.engine.build import cache as caching
from tintype.engine.build import lower
from tintype.engine.build.cache import bytes_on_disk, damage, read_report, sweep_weights, weights_folder
from tintype.engine.build.measure import AS_IS, CostTable, Way, fastest, psnr_db, refusals

pytestmark = pytest.mark.slow

OPTIONS = BuildOptions.for_shape({"batch": 1, "height": 24, "width": 16, "sequence": 5}, threads=1, timed=True)
OTHER = BuildOptions.for_shape({"batch": 2, "height": 8, "width": 8, "sequence": 5}, threads=1, timed=True)


def _write_unet(path):
    """out = conv3(silu(conv3(x))) + mean(words @ k), x (batch, 64, height, width); 2 MiB of weights."""
    random = np.random.default_rng(3)
    constants = {
        "first": (random.standard_normal((512, 64, 3, 3)) / 24).astype(np.float32),
        "second": (random.standard_normal((64, 512, 3, 3)) / 68).astype(np.float32),
        "k": random.standard_normal((8, 64)).astype(np.float32),
        "axes": np.array([1], np.int64),
        "last": np.array([2, 3], np.int64),
    }
    nodes = [
        helper.make_node("Conv", ["sample", "first"], ["a"], name="first", pads=[1, 1, 1, 1]),
        helper.make_node("Sigmoid", ["a"], ["gate"], name="sigmoid"),
        helper.make_node("Mul", ["a", "gate"], ["b"], name="mul"),
        helper.make_node("Conv", ["b", "second"], ["c"], name="second", pads=[1, 1, 1, 1]),
        helper.make_node("MatMul", ["encoder_hidden_states", "k"], ["key"], name="key"),
        helper.make_node("ReduceMean", ["key", "axes"], ["mean"], name="mean", keepdims=0),
        helper.make_node("Unsqueeze", ["mean", "last"], ["spread"], name="spread"),
        helper.make_node("Add", ["c", "spread"], ["out_sample"], name="add"),
    ]
    image = ["batch", 64, "height", "width"]
    inputs = [("sample", image), ("encoder_hidden_states", ["batch", "sequence", 8])]
    graph = helper.make_graph(
        nodes,
        "unet",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs],
        [helper.make_tensor_value_info("out_sample", TensorProto.FLOAT, image)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    onnx.save(onnx.shape_inference.infer_shapes(model, strict_mode=True), path)
    return constants


@pytest.fixture
def unet(bundle):
    constants = _write_unet(bundle.graph_path("denoiser"))
    return bundle, constants


def _feed(random, batch, height, width):
    return {
        "sample": random.standard_normal((batch, 64, height, width)).astype(np.float32),
        "encoder_hidden_states": random.standard_normal((batch, 5, 8)).astype(np.float32),
    }


def _expected(feed, constants):
    def conv(x, weight):
        padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (1, 1), (1, 1)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
        return np.einsum("bchwij,kcij->bkhw", windows, weight, optimize=True)

    hidden = conv(feed["sample"], constants["first"])
    hidden = conv(hidden / (1 + np.exp(-hidden)), constants["second"])
    return hidden + (feed["encoder_hidden_states"] @ constants["k"]).mean(axis=1)[:, :, None, None]


@pytest.mark.long
def test_every_layer_is_measured_and_the_result_is_right(unet, cpu, cache):
    bundle, constants = unet
    feed = _feed(np.random.default_rng(0), 1, 24, 16)
    with open_role(bundle, "denoiser", cpu, options=OPTIONS) as session:
        assert session.threads == 1
        assert set(session.input_names) == {"sample", "encoder_hidden_states"}
        result = session.run(feed)["out_sample"]
    assert psnr_db(_expected(feed, constants), result) >= 100
    choices = read_report(ensure_build(bundle, "denoiser", cpu, options=OPTIONS))["choices"]
    assert [choice["node"] for choice in choices] == ["first", "second"]
    for choice in choices:
        ours = {"native_winograd_few"} if has_ability(cpu, "native") else set()
        assert set(choice["ways"]) == {AS_IS, "winograd2", "winograd4", "winograd6"} | ours
        assert choice["chosen"] in choice["ways"]
        assert all(way["seconds"] > 0 and way["psnr_db"] > 90 for way in choice["ways"].values())
        sizes = {name: way["weight_bytes"] for name, way in choice["ways"].items()}
        assert sizes["winograd6"] > sizes["winograd4"] > sizes["winograd2"] > sizes[AS_IS]


def _write_rounded_conv(path):
    """A convolution of 8-bit integers whose input is rounded between -0.1 and 0.1, its output within four deviations of
    what numbers of an eighth of that range give."""
    random = np.random.default_rng(5)
    deviation = 0.025 * 0.01 * 64 / np.sqrt(3) * np.sqrt(32 * 9)
    constants = {
        "in_step": np.array(0.1 / 128, np.float32), "zero": np.array(128, np.uint8),
        "integers": random.integers(-64, 65, (32, 32, 3, 3), dtype=np.int8),
        "weight_step": np.full(32, 0.01, np.float32), "none": np.zeros(32, np.int8),
        "out_step": np.array(4 * deviation / 128, np.float32),
    }  # fmt: skip
    text = """<ir_version: 10, opset_import: ["" : 20]>
        graph (float[1, 32, 16, 16] x) => (float[1, 32, 16, 16] y) {
            in_8 = QuantizeLinear (x, in_step, zero)
            given = DequantizeLinear (in_8, in_step, zero)
            weight = DequantizeLinear <axis = 0> (integers, weight_step, none)
            made = Conv <pads = [1, 1, 1, 1]> (given, weight)
            out_8 = QuantizeLinear (made, out_step, zero)
            y = DequantizeLinear (out_8, out_step, zero)
        }"""
    model = onnx.parser.parse_model(text)
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in constants.items())
    onnx.save(onnx.shape_inference.infer_shapes(model), path)


def test_a_way_is_judged_on_numbers_that_the_layers_roundings_keep(cpu, tmp_path):
    """A way that doesn't round its output isn't wrong where another one cuts off what random numbers give."""
    if not has_ability(cpu, "native_integers"):
        pytest.skip("this processor adds up no products of four bytes")
    _write_rounded_conv(tmp_path / "conv.onnx")
    (tmp_path / "build").mkdir()
    options = BuildOptions(dims=(("batch", 1),), threads=1, timed=True)
    job = lower.Job(source=tmp_path / "conv.onnx", folder=tmp_path / "build", target=cpu, options=options)
    (choice,) = lower.make_build(job)["choices"]
    assert choice["ways"]["native_integer_conv"]["psnr_db"] > 50  # 15 if it were judged on normal numbers
    assert "native_integer_conv" not in choice["refused"]


def test_what_depends_on_the_prompt_runs_once(unet, cpu, cache):
    bundle, _ = unet
    feed = _feed(np.random.default_rng(1), 1, 24, 16)
    folder = ensure_build(bundle, "denoiser", cpu, options=OPTIONS)
    once = onnx.load(folder / "once.onnx", load_external_data=False)
    assert "MatMul" in {node.op_type for node in once.graph.node}
    step = onnx.load(folder / "model.onnx", load_external_data=False)
    assert "encoder_hidden_states" not in {value.name for value in step.graph.input}
    with open_role(bundle, "denoiser", cpu, options=OPTIONS) as session:
        held = session.hold({"encoder_hidden_states": feed["encoder_hidden_states"]})
        apart = held.run({"sample": feed["sample"]})["out_sample"]
        np.testing.assert_array_equal(apart, session.run(feed)["out_sample"])


@pytest.mark.long
def test_a_build_made_again_chooses_the_same(unet, cpu, cache):
    bundle, _ = unet
    folder = ensure_build(bundle, "denoiser", cpu, options=OPTIONS)
    first = build_id(folder)
    (folder / "model.onnx").unlink()
    assert damage(folder) is not None
    assert build_id(ensure_build(bundle, "denoiser", cpu, options=OPTIONS)) == first
    (table,) = (path for path in (cache / "costs").iterdir() if path.name != "lowering.json")
    known = json.loads(table.read_text())
    for ways in known.values():  # a machine on which nothing but winograd2 is fast
        for name, way in ways.items():
            way["seconds"] = 0.001 if name == "winograd2" else 1.0
    table.write_text(json.dumps(known))
    (folder / "model.onnx").unlink()
    folder = ensure_build(bundle, "denoiser", cpu, options=OPTIONS)
    assert read_report(folder)["kernels"]["winograd2"] == 2
    assert folder.name + "-" in build_id(folder)
    (folder / "model.onnx").unlink()
    table.write_text("nonsense")  # measured again, not an error
    assert damage(ensure_build(bundle, "denoiser", cpu, options=OPTIONS)) is None


@pytest.mark.long
def test_builds_of_two_shapes_share_large_weights(unet, cpu, cache):
    bundle, _ = unet
    folders = [ensure_build(bundle, "denoiser", cpu, options=options) for options in (OPTIONS, OTHER)]
    weights = [{path.name: path.stat() for path in (folder / "weights").iterdir()} for folder in folders]
    assert all(weights)
    for name in set(weights[0]) & set(weights[1]):
        assert weights[0][name].st_ino == weights[1][name].st_ino
    assert {path.name for path in weights_folder().iterdir()} == set(weights[0]) | set(weights[1])
    assert bytes_on_disk([cache]) <= sum(entry.bytes for entry in cache_entries()) + bytes_on_disk([cache / "costs"])
    assert all(damage(folder) is None for folder in folders)
    freed = bytes_on_disk([cache / name for name in ("builds", "weights", "costs")])
    assert clear_cache() == freed
    assert list(weights_folder().iterdir()) == []


@pytest.mark.long
def test_a_damaged_shared_weight_is_noticed_and_not_shared_again(unet, cpu, cache):
    bundle, constants = unet
    folder = ensure_build(bundle, "denoiser", cpu, options=OPTIONS)
    weight = next((folder / "weights").iterdir())
    data = bytearray(weight.read_bytes())
    data[100] ^= 1
    weight.write_bytes(data)
    assert "changed bytes" in str(damage(folder))
    feed = _feed(np.random.default_rng(0), 1, 24, 16)
    with open_role(bundle, "denoiser", cpu, options=OPTIONS) as session:
        assert psnr_db(_expected(feed, constants), session.run(feed)["out_sample"]) >= 100


def test_weights_that_no_build_holds_are_swept_when_they_are_old(cache, monkeypatch):
    weights_folder().mkdir(parents=True)
    alone, linked = weights_folder() / "alone", weights_folder() / "linked"
    alone.write_bytes(b"x")
    linked.write_bytes(b"y")
    os.link(linked, cache / "elsewhere")
    sweep_weights()
    assert alone.exists()  # it may be in the making
    monkeypatch.setattr(caching, "SWEEP_SECONDS", -1)
    sweep_weights()
    assert not alone.exists()
    assert linked.exists()


@pytest.mark.long
def test_mapped_builds_take_no_larger_weights(unet, cpu, cache):
    bundle, constants = unet
    options = BuildOptions.for_shape(dict(OPTIONS.dims), mapped=True, threads=1, timed=True)
    folder = ensure_build(bundle, "denoiser", cpu, options=options)
    for choice in read_report(folder)["choices"]:
        sizes = {name: way["weight_bytes"] for name, way in choice["ways"].items()}
        assert sizes[choice["chosen"]] <= 1.01 * sizes[AS_IS]  # a bias of zeros may come with it
        assert choice["chosen"] not in ("winograd2", "winograd4", "winograd6")
    feed = _feed(np.random.default_rng(0), 1, 24, 16)
    with open_role(bundle, "denoiser", cpu, options=options) as session:
        assert psnr_db(_expected(feed, constants), session.run(feed)["out_sample"]) >= 100


def test_the_choice_goes_by_time_then_size_and_never_below_the_gate():
    ways = {
        AS_IS: Way(1.0, 100_000, 200.0),
        "fast": Way(0.50, 400_000, 130.0),
        "small": Way(0.51, 150_000, 130.0),
        "wrong": Way(0.10, 100_000, 50.0),
    }
    gates = {"fast": 90.0, "small": 90.0, "wrong": 90.0}
    assert refusals(ways, gates) == {"wrong": "below 90 dB"}
    assert fastest(ways, refusals(ways, gates)) == "small"
    assert fastest(ways, refusals(ways, {**gates, "wrong": 40.0})) == "wrong"
    assert set(refusals(ways, gates, 0)) == {"fast", "small", "wrong"}
    assert fastest(ways, refusals(ways, gates, 0)) == AS_IS
    assert fastest({AS_IS: ways[AS_IS]}, ()) == AS_IS


def test_tables_of_two_processes_are_joined(tmp_path):
    path = tmp_path / "costs" / "table.json"
    first, second = CostTable.read(path), CostTable.read(path)
    first.known["a"] = {AS_IS: Way(1.0, 1, 200.0)}
    second.known["b"] = {AS_IS: Way(2.0, 1, 200.0)}
    first.write()
    second.write()
    assert set(CostTable.read(path).known) == {"a", "b"}


def test_another_exactness_is_refused():
    with pytest.raises(ValueError, match="exactness is 'fast'"):
        BuildOptions(exactness="fast")
