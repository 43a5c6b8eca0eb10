"""Self-attentions over fewer tokens: similar ones are merged before, and what came of them is handed out again after.

Token merging for Stable Diffusion (Bolya & Hoffman 2023), in ONNX's own operators: of each 2x2 tokens of the image one
stays for sure, at a place that is drawn once for each layer; of the others those that are most like one of these, by
the cosine of what the block began with, are merged into it, by their mean. Attention looks at what is left, and each
merged token takes what its own came to. Only layers of the finest image are changed, as the others cost little.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import ShapeInferencePass

from tintype.kernels.base import add_constant, describe, insert
from tintype.kernels.graph.reuse import projected
from tintype.kernels.graph.segments import constant_values, is_fixed

MOST_MERGED = 0.75  # of the tokens: one of each 2x2 stays


@dataclass(frozen=True, slots=True)
class SelfAttention:
    """One of a graph; its tokens, (batch, tokens, channels), come from a norm, and go back to where that read."""

    norm: ir.Node
    output: ir.Value  # after its last projection
    inside: tuple[ir.Node, ...]  # what reads the norm's tokens, up to the output

    @property
    def tokens(self) -> int:
        shape = self.norm.outputs[0].shape
        return 0 if shape is None else int(str(shape[1]))


def merge_tokens(model: ir.Model, ratio: float, size: tuple[int, int]) -> int:
    """Merge that share of the tokens in each self-attention of the finest image, in place; returns in how many layers.

    There are none where a side of the image is a single token.

    size: of the latents, in cells, height and width. All sizes in the graph must be numbers (`dims.fold_sizes`).
    """
    graph = model.graph
    found = self_attentions(graph)
    finest = max((each.tokens for each in found), default=0)
    image = image_size(finest, size)
    if image is None or min(image) < 2:
        return 0
    chosen = [each for each in found if each.tokens == finest]
    for number, attention in enumerate(chosen):
        _merge(graph, attention, Tokens.of(image, ratio, seed=number))
    ShapeInferencePass()(model)
    return len(chosen)


def self_attentions(graph: ir.Graph) -> list[SelfAttention]:
    """Those whose queries, keys and values come of one LayerNormalization, in the graph's order."""
    fixed, found = constant_values(graph), []
    for node in graph:
        if node.op_type != "Attention" or len([value for value in node.inputs if value is not None]) != 3:
            continue
        ways = [_back_to_norm(value, fixed) for value in node.inputs]
        norms = {way[-1] for way in ways if way}
        if len(norms) != 1 or not all(ways):
            continue
        (norm,) = norms
        output = projected(node.outputs[0], fixed)
        before = {each for way in ways for each in way[:-1]}
        inside = (*(each for each in graph if each in before), node, *_between(node, output))
        if all(use.node in inside for use in norm.outputs[0].uses()):
            found.append(SelfAttention(norm, output, inside))
    return found


