"""A sum that is normalized right away, as com.microsoft SkipGroupNorm: added up where it is read anyway."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from tintype.kernels.base import (
    MICROSOFT,
    Kernel,
    Shape,
    Shapes,
    constant_of,
    describe,
    insert,
    note_inside,
    permutation,
    producer,
    replace,
)
from tintype.kernels.cuda.nhwc_conv import CHANNELS_LAST
from tintype.kernels.portable.group_norm import GroupNorm


class SkipGroupNorm(Kernel):
    """Add and GroupNorm (channels last) as one node, which also gives the sum where others read it.

    The other summand is a picture of the same shape, or one number a channel: the timestep's, in a UNet's block.
    Not run on a GPU yet. Its sums are added by atomic operations: not the same bytes twice.
    """

    name = "skip_group_norm"
    targets: ClassVar[tuple[str, ...]] = ("cuda",)
    exactness = "the same function; the sum is rounded once in between, as before"
    balanced_only = True

    def matches(self, node: ir.Node, shapes: Shapes) -> bool:
        """A GroupNorm of an Add whose operands need no other broadcasting."""
        return node.op_type == "GroupNorm" and node.domain == MICROSOFT and _summands(node, shapes) is not None

    def rewrite(self, node: ir.Node, graph: ir.Graph) -> None:
        found = _summands(node, Shapes())
        add = producer(node.inputs[0], "Add")
        if found is None or add is None:
            return  # another norm of the same sum has taken it, and gives it
        picture, skip = found
        total, output = add.outputs[0], node.outputs[0]
        shared = total.is_graph_output() or len(list(total.uses())) > 1
        inputs = [picture, *node.inputs[1:3], skip]
        normed = insert(
            # Where the sum was made, so that its other readers come after.
            add,
            "SkipGroupNorm",
            inputs,
            domain=MICROSOFT,
            attributes=dict(node.attributes),
            like=output,
            outputs=2 if shared else 1,
        )
        made_by = normed.producer()
        replace(output, normed)
        if shared and made_by is not None:
            describe(made_by.outputs[1], total.shape, total.dtype)
            replace(total, made_by.outputs[1])
        else:
            note_inside(normed, total)

    @staticmethod
    def reference(
        x: NDArray[Any],
        scale: NDArray[Any],
        bias: NDArray[Any],
        skip: NDArray[Any],
        num_groups: int,
        epsilon: float = 1e-5,
    ) -> NDArray[Any]:
        """x (batch, height, width, channels); skip like it, or (batch, channels). Normalized, channels last."""
        total = x.astype(np.float64) + (skip if skip.ndim == 4 else skip[:, None, None, :])
        normed = GroupNorm.reference(total.transpose(0, 3, 1, 2), scale, bias, num_groups, epsilon)
        return normed.transpose(0, 2, 3, 1)


def _summands(node: ir.Node, shapes: Shapes) -> tuple[ir.Value, ir.Value] | None:
    """The picture and what is added to it, (batch, channels) or of the picture's shape."""
    add = producer(node.inputs[0], "Add")
    if add is None or len(add.inputs) != 2:
        return None
    first, second = add.inputs
    if first is None or second is None or constant_of(first) is not None or constant_of(second) is not None:
        return None
    if not _reaches(node.inputs[1:3], add):
        return None
    whole = shapes.of(add.outputs[0])
    for picture, skip in ((first, second), (second, first)):
        if whole is None or len(whole) != 4 or shapes.of(picture) != whole:
            continue
        if shapes.of(skip) == whole:
            return picture, skip
        if _is_one_a_channel(shapes.of(skip), whole):
            return picture, _flat(skip, shapes) or skip
    return None


def _reaches(parameters: Any, add: ir.Node) -> bool:
    """Whether scale and bias are there before the sum is made: fixed in the graph, as they are in every checkpoint."""
    return all(constant_of(value) is not None for value in parameters)


def _is_one_a_channel(shape: Shape | None, whole: Shape) -> bool:
    return shape is not None and len(shape) == 4 and shape == (whole[0], 1, 1, whole[3])


def _flat(skip: ir.Value, shapes: Shapes) -> ir.Value | None:
    """(batch, channels) behind a Transpose and an Unsqueeze, which then have no reader left."""
    turned = producer(skip, "Transpose")
    if turned is None or permutation(turned) != CHANNELS_LAST:
        return None
    unsqueeze = producer(turned.inputs[0], "Unsqueeze")
    source = unsqueeze.inputs[0] if unsqueeze is not None else None
    return source if source is not None and len(shapes.of(source) or ()) == 2 else None
