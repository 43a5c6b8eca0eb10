"""What an ONNX file refers to, read off its protobuf without onnx: no allocation follows from what the file claims.

The walk is a loop over (start, end) spans of a mapped file, so nesting costs no stack and sizes no memory. It follows
each place where a tensor can hide: initializers, sparse ones, attributes. Graphs within nodes (what If, Loop, Scan and
SequenceMap run) and functions are refused: no exporter of ours writes them, and what they run may never end.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tintype.bounds import MAX_DIMENSION_CHARS, MAX_GRAPH_BYTES, MAX_GRAPH_FIELDS
from tintype.files import open_plain

MAX_GRAPH_DIMENSION = 2**24
MAX_RANK = 64  # dimensions of a tensor; also what it may say of where its data lie
MAX_TENSOR_ELEMENTS = 2**38
FIELDS_HELD = 1000  # after so many, pages of the file that were read are let go: with each the system maps 64 KiB

# Message -> field number -> message of that field, as in onnx.proto; fields that lead to no tensor are left out.
_MESSAGES: dict[str, dict[int, str]] = {
    "Model": {7: "Graph"},
    "Graph": {1: "Node", 5: "Tensor", 11: "Value", 12: "Value", 13: "Value", 15: "SparseTensor"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 10: "Tensor", 22: "SparseTensor", 23: "SparseTensor"},
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
    "Value": {2: "Type"},
    "Type": {1: "TensorType"},
    "TensorType": {2: "Shape"},
    "Shape": {1: "Dimension"},
}

# What could run without end, or be far more than it is long.
_REFUSED = {
    ("Model", 20): "it has a part that trains",
    ("Model", 25): "it has functions of its own",
    ("Attribute", 6): "a node of it runs a graph, as If, Loop and Scan do",
    ("Attribute", 11): "a node of it runs graphs",
}

# Bits of one element by TensorProto.DataType; strings (8) have none.
_BITS = {1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64, 14: 64, 15: 128, 16: 16}
_BITS |= {17: 8, 18: 8, 19: 8, 20: 8, 21: 4, 22: 4, 23: 4, 24: 8, 25: 2, 26: 2}

_DONT_NEED: int | None = getattr(mmap, "MADV_DONTNEED", None)  # Windows has none

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

# Fields that say what a graph is, by number.
_MODEL_OPSET, _GRAPH_INPUT, _GRAPH_OUTPUT, _NODE_OPERATOR, _NODE_DOMAIN = 8, 11, 12, 4, 7


class MalformedGraph(ValueError):
    """The file is not an ONNX graph, or claims what cannot be."""


@dataclass(slots=True)
class ExternalTensor:
    """A tensor whose data lie in another file; `location` is as written, relative to the graph's folder."""

    name: str
    location: str
    offset: int
    nbytes: int  # what its shape and type need


@dataclass(slots=True)
class _Tensor:
    name: str = "?"
    data_type: int = 0
    dims: list[int] = field(default_factory=list)
    external: list[tuple[str, str]] = field(default_factory=list)
    is_external: bool = False
    payload_bytes: int = 0


@dataclass(slots=True)
class GraphFacts:
    """What an ONNX file holds. Types are those of TensorProto.DataType, 0 where none is said."""

    external: list[ExternalTensor] = field(default_factory=list)
    opsets: dict[str, int] = field(default_factory=dict)  # by domain, "" is ONNX itself
    operators: set[tuple[str, str]] = field(default_factory=set)  # domain and name
    inputs: dict[str, int] = field(default_factory=dict)
    outputs: dict[str, int] = field(default_factory=dict)
    elements: dict[int, int] = field(default_factory=dict)  # of tensors, by type


def external_tensors(path: Path) -> list[ExternalTensor]:
    """Every tensor of an ONNX file that lies in another file. Raises MalformedGraph, also for absurd shapes."""
    return scan_graph(path).external


def scan_graph(path: Path) -> GraphFacts:
    """What an ONNX file holds. Raises OSError, and MalformedGraph, also for absurd shapes."""
    with open_plain(path, MAX_GRAPH_BYTES) as file:
        if file.seek(0, 2) == 0:
            raise MalformedGraph("it is empty")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            walk = _Walk(data)
            walk.through()
            return walk.facts


