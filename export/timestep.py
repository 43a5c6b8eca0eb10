"""The denoiser's timestep as optimum's pipelines give it: a scalar. Traced graphs compute with one of shape (1,)."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

NAME = "timestep"


def take_scalar_timestep(model: ir.Model) -> None:
    """Let the graph's timestep be a scalar, in place; what reads it gets (1,) as before. One without stays as it is."""
    value = next((each for each in model.graph.inputs if each.name == NAME), None)
    if value is None or (value.shape is not None and len(value.shape) == 0):
        return
    users = [(use.node, use.idx) for use in value.uses()]
    axes = ir.tensor(np.array([0], np.int64), name=f"{NAME}_axis")
    axis = ir.Value(name=axes.name, const_value=axes, type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape((1,)))
    model.graph.register_initializer(axis)
    row = ir.node("Unsqueeze", [value, axis], name=f"{NAME}/Unsqueeze")
    row.outputs[0].name, row.outputs[0].shape, row.outputs[0].type = f"{NAME}_row", ir.Shape((1,)), value.type
    model.graph.insert_before(model.graph[0], row)
    for node, index in users:
        node.replace_input_with(index, row.outputs[0])
    value.shape = ir.Shape(())
