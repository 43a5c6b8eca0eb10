"""A text encoder of one layer as torch's first exporter writes it, made without torch: older operators, shapes anew."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

TOKENS, WIDTH, HEADS, WORDS = 77, 8, 2, 40
LOWEST = float(np.finfo(np.float32).min)


class _Writer:
    def __init__(self, opset: int) -> None:
        self.opset, self.nodes, self.weights = opset, list[onnx.NodeProto](), list[onnx.TensorProto]()
        self.random = np.random.default_rng(0)

    def node(self, operator: str, inputs: list[str], module: str = "", **attributes: Any) -> str:
        output = f"{module}/{operator}_{len(self.nodes)}_output_0"
        name = f"{module}/{operator}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [output], name=name, **attributes))
        return output

    def constant(self, value: Any, dtype: Any = np.int64) -> str:
        return self.node("Constant", [], value=numpy_helper.from_array(np.array(value, dtype)))

    def weight(self, name: str, *shape: int) -> str:
        array = self.random.standard_normal(shape).astype(np.float32) * np.float32(0.5)
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def size(self, value: str, axis: int) -> str:
        """(1,): one dim of a value, by Shape, Gather and Unsqueeze."""
        gathered = self.node("Gather", [self.node("Shape", [value]), self.constant(axis)], axis=0)
        return self.node("Unsqueeze", [gathered, self.constant([0])])

    def norm(self, value: str, module: str) -> str:
        scale, shift = (
            self.weight(f"{module.strip('/').replace('/', '.')}.{name}", WIDTH) for name in ("weight", "bias")
        )
        if self.opset >= 17:
            return self.node("LayerNormalization", [value, scale, shift], module, axis=-1, epsilon=1e-5)
        mean = self.node("ReduceMean", [value], module, axes=[-1])
        centred = self.node("Sub", [value, mean], module)
        squares = self.node("Pow", [centred, self.constant(2.0, np.float32)], module)
        variance = self.node(
            "Add", [self.node("ReduceMean", [squares], module, axes=[-1]), self.constant(1e-5, np.float32)]
        )
        quotient = self.node("Div", [centred, self.node("Sqrt", [variance], module)], module)
        return self.node("Add", [self.node("Mul", [quotient, scale], module), shift], module)

    def linear(self, value: str, module: str, width: int, out: int) -> str:
        weight = self.weight(f"onnx::MatMul_{len(self.nodes)}", width, out)
        product = self.node("MatMul", [value, weight], module)
        return self.node("Add", [self.weight(f"{module.strip('/').replace('/', '.')}.bias", out), product], module)


def small_encoder(opset: int = 17, *, half_last: bool = True) -> onnx.ModelProto:
    """input_ids -> last_hidden_state. half_last: whether Gelu's half comes after the other product or before."""
    w = _Writer(opset)
    wanted = w.node("Concat", [w.constant([-1]), w.size("input_ids", 1)], axis=0)
    ids = w.node("Reshape", ["input_ids", wanted])
    words = w.node("Gather", [w.weight("embeddings.token_embedding.weight", WORDS, WIDTH), ids])
    places = w.node("Gather", [w.weight("embeddings.position_embedding.weight", TOKENS, WIDTH),
                               w.constant(np.arange(TOKENS)[None])])  # fmt: skip
    state = w.node("Add", [words, places])
    state = w.node("Add", [state, _attention(w, w.norm(state, "/encoder/layers.0/layer_norm1"), "input_ids")])
    hidden = w.linear(w.norm(state, "/encoder/layers.0/layer_norm2"), "/encoder/layers.0/mlp/fc1", WIDTH, 2 * WIDTH)
    hidden = w.linear(_gelu(w, hidden, half_last=half_last), "/encoder/layers.0/mlp/fc2", 2 * WIDTH, WIDTH)
    w.norm(w.node("Add", [state, hidden]), "/final_layer_norm")
    w.nodes[-1].output[0] = "last_hidden_state"
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        w.nodes, "main_graph", [value("input_ids", TensorProto.INT64, ["batch_size", "sequence_length"])],
        [value("last_hidden_state", TensorProto.FLOAT, ["batch_size", "sequence_length", WIDTH])], w.weights,
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def _attention(w: _Writer, state: str, ids: str) -> str:
    module = "/encoder/layers.0/self_attn"
    query, key, value = (w.linear(state, f"{module}/{name}", WIDTH, WIDTH) for name in ("q_proj", "k_proj", "v_proj"))
    split = w.node("Concat", [w.size(state, 0), w.constant([-1]), w.constant([HEADS, WIDTH // HEADS])], axis=0)
    turned = []
    for each, perm in ((query, [0, 2, 1, 3]), (key, [0, 2, 3, 1]), (value, [0, 2, 1, 3])):
        turned.append(w.node("Transpose", [w.node("Reshape", [each, split])], module, perm=perm))
    root = w.constant(float((WIDTH // HEADS) ** -0.25), np.float32)
    scores = w.node("MatMul", [w.node("Mul", [each, root]) for each in turned[:2]], module)
    square = w.node("ConstantOfShape", [w.node("Concat", [w.size(ids, 1)] * 2, axis=0)],
                    value=numpy_helper.from_array(np.array([LOWEST], np.float32)))  # fmt: skip
    upper = w.node("Trilu", [square, w.constant(1)], upper=1)
    four = w.node("Unsqueeze", [upper, w.constant([0, 1])])
    whole = w.node("Concat", [w.size(ids, 0), w.constant([1]), w.size(ids, 1), w.size(ids, 1)], axis=0)
    masked = w.node("Add", [scores, w.node("Expand", [four, whole])])
    seen = w.node("MatMul", [w.node("Softmax", [masked], axis=-1), turned[2]], module)
    back = w.node("Transpose", [seen], perm=[0, 2, 1, 3])
    joined = w.node("Concat", [w.size(state, 0), w.size(state, 1), w.constant([WIDTH])], axis=0)
    return w.linear(w.node("Reshape", [back, joined]), f"{module}/out_proj", WIDTH, WIDTH)


def _gelu(w: _Writer, value: str, *, half_last: bool) -> str:
    erf = w.node("Erf", [w.node("Div", [value, w.constant(2**0.5, np.float32)])])
    raised, half = w.node("Add", [erf, w.constant(1.0, np.float32)]), w.constant(0.5, np.float32)
    if half_last:
        return w.node("Mul", [w.node("Mul", [value, raised]), half])
    return w.node("Mul", [w.node("Mul", [half, value]), raised])
