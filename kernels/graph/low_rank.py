"""What LoRAs add to layers (Hu et al. 2022): y + (x . down) . up, where down and up are inputs of the graph.

DoRAs (Liu et al. 2024) scale the layer's own product as well, output by output, or what it reads, input by input: by
one more input of the graph, of ones where nothing is scaled. A bias isn't scaled: t * (y - b) + b.

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

from tintype.kernels.base import add_constant, only_reader, producer, replace
from tintype.kernels.graph.segments import constant_values, is_fixed

PREFIX = "lora."  # of the inputs' names: lora.LAYER.down, lora.LAYER.up and lora.LAYER.scale
BY_OUTPUT, BY_INPUT = "outputs", "inputs"  # of a layer, what is scaled
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
    height, width) of the kernel. bias: what is in its output besides the product, if anything.
    """

    name: str
    node: ir.Node
    output: ir.Value
    shape: tuple[int, ...]
    bias: ir.Value | None = None


def adaptable_layers(graph: ir.Graph) -> dict[str, AdaptableLayer]:
    """The layers of a canonical graph by name; a module that is called twice has its first call alone."""
    fixed, found = constant_values(graph), dict[str, AdaptableLayer]()
    for node in graph:
        layer = _layer(node, fixed) if node.op_type in _FOLLOWS and node.domain == "" else None
        if layer is not None:
            found.setdefault(layer.name, layer)
    return found


def add_low_rank_inputs(graph: ir.Graph, layers: Iterable[AdaptableLayer], rank: int, scaled: str = "") -> None:
    """Let a graph take a pair of matrices of that rank for each of these layers, whose shapes are known.

    A linear layer's are down (inputs, rank) and up (rank, outputs), a convolution's (rank, inputs, height, width) and
    (outputs, rank, 1, 1). scaled: BY_OUTPUT or BY_INPUT, for scale (outputs,) or (inputs,) beside them, a convolution's
    (1, outputs, 1, 1) or (1, inputs, 1, 1). Nothing reads them until `add_low_rank`.
    """
    for layer in layers:
        outputs, inputs, *kernel = layer.shape
        shapes: dict[str, tuple[int, ...]] = {"down": (inputs, rank), "up": (rank, outputs)}
        if kernel:
            shapes = {"down": (rank, inputs, *kernel), "up": (outputs, rank, 1, 1)}
        if scaled:
            width = outputs if scaled == BY_OUTPUT else inputs
            shapes["scale"] = (1, width, 1, 1) if kernel else (width,)
        for part, shape in shapes.items():
            value = ir.Value(name=f"{PREFIX}{layer.name}.{part}", shape=ir.Shape(shape))
            value.dtype = ir.DataType.FLOAT
            graph.inputs.append(value)


def add_low_rank(graph: ir.Graph, layers: Iterable[AdaptableLayer], scaled: str = "") -> None:
    """Add to what each layer gives what the inputs that are there for it make of what it reads, and scale it."""
    inputs = {str(value.name): value for value in graph.inputs}
    for layer in layers:
        down, up, scale = (inputs.get(f"{PREFIX}{layer.name}.{part}") for part in ("down", "up", "scale"))
        if down is None or up is None:
            raise ValueError(f"the graph takes nothing for {layer.name}")
        _add(graph, layer, down, up, scale if scaled == BY_OUTPUT else None)
        if scale is not None and scaled == BY_INPUT:
            _scale_input(graph, layer, scale)


def reference(
    x: NDArray[Any],
    weight: NDArray[Any],
    down: NDArray[Any],
    up: NDArray[Any],
    scale: NDArray[Any] | float = 1.0,
    bias: NDArray[Any] | float = 0.0,
) -> NDArray[Any]:
    """A linear layer with such a pair, its product scaled by output. x (..., inputs), weight (inputs, outputs), down
    (inputs, rank), up (rank, outputs), scale (outputs,), bias (outputs,)."""
    x = x.astype(np.float64)
    return (x @ weight) * scale + (x @ down) @ up + bias


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
    output, bias = _whole_output(node, shape[0], fixed)
    return AdaptableLayer(name, node, output, shape, bias)


def _before_rounding(source: ir.Value) -> ir.Value:
    """The value itself, where a layer reads it rounded to 8 bits."""
    dequantized = producer(source, "DequantizeLinear")
    quantized = producer(dequantized.inputs[0], "QuantizeLinear") if dequantized is not None else None
    value = quantized.inputs[0] if quantized is not None else None
    return source if value is None else value


def _whole_output(node: ir.Node, width: int, fixed: set[ir.Value]) -> tuple[ir.Value, ir.Value | None]:
    """What a layer gives, with its bias, and rounded to 8 bits where it is; and the bias."""
    value, bias = node.outputs[0], node.inputs[2] if len(node.inputs) > 2 else None
    add = only_reader(value, "Add") if node.op_type == "MatMul" else None
    if add is not None:
        other = add.inputs[1] if add.inputs[0] is value else add.inputs[0]
        is_bias = other is not None and (is_fixed(other) or other in fixed)
        if is_bias and other is not None and other.shape is not None and list(other.shape) == [width]:
            value, bias = add.outputs[0], other
    quantized = only_reader(value, "QuantizeLinear")
    dequantized = only_reader(quantized.outputs[0], "DequantizeLinear") if quantized is not None else None
    return (value if dequantized is None else dequantized.outputs[0]), bias


