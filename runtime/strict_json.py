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
from collections.abc import Mapping
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
    if not isinstance(value, Mapping):
        raise Misfit(f"{where or 'the whole'} should be an object, not {_describe(value)}")
    hints = _hints(typing.cast(Any, kind))
    found: dict[str, Any] = {}
    for field in _recorded(kind):
        place = f"{where}.{field.name}" if where else field.name
        if field.name in value:
            found[field.name] = _convert(hints[field.name], value[field.name], place)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise Misfit(f"{place} is missing")
    try:
        return kind(**found)
    except Misfit as error:  # a dataclass may judge its own values in __post_init__
        raise Misfit(f"{where}: {error}" if where else str(error)) from None


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


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    """The types of a dataclass's fields; looked up once, as a build may hold a thousand of one kind."""
    return typing.get_type_hints(typing.cast(Any, kind))


def _convert(hint: Any, value: Any, where: str) -> Any:
    if hint is Any:
        return value
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return _convert_union(arguments, value, where)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise Misfit(f"{where} should be a list, not {_describe(value)}")
        return tuple(_convert(arguments[0], item, f"{where}[{index}]") for index, item in enumerate(value))
    if origin in (dict, Mapping):
        if not isinstance(value, Mapping):
            raise Misfit(f"{where} should be an object, not {_describe(value)}")
        return {key: _convert(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if dataclasses.is_dataclass(hint):
        return read(typing.cast("type[Any]", hint), value, where)
    return _convert_scalar(hint, value, where)


def _convert_union(choices: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and types.NoneType in choices:
        return None
    misfits = []
    for choice in choices:
        if choice is not types.NoneType:
            try:
                return _convert(choice, value, where)
            except Misfit as misfit:
                misfits.append(misfit)
    raise misfits[-1]


def _convert_scalar(kind: type, value: Any, where: str) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            value = float(value)
        except OverflowError:
            raise Misfit(f"{where} is too large a number") from None
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise Misfit(f"{where} should be {_KINDS.get(kind, kind.__name__)}, not {_describe(value)}")
    if isinstance(value, float) and not math.isfinite(value):  # 1e999 parses as infinity
        raise Misfit(f"{where} is not a finite number")
    return value


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
