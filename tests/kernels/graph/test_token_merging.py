"""Merged tokens, against plain loops: which stay, which go into which, and what each one gets."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from tintype.kernels.graph.half import to_half
from tintype.kernels.graph.token_merging import Tokens, image_size, merge_tokens, reference, self_attentions

BATCH, CHANNELS, HEADS = 2, 8, 2


def block(model_of, tokens, *, told=False):
    """A transformer's block: a norm, self-attention with heads as they are exported, and what it began with on top.

    told: the reshapes say how many tokens there are, rather than -1.
    """
    count = tokens if told else -1
    nodes = [helper.make_node("LayerNormalization", ["x", "scale", "shift"], ["norm"], axis=-1)]
    for port in "qkv":
        nodes += [
            helper.make_node("MatMul", ["norm", f"w_{port}"], [port]),
            helper.make_node("Reshape", [port, "heads"], [f"{port}_heads"]),
            helper.make_node("Transpose", [f"{port}_heads"], [f"{port}_turned"], perm=[0, 2, 1, 3]),
        ]
    nodes += [
        helper.make_node("Attention", ["q_turned", "k_turned", "v_turned"], ["seen"]),
        helper.make_node("Transpose", ["seen"], ["seen_turned"], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", ["seen_turned", "rows"], ["seen_rows"]),
        helper.make_node("MatMul", ["seen_rows", "w_o"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["projected"]),
        helper.make_node("Add", ["projected", "x"], ["y"]),
    ]
    random = np.random.default_rng(1)
    constants = {f"w_{port}": random.standard_normal((CHANNELS, CHANNELS)).astype(np.float32) for port in "qkvo"}
    constants |= {name: random.standard_normal(CHANNELS).astype(np.float32) for name in ("scale", "shift", "bias")} | {
        "heads": np.array([BATCH, count, HEADS, CHANNELS // HEADS], np.int64),
        "rows": np.array([BATCH, count, CHANNELS], np.int64),
    }
    model = model_of(nodes, {"x": (TensorProto.FLOAT, [BATCH, tokens, CHANNELS])}, ["y"], constants)
    return ir.from_proto(model), {name: array.astype(np.float64) for name, array in constants.items()}


def attend(weights):
    """Attention of tokens to one another, in float64."""

    def heads(tokens, port):
        return (tokens @ weights[f"w_{port}"]).reshape(len(tokens), HEADS, -1).transpose(1, 0, 2)

    def run(tokens):
        queries, keys, values = (heads(tokens, port) for port in "qkv")
        scores = queries @ keys.transpose(0, 2, 1) / np.sqrt(CHANNELS // HEADS)
        shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
        seen = (shares / shares.sum(axis=-1, keepdims=True)) @ values
        return seen.transpose(1, 0, 2).reshape(len(tokens), CHANNELS) @ weights["w_o"] + weights["bias"]

    return run


def normed(tokens, weights):
    centred = tokens - tokens.mean(axis=1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + 1e-5) * weights["scale"] + weights["shift"]


@pytest.mark.parametrize("told", [False, True], ids=["open", "told"])
@pytest.mark.parametrize("ratio", [0.01, 0.3, 0.5, 0.75])
@pytest.mark.parametrize("image", [(4, 6), (5, 7), (2, 2)], ids=str)
def test_a_layer_is_what_plain_loops_make_of_it(model_of, run, random, image, ratio, told):
    tokens = image[0] * image[1]
    model, weights = block(model_of, tokens, told=told)
    x = random.standard_normal((BATCH, tokens, CHANNELS)).astype(np.float32)
    assert merge_tokens(model, ratio, image) == 1
    found = run(ir.to_proto(model), {"x": x})["y"]
    chosen = Tokens.of(image, ratio, seed=0)
    for row, result in zip(x.astype(np.float64), found, strict=True):
        expected = reference(normed(row, weights), row, chosen, attend(weights)) + row
        np.testing.assert_allclose(result, expected, atol=2e-5)
    plain = [attend(weights)(normed(row, weights)) + row for row in x.astype(np.float64)]
    assert (np.abs(found - np.stack(plain)).max() > 1e-3) == (chosen.merged > 0)


@pytest.mark.parametrize("image", [(4, 6), (5, 7), (1, 3)], ids=str)
def test_of_each_square_of_four_tokens_one_stays(image):
    height, width = image
    chosen = Tokens.of(image, 0.75, seed=3)
    assert sorted([*chosen.stay, *chosen.others]) == list(range(height * width))
    squares = [(place // width // 2, place % width // 2) for place in chosen.stay.tolist()]
    assert sorted(squares) == [(row, column) for row in range(height // 2) for column in range(width // 2)]
    assert chosen.merged == min(int(height * width * 0.75), len(chosen.others))


def test_places_that_stay_differ_from_layer_to_layer_and_not_from_time_to_time():
    one, again, other = (Tokens.of((16, 16), 0.5, seed=seed).stay.tolist() for seed in (0, 0, 1))
    assert one == again != other


def test_the_image_of_so_many_tokens_is_the_latents_halved():
    assert image_size(64 * 48, (64, 48)) == (64, 48)
    assert image_size(5 * 7, (9, 13)) == (5, 7)
    assert image_size(100, (64, 64)) is None
    assert image_size(0, (1, 1)) is None


def test_a_line_of_tokens_stays_as_it_is(model_of):
    model, _ = block(model_of, 6)
    before = [node.op_type for node in model.graph]
    assert merge_tokens(model, 0.5, (1, 6)) == 0
    assert [node.op_type for node in model.graph] == before


def test_attention_to_something_else_is_none_of_these(model_of):
    model, _ = block(model_of, 6)
    attention = next(node for node in model.graph if node.op_type == "Attention")
    (found,) = self_attentions(model.graph)
    assert found.tokens == 6
    attention.replace_input_with(1, model.graph.inputs[0])
    assert self_attentions(model.graph) == []
    assert merge_tokens(model, 0.5, (2, 3)) == 0


def test_in_float16_it_is_the_same_layer(model_of, run, random):
    model, weights = block(model_of, 24)
    x = random.standard_normal((BATCH, 24, CHANNELS)).astype(np.float32)
    merge_tokens(model, 0.5, (4, 6))
    assert to_half(model) > 20
    found = run(ir.to_proto(model), {"x": x})["y"]
    chosen = Tokens.of((4, 6), 0.5, seed=0)
    for row, result in zip(x.astype(np.float64), found, strict=True):
        expected = reference(normed(row, weights), row, chosen, attend(weights)) + row
        assert np.abs(result - expected).max() < 0.01 * np.abs(expected).max()
