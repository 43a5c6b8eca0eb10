"""A canonical graph whose layers answer as integers would, each when it is told to: int8 and int4 without torch.

What `simulation` does to modules. A chosen layer has its rounded weight; a convolution rounds its input and output to
its fixed ranges, a linear layer of 8 bits its input to the range it finds. All others answer in fp32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from tintype.engine import BLOCK, BlockScales, graph_as_it_stands
from tintype.export.calls import Call
from tintype.export.quantization import Layer, Range, Scales

CHOSEN = "integer_layers"  # (forms,), whether each layer has that form

Rounding = Callable[[ir.Value], list[ir.Node]]  # of a value; the last node gives it rounded


class SwitchableGraph:
    """One graph, open, and its layers that may be integers."""

    def __init__(
        self, source: Path, layers: Sequence[Layer], scales: Mapping[str, Scales], *, threads: int | None = None
    ) -> None:
        """source: the fp32 graph; its weights stay where they lie. scales: by module."""
        model = ir.load(source)
        self._places = {(form.module, form.bits): place for place, form in enumerate(_forms(layers))}
        self._output = str(model.graph.outputs[0].name)
        make_switchable(model, layers, scales)
        self._run = graph_as_it_stands(model, source.parent, threads=threads)

    def run(self, chosen: Sequence[Layer], calls: Sequence[Call]) -> list[NDArray[np.float32]]:
        """The first output of each call while these layers are integers of their bits."""
        told = np.zeros(len(self._places), np.bool_)
        told[[self._places[layer.module, layer.bits] for layer in chosen]] = True
        return [self._run([self._output], {**call.feed, CHOSEN: told})[0] for call in calls]


def make_switchable(model: ir.Model, layers: Sequence[Layer], scales: Mapping[str, Scales]) -> None:
    """Rewrite a canonical graph in place, with the further input `CHOSEN`."""
    graph, forms = model.graph, _forms(layers)
    chosen = ir.Value(name=CHOSEN, shape=ir.Shape((len(forms),)), type=ir.TensorType(ir.DataType.BOOL))
    graph.inputs.append(chosen)
    by_weight: dict[str, list[int]] = {}
    for place, form in enumerate(forms):
        by_weight.setdefault(form.weight, []).append(place)
    for node in list(graph):
        weight = node.inputs[1] if len(node.inputs) > 1 else None
        if weight is not None and node.op_type in ("MatMul", "Conv"):
            for place in by_weight.get(str(weight.name), ()):
                _Switch(graph, node, chosen, place).add(forms[place], scales[forms[place].module])


def _forms(layers: Sequence[Layer]) -> list[Layer]:
    """Each layer, and what it becomes where it goes finer and still is integers."""
    finer = (layer.finer() for layer in layers)
    return [*layers, *(form for form in finer if form is not None)]


class _Switch:
    """Puts the roundings around one layer."""

    def __init__(self, graph: ir.Graph, node: ir.Node, chosen: ir.Value, place: int) -> None:
        self.graph, self.node, self.name = graph, node, f"{CHOSEN}_{place}"
        index = self._constant("index", np.array(place, np.int64))
        gather = ir.node("Gather", [chosen, index], name=f"{self.name}/Gather")
        gather.outputs[0].name = self.name
        gather.outputs[0].shape, gather.outputs[0].type = ir.Shape(()), ir.TensorType(ir.DataType.BOOL)
        graph.insert_before(node, gather)
        self.condition = gather.outputs[0]

    def add(self, layer: Layer, scales: Scales) -> None:
        image, weight = self.node.inputs[:2]
        assert image is not None
        assert weight is not None
        is_linear = layer.kind == "linear"
        if layer.bits == 4:
            assert scales.blocks is not None
            self._before(1, weight, self._blocks(scales.blocks))
            return
        self._before(1, weight, self._weight(scales.weight, axis=1 if is_linear else 0, rank=2 if is_linear else 4))
        if is_linear:
            self._before(0, image, self._as_found)
            return
        assert scales.input is not None
        assert scales.output is not None
        self._before(0, image, self._to_range("input", scales.input))
        self._after(self._to_range("output", scales.output))

    def _before(self, index: int, value: ir.Value, rounding: Rounding) -> None:
        switched = self._switched(value, rounding, f"{self.name}_{index}")
        self.graph.insert_before(self.node, switched)
        self.node.replace_input_with(index, switched.outputs[0])

    def _after(self, rounding: Rounding) -> None:
        """Whoever reads the layer's output reads it switched."""
        output = self.node.outputs[0]
        users = [(use.node, use.idx) for use in output.uses()]
        switched = self._switched(output, rounding, f"{self.name}_output")
        self.graph.insert_after(self.node, switched)
        for user, index in users:
            user.replace_input_with(index, switched.outputs[0])

    def _switched(self, value: ir.Value, rounding: Rounding, name: str) -> ir.Node:
        """If: only what is asked for is computed."""
        plain = ir.node("Identity", [value], name=f"{name}/Identity")
        branches = {"then_branch": rounding(value), "else_branch": [plain]}
        made = {}
        for branch, nodes in branches.items():
            for place, inner in enumerate(output for node in nodes for output in node.outputs):
                inner.name = f"{name}_{branch}_{place}"  # no other value of the whole graph has it
            last = nodes[-1].outputs[0]
            last.shape, last.type = value.shape, ir.TensorType(ir.DataType.FLOAT)
            made[branch] = ir.AttrGraph(branch, ir.Graph([], [last], nodes=nodes, name=branch))
        switched = ir.node("If", [self.condition], attributes=made, name=f"{name}/If")
        output = switched.outputs[0]
        output.name, output.shape, output.type = f"{name}_switched", value.shape, ir.TensorType(ir.DataType.FLOAT)
        return switched

    def _weight(self, scales: NDArray[np.float32], *, axis: int, rank: int) -> Rounding:
        """Symmetric integers, one scale a column or channel; -128 isn't one of them."""
        spread = tuple(-1 if dim == axis else 1 for dim in range(rank))
        scale = self._constant("weight_scale", scales)
        zero = self._constant("weight_zero", np.zeros(len(scales), np.int8))
        least = self._constant("weight_least", (-127.0 * scales).reshape(spread))

        def rounding(value: ir.Value) -> list[ir.Node]:
            bounded = ir.node("Max", [value, least])
            integers = ir.node("QuantizeLinear", [bounded.outputs[0], scale, zero], attributes={"axis": axis})
            return [bounded, integers, _dequantized(integers.outputs[0], scale, zero, axis)]

        return rounding

    def _blocks(self, blocks: BlockScales) -> Rounding:
        scale = self._constant("block_scale", blocks.scale.astype(np.float32))
        zero = self._constant("block_zero", blocks.zero_point.astype(ml_dtypes.uint4))
        along = {"axis": 0, "block_size": BLOCK}

        def rounding(value: ir.Value) -> list[ir.Node]:
            integers = ir.node("QuantizeLinear", [value, scale, zero], attributes=along)
            return [integers, ir.node("DequantizeLinear", [integers.outputs[0], scale, zero], attributes=along)]

        return rounding

    def _to_range(self, side: str, span: Range) -> Rounding:
        scale = self._constant(f"{side}_scale", np.array(span.scale, np.float32))
        zero = self._constant(f"{side}_zero", np.array(span.zero_point, np.uint8))

        def rounding(value: ir.Value) -> list[ir.Node]:
            integers = ir.node("QuantizeLinear", [value, scale, zero])
            return [integers, _dequantized(integers.outputs[0], scale, zero, 1)]

        return rounding

    def _as_found(self, value: ir.Value) -> list[ir.Node]:
        found = ir.node("DynamicQuantizeLinear", [value], num_outputs=3)
        integers, scale, zero = found.outputs
        return [found, _dequantized(integers, scale, zero, 1)]

    def _constant(self, name: str, array: NDArray[np.generic]) -> ir.Value:
        tensor = ir.tensor(array, name=f"{self.name}_{name}")
        value = ir.Value(
            name=tensor.name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
        )
        self.graph.register_initializer(value)
        return value


def _dequantized(integers: ir.Value, scale: ir.Value, zero: ir.Value, axis: int) -> ir.Node:
    return ir.node("DequantizeLinear", [integers, scale, zero], attributes={"axis": axis})
