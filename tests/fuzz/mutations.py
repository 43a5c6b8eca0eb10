"""Seeds changed as a hostile hand would: as bytes, as JSON, as protobuf and as the chunks of a PNG.

Each strategy draws few and small numbers, so that hypothesis can make what it found smaller.
"""

from __future__ import annotations

import copy
import itertools
import json
import struct
import zlib
from collections.abc import Callable, Sequence
from typing import Any

from hypothesis import strategies as st

Edit = tuple[Any, ...]
PLACES = st.integers(0, 2**24)  # taken modulo what there is
SIZES = st.one_of(st.integers(0, 40), st.sampled_from([255, 256, 4096, 2**16, 2**20]))
CONTROLS = "\x1b]52;c;QUFB\x07\x1b[2J\r\n\u202e\u2028\x00\x9b"


class Changed(bytes):
    """What an edit gives: hypothesis keeps every plain value that it draws for a round, which takes gigabytes."""

    __slots__ = ()


class Long(str):
    """The same of a long text."""

    __slots__ = ()


# Bytes

FILL = st.one_of(
    st.binary(max_size=12),
    st.sampled_from([b"\0", b"\xff", b"[", b'{"a":', b'"', b"\\", b"\xff\xff\xff\xff\xff\xff\xff\xff\x7f", b"9" * 30]),
)
BYTE_EDITS = st.lists(
    st.tuples(st.sampled_from(["flip", "cut", "insert", "repeat", "splice", "end"]), PLACES, SIZES, FILL), max_size=5
)


