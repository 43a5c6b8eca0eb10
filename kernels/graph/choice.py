"""Where a build may choose between kernels: every such layer by itself, as a small model of each way to do it.

The engine times these models at the build's own shape; nothing here runs anything.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from tintype.kernels.base import DOMAINS, Kernel, Shapes, constant_of, only_reader, producer
from tintype.kernels.graph.blocks import bits_of
from tintype.kernels.graph.linear import half_weight
from tintype.kernels.graph.priors import AS_IS
from tintype.kernels.graph.unused import remove_unused

_AROUND = ("DequantizeLinear", "QuantizeLinear")  # ONNX Runtime fuses these into the layer between them
_WEIGHT_STORES = (*_AROUND, "Cast")


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """One node with more than one way to do it."""

    node: ir.Node
    kernels: tuple[Kernel, ...]
    inputs: tuple[ir.Value, ...]  # float32, of known shapes
    outputs: tuple[ir.Value, ...]
    signature: str  # layers of one signature cost the same
    kind: str  # what it is, without its size: Conv 3x3 upsampled int8
    # What its work grows with: (pixels, inputs, outputs) of a convolution, the input's pixels; (rows, inputs, outputs)
    # of a product; (pixels, channels) of a pass over an image; (queries, keys, heads, a head's numbers) of attention.
    # Pixels, rows and queries of the whole batch.
    size: tuple[int, ...]
    weights: int  # numbers in its weight
    stored_bytes: int  # of all that is fixed in it, as ONNX Runtime holds it
    is_half: bool  # whether its weights are stored as float16

    @property
    def ways(self) -> tuple[str, ...]:
        return (AS_IS, *(kernel.name for kernel in self.kernels))

    @property
    def is_rounded(self) -> bool:
        """Whether the layer's output is rounded to 8 bits."""
        return any(map(is_rounded, self.outputs))

    def kernel(self, way: str) -> Kernel | None:
        """What does it this way; None as it is."""
        return None if way == AS_IS else next(kernel for kernel in self.kernels if kernel.name == way)

    def describe(self) -> str:
        """Operator and shapes, for people: Conv 1x320x64x64 320x320x3x3."""
        named = _named(self.kernels)
        ports = self.node.inputs[:2] if named is None else self.inputs
        shapes = [value.shape for value in ports if value is not None and value.shape is not None]
        return " ".join([named or self.node.op_type, *("x".join(map(str, shape)) for shape in shapes)])


def layers(graph: ir.Graph, kernels: Iterable[Kernel]) -> Iterator[Layer]:
    """Every node that at least one of these kernels matches. All shapes must be numbers (`dims.pin`)."""
    chosen, shapes = tuple(kernels), Shapes()
    places = {node: place for place, node in enumerate(graph)}
    for node in places:
        matching = tuple(kernel for kernel in chosen if kernel.matches(node, shapes))
        if matching:
            layer = _layer(node, matching, places)
            if layer is not None:
                yield layer


def model_of(layer: Layer, way: str, opset_imports: Mapping[str, int]) -> ir.Model:
    """The layer alone, done one way: a model with the layer's weights in it."""
    graph = ir.convenience.extract(layer.node.graph, layer.inputs, layer.outputs)  # type: ignore[arg-type]
    model = ir.Model(graph, ir_version=10)
    model.opset_imports.update(opset_imports)
    model.opset_imports.update(DOMAINS)
    kernel = layer.kernel(way)
    if kernel is not None:
        kernel.rewrite(next(node for node in graph if node.name == layer.node.name), graph)
        remove_unused(model)
    for value in graph.initializers.values():
        if isinstance(value.const_value, ir.ExternalTensor):
            value.const_value = ir.tensor(value.const_value.numpy(), name=value.name)
    return model


def weight_bytes(model: ir.Model) -> int:
    """Bytes of all that is fixed in a model, as ONNX Runtime holds it."""
    return sum(_held_bytes(value) for value in model.graph.initializers.values())


def _held_bytes(value: ir.Value) -> int:
    """Bytes of a fixed value, of which ONNX Runtime makes what a Cast of it gives, as it opens a graph."""
    tensor = value.const_value
    if tensor is None:
        return 0
    casts = [use.node.outputs[0].dtype if use.node.op_type == "Cast" else None for use in value.uses()]
    made = [dtype for dtype in casts if dtype is not None]
    each = made[0].itemsize if made and len(made) == len(casts) else tensor.dtype.itemsize
    return math.ceil(tensor.size * each)


def is_rounded(value: ir.Value) -> bool:
    """Whether a value is what rounding to 8 bits has left."""
    return producer(value, "DequantizeLinear") is not None


def rounded_range(value: ir.Value) -> tuple[float, float] | None:
    """The least and the largest number that a value's rounding to 8 bits keeps, be it what makes it or what reads it;
    None where nothing rounds it."""
    for node in (producer(value, "DequantizeLinear"), *(use.node for use in value.uses())):
        if node is None or node.op_type not in _AROUND or len(node.inputs) < 3:
            continue
        step, zero = (constant_of(given) for given in node.inputs[1:3])
        if step is not None and step.size == 1 and zero is not None:
            ends = np.iinfo(zero.dtype)
            least, most = (float(step.item()) * (end - int(zero.item())) for end in (ends.min, ends.max))
            return least, most
    return None


def replaced(layer: Layer, way: str) -> tuple[ir.Node, ...]:
    """The nodes that go where a layer is done this way: other layers there may be none any more."""
    kernel = layer.kernel(way)
    return () if kernel is None else kernel.cluster(layer.node)


