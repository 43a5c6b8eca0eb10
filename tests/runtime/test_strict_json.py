"""JSON is believed only where it is what the dataclass says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest

from tintype.strict_json import Misfit, dump, parse, read


@dataclass(frozen=True)
class Inner:
    value: float


@dataclass(frozen=True)
class Outer:
    text: str
    whole: int
    maybe: str | None = None
    either: tuple[int | str, ...] = ()
    inner: Inner | None = None
    table: Mapping[str, Inner] = field(default_factory=dict)
    flag: bool = False


def test_what_is_dumped_is_read_back():
    outer = Outer("ä", 3, "x", (1, "n"), Inner(0.5), {"a": Inner(1.0)}, True)
    assert read(Outer, parse(dump(outer))) == outer


def test_a_whole_number_is_a_number_but_not_the_other_way_round():
    assert read(Inner, {"value": 3}) == Inner(3.0)
    with pytest.raises(Misfit, match="whole should be a whole number"):
        read(Outer, {"text": "", "whole": 3.0})


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ({"whole": 1}, "text is missing"),
        ({"text": None, "whole": 1}, "text"),
        ({"text": "", "whole": True}, "whole"),
        ({"text": "", "whole": 1, "flag": 1}, "flag"),
        ({"text": "", "whole": 1, "maybe": 3}, "maybe"),
        ({"text": "", "whole": 1, "either": [1, None]}, r"either\[1\]"),
        ({"text": "", "whole": 1, "either": "ab"}, "either"),
        ({"text": "", "whole": 1, "inner": {}}, "inner.value is missing"),
        ({"text": "", "whole": 1, "table": {"a": {"value": "x"}}}, "table.a.value"),
        ([], "the whole"),
    ],
)
def test_a_misfit_names_its_place(value, place):
    with pytest.raises(Misfit, match=place):
        read(Outer, value)


def test_unknown_keys_are_left_out():
    assert read(Inner, {"value": 1, "later": 2}) == Inner(1.0)


@pytest.mark.parametrize(
    "text", ["", "{", "NaN", "[Infinity]", "-Infinity", '{"a":1,"a":1}', "9" * 5000, "[" * 10**5, b"\xff"]
)
def test_texts_that_are_refused(text):
    with pytest.raises(Misfit):
        parse(text)


@pytest.mark.parametrize("text", ["1e999", "-1e999"])
def test_a_number_that_overflows_is_refused(text):
    with pytest.raises(Misfit, match="finite"):
        read(Inner, parse(f'{{"value": {text}}}'))


def test_a_whole_number_too_large_for_a_float_is_refused():
    with pytest.raises(Misfit, match="large"):
        read(Inner, {"value": 10**400})


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_what_json_cannot_say_is_not_written(number):
    with pytest.raises(ValueError):
        dump(Inner(number))