@dataclass(slots=True)
class _Walk:
    """One way through a file, of a bounded number of fields in all."""

    data: mmap.mmap
    facts: GraphFacts = field(default_factory=GraphFacts)
    fields_left: int = MAX_GRAPH_FIELDS

    def through(self) -> None:
        spans = [("Model", 0, len(self.data))]
        has_graph = False
        while spans:
            message, start, end = spans.pop()
            if message == "Tensor":
                self._take_tensor(self._tensor(start, end))
            elif message == "Dimension":
                self._judge_dimension(start, end)
            else:
                children = self._children(message, start, end)
                has_graph |= any(child == "Graph" for child, _, _ in children)
                spans += children
        if not has_graph:
            raise MalformedGraph("it holds no graph")

    def _children(self, message: str, start: int, end: int) -> list[tuple[str, int, int]]:
        """Messages within a message, and into the facts what it says itself."""
        children, texts = list[tuple[str, int, int]](), dict[int, str]()
        for number, wire, value, value_end in self._fields(start, end):
            if (message, number) in _REFUSED:
                raise MalformedGraph(_REFUSED[message, number])
            child = _MESSAGES[message].get(number)
            if child is not None:
                if wire != _BYTES:
                    raise MalformedGraph(f"field {number} of a {message} has wire type {wire}")
                children.append((child, value, value_end))
            if message == "Node" and number in (_NODE_OPERATOR, _NODE_DOMAIN) and wire == _BYTES:
                texts[number] = self._text(value, value_end)
            elif message == "Graph" and number in (_GRAPH_INPUT, _GRAPH_OUTPUT):
                name, kind = self._port(value, value_end)
                (self.facts.inputs if number == _GRAPH_INPUT else self.facts.outputs)[name] = kind
            elif message == "Model" and number == _MODEL_OPSET and wire == _BYTES:
                domain, version = self._opset(value, value_end)
                self.facts.opsets[domain] = version
        if message == "Node":
            domain = texts.get(_NODE_DOMAIN, "")
            self.facts.operators.add(("" if domain == "ai.onnx" else domain, texts.get(_NODE_OPERATOR, "")))
        return children

    def _take_tensor(self, tensor: _Tensor) -> None:
        external = _judge_tensor(tensor)
        if external is not None:
            self.facts.external.append(external)
        known = self.facts.elements
        known[tensor.data_type] = known.get(tensor.data_type, 0) + math.prod(tensor.dims)

    def _text(self, start: int, end: int) -> str:
        return self.data[start : min(end, start + 200)].decode("utf-8", "replace")

    def _opset(self, start: int, end: int) -> tuple[str, int]:
        domain, version = "", 0
        for number, wire, value, value_end in self._fields(start, end):
            if number == 1 and wire == _BYTES:
                domain = self._text(value, value_end)
            elif number == 2 and wire == _VARINT:
                version = value
        return "" if domain == "ai.onnx" else domain, version

    def _port(self, start: int, end: int) -> tuple[str, int]:
        """Name and element type of an input or output; its shape is walked through like everything else."""
        name, kind = "", 0
        for number, wire, value, value_end in self._fields(start, end):
            if number == 1 and wire == _BYTES:
                name = self._text(value, value_end)
            elif number == 2 and wire == _BYTES:  # a type, whose first field is that of a tensor, whose first is that
                for inner, inner_wire, tensor, tensor_end in self._fields(value, value_end):
                    if inner == 1 and inner_wire == _BYTES:
                        kinds = [v for n, w, v, _ in self._fields(tensor, tensor_end) if n == 1 and w == _VARINT]
                        kind = kinds[0] if kinds else 0
        return name, kind

    def _fields(self, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
        """(field number, wire type, value, end): the value of a varint, else where the payload starts and ends."""
        position, data = start, self.data
        while position < end:
            self.fields_left -= 1
            if self.fields_left % FIELDS_HELD == 0:
                self._let_go()
            key, position = data[position], position + 1  # mostly one byte; a call for each would take most of the time
            if key >= 0x80:
                key, position = _varint(data, position - 1, end)
            number, wire = key >> 3, key & 7
            if wire == _VARINT:
                value, position = _varint(data, position, end)
                yield number, wire, value, position
                continue
            if wire == _BYTES:
                length = data[position] if position < end else 0x80
                if length < 0x80:
                    position += 1
                else:
                    length, position = _varint(data, position, end)
            elif wire in (_FIXED64, _FIXED32):
                length = 8 if wire == _FIXED64 else 4
            else:
                raise MalformedGraph(f"wire type {wire} at byte {position:,}")
            if length > end - position:
                raise MalformedGraph(f"a field at byte {position:,} runs past its end")
            yield number, wire, position, position + length
            position += length

    def _let_go(self) -> None:
        """Hold no more of the file than what comes next. Raises MalformedGraph where it has too many parts."""
        if self.fields_left <= 0:
            raise MalformedGraph("it has too many parts")
        if _DONT_NEED is not None:
            self.data.madvise(_DONT_NEED)

    def _tensor(self, start: int, end: int) -> _Tensor:
        tensor, data = _Tensor(), self.data
        for number, wire, value, value_end in self._fields(start, end):
            if number == 1:
                tensor.dims += [_signed(value)] if wire == _VARINT else _packed(data, value, value_end)
            elif number == 2 and wire == _VARINT:
                tensor.data_type = value
            elif number == 8 and wire == _BYTES:
                tensor.name = data[value : min(value_end, value + 200)].decode("utf-8", "replace")
            elif number == 13 and wire == _BYTES:
                tensor.external.append(self._entry(value, value_end))
            elif number == 14 and wire == _VARINT:
                tensor.is_external = tensor.is_external or value == 1
            elif number in (4, 5, 6, 7, 9, 10, 11):
                tensor.payload_bytes += value_end - value if wire != _VARINT else 1
            if max(len(tensor.dims), len(tensor.external)) > 2 * MAX_RANK:  # before it has a name
                raise MalformedGraph(f"the tensor {tensor.name!r} has an absurd shape")
        return tensor

    def _entry(self, start: int, end: int) -> tuple[str, str]:
        key = text = ""
        for number, wire, value, value_end in self._fields(start, end):
            if wire == _BYTES and number in (1, 2):
                if value_end - value > 4096:
                    raise MalformedGraph("an external data entry is absurdly long")
                entry = self.data[value:value_end].decode("utf-8", "replace")
                key, text = (entry, text) if number == 1 else (key, entry)
        return key, text

    def _judge_dimension(self, start: int, end: int) -> None:
        for number, wire, value, value_end in self._fields(start, end):
            if number == 1 and wire == _VARINT and not 0 <= _signed(value) <= MAX_GRAPH_DIMENSION:
                raise MalformedGraph(f"a value has a dimension of {_signed(value):,}")
            if number == 2 and wire == _BYTES and value_end - value > MAX_DIMENSION_CHARS:  # it is read as a sum
                raise MalformedGraph("the name of a dimension is absurdly long")


def _varint(data: mmap.mmap, position: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while position < end and shift < 70:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, position
        shift += 7
    raise MalformedGraph(f"a number at byte {position:,} has no end")


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


def _packed(data: mmap.mmap, start: int, end: int) -> list[int]:
    found = []
    position = start
    while position < end:
        value, position = _varint(data, position, end)
        found.append(_signed(value))
        if len(found) > MAX_RANK:
            raise MalformedGraph(f"a tensor has more than {MAX_RANK} dimensions")
    return found


def _judge_tensor(tensor: _Tensor) -> ExternalTensor | None:
    if len(tensor.dims) > MAX_RANK or any(dim < 0 for dim in tensor.dims):
        raise MalformedGraph(f"the tensor {tensor.name!r} has an absurd shape")
    elements = math.prod(tensor.dims)
    if elements > MAX_TENSOR_ELEMENTS:
        raise MalformedGraph(f"the tensor {tensor.name!r} claims {elements:,} elements")
    if not tensor.is_external and not tensor.external:
        # No type packs more than four elements into a byte.
        if elements > 4 * tensor.payload_bytes:
            raise MalformedGraph(f"the tensor {tensor.name!r} claims {elements:,} elements and holds fewer")
        return None
    keys = [key for key, _ in tensor.external]
    if len(set(keys)) != len(keys) or "location" not in keys:
        raise MalformedGraph(f"the tensor {tensor.name!r} does not say clearly where its data lie")
    if tensor.data_type not in _BITS:
        raise MalformedGraph(f"the tensor {tensor.name!r} has type {tensor.data_type}, which no other file can hold")
    entries = dict(tensor.external)
    nbytes = -(-elements * _BITS[tensor.data_type] // 8)
    length = _whole_number(tensor.name, entries.get("length", str(nbytes)))
    if length != nbytes:
        raise MalformedGraph(f"the tensor {tensor.name!r} needs {nbytes:,} bytes and claims {length:,}")
    offset = _whole_number(tensor.name, entries.get("offset", "0"))
    return ExternalTensor(name=tensor.name, location=entries["location"], offset=offset, nbytes=nbytes)


def _whole_number(name: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 15):
        raise MalformedGraph(f"the tensor {name!r} has an offset or length of {text[:40]!r}")
    return int(text)
