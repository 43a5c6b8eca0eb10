"""Patterns of torch's first exporter become whole operators, and the graph means what it meant."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from small_encoder import TOKENS, WIDTH, WORDS, small_encoder

from tintype.export import psnr_db
from tintype.export.canonical import PortError, RolePlan, UnknownOperatorError, canonical_graph
from tintype.export.canonical.shape_inputs import reshape_target
from tintype.export.canonical.sizes import Size, dim_of, probes

ENCODER = RolePlan("text_encoder", {"input_ids": ("batch", TOKENS)}, {}, layers=1, most_skips=1)
PICTURE = RolePlan("vae_decoder", {"x": ("batch", 8, "height", "width")}, {"y": "y"})


def ran(model: onnx.ModelProto | ir.Model, feed: dict[str, Any]) -> dict[str, Any]:
    proto = ir.to_proto(model) if isinstance(model, ir.Model) else model
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feed), strict=True))


def rewritten(model: onnx.ModelProto, plan: RolePlan, tmp_path: Path) -> tuple[ir.Model, Counter[str]]:
    onnx.save(model, tmp_path / "model.onnx")
    return canonical_graph(tmp_path / "model.onnx", plan)


def kinds(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


@pytest.mark.parametrize("half_last", [True, False])
@pytest.mark.parametrize("opset", [14, 17, 18])
def test_a_text_encoder_is_whole_and_means_the_same(tmp_path: Path, opset: int, half_last: bool) -> None:
    source = small_encoder(opset, half_last=half_last)
    model, counts = rewritten(source, ENCODER, tmp_path)
    assert (counts["Attention"], counts["Gelu"]) == (1, 1)
    assert counts["LayerNormalization"] == (3 if opset < 17 else 0)
    assert {"Softmax", "Erf", "Shape", "Concat", "Expand", "Trilu", "Identity"} & kinds(model).keys() == set()
    assert model.opset_imports == {"": 23}
    mask = model.graph.initializers["attention_mask"].const_value
    assert mask is not None
    np.testing.assert_array_equal(mask.numpy()[0, 0], np.tril(np.ones((TOKENS, TOKENS), bool)))
    assert "encoder.layers.0.self_attn.q_proj.weight_T" in model.graph.initializers
    ids = np.random.default_rng(1).integers(0, WORDS, (4, TOKENS))
    found, expected = ran(model, {"input_ids": ids}), ran(source, {"input_ids": ids})
    assert list(found) == ["last_hidden_state", "clip_skip.1"]
    assert psnr_db(expected["last_hidden_state"], found["last_hidden_state"]) >= 110


def picture_graph(nodes: list[onnx.NodeProto], weights: dict[str, Any], channels: int = 8) -> onnx.ModelProto:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "g", [value("x", TensorProto.FLOAT, ["b", 8, "h", "w"])],
        [value("y", TensorProto.FLOAT, ["b", channels, "h", "w"])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def group_norm(scale_shape: tuple[int, ...] = (8, 1, 1), ones: float = 1.0) -> onnx.ModelProto:
    node, random = helper.make_node, np.random.default_rng(0)
    nodes = [
        node("Reshape", ["x", "groups"], ["a"], name="/norm/Reshape"),
        node("InstanceNormalization", ["a", "ones", "zeros"], ["b"], name="/norm/InstanceNormalization", epsilon=1e-6),
        node("Shape", ["x"], ["s"], name="/norm/Shape"),
        node("Reshape", ["b", "s"], ["c"], name="/norm/Reshape_1"),
        node("Mul", ["c", "scale"], ["d"], name="/norm/Mul"),
        node("Add", ["d", "shift"], ["y"], name="/norm/Add"),
    ]
    weights = {
        "groups": np.array([0, 2, -1]), "ones": np.full(2, ones, np.float32), "zeros": np.zeros(2, np.float32),
        "scale": random.standard_normal(scale_shape).astype(np.float32),
        "shift": random.standard_normal((8, 1, 1)).astype(np.float32),
    }  # fmt: skip
    return picture_graph(nodes, weights)


@pytest.mark.parametrize(
    ("source", "whole"),
    [(group_norm(), 1), (group_norm((1, 1, 1)), 0), (group_norm((1, 8, 1, 1)), 1), (group_norm(ones=2.0), 0)],
    ids=["by channel", "one scale", "by channel of four dims", "scaled inside"],
)
def test_only_a_group_norm_by_channel_is_one(tmp_path: Path, source: onnx.ModelProto, whole: int) -> None:
    model, counts = rewritten(source, PICTURE, tmp_path)
    assert counts["GroupNormalization"] == kinds(model)["GroupNormalization"] == whole
    x = 3 + np.random.default_rng(1).standard_normal((2, 8, 5, 3), np.float32)
    assert psnr_db(ran(source, {"x": x})["y"], ran(model, {"x": x})["y"]) >= 110


def test_halves_of_the_last_axis_are_a_split_and_others_are_not(tmp_path: Path) -> None:
    node = helper.make_node
    for cuts, expected in (((0, 4, 4, 8), 1), ((0, 3, 3, 8), 0), ((0, 4, 3, 8), 0)):
        nodes = [node("Transpose", ["x"], ["t"], perm=[0, 2, 3, 1])]
        for name, start, end in (("p", *cuts[:2]), ("q", *cuts[2:])):
            nodes.append(node("Slice", ["t", f"i{start}", f"i{end}", "axis"], [name]))
        nodes += [node("Concat", ["q", "p"], ["z"], axis=3), node("Transpose", ["z"], ["y"], perm=[0, 3, 1, 2])]
        weights = {f"i{number}": np.array([number]) for number in set(cuts)} | {"axis": np.array([-1])}
        source = picture_graph(nodes, weights, channels=cuts[1] + cuts[3] - cuts[2])
        model, counts = rewritten(source, PICTURE, tmp_path)
        assert counts["Split"] == expected
        x = np.random.default_rng(1).standard_normal((2, 8, 5, 3), np.float32)
        np.testing.assert_array_equal(ran(source, {"x": x})["y"], ran(model, {"x": x})["y"])


def test_ports_and_operators_that_are_not_known_are_named(tmp_path: Path) -> None:
    source = small_encoder()
    with pytest.raises(PortError, match="it lacks the input sample"):
        rewritten(source, RolePlan("denoiser", {"sample": ("batch", 4, "height", "width")}, {}), tmp_path)
    with pytest.raises(PortError, match="it has no output"):
        rewritten(source, RolePlan("text_encoder", {"input_ids": ("batch", TOKENS)}, {"a": "b"}), tmp_path)
    source.graph.node[-1].op_type = "Einsum"
    with pytest.raises(UnknownOperatorError, match="Einsum"):
        rewritten(source, ENCODER, tmp_path)


def test_what_would_take_all_memory_is_refused(tmp_path: Path) -> None:
    source = small_encoder()
    place = next(node for node in source.graph.node if node.op_type == "ConstantOfShape")
    far = helper.make_node("Constant", [], ["far"], value=numpy_helper.from_array(np.array([2**20, 2**20])))
    source.graph.node.insert(0, far)
    place.input[0] = "far"
    with pytest.raises(ValueError, match=r"^Expand "):
        rewritten(source, ENCODER, tmp_path)


@pytest.mark.parametrize(
    ("of", "text"),
    [
        (lambda d: d["batch"], "batch"),
        (lambda d: d["height"] // 2, "height/2"),
        (lambda d: 8 * d["width"], "8*width"),
        (lambda d: d["height"] * d["width"] // 16, "height*width/16"),
        (lambda d: d["batch"] * d["sequence"], "batch*sequence"),
        (lambda d: d["height"] // 2 + 1, "height/2+1"),
        (lambda d: 3, "3"),
        (lambda d: d["height"] ** 2, "None"),
    ],
)
def test_a_size_is_told_by_three_choices(of: Any, text: str) -> None:
    chosen = probes(8)
    assert str(dim_of([of(choice) for choice in chosen], chosen)) == text


def test_a_reshape_needs_one_size_at_most_that_does_not_follow() -> None:
    batch, height, area = (Size(Fraction(1), names) for names in (("batch",), ("height",), ("height", "width")))
    assert reshape_target((batch, 320, height, height), (batch, 320, area)) == [0, 320, -1]
    assert reshape_target((batch, area, WIDTH), (batch, area, 2, 4)) == [0, 0, 2, 4]
    assert reshape_target((batch, area, WIDTH), (batch, 8, height, height)) is None
