"""Graphs that take LoRAs: as one with merged weights gives, for each precision, however they are held and cut."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from tintype.bundle import open_bundle
from tintype.engine import BuildOptions, adaptable_shapes, build_key, graph_session, open_role, resolve_provider
from tintype.engine.build.analyse import analysis_of
from tintype.engine.build.lower import Job
from tintype.kernels.cpu.product_conv import float_constant
from tintype.kernels.graph.low_rank import adaptable_layers
from tintype.uses import BY_INPUT, BY_OUTPUT, CROSS_ATTENTION, DEEP_FEATURES, LAYERS, Cut, GraphRef, LowRank

pytestmark = pytest.mark.slow  # graphs are built by the dozen

DIMS = {"batch": 2, "height": 16, "width": 16, "sequence": 77}
RANK = 8


@pytest.fixture(scope="module")
def postcard():
    return open_bundle("postcard")


@pytest.fixture(scope="module")
def pairs(postcard):
    """By layer (down, up), whose product is half as large as a usual weight of that layer."""
    random, found = np.random.default_rng(5), {}
    for name, (outputs, inputs, *kernel) in adaptable_shapes(postcard, GraphRef("denoiser")).shapes.items():
        down = random.standard_normal((RANK, inputs, *kernel)).astype(np.float32)
        up = random.standard_normal((outputs, RANK)).astype(np.float32)
        area = inputs * int(np.prod(kernel))
        found[name] = down, up * np.float32(0.25 / np.sqrt(RANK * area))
    return found


@pytest.fixture(scope="module")
def scales(postcard):
    """By what is scaled and layer, 0.5 to 1.5 for each output or input."""
    random = np.random.default_rng(6)
    shapes = adaptable_shapes(postcard, GraphRef("denoiser")).shapes
    return {
        scaled: {name: random.uniform(0.5, 1.5, shape[axis]).astype(np.float32) for name, shape in shapes.items()}
        for axis, scaled in enumerate((BY_OUTPUT, BY_INPUT))
    }


def told(session, pairs, scales=None):
    """What a session takes of them."""
    inputs = {}
    for name, scale in ({} if scales is None else scales).items():
        if f"lora.{name}.scale" in session.input_names:
            inputs[f"lora.{name}.scale"] = scale.reshape(session.input_shapes[f"lora.{name}.scale"])
    for name, (down, up) in pairs.items():
        if f"lora.{name}.down" in session.input_names:
            is_conv = down.ndim == 4
            inputs[f"lora.{name}.down"] = down if is_conv else np.ascontiguousarray(down.T)
            inputs[f"lora.{name}.up"] = up[..., np.newaxis, np.newaxis] if is_conv else np.ascontiguousarray(up.T)
    return inputs


@pytest.fixture(scope="module")
def merged(postcard, pairs, scales, tmp_path_factory):
    """By tier, and by what is scaled, what postcard's denoiser gives whose weights, int8 or half, are floats with the
    pairs added."""
    answers = {}
    for layers in (*LAYERS, BY_OUTPUT, BY_INPUT):
        model = ir.load(postcard.graph_path("denoiser"))
        among = adaptable_shapes(postcard, GraphRef("denoiser")).among
        for name, layer in adaptable_layers(model.graph).items():
            if layers in LAYERS and LAYERS.index(among[name]) > LAYERS.index(layers):
                continue
            weight, (down, up) = float_constant(layer.node.inputs[1]), pairs[name]
            delta = (up @ down.reshape(RANK, -1)).reshape(layer.shape)
            turned = weight.shape != layer.shape or (layer.node.op_type == "MatMul")
            if layers in scales:
                along = (layers == BY_INPUT) != turned  # which axis is scaled
                sizes = [-1 if axis == int(along) else 1 for axis in range(weight.ndim)]
                weight = weight * scales[layers][name].reshape(sizes)
            whole = np.ascontiguousarray(weight + (delta.T if turned else delta))
            value = ir.Value(name=f"{name}.merged", const_value=ir.tensor(whole, name=f"{name}.merged"))
            value.shape, value.dtype = ir.Shape(whole.shape), ir.DataType.FLOAT
            model.graph.register_initializer(value)
            layer.node.replace_input_with(1, value)
        path = tmp_path_factory.mktemp("merged") / "model.onnx"
        ir.save(model, path, external_data="model.onnx_data")
        options = BuildOptions.for_shape(DIMS, exactness="exact", threads=1)
        with graph_session(path, options=options) as session:
            answers[layers] = session.run(usual(session))["out_sample"]
    return answers


def usual(session):
    """The same whatever other inputs there are."""
    random = np.random.default_rng(0)
    shapes = {name: session.input_shapes[name] for name in ("sample", "timestep", "encoder_hidden_states")}
    return {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def snr_db(one: np.ndarray, other: np.ndarray) -> float:
    return float(10 * np.log10(np.var(other) / np.mean((one - other) ** 2)))


@pytest.mark.parametrize("way", [{}, {"segment_bytes": 2**20}], ids=["packed", "segments"])
@pytest.mark.parametrize("layers", LAYERS)
def test_it_gives_what_the_graph_with_merged_weights_does(postcard, pairs, merged, layers, way):
    """postcard's weights are int8 and half; exact builds compute with them in float, balanced ones round more."""
    for exactness, least in (("exact", 60.0), ("balanced", 35.0)):
        low_rank = LowRank(layers, RANK)
        options = BuildOptions.for_shape(DIMS, exactness=exactness, threads=1, low_rank=low_rank, **way)
        with open_role(postcard, "denoiser", resolve_provider("cpu"), options=options) as session:
            inputs = usual(session)
            found = session.run({**inputs, **told(session, pairs)})["out_sample"]
            nothing = session.run({**inputs, **{n: np.zeros_like(a) for n, a in told(session, pairs).items()}})
        near = snr_db(found, merged[layers])
        print(f"{layers} {exactness}: {near:.1f} dB, without it {snr_db(nothing['out_sample'], merged[layers]):.1f}")
        assert near >= least
        assert snr_db(nothing["out_sample"], merged[layers]) < 25


