"""Patterns of torch's first ONNX exporter as the operators that they mean. Each keeps the function; its gate is said.

Exact is what changes no bit but in the order of sums within an operator. The export compares both graphs as wholes.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from tintype.export.canonical.facts import Facts, module_of, only_reader, other_input, producer

ROOT_OF_TWO = math.sqrt(2.0)


def drop_no_ops(model: ir.Model, facts: Facts) -> int:
    """Identity, Cast to the type that it has, products and quotients with 1: nothing. Exact."""
    dropped = 0
    for node in list(model.graph):
        source, output = node.inputs[0] if node.inputs else None, node.outputs[0]
        if source is None or node.domain != "":
            continue
        if node.op_type in ("Identity", "Cast"):
            nothing = facts.dtype(source) == facts.dtype(output)
        elif node.op_type in ("Div", "Mul"):
            nothing = facts.scalar(node.inputs[1]) == 1.0
        else:
            nothing = False
        is_port = output.is_graph_output() and (source.is_graph_input() or source.is_initializer())
        if nothing and facts.shapes(source) == facts.shapes(output) and not is_port:
            if output.is_graph_output() and source.is_graph_output():
                continue
            facts.replace(output, source)
            dropped += 1
    RemoveUnusedNodesPass()(model)
    return dropped


def group_norms(model: ir.Model, facts: Facts) -> int:
    """Reshape to groups, InstanceNormalization, Reshape back, scale and shift by channel: GroupNormalization.

    Gate: 1e-6 on data of unit variance.
    """
    found = 0
    for norm in list(model.graph):
        if norm.op_type != "InstanceNormalization":
            continue
        before, after = producer(norm.inputs[0], "Reshape"), only_reader(norm.outputs[0], "Reshape")
        ones, zeros = facts.constant(norm.inputs[1]), facts.constant(norm.inputs[2])
        if before is None or after is None or ones is None or zeros is None:
            continue
        source, grouped = before.inputs[0], facts.dims(norm.inputs[0])
        dims = facts.dims(source)
        if source is None or len(dims) < 3 or len(grouped) != 3 or dims != facts.dims(after.outputs[0]):
            continue
        if not (ones == 1).all() or not (zeros == 0).all() or grouped[0] != dims[0] or ones.size != grouped[1]:
            continue
        scaled = only_reader(after.outputs[0], "Mul")
        shifted = only_reader(scaled.outputs[0], "Add") if scaled is not None else None
        if scaled is None or shifted is None:
            continue
        weight = _by_channel(other_input(scaled, after.outputs[0]), dims, facts)
        bias = _by_channel(other_input(shifted, scaled.outputs[0]), dims, facts)
        if weight is None or bias is None:
            continue
        module = module_of(norm)
        inputs = [
            source,
            facts.constant_value(weight, f"{module}.weight"),
            facts.constant_value(bias, f"{module}.bias"),
        ]
        attributes = {"num_groups": ones.size, "epsilon": norm.attributes.get_float("epsilon", 1e-5)}
        whole = facts.insert(
            shifted, "GroupNormalization", inputs, attributes, shapes=facts.shapes(source), like=source
        )
        facts.replace(shifted.outputs[0], whole.outputs[0])
        found += 1
    RemoveUnusedNodesPass()(model)
    return found


def _by_channel(value: ir.Value | None, dims: tuple[object, ...], facts: Facts) -> np.ndarray | None:
    """A scale or a shift that broadcasts over everything but the channels, as a vector."""
    array = facts.constant(value)
    if array is None or array.size != dims[1] or array.ndim < len(dims) - 1:
        return None
    shape = (1,) * (array.ndim - len(dims) + 1) + (array.size,) + (1,) * (len(dims) - 2)
    return array.reshape(-1) if array.shape == shape else None


def layer_norms(model: ir.Model, facts: Facts) -> int:
    """Mean, difference, variance, root, quotient, scale and shift along the last axis: LayerNormalization (below set
    17 there is none).

    Gate: 1e-6 on data of unit variance.
    """
    found = 0
    for quotient in list(model.graph):
        centred = quotient.inputs[0] if quotient.op_type == "Div" else None
        difference = producer(centred, "Sub")
        root = producer(quotient.inputs[1], "Sqrt") if centred is not None else None
        summed = producer(root.inputs[0], "Add") if root is not None else None
        if centred is None or difference is None or summed is None:
            continue
        source = difference.inputs[0]
        mean = producer(difference.inputs[1], "ReduceMean")
        variance = producer(summed.inputs[0], "ReduceMean")
        epsilon = facts.scalar(summed.inputs[1])
        square = producer(variance.inputs[0], "Pow", "Mul") if variance is not None else None
        if source is None or mean is None or variance is None or square is None or epsilon is None:
            continue
        squared = facts.scalar(square.inputs[1]) == 2.0 if square.op_type == "Pow" else square.inputs[1] is centred
        if not squared or square.inputs[0] is not centred or mean.inputs[0] is not source:
            continue
        if not all(_over_last(node, facts) for node in (mean, variance)):
            continue
        scaled = only_reader(quotient.outputs[0], "Mul")
        shifted = only_reader(scaled.outputs[0], "Add") if scaled is not None else None
        if scaled is None or shifted is None:
            continue
        weight, bias = other_input(scaled, quotient.outputs[0]), other_input(shifted, scaled.outputs[0])
        width = facts.dims(source)[-1:]
        if facts.dims(weight) != width or facts.dims(bias) != width:
            continue
        whole = facts.insert(
            shifted, "LayerNormalization", [source, weight, bias], {"axis": -1, "epsilon": epsilon},
            shapes=facts.shapes(source), like=source,
        )  # fmt: skip
        facts.replace(shifted.outputs[0], whole.outputs[0])
        found += 1
    RemoveUnusedNodesPass()(model)
    return found


def _over_last(node: ir.Node, facts: Facts) -> bool:
    """Whether a mean is one along the last axis, which stays."""
    attribute = node.attributes.get("axes")
    given = facts.constant(node.inputs[1]) if len(node.inputs) > 1 else None
    axes = list(attribute.as_ints()) if attribute is not None else [] if given is None else given.tolist()
    rank = len(facts.dims(node.inputs[0]))
    return [axis % rank for axis in axes] == [rank - 1] and node.attributes.get_int("keepdims", 1) == 1


def gelus(model: ir.Model, facts: Facts) -> int:
    """x * (1 + erf(x / sqrt 2)) * 0.5, in any order of the products: Gelu. Gate: 1e-6 on data of unit variance."""
    found = 0
    for erf in list(model.graph):
        if erf.op_type != "Erf":
            continue
        inner = producer(erf.inputs[0], "Div", "Mul")
        raised = only_reader(erf.outputs[0], "Add")
        if inner is None or raised is None or facts.scalar(other_input(raised, erf.outputs[0])) != 1.0:
            continue
        source, factor = inner.inputs[0], facts.scalar(inner.inputs[1])
        wanted = ROOT_OF_TWO if inner.op_type == "Div" else 1 / ROOT_OF_TWO
        if source is None or factor is None or abs(factor - wanted) > 1e-6:
            continue
        last = _half_of_product(raised, source, facts)
        if last is None:
            continue
        whole = facts.insert(last, "Gelu", [source], shapes=facts.shapes(source), like=source)
        facts.replace(last.outputs[0], whole.outputs[0])
        found += 1
    RemoveUnusedNodesPass()(model)
    return found


def _half_of_product(raised: ir.Node, source: ir.Value, facts: Facts) -> ir.Node | None:
    """The second of two products of `raised`'s value, by x and by a half, whichever is first."""
    value, left = raised.outputs[0], {"x", "half"}
    for _ in range(2):
        product = only_reader(value, "Mul")
        other = other_input(product, value) if product is not None else None
        if product is None or other is None:
            return None
        half_of_source = _halved(other, facts)
        if other is source:
            done = {"x"}
        elif facts.scalar(other) == 0.5:
            done = {"half"}
        elif half_of_source is source:
            done = {"x", "half"}
        else:
            return None
        if not done <= left:
            return None
        left -= done
        if not left:
            return product
        value = product.outputs[0]
    return None


