"""What is added to a convolution's image before anyone else reads it, which a node of ours adds before it writes."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from tintype.kernels.base import Shapes, only_reader


@dataclass(frozen=True, slots=True)
class Sums:
    """What alone reads a convolution, and adds to it: a number for each channel, then an image."""

    nodes: tuple[ir.Node, ...] = ()
    shift: ir.Value | None = None  # (batch or 1, channels, 1, 1)
    added: ir.Value | None = None  # as the output

    @classmethod
    def behind(cls, output: ir.Value) -> Sums:
        """What is done to an image that nobody else reads."""
        found = cls()
        while (add := only_reader(output, "Add")) is not None and add.inputs[0] is not add.inputs[1]:
            other = add.inputs[1] if add.inputs[0] is output else add.inputs[0]
            shape, own = Shapes().of(other), Shapes().of(output)
            if shape is None or own is None or other is None or other.dtype != ir.DataType.FLOAT:
                break
            if found.added is None and shape == own and shape[2:] != (1, 1):
                found = cls((*found.nodes, add), found.shift, other)
            elif not found.nodes and shape in ((own[0], own[1], 1, 1), (1, own[1], 1, 1)):
                found = cls((add,), other)
            else:
                break
            output = add.outputs[0]
        return found