def _add(graph: ir.Graph, layer: AdaptableLayer, down: ir.Value, up: ir.Value, scale: ir.Value | None) -> None:
    last = layer.output.producer()
    if last is None or last.graph is not graph:
        return  # a cut has taken the layer out
    make, source = _Behind(graph, last, layer), layer.node.inputs[0]
    if source is None:
        return
    source = _before_rounding(source)  # as it is by now: it may be what another layer gives, with its own sum
    shift = None if scale is None or layer.bias is None else _shift(make, layer, scale, layer.bias)
    if layer.node.op_type == "Conv":
        names = ("strides", "pads", "dilations", "auto_pad")
        same = {name: layer.node.attributes[name] for name in names if name in layer.node.attributes}
        inner = make("Conv", [source, down], same)
        make.sum(layer.output, make("Conv", [inner, up], {}), scale, shift)
        return
    inner = make("MatMul", [source, down], {})
    split = only_reader(layer.output, "Split")
    if split is None or len(split.outputs) != 2 or len(split.inputs) != 1:
        make.sum(layer.output, make("MatMul", [inner, up], {}), scale, shift)
        return
    # The two halves of a GEGLU: the wide tensor between, which `geglu` leaves out, must not come back for this.
    make.after = split
    ups, scales, shifts = make.halves(up), make.halves(scale), make.halves(shift)
    for index, output in enumerate(list(split.outputs)):
        half = ups[index]
        if half is not None:
            make.sum(output, make("MatMul", [inner, half], {}), scales[index], shifts[index])


def _shift(make: _Behind, layer: AdaptableLayer, scale: ir.Value, bias: ir.Value) -> ir.Value:
    """(1 - scale) * bias, which gives a bias back what scaling takes of it."""
    if layer.node.op_type == "Conv":
        bias = make("Reshape", [bias, make.constant(np.array([1, -1, 1, 1], np.int64))], {})
    beta = layer.node.attributes.get_float("beta", 1.0)
    rest = make("Sub", [make.constant(np.array([1.0], np.float32)), scale], {})
    if beta != 1.0:
        rest = make("Mul", [rest, make.constant(np.array([beta], np.float32))], {})
    return make("Mul", [rest, bias], {})


def _scale_input(graph: ir.Graph, layer: AdaptableLayer, scale: ir.Value) -> None:
    """Let a layer alone, and not what is added to it, read what it reads scaled."""
    source = layer.node.inputs[0]
    if source is None or layer.node.graph is not graph:
        return
    node = ir.Node("", "Mul", [source, scale], num_outputs=1, name=f"{layer.name}/{PREFIX}scale")
    value = node.outputs[0]
    value.name, value.dtype, value.shape = f"{node.name}_output_0", ir.DataType.FLOAT, source.shape
    graph.insert_before(layer.node, node)
    layer.node.replace_input_with(0, value)


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

    def constant(self, numbers: NDArray[Any]) -> ir.Value:
        return add_constant(self._graph, numbers, f"{PREFIX}{'_'.join(map(str, numbers.tolist()))}")

    def halves(self, value: ir.Value | None) -> tuple[ir.Value | None, ir.Value | None]:
        """Of an input along its last axis."""
        if value is None or value.shape is None:
            return None, None
        along = {"axis": ir.AttrInt64("axis", len(value.shape) - 1), "num_outputs": ir.AttrInt64("num_outputs", 2)}
        node = self("Split", [value], along, 2).producer()
        return (None, None) if node is None else (node.outputs[0], node.outputs[1])

    def sum(self, value: ir.Value, added: ir.Value, scale: ir.Value | None, shift: ir.Value | None) -> None:
        """Let every reader of a value read the sum of both; of the value scaled, and shifted, where that is asked."""
        added.shape = value.shape
        begin, total = None, value
        for operator, other in (("Mul", scale), ("Add", shift), ("Add", added)):
            if other is not None:
                total = self(operator, [total, other], {})
                total.shape = value.shape
                begin = begin or total.producer()
        replace(value, total)
        if begin is not None:
            begin.replace_input_with(0, value)

    def _shape(self, operator: str, inputs: list[ir.Value]) -> ir.Shape | None:
        first, second = (value.shape for value in (*inputs, inputs[-1])[:2])
        if first is None or second is None:
            return None
        if operator == "MatMul":
            return ir.Shape([*list(first)[:-1], second[-1]])
        if operator == "Split":
            return ir.Shape([*list(first)[:-1], int(str(first[-1])) // 2])
        if operator == "Reshape":
            return ir.Shape([1, first[0], 1, 1])
        if operator == "Conv":
            size = list(self._layer.output.shape or ())[2:]
            return ir.Shape([first[0], second[0], *size]) if size else None
        return second if operator == "Sub" else first