def _halved(value: ir.Value, facts: Facts) -> ir.Value | None:
    """What a value is half of."""
    product = producer(value, "Mul")
    if product is None:
        return None
    return next((product.inputs[1 - i] for i in (0, 1) if facts.scalar(product.inputs[i]) == 0.5), None)


def splits(model: ir.Model, facts: Facts) -> int:
    """Two Slices that take the halves of a value's last axis: Split. Exact."""
    found = 0
    for first in list(model.graph):
        source = first.inputs[0] if first.op_type == "Slice" else None
        if source is None:
            continue
        width = facts.dims(source)[-1] if facts.dims(source) else None
        if not isinstance(width, int) or width % 2 or _cut(first, facts) != (0, width // 2):
            continue
        slices = [use.node for use in source.uses() if use.node.op_type == "Slice" and use.idx == 0]
        second = next((node for node in slices if _cut(node, facts) == (width // 2, width)), None)
        if second is None or len(list(source.uses())) > 3:  # the slices, and Shape
            continue
        split = facts.insert(
            first, "Split", [source], {"axis": -1, "num_outputs": 2}, shapes=facts.shapes(first.outputs[0]),
            like=source, outputs=2,
        )  # fmt: skip
        for node, output in zip((first, second), split.outputs, strict=True):
            facts.replace(node.outputs[0], output)
        found += 1
    RemoveUnusedNodesPass()(model)
    return found


def _cut(node: ir.Node, facts: Facts) -> tuple[int, int] | None:
    """Where a Slice of the last axis alone begins and ends."""
    rank = len(facts.dims(node.inputs[0]))
    given = [facts.constant(value) for value in node.inputs[1:]]
    if len(given) < 3 or any(array is None or array.size != 1 for array in given):
        return None
    start, end, axis, *step = (int(array.reshape(-1)[0]) for array in given if array is not None)
    if axis % rank != rank - 1 or step not in ([], [1]):
        return None
    width = facts.dims(node.inputs[0])[-1]
    return (start, min(end, width)) if isinstance(width, int) and start >= 0 and end > 0 else None
