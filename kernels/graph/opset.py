"""The same graph at an older operator set, for a provider whose kernels end there. Exact: nothing is rewritten."""

from __future__ import annotations

import onnx
import onnx_ir as ir


def to_opset(model: ir.Model, version: int) -> None:
    """State that a model is of this operator set or its own, whichever is older, in place.

    Raises ValueError when a node is one that this set doesn't have, or has with other inputs or attributes: what a
    newer set added besides is element types, and those that the graph's values have must be in the older one too.
    """
    if model.opset_imports.get("", version) <= version:
        return
    for node in model.graph:
        if node.domain == "":
            _demand(node, version, model.opset_imports[""])
    model.opset_imports[""] = version
    model.graph.opset_imports[""] = version


def _demand(node: ir.Node, version: int, newest: int) -> None:
    try:
        schema = onnx.defs.get_schema(node.op_type, version, "")
    except onnx.defs.SchemaError:
        raise ValueError(f"operator set {version} has no {node.op_type}") from None
    unknown = set(node.attributes) - set(schema.attributes)
    if unknown:
        raise ValueError(f"{node.op_type} has no {', '.join(sorted(unknown))} in operator set {version}")
    own = onnx.defs.get_schema(node.op_type, newest, "")
    if own.since_version == schema.since_version:
        return
    if len(node.inputs) > schema.max_input or len(node.outputs) > schema.max_output:
        raise ValueError(f"{node.op_type} takes fewer inputs or gives fewer outputs in operator set {version}")
    if [port.type_str for port in own.inputs] != [port.type_str for port in schema.inputs]:
        raise ValueError(f"{node.op_type} has other inputs in operator set {version}")
    allowed = {constraint.type_param_str: constraint.allowed_type_strs for constraint in schema.type_constraints}
    ports = [*schema.inputs[: len(node.inputs)]]
    for port, value in zip(ports, node.inputs, strict=False):
        if value is None or value.dtype is None or port.type_str not in allowed:
            continue
        if f"tensor({_name(value.dtype)})" not in allowed[port.type_str]:
            raise ValueError(f"{node.op_type} takes no {value.dtype} in operator set {version}")


def _name(kind: ir.DataType) -> str:
    """An element type as schemas write it."""
    return {"FLOAT": "float", "DOUBLE": "double", "BOOL": "bool", "STRING": "string"}.get(kind.name, kind.name.lower())
