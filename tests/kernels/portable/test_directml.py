"""What DirectML would run, checked on any system: opset, pinned dims, what each node means, a kernel for its types.

golden/directml-kernels.json lists the kernels of onnxruntime-directml's wheel; golden/directml_kernels.py made it.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper
from onnxruntime.capi.onnxruntime_pybind11_state import get_all_operator_schema

from tintype.kernels.graph.dims import pin
from tintype.kernels.graph.hoist import split_held
from tintype.kernels.graph.opset import to_opset
from tintype.kernels.portable.gelu import GeluAsMicrosofts
from tintype.kernels.registry import NEWEST_OPSET, finish, kernels_for, lower

pytestmark = pytest.mark.slow

BUNDLE = Path(__file__).parents[3] / "models/postcard/bundle"
SIDES = {"height": 16, "width": 16}
DIMS = {
    "text_encoder": {"batch": 1},
    "unet": {"batch": 2, "sequence": 77, **SIDES},
    "vae_decoder": {"batch": 1, **SIDES},
    "vae_encoder": {"batch": 1, "height": 64, "width": 64},
}
SHAPE_ARITHMETIC = frozenset(("Shape", "Squeeze", "Unsqueeze", "Concat", "Slice", "Gather", "Reshape", "Cast"))
ONNX_TYPES = {"FLOAT": "float", "FLOAT16": "float16", "INT64": "int64", "INT32": "int32", "BOOL": "bool"}
ABLE = ["attention", "float16"]


def _lowered(role, able, exactness="balanced"):
    model = ir.load(BUNDLE / role / "model.onnx")
    pin(model, DIMS[role])
    lower(model, "directml", kernels=kernels_for("directml", able, exactness=exactness))
    return model, finish(model, "directml", able, exactness=exactness)


def _feed(role, random):
    if role == "text_encoder":
        return {"input_ids": random.integers(0, 900, (1, 77))}
    if role == "vae_encoder":
        return {"sample": random.standard_normal((1, 3, 64, 64), np.float32)}
    if role == "vae_decoder":
        return {"latent_sample": random.standard_normal((1, 4, 16, 16), np.float32)}
    return {
        "sample": random.standard_normal((2, 4, 16, 16), np.float32),
        "timestep": np.array([601.0], np.float32),
        "encoder_hidden_states": random.standard_normal((2, 77, 128), np.float32),
    }


def _run(model, feed, path):
    """The first output, by the processor, of a model that the checker accepts."""
    ir.save(model, path, external_data=f"{path.name}_data")
    onnx.checker.check_model(path)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"]).run(None, feed)[0]


def _psnr_db(result, reference):
    error = np.mean((result.astype(np.float64) - reference) ** 2)
    return np.inf if error == 0 else 10 * np.log10(np.ptp(reference) ** 2 / error)


@pytest.mark.parametrize(
    ("able", "exactness", "gate_db"),
    [([], "balanced", 80.0), (["attention"], "balanced", 80.0), (ABLE, "balanced", 50.0), (ABLE, "exact", 80.0)],
    ids=["plain", "attention", "half", "exact"],
)
@pytest.mark.parametrize("role", DIMS)
def test_the_graph_means_the_same_at_an_older_opset_with_every_dim_pinned(
    tmp_path, random, role, able, exactness, gate_db
):
    """The processor knows every operator of it, and says so against the canonical graph with float activations."""
    reference = ir.load(BUNDLE / role / "model.onnx")
    lower(reference, "openvino", kernels=kernels_for("openvino", []))
    model, halves = _lowered(role, able, exactness)
    assert (halves > 0) == (gate_db == 50.0)
    for value in (*model.graph.inputs, *model.graph.outputs):
        assert value.shape.is_static()
        assert value.dtype in (ir.DataType.FLOAT, ir.DataType.INT64)
    assert model.opset_imports[""] == 20
    feed = _feed(role, random)
    expected, result = (
        _run(graph, feed, tmp_path / f"{name}.onnx") for name, graph in (("r", reference), ("m", model))
    )
    assert _psnr_db(result, expected) >= gate_db


@pytest.fixture(scope="module")
def kernels():
    told = json.loads((Path(__file__).parents[1] / "golden/directml-kernels.json").read_text())
    found = {}
    for domain, name, first, last, types in told["kernels"]:
        assert first == last  # a kernel is for one version of its operator
        found.setdefault((domain, name, first), []).append(types)
    return found


@pytest.fixture(scope="module")
def schemas():
    """By operator its newest schema up to the target's opset."""
    found = {}
    for schema in get_all_operator_schema():
        if schema.domain != "" or schema.since_version <= NEWEST_OPSET["directml"]:
            key = schema.domain, schema.name
            if key not in found or schema.since_version > found[key].since_version:
                found[key] = schema
    return found


