"""Cross-attentions that look at pictures beside the words, by keys and values that are inputs (IP-Adapter: Ye et al.
2023): what each of them gives is added to what the words gave, before the last projection.

One attention looks at all pictures' tokens; or, inside masks, one at each picture's own. A weight is in the values.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from tintype.kernels.base import add_constant, insert, only_reader, permutation
from tintype.kernels.graph.low_rank import module_of
from tintype.kernels.graph.reuse import WORDS, dependent

PREFIX = "image_tokens."  # of the inputs' names: image_tokens.LAYER.key and image_tokens.LAYER.value
MASK_PREFIX = "image_mask."  # image_mask.QUERIES, (pictures, queries, 1)
_HEADS_SECOND = (0, 2, 1, 3)


def cross_attention_layers(graph: ir.Graph) -> dict[str, ir.Node]:
    """By the name of its module, each Attention whose keys come of the words: (batch, heads, tokens, size) each."""
    words = next((value for value in graph.inputs if value.name == WORDS), None)
    of_words = {} if words is None else dependent(graph, words)
    found = {}
    for node in graph:
        keys = node.inputs[1] if node.op_type == "Attention" else None
        if keys is None or node.inputs[0] in of_words or keys not in of_words:
            continue
        name = module_of(node)
        if name is not None and node.inputs[0] is not None and len(node.inputs[0].shape or ()) == 4:
            found[name] = node
    return found


def take_image_tokens(model: ir.Model, tokens: int, masks: int = 0) -> list[ir.Value]:
    """Let every cross-attention take so many tokens beside the words', in place; the inputs.

    masks: of so many pictures, each with that many tokens; 0: there are none, and all tokens are looked at together.
    The sizes in the graph must be numbers.
    """
    layers, added = cross_attention_layers(model.graph), list[ir.Value]()
    pieces: dict[int, list[ir.Value]] = {}  # of the masks, by queries
    for name, node in layers.items():
        batch, heads, queries, size = _sizes(node.inputs[0])
        given = {
            part: _input(model.graph, f"{PREFIX}{name}.{part}", (batch, tokens * max(1, masks), heads * size))
            for part in ("key", "value")
        }
        added += given.values()
        if masks and queries not in pieces:
            mask = _input(model.graph, f"{MASK_PREFIX}{queries}", (masks, queries, 1))
            added.append(mask)
            pieces[queries] = _split(next(iter(model.graph)), mask, axis=0, count=masks)
        _look_also(model.graph, node, given["key"], given["value"], pieces.get(queries, []))
    return added


def reference(
    query: NDArray[np.float32], key: NDArray[np.float32], value: NDArray[np.float32], heads: int
) -> NDArray[np.float64]:
    """What is added: query (batch, queries, width), key and value (batch, tokens, width)."""
    q, k, v = (x.astype(np.float64).reshape(*x.shape[:2], heads, -1).swapaxes(1, 2) for x in (query, key, value))
    scores = q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    seen = (weights / weights.sum(axis=-1, keepdims=True)) @ v
    return np.asarray(seen.swapaxes(1, 2).reshape(query.shape))


def _look_also(graph: ir.Graph, node: ir.Node, key: ir.Value, value: ir.Value, masks: list[ir.Value]) -> None:
    """Add to what an attention gives what its queries find at other keys; masks: one for each share of these."""
    _, heads, _, size = _sizes(node.inputs[0])
    total, is_joined = _joined_output(node)
    readers = [(use.node, use.idx) for use in total.uses()]
    before = next(each for each in graph if any(each is reader for reader, _ in readers))
    count = max(1, len(masks))
    keys, values = ([each] if count == 1 else _split(before, each, axis=1, count=count) for each in (key, value))
    apart = add_constant(graph, np.array([0, 0, heads, size], np.int64), f"split_heads_{heads}_{size}")
    whole = add_constant(graph, np.array([0, 0, heads * size], np.int64), f"joined_heads_{heads * size}")

    def by_heads(given: ir.Value) -> ir.Value:
        batch, length, _ = (given.shape or ir.Shape([])).numpy()
        split = _made(insert(before, "Reshape", [given, apart]), (batch, length, heads, size), total)
        return _turned(before, split, (batch, heads, length, size), total)

    for index, (one_key, one_value) in enumerate(zip(keys, values, strict=True)):
        inputs = [node.inputs[0], by_heads(one_key), by_heads(one_value)]
        seen = insert(before, "Attention", inputs, attributes=dict(node.attributes), like=node.outputs[0])
        if is_joined:
            batch, _, queries, _ = _sizes(node.outputs[0])
            seen = _turned(before, seen, (batch, queries, heads, size), total)
            seen = insert(before, "Reshape", [seen, whole], like=total)
        if masks:
            seen = insert(before, "Mul", [seen, masks[index]], like=total)
        total = insert(before, "Add", [total, seen], like=total)
    for reader, place in readers:
        reader.replace_input_with(place, total)


def _joined_output(node: ir.Node) -> tuple[ir.Value, bool]:
    """What an attention gives with its heads side by side, where its readers join them; else as it is."""
    transpose = only_reader(node.outputs[0], "Transpose")
    if transpose is not None and permutation(transpose) == _HEADS_SECOND:
        reshape = only_reader(transpose.outputs[0], "Reshape")
        _, heads, _, size = _sizes(node.outputs[0])
        if reshape is not None and list(reshape.outputs[0].shape or ())[2:] == [heads * size]:
            return reshape.outputs[0], True
    return node.outputs[0], False


def _sizes(value: ir.Value | None) -> tuple[int, int, int, int]:
    if value is None or value.shape is None or len(value.shape) != 4 or not value.shape.is_static():
        raise ValueError(f"{value.name if value is not None else None} is not of four sizes that are numbers")
    batch, heads, length, size = value.shape.numpy()
    return batch, heads, length, size


def _input(graph: ir.Graph, name: str, shape: tuple[int, ...]) -> ir.Value:
    value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT))
    graph.inputs.append(value)
    return value


def _split(before: ir.Node, value: ir.Value, *, axis: int, count: int) -> list[ir.Value]:
    """Equal shares of a value along an axis."""
    shape = list((value.shape or ir.Shape([])).numpy())
    shape[axis] //= count
    if count == 1:
        return [value]
    attributes = {"axis": axis, "num_outputs": count}
    first = insert(before, "Split", [value], attributes=attributes, outputs=count)
    node = first.producer()
    return [_made(each, tuple(shape), value) for each in (node.outputs if node is not None else ())]


def _turned(before: ir.Node, value: ir.Value, shape: tuple[int, ...], like: ir.Value) -> ir.Value:
    return _made(insert(before, "Transpose", [value], attributes={"perm": list(_HEADS_SECOND)}), shape, like)


def _made(value: ir.Value, shape: tuple[int, ...], like: ir.Value) -> ir.Value:
    value.shape = ir.Shape(shape)
    if like.dtype is not None:
        value.dtype = like.dtype
    return value
