"""What goes into and comes out of convolutions while a graph runs: ranges for int8, measured without torch.

As `simulation.ActivationStatistics` measures modules: extremes, and samples drawn at random places of every call.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from tintype.engine import graph_as_it_stands
from tintype.export.calls import Feed
from tintype.export.quantization import KEPT_SAMPLES, SEARCHED_SAMPLES, Layer, Range, best_range

PLACES = "watched_places"  # (samples,), of a value's numbers as shares of them all, 0 to below 1
_SIDES = ("input", "output")


class WatchedGraph:
    """One fp32 graph, open, whose convolutions are looked at in every call."""

    def __init__(self, source: Path, layers: Sequence[Layer], calls: int, *, threads: int | None = None) -> None:
        """source: its weights stay where they lie. calls: how many there will be, nearly."""
        model = ir.load(source)
        self.outputs = tuple(str(value.name) for value in model.graph.outputs)
        self._seen = watch_convolutions(model, [layer for layer in layers if layer.kind == "conv"])
        self._told = list(dict.fromkeys(self._seen.values()))
        self._per_call = max(256, KEPT_SAMPLES // max(1, calls))
        self._samples: dict[str, list[NDArray[np.float32]]] = {name: [] for name in self._told}
        self._extremes = dict.fromkeys(self._told, (0.0, 0.0))
        self._random = np.random.default_rng(0)
        self._run = graph_as_it_stands(model, source.parent, threads=threads)

    def run(self, feed: Feed) -> dict[str, NDArray[np.float32]]:
        """The graph's own outputs by name."""
        places = {PLACES: self._random.random(self._per_call)} if self._told else {}
        names = [f"{name}_{end}" for name in self._told for end in ("samples", "extremes")]
        found = self._run([*self.outputs, *names], {**feed, **places})
        own, seen = found[: len(self.outputs)], found[len(self.outputs) :]
        for name, samples, (low, high) in zip(self._told, seen[::2], seen[1::2], strict=True):
            self._samples[name].append(samples)
            before = self._extremes[name]
            self._extremes[name] = min(before[0], float(low)), max(before[1], float(high))
        return dict(zip(self.outputs, own, strict=True))

    def ranges(self, module: str) -> tuple[Range, Range]:
        """The ranges of a convolution's input and output that lose least."""
        found = []
        for side in _SIDES:
            name = self._seen[module, side]
            samples = np.concatenate(self._samples[name])
            if samples.size > SEARCHED_SAMPLES:
                samples = self._random.choice(samples, SEARCHED_SAMPLES, replace=False)
            found.append(best_range(samples, *self._extremes[name]))
        return found[0], found[1]


def watch_convolutions(model: ir.Model, layers: Sequence[Layer]) -> dict[tuple[str, str], str]:
    """Let a graph tell samples and extremes of what each layer takes and gives; the name of each by module and side.

    Its outputs `NAME_samples` (samples,) and `NAME_extremes` (2,) come after its own, PLACES after its inputs.
    """
    graph = model.graph
    names: dict[tuple[str, str], str] = {}
    watched: dict[ir.Value, str] = {}
    if not layers:
        return names
    places = ir.Value(name=PLACES, shape=ir.Shape(("samples",)), type=ir.TensorType(ir.DataType.DOUBLE))
    graph.inputs.append(places)
    minus = ir.tensor(np.array([-1], np.int64), name="watched_flat")
    flat = ir.Value(name=minus.name, const_value=minus, type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape((1,)))
    graph.register_initializer(flat)
    by_weight = {layer.weight: layer.module for layer in layers}
    for node in list(graph):
        module = by_weight.get(str(node.inputs[1].name)) if node.op_type == "Conv" and node.inputs[1] else None
        if module is None:
            continue
        for side, value in zip(_SIDES, (node.inputs[0], node.outputs[0]), strict=True):
            assert value is not None
            if value not in watched:
                watched[value] = f"watched_{len(watched)}"
                _watch(graph, node, value, watched[value], places, flat)
            names[module, side] = watched[value]
    return names


def _watch(graph: ir.Graph, after: ir.Node, value: ir.Value, name: str, places: ir.Value, flat: ir.Value) -> None:
    """Right after a node, so that the value lives no longer than it would."""
    line = ir.node("Reshape", [value, flat])
    size = ir.node("Size", [line.outputs[0]])
    count = ir.node("Cast", [size.outputs[0]], attributes={"to": ir.DataType.DOUBLE.value})
    scaled = ir.node("Mul", [places, count.outputs[0]])
    index = ir.node("Cast", [scaled.outputs[0]], attributes={"to": ir.DataType.INT64.value})
    samples = ir.node("Gather", [line.outputs[0], index.outputs[0]])
    ends = [ir.node(kind, [line.outputs[0]]) for kind in ("ReduceMin", "ReduceMax")]
    extremes = ir.node("Concat", [end.outputs[0] for end in ends], attributes={"axis": 0})
    nodes = [line, size, count, scaled, index, samples, *ends, extremes]
    for place, node in enumerate(nodes):
        node.outputs[0].name = f"{name}_{place}"
    graph.insert_after(after, nodes)
    for end, node, dims in (("samples", samples, ("samples",)), ("extremes", extremes, (2,))):
        told = node.outputs[0]
        told.name, told.shape, told.type = f"{name}_{end}", ir.Shape(dims), ir.TensorType(ir.DataType.FLOAT)
        graph.outputs.append(told)
