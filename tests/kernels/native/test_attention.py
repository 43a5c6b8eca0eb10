"""Attention as one node of our own: what it means, at odd sizes, by every set of instructions."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime
import psutil
import pytest
from onnx import TensorProto, helper

from tintype.engine import has_ability, resolve_provider
from tintype.engine.device import native
from tintype.kernels.base import MICROSOFT, OWN
from tintype.kernels.graph import choice
from tintype.kernels.native.attention import NativeAttention, NativeAttentionBfloat16
from tintype.kernels.native.library import BFLOAT16

KERNEL = NativeAttention()
# batch, heads, size, queries, keys. Tiles are of 5 and 8, blocks of 8, 16 and 32 queries and of 120 keys.
SIZES = [
    (1, 1, 1, 1, 1),
    (2, 3, 7, 5, 9),
    (1, 2, 24, 33, 77),
    (2, 4, 40, 64, 120),
    (1, 2, 40, 31, 121),
    (1, 1, 64, 16, 300),
    (3, 2, 80, 17, 241),
    (1, 2, 160, 32, 64),
    (1, 1, 512, 35, 130),
]


def _model(domain, sizes, **attributes):
    batch, heads, size, queries, keys = sizes
    operator = "HeadsAttention" if domain == OWN else "MultiHeadAttention"
    node = helper.make_node(operator, ["q", "k", "v"], ["o"], name="attend", domain=domain, **attributes)
    lengths = {"q": queries, "k": keys, "v": keys}
    ports = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, length, heads * size])
        for name, length in lengths.items()
    ]
    output = helper.make_tensor_value_info("o", TensorProto.FLOAT, [batch, queries, heads * size])
    imports = [helper.make_opsetid(name, version) for name, version in (("", 20), (OWN, 1), (MICROSOFT, 1))]
    return helper.make_model(helper.make_graph([node], "graph", ports, [output]), opset_imports=imports, ir_version=10)


def _feed(random, sizes, spread=1.0):
    batch, heads, size, queries, keys = sizes
    lengths = {"q": queries, "k": keys, "v": keys}
    return {
        name: (spread * random.standard_normal((batch, length, heads * size))).astype(np.float32)
        for name, length in lengths.items()
    }


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_it_is_the_reference_by_every_set_of_instructions(instructions, run, random, sizes):
    feed, scale = _feed(random, sizes), min(0.3, 3 / np.sqrt(sizes[2]))
    expected = KERNEL.reference(*feed.values(), sizes[1], scale)
    for model in instructions(_model(OWN, sizes, heads=sizes[1], scale=scale)):
        one, two = run(model, feed, 1)["o"], run(model, feed, 2)["o"]
        np.testing.assert_allclose(one, expected, atol=1e-5)
        np.testing.assert_array_equal(one, two)


@pytest.fixture
def bfloat16() -> None:
    if not has_ability(resolve_provider("cpu"), BFLOAT16):
        pytest.skip("this processor multiplies no bfloat16")


def _rounded(array):
    """To bfloat16, the even one of two as near."""
    bits = array.view(np.uint32).astype(np.uint64)
    return (((bits + 0x7FFF + (bits >> 16 & 1)) >> 16 << 16).astype(np.uint32)).view(np.float32)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_with_bfloat16_it_is_that_of_rounded_numbers(bfloat16, run, random, sizes):
    feed, scale = _feed(random, sizes), min(0.3, 3 / np.sqrt(sizes[2]))
    kept = {"k": _rounded(feed["k"]), "v": _rounded(feed["v"])}
    log2_e = np.float32(1.44269504)
    asked = _rounded(feed["q"] * (np.float32(scale) * log2_e)) / log2_e  # scaled, then rounded
    expected = KERNEL.reference(asked, kept["k"], kept["v"], sizes[1], 1.0)
    model = _model(OWN, sizes, heads=sizes[1], scale=scale, bfloat16=1)
    one, two = run(model, feed, 1)["o"], run(model, feed, 2)["o"]
    np.testing.assert_array_equal(one, two)
    # What is left are the weights' roundings, of 2^-9 at most each, which partly cancel.
    np.testing.assert_allclose(one, expected, atol=2.0**-8 * np.abs(feed["v"]).max())
    whole = KERNEL.reference(*feed.values(), sizes[1], scale)
    assert np.square(one - whole).mean() < np.square(0.01) * whole.var() + 1e-4 * (sizes[4] == 1)


def test_with_bfloat16_what_is_lost_in_one_key_reaches_all_queries_and_none_of_another_head(bfloat16, run, random):
    sizes = (1, 2, 8, 20, 30)
    feed = _feed(random, sizes)
    feed["k"][0, 11, 3] = np.nan
    lost = np.isnan(run(_model(OWN, sizes, heads=2, scale=0.3, bfloat16=1), feed)["o"])
    assert lost[..., :8].all()
    assert not lost[..., 8:].any()


def test_a_set_without_bfloat16_refuses_it(instructions, run, random):
    plainest = instructions(_model(OWN, SIZES[1], heads=3, scale=1.0, bfloat16=1))[0]
    with pytest.raises(Exception, match="hasn't these instructions"):
        run(plainest, _feed(random, SIZES[1]))


def test_with_bfloat16_it_takes_the_place_of_multi_head_attention(bfloat16, applied, random):
    sizes = (1, 2, 40, 64, 77)
    feed, kernel = _feed(random, sizes), NativeAttentionBfloat16()
    result = applied(_model(MICROSOFT, sizes, num_heads=2), feed, kernel)
    assert result.operators == ["HeadsAttention"]
    assert kernel.lossy
    np.testing.assert_allclose(result.after["o"], result.before["o"], atol=0.02)
    assert not np.allclose(result.after["o"], result.before["o"], atol=1e-5)


def test_scores_far_apart_and_rising_from_block_to_block_are_right(instructions, run, random):
    sizes = (1, 2, 8, 40, 500)
    feed = _feed(random, sizes, 6.0)
    feed["k"] *= np.linspace(0.1, 3, 500, dtype=np.float32)[:, None]
    expected = KERNEL.reference(*feed.values(), 2, 1.0)
    for model in instructions(_model(OWN, sizes, heads=2, scale=1.0)):
        np.testing.assert_allclose(run(model, feed)["o"], expected, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("octaves", [0.5, 3, 30, 70, 300])
def test_scores_that_grow_from_key_to_key_are_weighed_alike(instructions, run, random, octaves):
    sizes = (1, 1, 8, 33, 600)
    feed = _feed(random, sizes)
    feed["q"][..., 0] = 1.0
    feed["k"][..., 0] += np.repeat(np.arange(5), 120) * np.float32(octaves * np.log(2))
    expected = KERNEL.reference(*(each.astype(np.float64) for each in feed.values()), 1, 1.0)
    for model in instructions(_model(OWN, sizes, heads=1, scale=1.0)):
        np.testing.assert_allclose(run(model, feed)["o"], expected, atol=2e-4 if octaves > 30 else 2e-5)


@pytest.mark.parametrize("name", ["q", "k", "v"])
@pytest.mark.parametrize("broken", [np.nan, np.inf])
@pytest.mark.parametrize("keys", [130, 240])
def test_nan_and_infinity_are_not_lost(instructions, run, random, name, broken, keys):
    sizes = (1, 2, 8, 40, keys)
    feed = _feed(random, sizes)
    feed[name][0, -1, 0] = broken
    for model in instructions(_model(OWN, sizes, heads=2, scale=1.0)):
        given = run(model, feed)["o"]
        assert not np.isfinite(given[0, -1, :8]).all()
        assert np.isfinite(given[0, :, 8:]).all()  # the other head


@pytest.mark.parametrize(
    ("sizes", "heads", "said"),
    [((1, 1, 513, 2, 2), 1, "512"), ((1, 1, 6, 2, 2), 4, "heads"), ((1, 1, 6, 2, 2), 0, "heads")],
)
def test_a_node_that_makes_no_sense_is_an_error(instructions, run, random, sizes, heads, said):
    with pytest.raises(Exception, match=said):
        run(_model(OWN, sizes, heads=heads, scale=1.0), _feed(random, sizes))


def test_tensors_that_do_not_go_together_are_an_error(instructions, run, random):
    feed = _feed(random, (1, 2, 4, 3, 5))
    for port, array in (("v", feed["v"][:, :4]), ("k", feed["k"][:, :, :4])):
        model = _model(OWN, (1, 2, 4, 3, 5), heads=2)
        for value in model.graph.input:
            if value.name == port:
                for dim, size in zip(value.type.tensor_type.shape.dim, array.shape, strict=True):
                    dim.dim_value = size
        with pytest.raises(Exception, match="go together"):
            run(model, feed | {port: np.ascontiguousarray(array)})


def test_what_a_call_takes_beside_its_output_is_given_back(run, instructions, random):
    """16 MiB of packed keys and values at each call, in one session."""
    if not hasattr(psutil.Process().memory_info(), "shared"):
        pytest.skip("this system counts a process's memory otherwise")
    (*_, model), sizes = instructions(_model(OWN, (1, 2, 64, 8, 16384), heads=2)), (1, 2, 64, 8, 16384)
    options = onnxruntime.SessionOptions()
    native.register(options)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feed = _feed(random, sizes)
    session.run(None, feed)
    before = psutil.Process().memory_info().rss
    for _ in range(6):
        session.run(None, feed)
    assert psutil.Process().memory_info().rss - before < 16 * 2**20


@pytest.mark.parametrize("scale", [None, 0.5])
def test_it_takes_the_place_of_multi_head_attention(instructions, applied, random, scale):
    sizes, given = (2, 4, 24, 16, 77), {} if scale is None else {"scale": scale}
    result = applied(_model(MICROSOFT, sizes, num_heads=4, **given), _feed(random, sizes), KERNEL)
    assert result.operators == ["HeadsAttention"]
    np.testing.assert_allclose(result.after["o"], result.before["o"], atol=1e-5)


def test_what_it_does_not_do_is_left_alone():
    causal = _model(MICROSOFT, (1, 2, 8, 6, 6), num_heads=2, unidirectional=1)
    wide = _model(MICROSOFT, (1, 1, 513, 6, 6), num_heads=1)
    masked = _model(MICROSOFT, (1, 2, 8, 6, 6), num_heads=2)
    masked.graph.node[0].input.extend(["", "", "bias"])
    masked.graph.input.append(helper.make_tensor_value_info("bias", TensorProto.FLOAT, [1, 2, 6, 6]))
    open_length = _model(MICROSOFT, (1, 2, 8, "queries", 6), num_heads=2)
    for model in (causal, wide, masked, open_length):
        assert list(choice.layers(ir.from_proto(model).graph, [KERNEL])) == []
    (layer,) = choice.layers(ir.from_proto(_model(MICROSOFT, (2, 4, 8, 6, 9), num_heads=4)).graph, [KERNEL])
    assert (layer.kind, layer.size, layer.describe()) == (
        "Attention",
        (12, 9, 4, 8),
        "Attention 2x6x32 2x9x32 2x9x32",
    )