@pytest.mark.parametrize("way", [{}, {"segment_bytes": 2**20}], ids=["packed", "segments"])
@pytest.mark.parametrize("scaled", [BY_OUTPUT, BY_INPUT])
def test_products_are_scaled_and_biases_are_not(postcard, pairs, scales, merged, scaled, way):
    """As a DoRA's merged weights: of every layer, GEGLUs and convolutions of int8 among them."""
    for exactness, least in (("exact", 60.0), ("balanced", 30.0)):
        low_rank = LowRank("all", RANK, scaled)
        options = BuildOptions.for_shape(DIMS, exactness=exactness, threads=1, low_rank=low_rank, **way)
        with open_role(postcard, "denoiser", resolve_provider("cpu"), options=options) as session:
            inputs = {**usual(session), **told(session, pairs, scales[scaled])}
            assert {name for name in session.input_names if name.endswith(".scale")} <= inputs.keys()
            found = session.run(inputs)["out_sample"]
            ones = {name: np.ones_like(array) for name, array in inputs.items() if name.endswith(".scale")}
            without = session.run({**inputs, **ones})["out_sample"]
        near = snr_db(found, merged[scaled])
        print(f"{scaled} {exactness}: {near:.1f} dB, without it {snr_db(without, merged[scaled]):.1f}")
        assert near >= least
        assert snr_db(without, merged[scaled]) < 20
        assert snr_db(without, merged["all"]) >= least


