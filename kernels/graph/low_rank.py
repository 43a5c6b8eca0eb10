"""What LoRAs add to layers (Hu et al. 2022): y + (x . down) . up, where down and up are inputs of the graph.

Layers are called what they are in the model that was traced, as files of LoRAs call them:
`down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q`. Exact beside the layer as it is: what it reads is taken
before it is rounded to 8 bits, and what is added comes behind the rounding of what it gives.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from tintype.kernels.base import only_reader, producer, replace
from tintype.kernels.graph.segments import constant_values, is_fixed

PREFIX = "lora."  # of the inputs' names: lora.LAYER.down and lora.LAYER.up
# Where a layer's name begins, whatever the traced module was a part of.
_ROOTS = re.compile(
    r"(?:^|\.)((?:down_blocks|mid_block|up_blocks|time_embedding|add_embedding|encoder\.layers)\..+"
    r"|conv_in|conv_out|text_projection)$"
)
_FOLLOWS = ("Conv", "MatMul", "Gemm")


@dataclass(frozen=True, slots=True)
class AdaptableLayer:
    """A linear layer or a convolution of fixed weights.

    output: what it gives in the end. shape: of its weight as torch has it, (outputs, inputs) or (outputs, inputs,
    height, width) of the kernel.
    """

    name: str
    node: ir.Node
    output: ir.Value
    shape: tuple[int, ...]


def adaptable_layers(graph: ir.Graph) -> dict[str, AdaptableLayer]:
    """The layers of a canonical graph by name; a module that is called twice has its first call alone."""
    fixed, found = constant_values(graph), dict[str, AdaptableLayer]()
    for node in graph:
        layer = _layer(node, fixed) if node.op_type in _FOLLOWS and node.domain == "" else None
        if layer is not None:
            found.setdefault(layer.name, layer)
    return found


def add_low_rank_inputs(graph: ir.Graph, layers: Iterable[AdaptableLayer], rank: int) -> None:
    """Let a graph take a pair of matrices of that rank for each of these layers, whose shapes are known.

    A linear layer's are down (inputs, rank) and up (rank, outputs), a convolution's (rank, inputs, height, width) and
    (outputs, rank, 1, 1). Nothing reads them until `add_low_rank`.
    """
    for layer in layers:
        outputs, inputs, *kernel = layer.shape
        shapes: dict[str, tuple[int, ...]] = {"down": (inputs, rank), "up": (rank, outputs)}
        if kernel:
            shapes = {"down": (rank, inputs, *kernel), "up": (outputs, rank, 1, 1)}
        for part, shape in shapes.items():
            value = ir.Value(name=f"{PREFIX}{layer.name}.{part}", shape=ir.Shape(shape))
            value.dtype = ir.DataType.FLOAT
            graph.inputs.append(value)


def add_low_rank(graph: ir.Graph, layers: Iterable[AdaptableLayer]) -> None:
    """Add to what each layer gives what the inputs that are there for it make of what it reads."""
    inputs = {str(value.name): value for value in graph.inputs}
    for layer in layers:
        _add(graph, layer, *(inputs[f"{PREFIX}{layer.name}.{part}"] for part in ("down", "up")))


def reference(
    x: NDArray[Any], weight: NDArray[Any], down: NDArray[Any], up: NDArray[Any], scale: float = 1.0
) -> NDArray[Any]:
    """A linear layer with such a pair. x (..., inputs), weight (inputs, outputs), down (inputs, rank), up (rank,
    outputs)."""
    x = x.astype(np.float64)
    return x @ weight + scale * ((x @ down) @ up)


def module_of(node: ir.Node) -> str | None:
    """The module that a node is of, by the name that a tracer gave it: `a.b.c/MatMul`, or `/a.b/c/MatMul`."""
    path, _, _ = (node.name or "").rpartition("/")
    found = _ROOTS.search(path.strip("/").replace("/", "."))
    return found[1] if found is not None else None


def _layer(node: ir.Node, fixed: set[ir.Value]) -> AdaptableLayer | None:
    name, source, weight = module_of(node), node.inputs[0], node.inputs[1]
    if name is None or source is None or weight is None or not (is_fixed(weight) or weight in fixed):
        return None
    if weight.shape is None or not weight.shape.is_static() or source.dtype not in (None, ir.DataType.FLOAT):
        return None
    shape = tuple(int(size) for size in weight.shape.numpy())
    if node.op_type == "Conv":
        if len(shape) != 4 or node.attributes.get_int("group", 1) != 1:
            return None
    elif len(shape) != 2 or node.attributes.get_int("transA", 0) == 1:
        return None
    elif node.attributes.get_int("transB", 0) == 0:
        shape = shape[::-1]
    return AdaptableLayer(name, node, _whole_output(node, shape[0], fixed), shape)


def _before_rounding(source: ir.Value) -> ir.Value:
    """The value itself, where a layer reads it rounded to 8 bits."""
    dequantized = producer(source, "DequantizeLinear")
    quantized = producer(dequantized.inputs[0], "QuantizeLinear") if dequantized is not None else None
    value = quantized.inputs[0] if quantized is not None else None
    return source if value is None else value


def _whole_output(node: ir.Node, width: int, fixed: set[ir.Value]) -> ir.Value:
    """What a layer gives, with its bias, and rounded to 8 bits where it is."""
    value = node.outputs[0]
    add = only_reader(value, "Add") if node.op_type == "MatMul" else None
    if add is not None:
        other = add.inputs[1] if add.inputs[0] is value else add.inputs[0]
        is_bias = other is not None and (is_fixed(other) or other in fixed)
        if is_bias and other is not None and other.shape is not None and list(other.shape) == [width]:
            value = add.outputs[0]
    quantized = only_reader(value, "QuantizeLinear")
    dequantized = only_reader(quantized.outputs[0], "DequantizeLinear") if quantized is not None else None
    return value if dequantized is None else dequantized.outputs[0]


def _add(graph: ir.Graph, layer: AdaptableLayer, down: ir.Value, up: ir.Value) -> None:
    last = layer.output.producer()
    if last is None or last.graph is not graph:
        return  # a cut has taken the layer out
    make, source = _Behind(graph, last, layer), layer.node.inputs[0]
    if source is None:
        return
    source = _before_rounding(source)  # as it is by now: it may be what another layer gives, with its own sum
    if layer.node.op_type == "Conv":
        names = ("strides", "pads", "dilations", "auto_pad")
        same = {name: layer.node.attributes[name] for name in names if name in layer.node.attributes}
        inner = make("Conv", [source, down], same)
        make.sum(layer.output, make("Conv", [inner, up], {}))
        return
    inner = make("MatMul", [source, down], {})
    split = only_reader(layer.output, "Split")
    if split is None or len(split.outputs) != 2 or len(split.inputs) != 1:
        make.sum(layer.output, make("MatMul", [inner, up], {}))
        return
    # The two halves of a GEGLU: the wide tensor between, which `geglu` leaves out, must not come back for this.
    make.after = split
    halves = make("Split", [up], {"axis": ir.AttrInt64("axis", 1), "num_outputs": ir.AttrInt64("num_outputs", 2)}, 2)
    node = halves.producer()
    for half, output in zip(node.outputs if node is not None else (), split.outputs, strict=True):
        make.sum(output, make("MatMul", [inner, half], {}))


class _Behind:
    """Makes nodes behind another one, in turn."""

    def __init__(self, graph: ir.Graph, after: ir.Node, layer: AdaptableLayer) -> None:
        self.after = after
        self._graph, self._layer, self._count = graph, layer, 0

    def __call__(
        self, operator: str, inputs: list[ir.Value], attributes: dict[str, ir.Attr], outputs: int = 1
    ) -> ir.Value:
        name = f"{self._layer.name}/{PREFIX}{self._count}"
        node = ir.Node("", operator, inputs, list(attributes.values()), num_outputs=outputs, name=name)
        for index, value in enumerate(node.outputs):
            value.name = f"{name}_output_{index}"
            value.dtype = ir.DataType.FLOAT
            value.shape = self._shape(operator, inputs)
        self._graph.insert_after(self.after, node)
        self.after, self._count = node, self._count + 1
        return node.outputs[0]

    def sum(self, value: ir.Value, added: ir.Value) -> None:
        """Let every reader of a value read the sum of both."""
        added.shape = value.shape
        total = self("Add", [value, added], {})
        node = total.producer()
        replace(value, total)
        if node is not None:
            node.replace_input_with(0, value)

    def _shape(self, operator: str, inputs: list[ir.Value]) -> ir.Shape | None:
        first, second = (value.shape for value in (*inputs, inputs[-1])[:2])
        if first is None or second is None:
            return None
        if operator == "MatMul":
            return ir.Shape([*list(first)[:-1], second[-1]])
        if operator == "Split":
            rank, width = second
            return ir.Shape([rank, int(str(width)) // 2])
        if operator == "Conv":
            size = list(self._layer.output.shape or ())[2:]
            return ir.Shape([first[0], second[0], *size]) if size else None
        return first