def _has_kernel(node, kernels, schema):
    ports = list(schema.inputs)
    told = [(ports[min(i, len(ports) - 1)].typeStr, value) for i, value in enumerate(node.inputs) if value is not None]
    return any(
        all(ONNX_TYPES.get(value.dtype.name) in types[letter] for letter, value in told if letter in types)
        for types in kernels.get((node.domain, node.op_type, schema.since_version), ())
    )


@pytest.mark.parametrize("able", [[], ["attention"], ABLE], ids=["plain", "attention", "half"])
@pytest.mark.parametrize("role", DIMS)
def test_every_node_but_shape_arithmetic_has_a_kernel_for_its_types(kernels, schemas, role, able):
    model, _ = _lowered(role, able)
    once = split_held(model) if role == "unet" else None
    assert (once is not None) == (role == "unet")
    missing, placed = Counter(), Counter()
    for graph in (model.graph, *([once.graph] if once is not None else [])):
        for node in graph:
            if _has_kernel(node, kernels, schemas[node.domain, node.op_type]):
                placed[node.op_type] += 1
            elif node.op_type not in SHAPE_ARITHMETIC:
                missing[node.op_type, str(node.inputs[0].dtype)] += 1
    assert missing == Counter()
    assert placed["MatMul"] > 0
    assert (placed["MultiHeadAttention"] > 0) == ("attention" in able)


def test_the_table_is_that_of_the_provider_and_says_no_where_there_is_no_kernel(kernels, schemas):
    """Known kernels of DirectML; what the canonical graphs have and it lacks is what the lowering takes away."""
    assert kernels["", "Conv", 11] == [{"T": ["float", "float16"]}]
    assert kernels["com.microsoft", "MultiHeadAttention", 1] == [{"T": ["float", "float16"], "M": ["int32"]}]
    assert ("", "Conv", 22) not in kernels  # opset 22 would put every convolution on the host
    for name in ("Attention", "GroupNormalization", "Gelu"):
        assert not [key for key in kernels if key[:2] == ("", name)]
    product = next(node for node in _lowered("unet", [])[0].graph if node.op_type == "MatMul")
    assert _has_kernel(product, kernels, schemas["", "MatMul"])
    product.inputs[0].dtype = ir.DataType.INT64
    assert not _has_kernel(product, kernels, schemas["", "MatMul"])


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu_is_microsofts_gelu(model_of, lowered, random, approximate):
    x = random.standard_normal((2, 5, 7)).astype(np.float32) * 3
    node = helper.make_node("Gelu", ["x"], ["y"], approximate=approximate)
    result = lowered(model_of([node], {"x": (TensorProto.FLOAT, x.shape)}, ["y"], {}), {"x": x}, "directml")
    assert result.operators == ["FastGelu" if approximate == "tanh" else "Gelu"]
    expected = GeluAsMicrosofts.reference(x, by_tanh=approximate == "tanh")
    np.testing.assert_allclose(result.after["y"], expected, atol=2e-6)
    np.testing.assert_allclose(result.after["y"], result.before["y"], atol=2e-6)


@pytest.mark.parametrize(
    ("node", "told"),
    [
        (helper.make_node("RMSNormalization", ["x", "w"], ["y"]), "has no RMSNormalization"),
        (helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT, round_mode="up"), "has no round_mode"),
    ],
)
def test_an_operator_that_the_older_set_lacks_is_refused(node, told):
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in node.input]
    graph = helper.make_graph([node], "g", inputs, [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])])
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=10))
    with pytest.raises(ValueError, match=told):
        to_opset(model, 20)
    assert model.opset_imports[""] == 24


def test_an_element_type_that_the_older_set_lacks_is_refused():
    inputs = [helper.make_tensor_value_info("x", TensorProto.INT4, [4])]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "g",
        inputs,
        [helper.make_tensor_value_info("y", TensorProto.INT4, [4])],
    )
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10))
    with pytest.raises(ValueError, match="takes no INT4"):
        to_opset(model, 20)


def test_a_free_dim_is_refused():
    model = ir.load(BUNDLE / "vae_decoder/model.onnx")
    with pytest.raises(ValueError, match="height, width"):
        pin(model, {"batch": 1})
