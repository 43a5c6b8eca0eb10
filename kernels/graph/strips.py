"""A graph cut into stages that run strip by strip, so that no whole feature map of a large picture is ever in memory.

Between two GroupNormalizations a decoder's operators are local: a row of their output depends on a few rows of their
input. So the graph is cut at its norms, and where maps become larger. A stage begins with norms whose statistics are
known by then, each a factor and a summand by channel, and gives its maps with the mean and the squared differences of
every row, from which the next norm's statistics follow. Its model is of one strip: some rows, every channel and column.
Rows at a strip's edge that did not see all their neighbours are made again by the strip beside it.

What is not local (attention, shapes) has to lie where maps are small, and runs whole. In a decoder that is before the
first operator that makes more rows: the head, along with the first stages as far as their maps are no larger than a
strip's. In an encoder it is after the last one that makes fewer: the tail, along with the last such stages.

Exact: the same sums, in another order where a kernel chooses so. Statistics are merged in float64 by the caller; they,
and what a norm does with them, stay in float32 where the rest of the graph becomes float16.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from tintype.kernels.base import LARGEST, add_constant, insert, replace
from tintype.kernels.graph.locality import GROUP_NORM, Rows, fixed_values, is_map, reach
from tintype.kernels.graph.segments import value_nbytes
from tintype.kernels.graph.unused import remove_unused

LEAST_ROWS = 2  # that a strip keeps
_FIRST, _LAST = 0, -1  # places in a list of stages


@dataclass(frozen=True, slots=True)
class StripMap:
    """A feature map that a stage reads or gives."""

    name: str
    shape: tuple[int, ...]  # whole: batch, channels, height, width
    scale: int  # its rows for one row of the stage
    type: ir.DataType
    seen: tuple[str, ...] = ()  # outputs (batch, channels, rows): mean of each row, and its squared differences' sum


@dataclass(frozen=True, slots=True)
class StageNorm:
    """A norm that a stage begins with: two inputs (batch, channels, 1, 1), from the statistics of a whole map."""

    source: str
    mean: str
    inverse: str  # 1 / sqrt(variance + epsilon)
    groups: int
    epsilon: float


@dataclass(frozen=True, slots=True)
class Stage:
    """What runs between two norms: a model of one strip, and how strips make up the whole."""

    model: ir.Model
    rows: int  # of its smallest map
    strip_rows: int
    margin: int  # rows at an edge within the picture that have not seen all their neighbours
    reads: tuple[StripMap, ...]
    gives: tuple[StripMap, ...]
    norms: tuple[StageNorm, ...]


@dataclass(frozen=True, slots=True)
class Strips:
    """A graph in three: what runs whole, the stages that follow, in order, and what runs whole after them."""

    head: ir.Model | None
    stages: tuple[Stage, ...]
    tail: ir.Model | None


class CutError(ValueError):
    """A graph that can't run in strips, and why."""


def cut_in_strips(model: ir.Model, strip_bytes: int) -> Strips:
    """The model in strips whose largest map has at most so many bytes, or LEAST_ROWS and what they need around them.

    All shapes must be numbers (`dims.pin`). The model is used up. Raises CutError for a graph that can't run so.
    """
    remove_unused(model)
    graph = model.graph
    fixed, inputs = fixed_values(graph), list(graph.inputs)
    nodes = [node for node in graph if node.outputs[0] not in fixed]
    end, place = _non_local_region(nodes, fixed)
    levels = _levels([node for node in nodes if node not in end], fixed)
    while levels and max(map(_map_bytes, levels[place])) <= strip_bytes:
        end.update(levels.pop(place))
    head, tail = ([node for node in nodes if node in end and place == side] for side in (_FIRST, _LAST))
    depth = {value: -1 for node in head for value in node.outputs}
    depth |= {value: level for level, members in enumerate(levels) for node in members for value in node.outputs}
    depth |= {value: len(levels) for node in tail for value in node.outputs}
    before = _piece(model, inputs, _crossing(head, depth)) if head else None
    drafts = [_Draft(_span(members, fixed), _crossing(members, depth)) for members in levels]
    read_last, given_last = _read(tail, fixed), _crossing(tail, depth)
    for draft, members in zip(drafts, levels, strict=True):
        draft.norms = [_open_norm(node, graph) for node in members if node.op_type == GROUP_NORM]
    opened = {norm.before: norm.after for draft in drafts for norm in draft.norms}
    sources = {norm.facts.source for draft in drafts for norm in draft.norms}
    for draft in drafts:
        draft.rename(opened)
        draft.seen = {value: _rows_seen(value, graph) for value in draft.gives if value.name in sources}
    stages = tuple(_stage(model, draft, strip_bytes) for draft in drafts)
    after = _piece(model, [opened.get(value, value) for value in read_last], given_last) if tail else None
    return Strips(before, stages, after)