def apply(layer: Layer, way: str, graph: ir.Graph) -> None:
    """Do a layer the way that was chosen, in place."""
    kernel = layer.kernel(way)
    if kernel is not None:
        kernel.rewrite(layer.node, graph)


def _layer(node: ir.Node, kernels: tuple[Kernel, ...], places: Mapping[ir.Node, int]) -> Layer | None:
    """A layer with its surroundings; None where a model of its own can't be made of it. places: in the graph."""
    nodes = _surrounded({member for kernel in kernels for member in kernel.cluster(node)})
    ordered = sorted(nodes, key=places.__getitem__)
    inside = {output for member in ordered for output in member.outputs}
    inputs: dict[ir.Value, None] = {}
    for member in ordered:
        for value in member.inputs:
            if value is not None and value not in inside and (value.const_value is None or value.is_graph_input()):
                inputs[value] = None
    outputs = [
        output
        for member in ordered
        for output in member.outputs
        if output.is_graph_output() or any(use.node not in nodes for use in output.uses())
    ]
    plain = all(
        value.dtype == ir.DataType.FLOAT and value.shape is not None and value.shape.is_static() for value in inputs
    )
    if not plain or not inputs:
        return None
    fixed = {
        value: _held_bytes(value)
        for member in ordered
        for value in member.inputs
        if value is not None and value.const_value is not None and value not in inputs
    }
    kind, size = _kind(node, nodes, kernels), _size(node, tuple(inputs))
    return Layer(
        node,
        kernels,
        tuple(inputs),
        tuple(outputs),
        _signature(ordered, kernels),
        kind,
        size,
        math.prod(size[1:]) * _kernel_cells(node),
        sum(fixed.values()),
        half_weight(node.inputs[1] if len(node.inputs) > 1 else None) is not None,
    )


def _named(kernels: Sequence[Kernel]) -> str | None:
    """What such layers are called where that isn't their operator's name."""
    return next((kernel.kind for kernel in kernels if kernel.kind), None)


def _kind(node: ir.Node, members: Iterable[ir.Node], kernels: Sequence[Kernel]) -> str:
    operators = {member.op_type for member in members}
    named = _named(kernels)
    words = [named or ("MatMul" if node.op_type == "Gemm" else node.op_type)]
    if node.op_type == "Conv":
        words.append("x".join(map(str, _dims(node.inputs[1])[2:])))
    if named is not None and "Sigmoid" in operators:
        words.append("SiLU")
    if "Resize" in operators:
        words.append("upsampled")
    if "QuantizeLinear" in operators:
        words.append("int8")
    elif node.op_type in ("MatMul", "Gemm") and producer(node.inputs[1], "DequantizeLinear") is not None:
        words.append("int4 weight" if bits_of(node.inputs[1]) == 4 else "int8 weight")
    return " ".join(words)


def _size(node: ir.Node, inputs: Sequence[ir.Value]) -> tuple[int, ...]:
    """inputs: the layer's own, of which the first is what a pass over an image reads."""
    given = (value for value in node.inputs if value is not None and value.const_value is None)
    dims = _dims(inputs[0] if node.op_type == "LayerNormalization" else next(given))
    if node.op_type == "MultiHeadAttention":
        heads = node.attributes.get_int("num_heads", 1)
        return dims[0] * dims[1], _dims(node.inputs[1])[1], heads, dims[2] // heads
    if node.op_type == "Conv":
        return math.prod(dims) // dims[1], dims[1], _dims(node.inputs[1])[0]
    if node.op_type in ("MatMul", "Gemm"):
        turned = node.op_type == "Gemm" and node.attributes.get_int("transB", 0) == 1
        return math.prod(dims[:-1]), dims[-1], _dims(node.inputs[1])[0 if turned else -1]
    return math.prod(dims) // dims[1], dims[1]


def _kernel_cells(node: ir.Node) -> int:
    return math.prod(_dims(node.inputs[1])[2:]) if node.op_type == "Conv" else 1


def _dims(value: ir.Value | None) -> tuple[int, ...]:
    """The shape of a value of a layer, which is known."""
    if value is None or value.shape is None:
        raise ValueError(f"{value.name if value is not None else None} has no shape")
    return tuple(int(str(dim)) for dim in value.shape)


def _surrounded(nodes: set[ir.Node]) -> set[ir.Node]:
    """The nodes, what turns stored weights into floats, and the quantization just before and after them."""
    found, edge = set(nodes), list(nodes)
    while edge:
        node = edge.pop()
        before = [value.producer() for value in node.inputs if value is not None]
        near = [made_by for made_by in before if made_by is not None and made_by.op_type in _WEIGHT_STORES]
        for output in node.outputs if node in nodes or node.op_type == "QuantizeLinear" else ():
            readers = [only_reader(output, operator) for operator in _AROUND]
            near += [reader for reader in readers if reader is not None]
        for neighbour in near:
            if neighbour not in found and neighbour.domain == "":
                found.add(neighbour)
                edge.append(neighbour)
    return found


def _signature(nodes: Sequence[ir.Node], kernels: Sequence[Kernel]) -> str:
    """A digest of operators, attributes, shapes and types; what the weights hold doesn't count."""
    digest = hashlib.sha256(" ".join(kernel.name for kernel in kernels).encode())
    for node in nodes:
        attributes = sorted(f"{name}={attribute.value}" for name, attribute in node.attributes.items())
        ports = [f"{value.dtype}{value.shape}" if value is not None else "-" for value in (*node.inputs, *node.outputs)]
        digest.update(" ".join(["\n", node.domain, node.op_type, *attributes, *ports]).encode())
    return digest.hexdigest()[:24]