def edit_bytes(data: bytes, edits: Sequence[Edit], other: bytes = b"") -> bytes:
    for kind, where, size, fill in edits:
        place = where % (len(data) + 1)
        head, tail = data[:place], data[place:]
        if kind == "flip" and tail:
            data = head + bytes([tail[0] ^ 1 << size % 8]) + tail[1:]
        elif kind == "cut":
            data = head + tail[size:]
        elif kind == "insert":
            data = head + fill * max(1, min(size, 2**24 // max(1, len(fill)))) + tail
        elif kind == "repeat":
            data = head + tail[: size % 64] * (1 + size % 1000) + tail
        elif kind == "splice":
            data = head + other[size % (len(other) + 1) :]
        elif kind == "end":
            data = head
    return Changed(data)


def bytes_of(seeds: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    return st.builds(edit_bytes, st.sampled_from(seeds), BYTE_EDITS, st.sampled_from(seeds))


# JSON


class Raw(str):
    """Stands in JSON as it is, whatever that makes of it."""

    __slots__ = ()


class Pairs(list):
    """An object's keys and values, in which a key may come twice."""


NUMBERS = [0, -1, 1, 2, 63, 2**16, 2**31, 2**53 + 1, 2**63, 2**64, -(2**63), 10**9, 10**30, 10**400, 0.5, -0.0, 1e-300,
           1e300, 5e-324]  # fmt: skip
RAWS = ["1e999", "NaN", "-Infinity", "1E-999", "9" * 5000, "0." + "1" * 6000, '"\\ud800"', '"\\u0000"', "", "'a'", "01"]
TEXTS = [
    "",
    "\0",
    CONTROLS,
    "../../etc/passwd",
    "/dev/zero",
    "euler",
    "9" * 40,
    "\ud800",
    "\U0001f600" * 9,
    "NaN",
    "1+1",
]
NAMES = ["", "a", "__class__", "type", "format_version", "Regex", "digest", CONTROLS]


MOST_GROWN_BYTES = 2**23  # of JSON, by growth
MOST_COPIED_BYTES = 2**26  # of a field, or a chunk: edits follow one another, and would multiply


def _nest(depth: int, opening: str) -> Raw:
    closing = "]" if opening == "[" else "}"
    return Raw(opening * depth + "1" + closing * depth)


def _many(count: int, piece: str) -> Raw:
    return Raw("[" + ",".join([piece] * count) + "]")


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from(NUMBERS),
    st.integers(-5, 300),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from(RAWS).map(Raw),
    st.sampled_from(TEXTS),
    st.text(max_size=8),
    st.builds(_nest, st.sampled_from([1, 3, 60, 66, 3000]), st.sampled_from(["[", '{"a":'])),
    st.builds(
        _many, st.sampled_from([0, 1, 3, 1000, 60_000, 500_000]), st.sampled_from(["0", "[]", '""', '"ab"', "1.5"])
    ),
    st.builds(lambda text, times: Long(text * times), st.sampled_from(["x", "\x01", "(", "\u0301"]), SIZES),
)
JSON_EDITS = st.lists(
    st.one_of(
        st.tuples(st.just("set"), PLACES, VALUES),
        st.tuples(st.sampled_from(["drop", "wrap"]), PLACES, st.none()),
        st.tuples(st.just("twice"), PLACES, VALUES),
        st.tuples(st.just("rename"), PLACES, st.sampled_from(NAMES)),
        st.tuples(st.just("copy"), PLACES, PLACES),
        st.tuples(st.just("grow"), PLACES, SIZES),
    ),
    max_size=4,
)


def edit_json(data: bytes, edits: Sequence[Edit]) -> bytes:
    whole = [json.loads(data, object_pairs_hook=Pairs)]
    # What has grown is one object, many times: it grows last, and once, as growth within it would multiply.
    growing = [edit for edit in edits if edit[0] == "grow"]
    for kind, where, what in [*(edit for edit in edits if edit[0] != "grow"), *growing[:1]]:
        places = _places(whole)
        box, index = places[where % len(places)]
        entry, is_pair = box[index], isinstance(box, Pairs)
        value = entry[1] if is_pair else entry
        if kind == "drop" and box is not whole:
            del box[index]
        elif kind == "twice":
            box.append((entry[0], what) if is_pair else what)
        elif kind == "rename" and is_pair:
            box[index] = (what, value)
        elif kind == "grow" and box is not whole:
            room = max(0, MOST_GROWN_BYTES - len(write_json(whole[0])))
            box.extend([entry] * min(what, room // (1 + len(write_json(value)))))
        elif kind in ("set", "wrap", "copy"):
            if kind == "wrap":
                what = [value]
            elif kind == "copy":
                other, place = places[what % len(places)]
                what = copy.deepcopy(other[place][1] if isinstance(other, Pairs) else other[place])
            box[index] = (entry[0], what) if is_pair else what
    return Changed(write_json(whole[0]).encode("utf-8", "surrogatepass"))


def _places(whole: list[Any]) -> list[tuple[list[Any], int]]:
    """Where each value of a JSON tree stands, up to 20,000."""
    found: list[tuple[list[Any], int]] = []
    boxes = [whole]
    while boxes and len(found) < 20_000:
        box = boxes.pop()
        for index, entry in enumerate(box):
            found.append((box, index))
            value = entry[1] if isinstance(box, Pairs) else entry
            if isinstance(value, list) and value:
                boxes.append(value)
    return found


def write_json(value: Any) -> str:
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, Pairs):
        return "{" + _write_each(value, lambda pair: f"{json.dumps(str(pair[0]))}:{write_json(pair[1])}") + "}"
    if isinstance(value, list):
        return "[" + _write_each(value, write_json) + "]"
    if isinstance(value, int) and abs(value) >= 10**400:
        return "1" + "0" * 400
    return json.dumps(value)


def _write_each(entries: list[Any], write: Callable[[Any], str]) -> str:
    """A million entries that are one object are written once."""
    runs = (list(run) for _, run in itertools.groupby(entries, key=id))
    return ",".join(",".join([write(run[0])] * len(run)) for run in runs)


def json_of(seeds: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    """Mostly changed as JSON; now and then its bytes too."""
    edited = st.builds(edit_json, st.sampled_from(seeds), JSON_EDITS)
    return st.one_of(edited, edited, st.builds(edit_bytes, edited, BYTE_EDITS), bytes_of(seeds))


# Protobuf

VARINTS = [0, 1, 2, 127, 2**31, 2**32 - 1, 2**63, 2**64 - 1, 2**70]
WIRE_EDITS = st.lists(
    st.tuples(
        st.lists(st.integers(0, 500), max_size=6),  # the way down: which field at each level
        st.sampled_from(["drop", "twice", "value", "number", "wire", "bytes", "swap", "many"]),
        st.one_of(st.sampled_from(VARINTS), st.integers(0, 60)),
        BYTE_EDITS,
    ),
    max_size=3,
)


def edit_protobuf(data: bytes, edits: Sequence[Edit]) -> bytes:
    for way, kind, number, inner in edits:
        data = _edit_message(data, way, kind, number, inner)
    return Changed(data)


def _edit_message(data: bytes, way: Sequence[int], kind: str, number: int, inner: Sequence[Edit]) -> bytes:
    fields = _wire_fields(data)
    if not fields:
        return edit_bytes(data, inner)
    index = (way[0] if way else number) % len(fields)
    field, wire, value = fields[index]
    if len(way) > 1 and wire == 2:
        fields[index] = (field, wire, _edit_message(value, way[1:], kind, number, inner))
    elif kind == "drop":
        del fields[index]
    elif kind in ("twice", "many"):
        room = MOST_COPIED_BYTES // (1 + len(_wire_bytes(field, wire, value)))
        fields[index:index] = [fields[index]] * (1 if kind == "twice" else min(number % 10_000, room))
    elif kind == "swap":
        fields.insert(0, fields.pop(index))
    elif kind == "number":
        fields[index] = (number % 2**29, wire, value)
    elif kind == "wire":
        fields[index] = (field, number % 8, value)
    elif kind == "bytes" and isinstance(value, bytes):
        fields[index] = (field, wire, edit_bytes(value, inner))
    elif kind == "value":
        fields[index] = (field, 0, number)
    return b"".join(_wire_bytes(*each) for each in fields)


def _wire_fields(data: bytes) -> list[tuple[int, int, Any]]:
    """A message's fields; none where it can't be read as one."""
    fields, position = [], 0
    while position < len(data):
        key, position = _read_varint(data, position)
        wire, value = key & 7, None
        if wire == 0:
            value, position = _read_varint(data, position)
        elif wire in (1, 2, 5):
            length, position = (8 if wire == 1 else 4, position) if wire != 2 else _read_varint(data, position)
            value, position = data[position : position + length], position + length
        if value is None or position > len(data):
            return []
        fields.append((key >> 3, wire, value))
    return fields


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while position < len(data) and shift < 70:
        value |= (data[position] & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if data[position - 1] < 0x80:
            return value, position
    return value, len(data) + 1


def _varint(value: int) -> bytes:
    found = b""
    while value >= 0x80:
        found, value = found + bytes([value & 0x7F | 0x80]), value >> 7
    return found + bytes([value])


def _wire_bytes(field: int, wire: int, value: Any) -> bytes:
    key = _varint(field << 3 | wire)
    if isinstance(value, int):
        return key + _varint(value)
    return key + (_varint(len(value)) if wire == 2 else b"") + value


def protobuf_of(seeds: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    edited = st.builds(edit_protobuf, st.sampled_from(seeds), WIRE_EDITS)
    return st.one_of(edited, edited, bytes_of(seeds))


# PNG

CHUNK_NAMES = [*b"IHDR IDAT PLTE tRNS tEXt zTXt iTXt eXIf iCCP acTL fcTL gAMA IEND".split(), b"\0\xff!\x1b"]
CHUNK_EDITS = st.lists(
    st.tuples(
        st.sampled_from(["drop", "repeat", "swap", "type", "data", "head", "text"]),
        PLACES,
        SIZES,
        st.sampled_from(CHUNK_NAMES),
        BYTE_EDITS,
    ),
    max_size=4,
)
MAGIC = b"\x89PNG\r\n\x1a\n"


def edit_png(data: bytes, edits: Sequence[Edit], text: bytes) -> bytes:
    """text: what a tEXt, zTXt or iTXt chunk of a record may hold."""
    chunks = _chunks(data)
    for kind, where, size, name, inner in edits:
        if not chunks:
            break
        index = where % len(chunks)
        old, content = chunks[index]
        if kind == "drop":
            del chunks[index]
        elif kind == "repeat":
            chunks[index:index] = [chunks[index]] * min(size, 4096, MOST_COPIED_BYTES // (12 + len(content)))
        elif kind == "swap":
            chunks.append(chunks.pop(index))
        elif kind == "type":
            chunks[index] = (name, content)
        elif kind == "data":
            chunks[index] = (old, edit_bytes(content, inner))
        elif kind == "head":
            chunks[0] = (chunks[0][0], edit_bytes(chunks[0][1][:13], inner[:1]))
        elif kind == "text":
            chunks.insert(1, _text_chunk(name, text, size))
    return Changed(MAGIC + b"".join(_chunk(*each) for each in chunks))


def _text_chunk(name: bytes, text: bytes, size: int) -> tuple[bytes, bytes]:
    if name == b"zTXt":
        return name, b"tintype\0\0" + zlib.compress(text + b" " * size * 16)
    if name == b"iTXt":
        return name, b"tintype\0\1\0\0\0" + zlib.compress(text + b" " * size * 16)
    return b"tEXt", b"tintype\0" + text


def _chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    found, position = [], len(MAGIC)
    while data.startswith(MAGIC) and position + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, position)
        found.append((data[position + 4 : position + 8], data[position + 8 : position + 8 + length]))
        position += 12 + length
    return found


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png_of(seeds: Sequence[bytes], texts: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    return st.builds(edit_png, st.sampled_from(seeds), CHUNK_EDITS, texts)


def after_head(
    seeds: Sequence[bytes],
    split: Callable[[bytes], tuple[bytes, bytes]],
    join: Callable[[bytes, bytes], bytes],
    change: Callable[[Sequence[bytes]], st.SearchStrategy[bytes]],
) -> st.SearchStrategy[bytes]:
    """Seeds of two parts, the first of which is changed by a strategy of its own."""
    parts = [split(seed) for seed in seeds]
    return st.sampled_from(parts).flatmap(lambda part: change([part[0]]).map(lambda head: Changed(join(head, part[1]))))
