"""How large every value of a graph gets on given inputs: what decides where float16 is enough."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from tintype.kernels.base import LARGEST

OUTPUT = "largest_seen"  # (values,), in the order of the names that `watch` returns


def watch(model: ir.Model) -> list[str]:
    """Let a graph tell the largest magnitude of every float value besides what it gives; returns the values' names.

    One more output and nothing else changes; values still live only as long as they are read.
    """
    graph, names, seen = model.graph, list[str](), list[ir.Value]()
    each = ir.Value(name="largest_of_one", const_value=ir.tensor(np.array([1], np.int64), name="largest_of_one"))
    each.shape, each.dtype = ir.Shape([1]), ir.DataType.INT64
    graph.register_initializer(each)
    fixed: set[ir.Value] = set()
    for node in list(graph):
        if all(value is None or value in fixed or value.const_value is not None for value in node.inputs):
            fixed.update(node.outputs)  # weights, however stored
            continue
        after = node
        for output in node.outputs:
            if output.dtype != ir.DataType.FLOAT or not output.name:
                continue
            for operator, inputs in (("Abs", 1), ("ReduceMax", 1), ("Reshape", 2)):
                told = ir.node(
                    operator,
                    [output if operator == "Abs" else after.outputs[0], each][:inputs],
                    attributes={"keepdims": 0} if operator == "ReduceMax" else {},
                )
                graph.insert_after(after, told)
                after = told
            names.append(output.name)
            seen.append(after.outputs[0])
    told = ir.node("Concat", seen, attributes={"axis": 0})
    graph.append(told)
    told.outputs[0].name, told.outputs[0].shape = OUTPUT, ir.Shape([len(seen)])
    told.outputs[0].dtype = ir.DataType.FLOAT
    graph.outputs.append(told.outputs[0])
    return names


def mark(model: ir.Model, largest: Mapping[str, float]) -> None:
    """Note on a canonical graph's values how large they get; kernels hand the notes on to what takes their place."""
    for node in model.graph:
        for output in node.outputs:
            if output.name in largest:
                output.meta[LARGEST] = float(largest[str(output.name)])
