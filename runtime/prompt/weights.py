"""How much each word counts: A1111's notation, and what a weight does to an embedding.

(word) counts 1.1 times, ((word)) 1.21, [word] 1/1.1, (word:1.3) 1.3 times; \\( \\) \\[ \\] \\: \\| are the
characters themselves. A bracket that is never closed holds to the end; one that was never opened is a character. The
word BREAK starts a new chunk. Reading takes time that grows with a prompt's length alone: brackets nest to a bounded
depth.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tintype.errors import RequestError

ROUND_FACTOR = 1.1
SQUARE_FACTOR = 1 / 1.1
MAX_WEIGHT = 100.0
MAX_NESTING = 64  # of brackets of a kind; 48 round ones weigh their words with 97

NUMBER = r"[+-]?+(?:\d{1,20}+\.?+\d{0,20}+|\.\d{1,20}+)"

_TOKEN = re.compile(
    rf"""
      \\(?P<escaped>[()\[\]\\:|])        # a mark as a character
    | (?P<weight>:\s*+{NUMBER}\s*+\))     # the end of (words:1.3)
    | (?P<bracket>[()\[\]])
    | \b(?P<break>BREAK)\b
    """,
    re.VERBOSE,
)


@dataclass(frozen=True, slots=True)
class Fragment:
    """A stretch of a prompt whose words count alike; `text` None is where BREAK stood."""

    text: str | None
    weight: float = 1.0


def parse_weights(prompt: str) -> list[Fragment]:
    """A prompt as fragments of equal weight. Raises RequestError for a weight beyond 100, and brackets 65 deep."""
    texts: list[str | None] = []
    weights: list[float] = []
    open_round: list[int] = []
    open_square: list[int] = []

    def close(opened: list[int], factor: float) -> None:
        for index in range(opened.pop(), len(weights)):
            weights[index] *= factor

    for kind, value in _tokens(prompt):
        if kind == "bracket" and value in "([":
            opened = open_round if value == "(" else open_square
            opened.append(len(texts))
            demand_depth(len(opened))
        elif kind == "weight" and open_round:
            close(open_round, float(value[1:-1]))  # the number in ":1.3)"
        elif kind == "bracket" and value == ")" and open_round:
            close(open_round, ROUND_FACTOR)
        elif kind == "bracket" and value == "]" and open_square:
            close(open_square, SQUARE_FACTOR)
        else:
            texts.append(None if kind == "break" else value)
            weights.append(1.0)
    while open_round:
        close(open_round, ROUND_FACTOR)
    while open_square:
        close(open_square, SQUARE_FACTOR)
    return _merge_alike(texts, weights)


def demand_depth(depth: int) -> None:
    """RequestError for brackets of a kind that stand so deep within one another."""
    if depth > MAX_NESTING:
        raise RequestError(
            f"brackets nest more than {MAX_NESTING} deep, a weight beyond sense",
            fix="leave most of them out; write \\( for a bracket that is no weight",
        )


def weigh(embeddings: NDArray[np.float32], weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale each token's embedding by its weight, then restore the mean, as A1111 does.

    embeddings: (chunks, tokens, dim); weights: (chunks, tokens). A chunk whose weights are all 1 is left as it is.
    """
    result = embeddings.copy()
    for chunk, factors in zip(result, weights, strict=True):
        if np.all(factors == 1.0):
            continue
        mean_before = float(chunk.mean(dtype=np.float64))
        chunk *= factors[:, None]
        mean_after = float(chunk.mean(dtype=np.float64))
        if mean_after != 0.0:
            chunk *= np.float32(mean_before / mean_after)
    return result


def _tokens(prompt: str) -> Iterator[tuple[str, str]]:
    """(kind, value) of each bracket, weight, BREAK and stretch of text; together they hold the whole prompt."""
    start = 0
    for match in _TOKEN.finditer(prompt):
        if match.start() > start:
            yield "text", prompt[start : match.start()]
        start = match.end()
        kind = str(match.lastgroup)
        yield kind, match["escaped"] if kind == "escaped" else match[0]
    if start < len(prompt):
        yield "text", prompt[start:]


def _merge_alike(texts: list[str | None], weights: list[float]) -> list[Fragment]:
    """Neighbours of one weight become one fragment, so that a prompt without weights is tokenized as a whole."""
    merged: list[tuple[list[str] | None, float]] = []
    for text, weight in zip(texts, weights, strict=True):
        if not abs(weight) <= MAX_WEIGHT:
            raise RequestError(
                f"a weight of {weight:g} is beyond {MAX_WEIGHT:g}", fix="weights of 0.5 to 1.5 work best"
            )
        last, last_weight = merged[-1] if merged else (None, 1.0)
        if text is None:
            merged.append((None, 1.0))
        elif last is not None and last_weight == weight:
            last.append(text)
        else:
            merged.append(([text], weight))
    return [Fragment(None if pieces is None else "".join(pieces), weight) for pieces, weight in merged]
