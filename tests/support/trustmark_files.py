"""Graphs with the ports of TrustMark's own files, which really write and read 100 bits, each in a square of its own.

A square has a fine check, whose sign is the bit's; the decoder takes the picture's mean against that check.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SIDE, SQUARE, CHECK = 256, 25, 4  # pixels; ten squares of 25 a row
STRENGTH = 0.03  # of -1 to 1


def write_trustmark(
    folder: Path, variant: str = "Q", *, strength: float = STRENGTH, kind: int = TensorProto.FLOAT
) -> Path:
    """encoder_Q.onnx and decoder_Q.onnx in a folder, which it returns. kind: of all that is a float."""
    folder.mkdir(exist_ok=True)
    save_graph(
        folder / f"encoder_{variant}.onnx",
        [
            node("Mul", ["onnx::Gemm_1", "two"], "twice"),
            node("Sub", ["twice", "one"], "signs"),
            node("Reshape", ["signs", "squares"], "map"),
            node("Resize", ["map", "", "scales"], "spread", mode="nearest"),
            node("Pad", ["spread", "margins"], "padded"),
            node("Mul", ["padded", "check"], "change"),
            node("Add", ["onnx::Concat_0", "change"], "image"),
            node("Identity", ["change"], "residual"),
        ],
        {"onnx::Concat_0": [1, 3, SIDE, SIDE], "onnx::Gemm_1": [1, 100]},
        ["image", "residual"],
        {
            "two": np.float32(2),
            "one": np.float32(1),
            "squares": np.array([1, 1, 10, 10], np.int64),
            "scales": np.array([1, 1, SQUARE, SQUARE], np.float32),
            "margins": np.array([0, 0, 3, 3, 0, 0, 3, 3], np.int64),
            "check": checks(SIDE) * np.float32(strength),
        },
        kind,
    )
    save_graph(
        folder / f"decoder_{variant}.onnx",
        [
            node("ReduceMean", ["image", "channels"], "grey"),
            node("Mul", ["grey", "check"], "alike"),
            node("Slice", ["alike", "first", "last", "axes"], "inside"),
            node("AveragePool", ["inside"], "means", kernel_shape=[SQUARE] * 2, strides=[SQUARE] * 2),
            node("Reshape", ["means", "flat"], "output"),
        ],
        {"image": [1, 3, SIDE, SIDE]},
        ["output"],
        {
            "channels": np.array([1], np.int64),
            "check": checks(SIDE),
            "first": np.array([3, 3], np.int64),
            "last": np.array([253, 253], np.int64),
            "axes": np.array([2, 3], np.int64),
            "flat": np.array([1, 100], np.int64),
        },
        kind,
    )
    return folder


def checks(side: int) -> np.ndarray:
    """(1, 1, side, side) of 1 and -1."""
    rows, columns = np.indices((side, side)) // CHECK % 2
    return (1 - 2 * (rows ^ columns)).astype(np.float32)[np.newaxis, np.newaxis]


def node(kind: str, inputs: list[str], output: str, **options: Any) -> onnx.NodeProto:
    return helper.make_node(kind, inputs, [output], **options)


def save_graph(
    path: Path,
    nodes: list[onnx.NodeProto],
    inputs: dict[str, list[Any]],
    outputs: list[str],
    constants: dict[str, np.ndarray],
    kind: int = TensorProto.FLOAT,
) -> Path:
    values = []
    for name, value in constants.items():
        is_float = value.dtype == np.float32 and name != "scales"  # Resize takes its scales in float32 alone
        typed = value.astype(helper.tensor_dtype_to_np_dtype(kind)) if is_float else value
        values.append(numpy_helper.from_array(np.asarray(typed), name))
    graph = helper.make_graph(
        nodes,
        "trustmark",
        [helper.make_tensor_value_info(name, kind, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, kind, None) for name in outputs],
        values,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)
    return path
