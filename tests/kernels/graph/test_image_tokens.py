"""Cross-attentions that take keys and values of pictures: what is added is numpy's, in each form of a graph."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from tintype.kernels.graph.image_tokens import cross_attention_layers, reference, take_image_tokens

BATCH, QUERIES, WIDTH, HEADS, WORDS, TOKENS = 2, 6, 8, 2, 5, 3
LAYER = "down_blocks.0.attentions.0.transformer_blocks.0.attn2"
BY_HEADS = [0, 0, HEADS, WIDTH // HEADS]


@pytest.fixture
def attending() -> Callable[..., ir.Model]:
    """An attention of (batch, queries, width) to words of the same width, its heads joined behind it or not."""

    def made(joined: bool = True) -> ir.Model:
        def heads(name: str) -> list[onnx.NodeProto]:
            split = onnx.helper.make_node("Reshape", [name, "apart"], [f"{name}_split"], f"{LAYER}/{name}_split")
            turned = onnx.helper.make_node("Transpose", [f"{name}_split"], [f"{name}_heads"], perm=[0, 2, 1, 3])
            return [split, turned]

        nodes = [*heads("image"), *heads("encoder_hidden_states")]
        inputs = ["image_heads", *["encoder_hidden_states_heads"] * 2]
        nodes.append(onnx.helper.make_node("Attention", inputs, ["seen"], f"{LAYER}/Attention"))
        if joined:
            nodes.append(onnx.helper.make_node("Transpose", ["seen"], ["turned"], perm=[0, 2, 1, 3]))
            nodes.append(onnx.helper.make_node("Reshape", ["turned", "whole"], ["joined"]))
        nodes.append(onnx.helper.make_node("Identity", ["joined" if joined else "seen"], ["y"]))  # its reader
        sides = {"image": (BATCH, QUERIES, WIDTH), "encoder_hidden_states": (BATCH, WORDS, WIDTH)}
        shape = (BATCH, QUERIES, WIDTH) if joined else (BATCH, HEADS, QUERIES, WIDTH // HEADS)
        float_ = onnx.TensorProto.FLOAT
        graph = onnx.helper.make_graph(
            nodes,
            "attending",
            [onnx.helper.make_tensor_value_info(name, float_, size) for name, size in sides.items()],
            [onnx.helper.make_tensor_value_info("y", float_, shape)],
            [
                onnx.numpy_helper.from_array(np.array(BY_HEADS, np.int64), "apart"),
                onnx.numpy_helper.from_array(np.array([0, 0, WIDTH], np.int64), "whole"),
            ],
        )
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 23)], ir_version=10)
        return ir.serde.deserialize_model(onnx.shape_inference.infer_shapes(model))

    return made


def numbers(**shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def run(model: ir.Model, feed: dict[str, np.ndarray]) -> np.ndarray:
    proto = ir.serde.serialize_model(model)
    onnx.checker.check_model(proto, full_check=True)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {each.name: feed[each.name] for each in session.get_inputs()})[0])


def as_joined(y: np.ndarray) -> np.ndarray:
    return y if y.ndim == 3 else y.swapaxes(1, 2).reshape(BATCH, QUERIES, WIDTH)


@pytest.mark.parametrize("joined", [True, False])
@pytest.mark.parametrize("masks", [0, 1, 2])
def test_what_is_added_is_an_attention_of_its_own(attending, joined, masks):
    feed = numbers(image=(BATCH, QUERIES, WIDTH), encoder_hidden_states=(BATCH, WORDS, WIDTH))
    plain, model = as_joined(run(attending(joined), feed)), attending(joined)
    taken = take_image_tokens(model, TOKENS, masks)
    names = [f"image_tokens.{LAYER}.{part}" for part in ("key", "value")]
    assert [value.name for value in taken] == names + ([f"image_mask.{QUERIES}"] if masks else [])
    count = max(1, masks)
    tokens = dict.fromkeys(names, (BATCH, count * TOKENS, WIDTH))
    feed |= numbers(**tokens, **({f"image_mask.{QUERIES}": (masks, QUERIES, 1)} if masks else {}))
    expected = plain.astype(np.float64)
    key, value = (np.split(feed[name], count, axis=1) for name in names)
    for index in range(count):
        seen = reference(feed["image"], key[index], value[index], HEADS)
        expected = expected + seen * (feed[f"image_mask.{QUERIES}"][index] if masks else 1.0)
    np.testing.assert_allclose(as_joined(run(model, feed)), expected, atol=1e-5)


def test_values_of_zero_add_nothing(attending):
    feed = numbers(image=(BATCH, QUERIES, WIDTH), encoder_hidden_states=(BATCH, WORDS, WIDTH))
    plain, model = run(attending(), feed), attending()
    take_image_tokens(model, TOKENS)
    zeros = {str(value.name): np.zeros((BATCH, TOKENS, WIDTH), np.float32) for value in model.graph.inputs[2:]}
    np.testing.assert_array_equal(run(model, feed | zeros), plain)


def test_an_attention_that_does_not_look_at_words_is_left_alone(attending):
    model = attending()
    for value in model.graph.inputs:
        if value.name == "encoder_hidden_states":
            value.name = "others"
    assert cross_attention_layers(model.graph) == {}
    assert take_image_tokens(model, TOKENS) == []