def image_size(tokens: int, size: tuple[int, int]) -> tuple[int, int] | None:
    """Height and width of an image of so many tokens, halved some times from latents of that size; None is none."""
    height, width = size
    while height * width > max(tokens, 1):
        height, width = -(-height // 2), -(-width // 2)
    return (height, width) if height * width == tokens else None


@dataclass(frozen=True, slots=True)
class Tokens:
    """Which tokens of an image stay for sure, and which may be merged into them."""

    stay: NDArray[np.int64]
    others: NDArray[np.int64]
    merged: int  # how many of the others are

    @classmethod
    def of(cls, image: tuple[int, int], ratio: float, *, seed: int) -> Tokens:
        """seed: of the place within each 2x2 that stays. What is left over at an odd edge may be merged."""
        height, width = image
        places = np.arange(height * width, dtype=np.int64).reshape(height, width)
        squares = places[: height // 2 * 2, : width // 2 * 2].reshape(height // 2, 2, width // 2, 2)
        cells = squares.transpose(0, 2, 1, 3).reshape(-1, 4)
        stay = np.sort(cells[np.arange(len(cells)), np.random.default_rng(seed).integers(0, 4, len(cells))])
        others = np.setdiff1d(places, stay)
        return cls(stay, others, min(int(height * width * ratio), len(others)))


def reference(
    tokens: NDArray[np.float64], alike: NDArray[np.float64], chosen: Tokens, attend: Callable[[Any], Any]
) -> NDArray[np.float64]:
    """What such a layer means, in plain loops. tokens: (tokens, channels), normed; alike: the same before the norm.

    attend: the attention of tokens to one another, projections included.
    """
    unit = alike / np.linalg.norm(alike, axis=1, keepdims=True)
    cosines = unit[chosen.others] @ unit[chosen.stay].T
    order = np.argsort(-cosines.max(axis=1), kind="stable")
    gone, kept = order[: chosen.merged], order[chosen.merged :]
    into = cosines.argmax(axis=1)
    groups = [[tokens[place]] for place in chosen.stay]
    for index in gone:
        groups[into[index]].append(tokens[chosen.others[index]])
    seen = attend(np.stack([*tokens[chosen.others[kept]], *(np.mean(group, axis=0) for group in groups)]))
    result = np.empty((len(tokens), seen.shape[1]))
    result[chosen.others[kept]] = seen[: len(kept)]
    result[chosen.stay] = seen[len(kept) :]
    for index in gone:
        result[chosen.others[index]] = seen[len(kept) + into[index]]
    return result


def _back_to_norm(value: ir.Value | None, fixed: set[ir.Value]) -> tuple[ir.Node, ...]:
    """From what makes a value back to a LayerNormalization, through nodes that read one value each; empty: to none."""
    way: list[ir.Node] = []
    while value is not None and (node := value.producer()) is not None:
        way.append(node)
        if node.op_type == "LayerNormalization":
            return tuple(way)
        read = [each for each in node.inputs if each is not None and not is_fixed(each) and each not in fixed]
        value = read[0] if len(read) == 1 else None
    return ()


def _between(node: ir.Node, output: ir.Value) -> list[ir.Node]:
    """What makes an output of a node's, through nodes with one reader each."""
    found: list[ir.Node] = []
    value = node.outputs[0]
    while value is not output:
        (use,) = value.uses()
        found.append(use.node)
        value = use.node.outputs[0]
    return found


def _merge(graph: ir.Graph, attention: SelfAttention, chosen: Tokens) -> None:
    norm, output = attention.norm, attention.output
    tokens, alike = norm.outputs[0], norm.inputs[0]
    if tokens.shape is None or alike is None:
        raise ValueError(f"{norm.name} has tokens of no known shape")
    batch, count, _ = (int(str(dim)) for dim in tokens.shape)
    kept, left = len(chosen.others) - chosen.merged, count - chosen.merged
    first, last = attention.inside[0], attention.inside[-1]
    make = _Maker(graph, first, norm.name or "norm")

    # Not LpNormalization, which older releases of ONNX Runtime lack at this version of operators.
    length = make("ReduceL2", [alike, make.numbers([-1])], keepdims=1)
    unit = make("Div", [alike, make("Max", [length, make.constant(np.array(1e-30, np.float32))])])
    ours = make("Gather", [unit, make.numbers(chosen.others)], axis=1)
    theirs = make("Transpose", [make("Gather", [unit, make.numbers(chosen.stay)], axis=1)], perm=[0, 2, 1])
    cosines = make("MatMul", [ours, theirs])
    largest = make("ReduceMax", [cosines, make.numbers([-1])], keepdims=0)
    into = make("ArgMax", [cosines], axis=-1, keepdims=0)
    order = make("TopK", [largest, make.numbers([len(chosen.others)])], outputs=2, axis=-1, largest=1, sorted=1)
    gone = make("Slice", [order, *map(make.numbers, ([0], [chosen.merged], [1]))])
    stays = make("Slice", [order, *map(make.numbers, ([chosen.merged], [len(chosen.others)], [1]))])
    into = make("GatherElements", [into, gone], axis=1)  # (batch, merged)

    def rows(value: ir.Value, places: ir.Value) -> ir.Value:
        return make("GatherND", [value, make("Unsqueeze", [places, make.numbers([-1])])], batch_dims=1)

    others = make("Gather", [tokens, make.numbers(chosen.others)], axis=1)
    own = make("Gather", [tokens, make.numbers(chosen.stay)], axis=1)
    # By a product rather than by ScatterND, whose sums come in any order on several threads, and on a GPU.
    places = make.numbers(np.arange(len(chosen.stay))[:, np.newaxis])
    is_into = make("Equal", [make("Unsqueeze", [into, make.numbers([1])]), places])
    is_into = make("Cast", [is_into], to=ir.DataType.FLOAT)
    total = make("Add", [own, make("MatMul", [is_into, rows(others, gone)])])
    sizes = make("ReduceSum", [is_into, make.numbers([-1])], keepdims=1)
    mean = make("Div", [total, make("Add", [sizes, make.constant(np.ones(1, np.float32))])])
    merged = make("Concat", [rows(others, stays), mean], axis=1)
    describe(merged, ir.Shape((batch, left, int(str(tokens.shape[2])))), tokens.dtype)

    for node in attention.inside:
        for index, value in enumerate(node.inputs):
            if value is tokens:
                node.replace_input_with(index, merged)
        _shorten(graph, node, count, left)
        for value in node.outputs:
            value.shape = None

    make = _Maker(graph, _behind(graph, last), norm.name or "norm")
    found = make("Add", [into, make.numbers([kept])])
    found = make("Concat", [found, make.numbers(np.tile(np.arange(kept), (batch, 1)))], axis=1)
    zeros = make.numbers(np.zeros((batch, len(chosen.others))))
    found = make("ScatterElements", [zeros, order, found], axis=1)  # each place once
    found = make("Concat", [found, make.numbers(np.tile(np.arange(kept, left), (batch, 1)))], axis=1)
    back = np.argsort(np.concatenate([chosen.others, chosen.stay]))
    found = make("Gather", [found, make.numbers(back)], axis=1)
    readers = [(use.node, use.idx) for use in output.uses()]
    handed_out = rows(output, found)
    describe(handed_out, None, output.dtype)
    for reader, index in readers:
        reader.replace_input_with(index, handed_out)


class _Maker:
    """Makes nodes in front of another one."""

    def __init__(self, graph: ir.Graph, before: ir.Node, name: str) -> None:
        self._graph, self._before, self._name = graph, before, f"{name}_merging"

    def __call__(self, operator: str, inputs: Sequence[ir.Value], *, outputs: int = 1, **attributes: Any) -> ir.Value:
        """A node; its first output, or of TopK, which has two, the second."""
        made = insert(self._before, operator, inputs, attributes=attributes, outputs=outputs)
        node = made.producer()
        return made if node is None else node.outputs[outputs - 1]

    def numbers(self, values: Any) -> ir.Value:
        return self.constant(np.asarray(values, np.int64))

    def constant(self, array: NDArray[Any]) -> ir.Value:
        return add_constant(self._graph, array, self._name)


def _behind(graph: ir.Graph, node: ir.Node) -> ir.Node:
    """The node that follows another one in the graph's order."""
    nodes = list(graph)
    return nodes[nodes.index(node) + 1]


def _shorten(graph: ir.Graph, node: ir.Node, count: int, left: int) -> None:
    """Let a Reshape that says how many tokens there are say the new number."""
    if node.op_type != "Reshape" or node.domain != "":
        return
    shape = node.inputs[1]
    sizes = None if shape is None or shape.const_value is None else shape.const_value.numpy().copy()
    if sizes is None or len(sizes) < 2:
        raise ValueError(f"{node.name} makes a shape that isn't known")
    if sizes[1] == count:
        sizes[1] = left
        node.replace_input_with(1, add_constant(graph, sizes, f"{node.name}_shape"))
