"""An older operator set as the one that canonical graphs have: what changed is said anew, what stayed is left."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from tintype.export.canonical.operator_shapes import KNOWN_OPERATORS, UnknownOperatorError

OLDEST, NEWEST = 14, 23
WHOLE_SINCE = {"Gelu": 20, "GroupNormalization": 21, "Attention": 23}  # older ones of these mean something else
_REDUCTIONS = ("ReduceMean", "ReduceMax", "ReduceMin", "ReduceL2")  # since 18 their axes are an input


def to_newest(model: ir.Model) -> None:
    """State set 23, in place. Raises UnknownOperatorError for another set, or an operator that isn't known here."""
    version = model.opset_imports.get("", 0)
    if not OLDEST <= version <= NEWEST:
        raise UnknownOperatorError(f"operators of set {version}")
    graph = model.graph
    for node in graph:
        if node.domain != "" or node.op_type not in KNOWN_OPERATORS:
            raise UnknownOperatorError(f"{node.domain + '.' if node.domain else ''}{node.op_type}")
        if version < WHOLE_SINCE.get(node.op_type, 0):
            raise UnknownOperatorError(f"{node.op_type} of set {version}")
        if version < 18 and node.op_type in _REDUCTIONS and "axes" in node.attributes:
            axes = np.array(node.attributes.pop("axes").as_ints(), np.int64)
            name = f"{node.name}_axes"
            value = ir.Value(
                name=name, const_value=ir.tensor(axes, name=name), type=ir.TensorType(ir.DataType.INT64),
                shape=ir.Shape(axes.shape),
            )  # fmt: skip
            graph.register_initializer(value)
            node.resize_inputs(2)
            node.replace_input_with(1, value)
        if version < 18 and node.op_type == "Split" and len(node.inputs) < 2:
            node.attributes["num_outputs"] = ir.AttrInt64("num_outputs", len(node.outputs))
    model.opset_imports.clear()
    model.opset_imports[""] = NEWEST
    graph.opset_imports.clear()
    graph.opset_imports[""] = NEWEST
