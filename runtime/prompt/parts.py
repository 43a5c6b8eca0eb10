"""AND: prompts that are drawn together in one picture, each with a weight (Liu et al. 2022), in A1111's notation.

`a AND b:0.7` has two parts. AND is a word of its own in capitals, in brackets too; the number after a part's last colon
is its weight, and 1 where there is none. A prompt without AND is one part of weight 1, and a number at its end is words
("at 12:30"), which A1111 would take for a weight. Reading takes time that grows with the prompt's length alone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from tintype.errors import RequestError
from tintype.prompt.weights import MAX_WEIGHT, NUMBER

MAX_PARTS = 16  # each is a prediction of its own at every step

_AND = re.compile(r"\bAND\b")


@dataclass(frozen=True, slots=True)
class Part:
    text: str
    weight: float = 1.0


def parse_parts(prompt: str) -> tuple[Part, ...]:
    """The parts of a prompt, one at least. Raises RequestError for too many, and for a weight beyond 100."""
    pieces = _AND.split(prompt, MAX_PARTS)
    if len(pieces) == 1:
        return (Part(prompt),)
    if len(pieces) > MAX_PARTS:
        raise RequestError(
            f"the prompt has more than {MAX_PARTS} parts with AND between them",
            fix="leave some of them out; each is computed at every step",
        )
    return tuple(map(_part, pieces))


def _part(piece: str) -> Part:
    text, colon, number = piece.rpartition(":")
    if not colon or text.endswith("\\") or re.fullmatch(NUMBER, number.strip()) is None:
        return Part(piece.strip())
    weight = float(number.strip())
    if not abs(weight) <= MAX_WEIGHT:
        raise RequestError(f"a weight of {weight:g} is beyond {MAX_WEIGHT:g}", fix="weights of 0.2 to 2 work best")
    return Part(text.strip(), weight)
