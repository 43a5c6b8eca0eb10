"""What a CUDA device would run, checked without one: what each node means, and that a kernel for its types exists.

golden/cuda-kernels.json lists the kernels of onnxruntime-gpu's wheel; golden/cuda_kernels.py made it.
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
from onnx import TensorProto, helper, numpy_helper
from onnx_ir.passes.common import RemoveUnusedNodesPass
from onnxruntime.capi.onnxruntime_pybind11_state import get_all_operator_schema

from tintype.engine.placement import HEAVY_OPERATORS
from tintype.kernels.group_norm_nhwc import GroupNormChannelsLast
from tintype.kernels.half import to_half
from tintype.kernels.registry import kernels_for, lower

FLOAT = TensorProto.FLOAT
HALF_GATE_DB = 50.0
FLOAT_GATE_DB = 80.0
BUNDLE = Path(__file__).parents[2] / "models/postcard/bundle"
ROLES = ("text_encoder", "unet", "vae_decoder", "vae_encoder")
ONNX_TYPES = {ir.DataType.FLOAT: "float", ir.DataType.FLOAT16: "float16", ir.DataType.INT64: "int64"}


def without_group_norm(model: ir.Model) -> None:
    """Write com.microsoft GroupNorm out in operators that the processor has."""
    for node in [node for node in model.graph if node.op_type == "GroupNorm"]:
        attributes, opset = node.attributes, []

        def emit(operator, inputs, before=node, made=opset, **given):
            made.append(ir.node(operator, inputs, attributes=given))
            before.graph.insert_before(before, made[-1])
            return made[-1].outputs[0]

        def constant(array, stem=node.outputs[0].name):
            value = ir.Value(name=f"{stem}_{len(model.graph.initializers)}", const_value=ir.tensor(array))
            value.shape, value.dtype = ir.Shape(array.shape), ir.DataType.from_numpy(array.dtype)
            model.graph.register_initializer(value)
            return value

        assert attributes.get_int("channels_last", 0) == 1
        groups, epsilon = attributes.get_int("groups", 0), attributes.get_float("epsilon", 0.0)
        source, half = node.inputs[0], node.inputs[0].dtype == ir.DataType.FLOAT16
        x = emit("Cast", [source], to=FLOAT) if half else source
        split = emit("Transpose", [emit("Reshape", [x, constant(np.array([0, 0, 0, -1]))])], perm=[0, 3, 1, 2])
        grouped = emit("Reshape", [split, constant(np.array([0, groups, -1]))])
        mean = emit("ReduceMean", [grouped, constant(np.array([2]))], keepdims=1)
        centred = emit("Sub", [grouped, mean])
        variance = emit("ReduceMean", [emit("Mul", [centred, centred]), constant(np.array([2]))], keepdims=1)
        root = emit("Sqrt", [emit("Add", [variance, constant(np.array(epsilon, np.float32))])])
        normed = emit("Reshape", [emit("Div", [centred, root]), emit("Shape", [split])])
        y = emit("Transpose", [normed], perm=[0, 2, 3, 1])
        y = emit("Add", [emit("Mul", [y, node.inputs[1]]), node.inputs[2]])
        if attributes.get_int("activation", 0):
            y = emit("Mul", [y, emit("Sigmoid", [y])])
        y = emit("Cast", [y], to=TensorProto.FLOAT16) if half else y
        node.outputs[0].replace_all_uses_with(y)
    RemoveUnusedNodesPass()(model)


def run(model, feed, folder):
    """The first output, by the processor."""
    path = folder / "model.onnx"
    ir.save(model, path, external_data="model.data")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"]).run(None, feed)[0]


def psnr_db(result, reference):
    error = np.mean((result.astype(np.float64) - reference) ** 2)
    return np.inf if error == 0 else 10 * np.log10(np.ptp(reference) ** 2 / error)


@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize("shape", [(1, 8, 1, 1), (2, 8, 5, 3), (4, 32, 16, 9)])
def test_group_norm_with_its_silu_is_one_node_that_means_the_same(random, tmp_path, silu, shape):
    x = random.standard_normal(shape).astype(np.float32) * 2 + 1
    constants = {name: random.standard_normal(shape[1]).astype(np.float32) for name in ("scale", "bias")}
    nodes = [helper.make_node("GroupNormalization", ["x", "scale", "bias"], ["n"], num_groups=4, epsilon=1e-5)]
    nodes.append(helper.make_node("Sigmoid", ["n"], ["s"]))
    nodes.append(helper.make_node("Mul", ["n", "s"], ["y"]) if silu else helper.make_node("Add", ["n", "s"], ["y"]))
    x_told, *inner, y_told = (helper.make_tensor_value_info(name, FLOAT, shape) for name in "xnsy")
    weights = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "graph", [x_told], [y_told], weights, value_info=inner)
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10))
    report = lower(model, "cuda", kernels=kernels_for("cuda", []))
    assert report.as_dict() == {"group_norm_channels_last": 1}
    (node,) = [node for node in model.graph if node.op_type == "GroupNorm"]
    assert node.attributes.get_int("activation", -1) == int(silu)
    assert any(node.op_type == "Sigmoid" for node in model.graph) != silu
    without_group_norm(model)
    normed = GroupNormChannelsLast.reference(x, constants["scale"], constants["bias"], 4, 1e-5)
    gate = 1 / (1 + np.exp(-normed))
    np.testing.assert_allclose(run(model, {"x": x}, tmp_path), normed * gate if silu else normed + gate, atol=2e-5)


def _feed(role, random):
    pictures = {"vae_decoder": ("latent_sample", 4), "vae_encoder": ("sample", 3)}
    if role in pictures:
        name, channels = pictures[role]
        return {name: random.standard_normal((1, channels, 16, 16), np.float32)}
    if role == "text_encoder":
        return {"input_ids": random.integers(0, 900, (2, 77))}
    return {
        "sample": random.standard_normal((2, 4, 16, 16), np.float32),
        "timestep": np.array([601.0], np.float32),
        "encoder_hidden_states": random.standard_normal((2, 77, 128), np.float32),
    }


def _lowered(role, *, half):
    model = ir.load(BUNDLE / role / "model.onnx")
    lower(model, "cuda", kernels=kernels_for("cuda", ["attention", "float16"]))
    typed = ir.from_proto(onnx.shape_inference.infer_shapes(ir.to_proto(model)))
    _copy_types(typed, model)
    if half:
        to_half(model)
        RemoveUnusedNodesPass()(model)
    return model


def _copy_types(typed, model):
    """Element types that inference found; com.microsoft's operators give what they take."""
    found = {value.name: value.dtype for node in typed.graph for value in node.outputs if value.dtype is not None}
    for node in model.graph:
        for value in node.outputs:
            if value.dtype is None:
                value.dtype = found.get(value.name) or next(v.dtype for v in node.inputs if v is not None)