@dataclass(frozen=True, slots=True)
class _Span:
    """Rows of every map of a stage, and which of them it reads."""

    rows: int  # of the smallest
    maps: dict[ir.Value, Rows]
    reads: tuple[ir.Value, ...]

    @property
    def bytes_a_row(self) -> int:
        return max(int(value_nbytes(value)) // self.rows for value in self.maps)


@dataclass(frozen=True, slots=True)
class _Norm:
    """A norm that was replaced, and the value that stands for its output now."""

    facts: StageNorm
    before: ir.Value
    after: ir.Value
    given: tuple[ir.Value, ir.Value]


@dataclass(slots=True)
class _Draft:
    """A stage while the graph is being changed."""

    span: _Span
    gives: list[ir.Value]
    norms: list[_Norm] = field(default_factory=list)
    seen: dict[ir.Value, tuple[ir.Value, ir.Value]] = field(default_factory=dict)

    def rename(self, opened: dict[ir.Value, ir.Value]) -> None:
        """Put in what has taken the place of norms' outputs."""
        self.gives = [opened.get(value, value) for value in self.gives]
        maps = {opened.get(value, value): rows for value, rows in self.span.maps.items()}
        self.span = _Span(self.span.rows, maps, tuple(opened.get(value, value) for value in self.span.reads))


def _non_local_region(nodes: list[ir.Node], fixed: set[ir.Value]) -> tuple[set[ir.Node], int]:
    """What has to run whole, and at which end: all that is not local, with what goes before it or comes after it.

    Raises ValueError where neither leaves the large maps to the stages.
    """
    rows = {node: reach(node, fixed) for node in nodes}
    scales = {node: step.scale for node, step in rows.items() if step is not None}
    tail = _transitive(nodes, rows, lambda node: {value.producer() for value in node.inputs if value is not None})
    if max(scales.values(), default=1) <= 1 and any(scale < 1 for node, scale in scales.items() if node not in tail):
        return tail, _LAST
    head = _transitive(reversed(nodes), rows, lambda node: {use.node for value in node.outputs for use in value.uses()})
    cause = next((node for node in reversed(nodes) if rows[node] is None), None)
    wider = next((node for node, scale in scales.items() if node in head and scale > 1), None)
    if cause is not None and wider is not None:
        raise CutError(
            f"{cause.op_type} {cause.name} needs whole maps after {wider.op_type} {wider.name} has made them larger"
        )
    if cause is not None and len(head) == len(nodes):
        raise CutError(f"{cause.op_type} {cause.name} needs whole maps at its end")
    return head, _FIRST


def _transitive(
    nodes: Iterable[ir.Node], rows: Mapping[ir.Node, Rows | None], beside: Callable[[ir.Node], set[ir.Node | None]]
) -> set[ir.Node]:
    """Every node that isn't local, and each one that has such a one beside it, in the order in which nodes come."""
    found: set[ir.Node] = set()
    for node in nodes:
        if rows[node] is None or beside(node) & found:
            found.add(node)
    return found


def _levels(nodes: list[ir.Node], fixed: set[ir.Value]) -> list[list[ir.Node]]:
    """Local nodes by how many norms have to be done before them, beyond those at the very front.

    What makes more rows begins a stage too: its strips are the narrowest, and what is before it would be made again
    for each of them.
    """
    depth: dict[ir.Value, int] = {}
    levels: list[list[ir.Node]] = []
    for node in nodes:
        step = 1 if node.op_type == GROUP_NORM or (reach(node, fixed) or Rows()).scale > 1 else 0
        read = [value for value in node.inputs if value is not None and value not in fixed]
        level = max(0, *(depth.get(value, -1) + step for value in read))
        depth |= dict.fromkeys(node.outputs, level)
        levels += [[] for _ in range(level + 1 - len(levels))]
        levels[level].append(node)
    return levels


def _map_bytes(node: ir.Node) -> float:
    return max(value_nbytes(value) for value in node.outputs)


def _crossing(nodes: Iterable[ir.Node], depth: dict[ir.Value, int]) -> list[ir.Value]:
    """What these nodes make and later stages, or the caller, read."""

    def is_read_later(value: ir.Value) -> bool:
        if value.is_graph_output():
            return True
        return any(depth[use.node.outputs[0]] > depth[value] for use in value.uses())

    return [value for node in nodes for value in node.outputs if is_read_later(value)]


def _read(nodes: Iterable[ir.Node], fixed: set[ir.Value]) -> list[ir.Value]:
    """What these nodes read and don't make, each once."""
    nodes = list(nodes)
    known = fixed | {value for node in nodes for value in node.outputs}
    return list(
        dict.fromkeys(value for node in nodes for value in node.inputs if value is not None and value not in known)
    )


def _span(nodes: list[ir.Node], fixed: set[ir.Value]) -> _Span:
    read = _read(nodes, fixed)
    for value in read:
        if not is_map(value):
            raise CutError(f"{value.name} is no feature map")
    heights = {value: _whole(value)[2] for value in (*read, *(node.outputs[0] for node in nodes))}
    rows = min(heights.values())
    if any(height % rows for height in heights.values()):
        raise CutError(f"maps of {sorted(set(heights.values()))} rows meet")
    maps = {value: Rows(heights[value] // rows, 0) for value in read}
    for node in nodes:
        step, output = reach(node, fixed), node.outputs[0]
        before = [maps[value] for value in node.inputs if value in maps]
        if step is None or len({each.scale for each in before}) != 1:
            raise CutError(f"{node.op_type} {node.name} joins maps of unlike sizes")
        if heights[output] != before[0].scale * step.scale * rows:
            raise CutError(f"{output.name} has {heights[output]} rows")
        margin = math.ceil(max(each.margin for each in before) * step.scale) + step.margin
        maps[output] = Rows(heights[output] // rows, margin)
    return _Span(rows, maps, tuple(read))


def _open_norm(node: ir.Node, graph: ir.Graph) -> _Norm:
    """Put a factor and a summand in the norm's place, in terms of two new inputs of the graph."""
    source, output, name = node.inputs[0], node.outputs[0], str(node.outputs[0].name)
    if source is None:
        raise ValueError(f"{node.name} normalizes nothing")
    batch, channels = _whole(source)[:2]
    mean, inverse = (
        ir.Value(name=f"{name}_{what}", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([batch, channels, 1, 1]))
        for what in ("mean", "inverse")
    )
    graph.inputs.extend([mean, inverse])
    by_channel = add_constant(graph, np.array([1, channels, 1, 1], np.int64), f"by_channel_{channels}")
    scale, bias = (insert(node, "Reshape", [node.inputs[index], by_channel]) for index in (1, 2))
    factor = insert(node, "Mul", [scale, inverse], like=inverse)
    shift = insert(node, "Mul", [mean, factor], like=mean)
    summand = insert(node, "Sub", [bias, shift], like=mean)
    scaled = insert(node, "Mul", [source, factor], like=output)
    normed = insert(node, "Add", [scaled, summand], like=output)
    _keep_in_float(value.producer() for value in (factor, shift, summand, scaled, normed))
    replace(output, normed)
    groups, epsilon = node.attributes.get_int("num_groups", 1), node.attributes.get_float("epsilon", 1e-5)
    graph.remove(node, safe=True)
    normed.name = name
    facts = StageNorm(str(source.name), str(mean.name), str(inverse.name), groups, epsilon)
    return _Norm(facts, output, normed, (mean, inverse))


def _rows_seen(value: ir.Value, graph: ir.Graph) -> tuple[ir.Value, ir.Value]:
    """Two more values: the mean of each row of each channel, and the sum of its squared differences from that mean.

    Differences, since a plain sum of squares has lost its variance where the mean is large.
    """
    along = add_constant(graph, np.array([3], np.int64), "along_row")
    mean = ir.node("ReduceMean", [value, along], attributes={"keepdims": 1})
    centred = ir.node("Sub", [value, mean.outputs[0]])
    squares = ir.node("ReduceSumSquare", [centred.outputs[0], along], attributes={"keepdims": 1})
    graph.extend([mean, centred, squares])
    _keep_in_float([mean, centred, squares])
    shape = (*_whole(value)[:3], 1)
    for node, name in ((mean, f"{value.name}_row_means"), (squares, f"{value.name}_row_squares")):
        node.outputs[0].name, node.outputs[0].shape = name, ir.Shape(shape)
        node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    centred.outputs[0].shape, centred.outputs[0].type = value.shape, value.type
    return mean.outputs[0], squares.outputs[0]


def _keep_in_float(nodes: Iterable[ir.Node | None]) -> None:
    """A sum of squares passes float16's end, and where a mean is large a norm loses what is left after taking it."""
    for node in nodes:
        if node is not None:
            node.meta[LARGEST] = math.inf


def _stage(model: ir.Model, draft: _Draft, strip_bytes: int) -> Stage:
    span, gives = draft.span, draft.gives
    margin = max(math.ceil(span.maps[value].margin / span.maps[value].scale) for value in gives)
    strip_rows = _strip_rows(span.rows, margin, strip_bytes // span.bytes_a_row)
    inputs = [*span.reads, *(value for norm in draft.norms for value in norm.given)]
    told = [each for value in gives for each in draft.seen.get(value, ())]
    return Stage(
        model=_of_rows(_piece(model, inputs, [*gives, *told]), span.rows, strip_rows),
        rows=span.rows,
        strip_rows=strip_rows,
        margin=margin,
        reads=tuple(_strip_map(value, span) for value in span.reads),
        gives=tuple(_strip_map(value, span, draft.seen.get(value, ())) for value in gives),
        norms=tuple(norm.facts for norm in draft.norms),
    )


def _strip_rows(rows: int, margin: int, most: int) -> int:
    """Rows of a strip: as many as allowed, fewer where the same number of strips will do."""
    most = max(most, 2 * margin + LEAST_ROWS)
    if most >= rows:
        return rows
    strips = -(-(rows - 2 * margin) // (most - 2 * margin))
    return -(-(rows - 2 * margin) // strips) + 2 * margin


def _strip_map(value: ir.Value, span: _Span, seen: Iterable[ir.Value] = ()) -> StripMap:
    if value.dtype is None:
        raise ValueError(f"{value.name} has no type")
    names = tuple(str(each.name) for each in seen)
    return StripMap(str(value.name), _whole(value), int(span.maps[value].scale), value.dtype, names)


def _piece(model: ir.Model, inputs: list[ir.Value], outputs: list[ir.Value]) -> ir.Model:
    piece = ir.Model(ir.convenience.extract(model.graph, inputs, outputs), ir_version=model.ir_version)
    piece.opset_imports.update(model.opset_imports)
    return piece


def _of_rows(model: ir.Model, rows: int, strip_rows: int) -> ir.Model:
    """The same model for maps of a strip, in place of maps of so many rows or a multiple."""
    if rows == strip_rows:
        return model
    fixed = fixed_values(model.graph)
    for value in [*model.graph.inputs, *(output for node in model.graph for output in node.outputs)]:
        if value in fixed or value.shape is None or len(value.shape) != 4:
            continue
        batch, channels, height, width = _whole(value)
        if height != 1:  # what a norm is given
            value.shape = ir.Shape([batch, channels, height // rows * strip_rows, width])
    return model


def _whole(value: ir.Value) -> tuple[int, ...]:
    if value.shape is None or not value.shape.is_static():
        raise ValueError(f"{value.name} has the shape {value.shape}")
    return tuple(value.shape.numpy())
