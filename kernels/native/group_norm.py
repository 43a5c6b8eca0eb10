"""GroupNormalization with its SiLU as one node of our own, which reads a group twice and writes it once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from tintype.kernels.base import OWN, Kernel, Shapes, add_constant, constant_of, insert, only_reader, producer, replace
from tintype.kernels.cpu.channel_affine import affine_parts
from tintype.kernels.native.library import ABILITY
from tintype.kernels.portable.group_norm import GroupNorm


class NativeGroupNorm(Kernel):
    """A GroupNormalization that `group_norm` has lowered, and the SiLU behind it, as GroupNormSilu (src/group_norm.h).

    ONNX Runtime makes three to six passes of it, each through memory. Statistics are those of pieces, joined in
    float64, so that any mean is right.
    """

    name = "native_group_norm"
    targets = ("cpu",)
    needs: ClassVar[Mapping[str, str]] = {"cpu": ABILITY}
    exactness = "the same function; fp32 error below 1e-6 on unit-variance data, at any mean"
    measured = True
    kind = "GroupNorm"

    def matches(self, node: ir.Node, shapes: Shapes) -> bool:
        """The LayerNormalization over each group of an image of known sizes, scaled and shifted by channel."""
        return _parts(node, shapes) is not None

    def cluster(self, node: ir.Node) -> tuple[ir.Node, ...]:
        found = _parts(node, Shapes())
        return (node,) if found is None else found.nodes

    def rewrite(self, node: ir.Node, graph: ir.Graph) -> None:
        found = _parts(node, Shapes())
        if found is None:
            raise ValueError(f"{node.name} is no lowered GroupNormalization")
        output = found.output
        constants = (
            add_constant(graph, found.scale, f"{node.name}_scale"),
            add_constant(graph, found.bias, f"{node.name}_bias"),
        )
        attributes = {
            "groups": found.groups,
            "epsilon": node.attributes.get_float("epsilon", 1e-5),
            "silu": int(found.silu),
        }
        before, inputs = found.nodes[-1], [found.source, *constants]
        replace(output, insert(before, "GroupNormSilu", inputs, domain=OWN, attributes=attributes, like=output))

    @staticmethod
    def reference(
        x: NDArray[Any], scale: NDArray[Any], bias: NDArray[Any], groups: int, epsilon: float, silu: bool
    ) -> NDArray[Any]:
        """x (batch, channels, ...); scale and bias (channels,)."""
        normed = GroupNorm.reference(x, scale, bias, groups, epsilon)
        return normed / (1.0 + np.exp(-normed)) if silu else normed


@dataclass(frozen=True, slots=True)
class _Parts:
    """What there is of a lowered GroupNormalization."""

    source: ir.Value  # (batch, channels, ...)
    groups: int
    scale: NDArray[np.float32]  # (channels,)
    bias: NDArray[np.float32]
    silu: bool
    nodes: tuple[ir.Node, ...]  # in their order
    output: ir.Value


def _parts(norm: ir.Node, shapes: Shapes) -> _Parts | None:
    if norm.op_type != "LayerNormalization" or norm.domain != "" or norm.attributes.get_int("axis", -1) != -1:
        return None
    grouping, back = producer(norm.inputs[0], "Reshape"), only_reader(norm.outputs[0], "Reshape")
    plain, around = _is_plain(norm), []
    if grouping is None or back is None or plain is None or len(norm.outputs) > 1:
        return None
    scaling = only_reader(back.outputs[0], "Mul")
    affine = affine_parts(scaling, shapes) if scaling is not None else None
    source, grouped = grouping.inputs[0], constant_of(grouping.inputs[1])
    if affine is None or scaling is None or source is None or grouped is None or len(grouped) != 3:
        return None
    _, shift, scale, bias = affine
    groups = int(grouped[1])
    if shapes.of(source) != shapes.of(back.outputs[0]) or groups < 1 or len(scale) % groups:
        return None
    activation = _silu_of(shift.outputs[0])
    for made_by in (back.inputs[1].producer() if back.inputs[1] is not None else None, *plain):
        if made_by is not None:
            around.append(made_by)
    nodes = (grouping, *around, norm, back, scaling, shift, *activation)
    output = nodes[-1].outputs[0]
    return _Parts(source, groups, scale, bias, bool(activation), nodes, output)


def _is_plain(norm: ir.Node) -> tuple[ir.Node, ...] | None:
    """The nodes that make a LayerNormalization's scale of ones; None where it scales or shifts by anything else."""
    if len(norm.inputs) > 2 and norm.inputs[2] is not None:
        return None
    fixed = constant_of(norm.inputs[1])
    if fixed is not None:
        return () if np.all(fixed == 1) else None
    filled = producer(norm.inputs[1], "ConstantOfShape")
    value = filled.attributes.get("value") if filled is not None else None
    if filled is None or value is None or not np.all(value.as_tensor().numpy() == 1):
        return None
    length = producer(filled.inputs[0], "Shape")
    return (length, filled) if length is not None else None


def _silu_of(value: ir.Value) -> tuple[ir.Node, ...]:
    """The Sigmoid and the Mul that are all that reads a value; none where it is read otherwise."""
    readers = {use.node for use in value.uses()}
    sigmoid = next((node for node in readers if node.op_type == "Sigmoid" and node.domain == ""), None)
    if sigmoid is None or len(readers) != 2 or value.is_graph_output():
        return ()
    product = only_reader(sigmoid.outputs[0], "Mul")
    is_silu = product is not None and product in readers and set(product.inputs) == {value, sigmoid.outputs[0]}
    return (sigmoid, product) if is_silu and product is not None else ()