@pytest.mark.parametrize("role", ROLES)
def test_the_cuda_graph_means_the_same_in_float_and_in_half(random, tmp_path, role):
    feed = _feed(role, random)
    reference = ir.load(BUNDLE / role / "model.onnx")
    lower(reference, "openvino", kernels=kernels_for("openvino", []))
    expected = run(reference, feed, tmp_path)
    for half, gate in ((False, FLOAT_GATE_DB), (True, HALF_GATE_DB)):
        model = _lowered(role, half=half)
        without_group_norm(model)
        result = run(model, feed, tmp_path)
        assert result.dtype == np.float32
        assert psnr_db(result, expected) >= gate


@pytest.fixture(scope="module")
def kernels():
    told = json.loads((Path(__file__).parent / "golden/cuda-kernels.json").read_text())
    return told["kernels"]


@pytest.fixture(scope="module")
def schemas():
    """The newest schema of each operator up to opset 23, with the type letter of each input."""
    found = {}
    for schema in get_all_operator_schema():
        if schema.domain != "" or schema.since_version <= 23:
            key = schema.domain, schema.name
            if key not in found or schema.since_version > found[key].since_version:
                found[key] = schema
    return found


def has_kernel(node, kernels, schema):
    """Whether a kernel of this operator, at this version, takes these element types."""
    inputs = list(schema.inputs)
    types = [
        (inputs[min(index, len(inputs) - 1)].typeStr, ONNX_TYPES.get(value.dtype))
        for index, value in enumerate(node.inputs)
        if value is not None
    ]
    return any(
        (domain, name) == (node.domain, node.op_type)
        and first <= schema.since_version <= last
        and all(kind in told[letter] for letter, kind in types if letter in told)
        for domain, name, first, last, told in kernels
    )


@pytest.mark.parametrize("half", [False, True], ids=["float", "half"])
@pytest.mark.parametrize("role", ROLES)
def test_every_heavy_node_has_a_cuda_kernel_for_its_types(kernels, schemas, role, half):
    model = _lowered(role, half=half)
    missing, heavy = Counter(), Counter()
    for node in model.graph:
        if node.op_type in HEAVY_OPERATORS:
            heavy[node.op_type] += 1
            if not has_kernel(node, kernels, schemas[node.domain, node.op_type]):
                missing[node.op_type, str(node.inputs[0].dtype)] += 1
    assert missing == Counter()
    assert heavy.total() > 0
    kinds = {node.inputs[0].dtype for node in model.graph if node.op_type in ("Conv", "MatMul", "MultiHeadAttention")}
    assert kinds == {ir.DataType.FLOAT16 if half else ir.DataType.FLOAT}


def test_the_table_says_no_where_there_is_no_kernel(kernels, schemas):
    """GroupNormalization as exported has none, and a product of int64 has none."""
    model = ir.load(BUNDLE / "vae_decoder/model.onnx")
    norms = [node for node in model.graph if node.op_type == "GroupNormalization"]
    assert norms
    assert not any(has_kernel(node, kernels, schemas["", "GroupNormalization"]) for node in norms)
    product = next(node for node in _lowered("text_encoder", half=False).graph if node.op_type == "MatMul")
    assert has_kernel(product, kernels, schemas["", "MatMul"])
    product.inputs[0].dtype = ir.DataType.INT64
    assert not has_kernel(product, kernels, schemas["", "MatMul"])
