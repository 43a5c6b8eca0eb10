"""AND joins prompts; each has the number after its last colon for a weight, as in A1111."""

from __future__ import annotations

import pytest

from tintype.errors import RequestError
from tintype.prompt import parse_parts
from tintype.prompt.parts import MAX_PARTS


@pytest.mark.parametrize(
    ("prompt", "parts"),
    [
        ("a house", [("a house", 1.0)]),
        ("", [("", 1.0)]),
        ("at 12:30", [("at 12:30", 1.0)]),
        ("a AND b", [("a", 1.0), ("b", 1.0)]),
        ("a cat :1.2 AND a dog AND a penguin :2.2", [("a cat", 1.2), ("a dog", 1.0), ("a penguin", 2.2)]),
        ("a:0.7 AND b: -.5 ", [("a", 0.7), ("b", -0.5)]),
        ("a AND b:0", [("a", 1.0), ("b", 0.0)]),
        ("(a:1.2) AND b", [("(a:1.2)", 1.0), ("b", 1.0)]),
        ("[a:b:0.5] AND c:2", [("[a:b:0.5]", 1.0), ("c", 2.0)]),
        (r"a AND b\:2", [("a", 1.0), (r"b\:2", 1.0)]),
        ("a AND", [("a", 1.0), ("", 1.0)]),
        ("a,AND\nb:1e3", [("a,", 1.0), ("b:1e3", 1.0)]),
        ("BAND and SAND, and", [("BAND and SAND, and", 1.0)]),
    ],
)
def test_the_parts_of_a_prompt(prompt: str, parts: list[tuple[str, float]]) -> None:
    assert [(part.text, part.weight) for part in parse_parts(prompt)] == parts


@pytest.mark.parametrize("prompt", ["a AND b:101", "a AND b:-1000", " AND ".join("a" * (MAX_PARTS + 1))])
def test_parts_beyond_sense_are_refused(prompt: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse_parts(prompt)
    assert caught.value.fix


def test_as_many_parts_as_may_be_are_read() -> None:
    assert len(parse_parts(" AND ".join("a" * MAX_PARTS))) == MAX_PARTS