@pytest.mark.parametrize("scaled", ["", BY_OUTPUT, BY_INPUT], ids=["plain", BY_OUTPUT, BY_INPUT])
@pytest.mark.parametrize("values", [DEEP_FEATURES, CROSS_ATTENTION])
def test_of_the_two_graphs_of_a_cut_one_gives_what_the_other_takes(postcard, pairs, scales, merged, values, scaled):
    given, cpu = {}, resolve_provider("cpu")
    for takes in (False, True):
        options = BuildOptions.for_shape(
            DIMS, exactness="exact", threads=1, cut=Cut(values, takes), low_rank=LowRank("all", RANK, scaled)
        )
        with open_role(postcard, "denoiser", cpu, options=options) as session:
            known = told(session, pairs, scales.get(scaled))
            assert {n for n in session.input_names if n.startswith("lora.")} == set(known)
            assert len(known) == (3 if scaled else 2) * len(pairs)
            outputs = session.run({**usual(session), **given, **known})
        assert snr_db(outputs.pop("out_sample"), merged[scaled or "all"]) >= 60
        given = outputs


@pytest.mark.parametrize("scaled", ["", BY_OUTPUT, BY_INPUT], ids=["plain", BY_OUTPUT, BY_INPUT])
def test_what_words_alone_decide_is_still_computed_once_a_prompt(postcard, pairs, scaled):
    options = BuildOptions.for_shape(DIMS, exactness="exact", threads=1, low_rank=LowRank("attention", RANK, scaled))
    with open_role(postcard, "denoiser", resolve_provider("cpu"), options=options) as session:
        keys = {
            f"lora.{name}.{part}"
            for name in pairs
            if name.endswith(("attn2.to_k", "attn2.to_v"))
            for part in ("down", "up", *(["scale"] if scaled else []))
        }
        once = {name for name in session.once_names if name.startswith("lora.")}
        assert keys <= once
        assert all(scaled == BY_OUTPUT and name.endswith(".scale") for name in once - keys)  # times biases


def test_the_key_and_the_job_know_the_pattern_and_nothing_else(postcard):
    cpu = resolve_provider("cpu")
    patterns = [None, LowRank("attention", 4), LowRank("attention", 8), LowRank("all", 8)]
    patterns += [LowRank("all", 8, scaled) for scaled in (BY_OUTPUT, BY_INPUT)]
    options = [BuildOptions.for_shape(DIMS, threads=1, low_rank=each) for each in patterns]
    assert len({build_key(postcard, "denoiser", cpu, options=each) for each in options}) == len(patterns)
    for each in options:
        job = Job(source=Path("/a"), folder=Path("/b"), target=cpu, options=each)
        assert Job.from_dict(json.loads(json.dumps(job.as_dict()))) == job


def test_what_it_is_told_counts_among_what_a_graph_takes(postcard, pairs):
    plain, told_, scaled = (
        analysis_of(postcard, GraphRef("denoiser"), BuildOptions.for_shape(DIMS, low_rank=each))
        for each in (None, LowRank("all", RANK), LowRank("all", RANK, BY_OUTPUT))
    )
    assert told_.taken_bytes == sum(down.nbytes + up.nbytes for down, up in pairs.values())
    assert scaled.taken_bytes == told_.taken_bytes + sum(4 * len(up) for _, up in pairs.values())
    assert plain.multiplications < told_.multiplications < plain.multiplications * 2
    assert plain.taken_bytes == 0


def test_layers_of_a_graph_are_known_by_their_names_and_shapes(postcard):
    known = adaptable_shapes(postcard, GraphRef("text_encoder"))
    assert known.shapes["encoder.layers.0.mlp.fc1"] == (512, 128)
    assert known.among["encoder.layers.0.mlp.fc1"] == "transformer"
    assert known.among["encoder.layers.0.self_attn.out_proj"] == "attention"
    denoiser = adaptable_shapes(postcard, GraphRef("denoiser"))
    assert denoiser.shapes["down_blocks.0.resnets.0.conv1"] == (32, 32, 3, 3)
    assert {denoiser.among[name] for name in ("conv_in", "down_blocks.0.resnets.0.time_emb_proj")} == {"all"}
