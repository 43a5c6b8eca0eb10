"""JSON text to frozen dataclasses, and back, believing nothing it reads.

A key that comes twice, a number that is not finite, a value of the wrong type or a text that nests too deep or holds
too many values is a `Misfit` which names the place. Keys that a dataclass doesn't know are left out, so that a format
can grow. How deep and how many is known before anything is parsed, in time that grows with the text's length alone.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import math
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, TypeVar

from tintype.bounds import MAX_JSON_DEPTH, MAX_JSON_VALUES

T = TypeVar("T")

_NO_BRACKETS = bytes(byte for byte in range(256) if byte not in b"[]{}")
_NESTING = [(byte in b"[{") - (byte in b"]}") for byte in range(256)]

_KINDS: dict[type, str] = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}


class Misfit(ValueError):
    """A JSON text that isn't what it should be; the message says where and why."""


def parse(text: str | bytes) -> Any:
    """JSON of any shape. Refuses duplicate keys, NaN, infinities, what is not UTF-8 and what is beyond bounds."""
    try:
        data = text.encode() if isinstance(text, str) else text
        _demand_bounds(data)
        return json.loads(
            data.decode("utf-8-sig"), object_pairs_hook=_object_without_duplicates, parse_constant=_refuse_constant
        )
    except Misfit:
        raise
    except RecursionError:
        raise Misfit("it nests too deep") from None
    except ValueError as error:  # JSONDecodeError, UnicodeError and integers of thousands of digits
        raise Misfit(f"it is not JSON: {error}") from None


def read(kind: type[T], value: Any, where: str = "") -> T:
    """`value`, as parsed from JSON, as the dataclass `kind`; its fields' types are checked all the way down."""
    try:
        return _fields_reader(typing.cast(Any, kind))(value)  # type: ignore[no-any-return]
    except _Unfit as unfit:
        place = (where + "".join(reversed(unfit.path))).removeprefix(".")
        if unfit.own:
            raise Misfit(f"{place}: {unfit.problem}" if place else unfit.problem) from None
        raise Misfit(f"{place or 'the whole'} {unfit.problem}") from None


def require(condition: bool, otherwise: str) -> None:
    """Misfit where something isn't so."""
    if not condition:
        raise Misfit(otherwise)


def dump(value: Any, *, indent: int | None = 2) -> str:
    """A dataclass (or plain JSON value) as JSON text, keys in the order of the fields. ValueError on NaN, infinity."""
    return json.dumps(plain(value), indent=indent, ensure_ascii=False, allow_nan=False)


def plain(value: Any) -> Any:
    """A dataclass and all in it as plain JSON values, without fields whose metadata says `recorded: False`."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in _recorded(type(value))}
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def _recorded(kind: Any) -> list[dataclasses.Field[Any]]:
    return [field for field in dataclasses.fields(kind) if field.metadata.get("recorded", True)]


class _Unfit(Exception):
    """A value that doesn't fit. path: of its place, the innermost part first; own: what a dataclass says of itself."""

    def __init__(self, problem: str, *path: str, own: bool = False) -> None:
        super().__init__(problem)
        self.problem, self.path, self.own = problem, list(path), own


# A hint's reader is made once, as a file may hold a million values of one kind; a place is named where one doesn't fit.
_Reader = Callable[[Any], Any]


@functools.cache
def _fields_reader(kind: Any) -> _Reader:
    hints = typing.get_type_hints(kind)
    readers = {field.name: _reader(hints[field.name]) for field in _recorded(kind)}
    required = {
        field.name
        for field in _recorded(kind)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }

    def read_fields(value: Any) -> Any:
        if not isinstance(value, Mapping):
            raise _Unfit(f"should be an object, not {_describe(value)}")
        found: dict[str, Any] = {}
        for name, reader in readers.items():
            if name in value:
                try:
                    found[name] = reader(value[name])
                except _Unfit as unfit:
                    unfit.path.append(f".{name}")
                    raise
            elif name in required:
                raise _Unfit("is missing", f".{name}")
        try:
            return kind(**found)
        except Misfit as error:  # a dataclass may judge its own values in __post_init__
            raise _Unfit(str(error), own=True) from None

    return read_fields


@functools.cache
def _reader(hint: Any) -> _Reader:
    if hint is Any:
        return lambda value: value
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return _union_reader(arguments)
    if origin is tuple:
        return _tuple_reader(_reader(arguments[0]))
    if origin in (dict, Mapping):
        return _table_reader(_reader(arguments[1]))
    return _fields_reader(typing.cast(Any, hint)) if dataclasses.is_dataclass(hint) else _scalar_reader(hint)


def _union_reader(choices: tuple[Any, ...]) -> _Reader:
    readers = {choice: _reader(choice) for choice in choices if choice is not types.NoneType}

    def read_union(value: Any) -> Any:
        if value is None and types.NoneType in choices:
            return None
        fitting = readers.get(type(value))
        if fitting is not None:
            return fitting(value)
        unfit = None
        for reader in readers.values():
            try:
                return reader(value)
            except _Unfit as found:
                unfit = found
        assert unfit is not None
        raise unfit

    return read_union


def _tuple_reader(reader: _Reader) -> _Reader:
    def read_tuple(value: Any) -> Any:
        if not isinstance(value, list | tuple):
            raise _Unfit(f"should be a list, not {_describe(value)}")
        found: list[Any] = []
        try:
            found.extend(map(reader, value))
        except _Unfit as unfit:
            unfit.path.append(f"[{len(found)}]")
            raise
        return tuple(found)

    return read_tuple


def _table_reader(reader: _Reader) -> _Reader:
    def read_table(value: Any) -> Any:
        if not isinstance(value, Mapping):
            raise _Unfit(f"should be an object, not {_describe(value)}")
        found = {}
        for key, item in value.items():
            try:
                found[key] = reader(item)
            except _Unfit as unfit:
                unfit.path.append(f".{key}")
                raise
        return found

    return read_table


def _scalar_reader(kind: type) -> _Reader:
    def read_scalar(value: Any) -> Any:
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            try:
                value = float(value)
            except OverflowError:
                raise _Unfit("is too large a number") from None
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise _Unfit(f"should be {_KINDS.get(kind, kind.__name__)}, not {_describe(value)}")
        if isinstance(value, float) and not math.isfinite(value):  # 1e999 parses as infinity
            raise _Unfit("is not a finite number")
        return value

    return read_scalar


def _describe(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _object_without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise Misfit(f"the key {_describe(twice)} comes twice")
    return found


def _demand_bounds(text: bytes) -> None:
    """Misfit for more values, or a deeper nest of them, than any format of ours has."""
    opened = text.count(b"[") + text.count(b"{")
    if opened + text.count(b",") > MAX_JSON_VALUES:
        raise Misfit(f"it holds more than {MAX_JSON_VALUES:,} values")
    if opened <= MAX_JSON_DEPTH:
        return
    # Backslashes stand within strings alone, so without them every other piece between quotes is no string.
    outside = text.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')[::2]
    brackets = b"".join(outside).translate(None, _NO_BRACKETS)
    if max(itertools.accumulate(map(_NESTING.__getitem__, brackets)), default=0) > MAX_JSON_DEPTH:
        raise Misfit("it nests too deep")


def _refuse_constant(name: str) -> NoReturn:
    raise Misfit(f"{name} is not a number that JSON knows")
