"""Linear layers that a graph lets LoRAs and DoRAs change are the reference's, however their bias is written."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from tintype.engine import run_graph
from tintype.kernels.graph.low_rank import (
    BY_INPUT,
    BY_OUTPUT,
    adaptable_layers,
    add_low_rank,
    add_low_rank_inputs,
    reference,
)

NAME, INPUTS, OUTPUTS, RANK = "down_blocks.0.layer", 6, 8, 4
# How a layer's product is written, and how much of the bias is in it.
FORMS = {
    "product": ("y = MatMul (x, w)", 0.0),
    "product and bias": ("p = MatMul (x, w)\n y = Add (p, b)", 1.0),
    "bias and product": ("p = MatMul (x, w)\n y = Add (b, p)", 1.0),
    "Gemm": ("y = Gemm (x, w, b)", 1.0),
    "Gemm, turned": ("y = Gemm <transB = 1> (x, t, b)", 1.0),
    "Gemm of half the bias": ("y = Gemm <beta = 0.5> (x, w, b)", 0.5),
    "Gemm without one": ("y = Gemm (x, w)", 0.0),
    "halves": ("p = MatMul (x, w)\n s = Add (p, b)\n u, v = Split <axis = 1, num_outputs = 2> (s)", 1.0),
}


def model_of(form: str, constants: dict[str, np.ndarray]) -> ir.Model:
    halves = form == "halves"
    text = f"""
        <ir_version: 10, opset_import: ["" : 20]>
        graph (float[3, {INPUTS}] x) => ({"float[3, 4] u, float[3, 4] v" if halves else "float[3, 8] y"}) {{
            {FORMS[form][0]}
        }}"""
    model = onnx.parser.parse_model(text)
    for node in model.graph.node:
        node.name = f"{NAME}/{node.op_type}"
    read = {name for node in model.graph.node for name in node.input}
    known = {name: array for name, array in constants.items() if name in read}
    model.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in known.items())
    return ir.from_proto(onnx.shape_inference.infer_shapes(model))


@pytest.mark.parametrize("scaled", ["", BY_OUTPUT, BY_INPUT], ids=["plain", BY_OUTPUT, BY_INPUT])
@pytest.mark.parametrize("form", FORMS)
def test_a_layer_is_the_reference(tmp_path, form, scaled):
    random, share = np.random.default_rng(2), FORMS[form][1]

    def drawn(*shape: int) -> np.ndarray:
        return random.standard_normal(shape).astype(np.float32)

    weight, bias = drawn(INPUTS, OUTPUTS), drawn(OUTPUTS)
    model = model_of(form, {"w": weight, "t": np.ascontiguousarray(weight.T), "b": bias})
    layers = adaptable_layers(model.graph)
    assert {name: layer.shape for name, layer in layers.items()} == {NAME: (OUTPUTS, INPUTS)}
    add_low_rank_inputs(model.graph, layers.values(), RANK, scaled)
    add_low_rank(model.graph, layers.values(), scaled)
    ir.save(model, tmp_path / "model.onnx")
    feed = {"x": drawn(3, INPUTS), f"lora.{NAME}.down": drawn(INPUTS, RANK), f"lora.{NAME}.up": drawn(RANK, OUTPUTS)}
    scale = drawn(OUTPUTS if scaled == BY_OUTPUT else INPUTS)
    feed |= {f"lora.{NAME}.scale": scale} if scaled else {}
    x, down, up = (feed[name] for name in ("x", f"lora.{NAME}.down", f"lora.{NAME}.up"))
    whole = scale[:, np.newaxis] * weight if scaled == BY_INPUT else weight
    expected = reference(x, whole, down, up, scale if scaled == BY_OUTPUT else 1.0, share * bias)
    found = run_graph(tmp_path / "model.onnx", feed, lowered=False)
    parts = [found[name] for name in (("u", "v") if form == "halves" else ("y",))]
    np.testing.assert_allclose(np.concatenate(parts, axis=1), expected, atol=1e-5)


def test_ones_and_zeros_change_no_bit(tmp_path):
    """What a layer is told that no DoRA scales."""
    random = np.random.default_rng(3)
    constants = {"w": random.standard_normal((INPUTS, OUTPUTS)), "b": random.standard_normal(OUTPUTS)}
    constants = {name: array.astype(np.float32) for name, array in constants.items()}
    feed = {"x": random.standard_normal((3, INPUTS)).astype(np.float32)}
    made = []
    for changed in (False, True):
        model = model_of("product and bias", constants)
        if changed:
            layers = adaptable_layers(model.graph)
            add_low_rank_inputs(model.graph, layers.values(), RANK, BY_OUTPUT)
            add_low_rank(model.graph, layers.values(), BY_OUTPUT)
            zeros = {"down": (INPUTS, RANK), "up": (RANK, OUTPUTS)}
            feed |= {f"lora.{NAME}.{part}": np.zeros(shape, np.float32) for part, shape in zeros.items()}
            feed[f"lora.{NAME}.scale"] = np.ones(OUTPUTS, np.float32)
        ir.save(model, tmp_path / f"{changed}.onnx")
        made.append(run_graph(tmp_path / f"{changed}.onnx", feed, lowered=False)["y"])
    np.testing.assert_array_equal(*made)
