"""Operations are counted from shapes: against sums by hand, and on the embedded model."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

import tintype
from tintype.engine.build.graph import graph_bytes, graph_operations

DIMS = {"batch": 2, "height": 6, "width": 4}


def _write(path: Path, nodes: list[onnx.NodeProto], weights: dict[str, list[int]]) -> Path:
    """x (batch, 8, height, width) through the nodes to y, weights of zeros."""
    zeros = [
        helper.make_tensor(name, TensorProto.FLOAT, shape, bytes(4 * _size(shape)), raw=True)
        for name, shape in weights.items()
    ]
    image = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 8, "height", "width"])
    output = helper.make_empty_tensor_value_info("y")
    graph = helper.make_graph(nodes, "g", [image], [output], zeros)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    onnx.save(onnx.shape_inference.infer_shapes(model), path)
    return path


def _size(shape: list[int]) -> int:
    size = 1
    for side in shape:
        size *= side
    return size


def test_a_convolution_is_two_operations_a_tap_channel_and_output(tmp_path: Path) -> None:
    node = helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1], strides=[2, 2], group=2)
    path = _write(tmp_path / "conv.onnx", [node], {"w": [10, 4, 3, 3]})
    assert graph_operations(path, DIMS) == {"Conv": 2 * (2 * 10 * 3 * 2) * (4 * 3 * 3)}


def test_products_and_attention_are_counted_by_what_they_sum_over(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["wide"]),  # (2, 8, 6, 4) @ (4, 5)
        helper.make_node("Attention", ["wide", "wide", "wide"], ["y"]),  # 8 heads of 6 rows of 5
    ]
    path = _write(tmp_path / "products.onnx", nodes, {"w": [4, 5]})
    assert graph_operations(path, DIMS) == {
        "MatMul": 2 * (2 * 8 * 6 * 5) * 4,
        "Attention": 2 * (2 * 8 * 6 * 6) * (5 + 5),
    }


def test_bytes_moved_are_what_each_node_reads_and_writes(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Neg", ["w"], ["turned"]),  # of weights alone: done when the graph is built
        helper.make_node("MatMul", ["x", "turned"], ["wide"]),  # (2, 8, 6, 4) @ (4, 5)
        helper.make_node("Flatten", ["wide"], ["flat"]),  # a view
        helper.make_node("Relu", ["flat"], ["y"]),
    ]
    path = _write(tmp_path / "moved.onnx", nodes, {"w": [4, 5]})
    read, made, weights = 2 * 8 * 6 * 4, 2 * 8 * 6 * 5, 4 * 5
    assert graph_bytes(path, DIMS) == 4 * (weights + read + made + 2 * made)


def test_a_dim_without_a_number_is_an_error(tmp_path: Path) -> None:
    path = _write(tmp_path / "conv.onnx", [helper.make_node("Conv", ["x", "w"], ["y"])], {"w": [8, 8, 1, 1]})
    with pytest.raises(ValueError, match="width"):
        graph_operations(path, {"batch": 1, "height": 4})


def test_the_embedded_denoiser_grows_with_the_picture_and_attention_faster() -> None:
    path = tintype.load("postcard").bundle.graph_path("denoiser")
    small, large = (
        graph_operations(path, {"batch": 1, "height": side, "width": side, "sequence": 77}) for side in (16, 32)
    )
    assert set(small) == {"Conv", "MatMul", "Gemm", "Attention"}
    assert large["Conv"] == 4 * small["Conv"]
    assert large["Gemm"] == small["Gemm"]
    assert 4 * small["Attention"] < large["Attention"] < 16 * small["Attention"]
