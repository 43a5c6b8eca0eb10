"""Weights lie where they can be memory-mapped, once each, and come back as they were."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from tintype.export.storage import PAGE_BYTES, SMALL_ALIGNMENT_BYTES, load_graph, save_graph

WEIGHTS = {
    "large": np.arange(5000, dtype=np.float32),
    "small": np.arange(300, dtype=np.float32),
    "bytes": np.arange(4500, dtype=np.uint8),
    "tiny": np.arange(4, dtype=np.float32),
}


@pytest.fixture
def model() -> ir.Model:
    initializers = []
    nodes = []
    for name, array in WEIGHTS.items():
        tensor = ir.tensor(array, name=name)
        value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
        initializers.append(value)
        nodes.append(ir.node("Identity", [value], name=f"take {name}"))
    outputs = [node.outputs[0] for node in nodes]
    for output, name in zip(outputs, WEIGHTS, strict=True):
        output.name = f"{name} out"
    graph = ir.Graph([], outputs, nodes=nodes, initializers=initializers, opset_imports={"": 23})
    return ir.Model(graph, ir_version=10)


def test_weights_come_back_bit_for_bit(model: ir.Model, tmp_path: Path) -> None:
    save_graph(model, tmp_path / "model.onnx")
    found = load_graph(tmp_path / "model.onnx").graph.initializers
    for name, array in WEIGHTS.items():
        tensor = found[name].const_value
        assert tensor is not None
        np.testing.assert_array_equal(tensor.numpy(), array)


def test_data_is_aligned_and_small_weights_stay_inside(model: ir.Model, tmp_path: Path) -> None:
    save_graph(model, tmp_path / "model.onnx")
    found = load_graph(tmp_path / "model.onnx").graph.initializers
    for name, alignment in (("large", PAGE_BYTES), ("bytes", PAGE_BYTES), ("small", SMALL_ALIGNMENT_BYTES)):
        tensor = found[name].const_value
        assert isinstance(tensor, ir.ExternalTensor)
        assert tensor.location == "model.onnx_data"
        assert tensor.offset is not None
        assert tensor.offset % alignment == 0
    assert not isinstance(found["tiny"].const_value, ir.ExternalTensor)
    assert (tmp_path / "model.onnx_data").stat().st_size % PAGE_BYTES == 0


def test_a_graph_without_large_weights_has_no_data_file(model: ir.Model, tmp_path: Path) -> None:
    for name in ("large", "small", "bytes"):
        model.graph.initializers[name].const_value = ir.tensor(np.zeros(2, np.float32), name=name)
    save_graph(model, tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx_data").exists()


def test_a_weight_that_two_names_share_is_written_once(model: ir.Model, tmp_path: Path) -> None:
    model.graph.initializers["small"].const_value = model.graph.initializers["large"].const_value
    save_graph(model, tmp_path / "model.onnx")
    found = load_graph(tmp_path / "model.onnx").graph.initializers
    first, second = found["small"].const_value, found["large"].const_value
    assert isinstance(first, ir.ExternalTensor)
    assert isinstance(second, ir.ExternalTensor)
    assert first.offset == second.offset
