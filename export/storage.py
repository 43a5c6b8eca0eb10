"""Graphs on disk: one .onnx of structure and one .onnx_data of weights, each weight where it can be memory-mapped.

Weights above 1 KiB lie in the data file: those of 4 KiB and more start on a 4 KiB boundary, smaller ones on 64 bytes,
in the order in which the graph uses them, and the file's length is a multiple of 4 KiB.
"""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import onnx_ir as ir

PAGE_BYTES = 4096
SMALL_ALIGNMENT_BYTES = 64
SMALLEST_EXTERNAL_BYTES = 1024


def stored_bytes(path: Path) -> int:
    """A graph and its weights on disk."""
    data = path.with_name(path.name + "_data")
    return path.stat().st_size + (data.stat().st_size if data.is_file() else 0)


def save_graph(model: ir.Model, path: Path) -> None:
    """Write `path` and, where there are weights of size, `path`_data beside it. The folder is made when missing.

    Weights are written one by one. Afterwards the model's weights are views of the file, so memory they had is free
    once nobody else holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    data_path = path.with_name(path.name + "_data")
    written: dict[int, ir.ExternalTensor] = {}
    keep_alive: list[ir.TensorProtocol] = []  # an id is only a name while its object lives
    with data_path.open("wb") as data:
        for value in _in_order_of_use(model):
            tensor = value.const_value
            if tensor is None or tensor.nbytes <= SMALLEST_EXTERNAL_BYTES:
                continue
            if id(tensor) not in written:
                written[id(tensor)] = _append(data, data_path, tensor)
                keep_alive.append(tensor)
            value.const_value = written[id(tensor)]
        _pad(data, PAGE_BYTES)
        empty = data.tell() == 0
    if empty:
        data_path.unlink()
    ir.save(model, path)


def load_graph(path: Path) -> ir.Model:
    """A graph whose weights are read from the data file when they are asked for."""
    return ir.load(path)


def _append(data: BinaryIO, data_path: Path, tensor: ir.TensorProtocol) -> ir.ExternalTensor:
    offset = _pad(data, PAGE_BYTES if tensor.nbytes >= PAGE_BYTES else SMALL_ALIGNMENT_BYTES)
    data.write(tensor.tobytes())
    return ir.ExternalTensor(
        data_path.name,
        offset,
        tensor.nbytes,
        tensor.dtype,
        shape=ir.Shape(tensor.shape.numpy()),
        name=str(tensor.name),
        base_dir=data_path.parent,
    )


def _pad(data: BinaryIO, alignment: int) -> int:
    data.write(b"\0" * (-data.tell() % alignment))
    return data.tell()


def _in_order_of_use(model: ir.Model) -> list[ir.Value]:
    initializers = dict(model.graph.initializers.items())
    ordered: dict[str, ir.Value] = {}
    for node in model.graph:
        for value in node.inputs:
            if value is not None and value.name in initializers:
                ordered.setdefault(str(value.name), value)
    return [*ordered.values(), *(value for name, value in initializers.items() if name not in ordered)]
