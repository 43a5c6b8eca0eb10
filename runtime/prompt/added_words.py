"""Words that a prompt may have beside the tokenizer's: textual inversion, each some rows of a text encoder's table.

Such a word is found as it is written, in any case, where no letter or digit goes on beside it; of two the longer one.
Its rows stay together in one chunk of a prompt.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tintype.arrays import Arrays
from tintype.uses import EMBEDDING_ROWS, FIRST_ADDED_ID

LEAST_ROWS = 8  # that a text encoder is built for, and then twice as many


def padded_rows(count: int) -> int:
    """How many rows a text encoder is built to take for so many, so that others can come in their place; 0 for none."""
    return 0 if count == 0 else max(LEAST_ROWS, 1 << (count - 1).bit_length())


@dataclass(frozen=True, slots=True)
class AddedWords:
    """Rows by word, in the order in which their ids count up, for each text encoder: (rows of the word, width)."""

    rows: Mapping[str, Mapping[str, NDArray[np.float32]]]

    @property
    def words(self) -> tuple[str, ...]:
        return tuple(next(iter(self.rows.values())))

    def width(self, role: str) -> int | None:
        """Numbers of a row for a text encoder; None where it has none."""
        return next((rows.shape[1] for rows in self.rows.get(role, {}).values()), None)

    def ids(self, role: str) -> dict[str, range]:
        """The ids of each word's rows in a text encoder."""
        found, first = {}, FIRST_ADDED_ID
        for word, rows in self.rows[role].items():
            found[word] = range(first, first + len(rows))
            first += len(rows)
        return found

    def input(self, role: str, count: int) -> Arrays:
        """What a text encoder takes that was built for so many rows; zeros stand behind those that there are."""
        rows = np.concatenate(list(self.rows[role].values()))
        return {EMBEDDING_ROWS: np.pad(rows, ((0, count - len(rows)), (0, 0)))}

    def unused_in(self, *texts: str) -> list[str]:
        """The words that stand in none of the texts."""
        used = {word for text in texts for _, word in pieces(text, self.words)}
        return [word for word in self.words if word not in used]


def pieces(text: str, words: tuple[str, ...]) -> Iterator[tuple[str, str | None]]:
    """A text in stretches: (what is written there, which of the words it is, or None)."""
    if not words:
        yield text, None
        return
    longest_first, start = _longest_first(words), 0
    for match in _pattern(longest_first).finditer(text):
        if match.start() > start:
            yield text[start : match.start()], None
        assert match.lastindex is not None
        yield match[0], longest_first[match.lastindex - 1]
        start = match.end()
    if start < len(text):
        yield text[start:], None


def _longest_first(words: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(sorted(words, key=len, reverse=True))


@functools.lru_cache(maxsize=64)
def _pattern(words: tuple[str, ...]) -> re.Pattern[str]:
    """The first of the words, each a group of its own. Plain texts, so that it takes no more time than it reads."""
    return re.compile("|".join(f"({_whole(word)})" for word in words), re.IGNORECASE)


def _whole(word: str) -> str:
    before, after = (r"(?<!\w)" if word[0].isalnum() else ""), (r"(?!\w)" if word[-1].isalnum() else "")
    return f"{before}{re.escape(word)}{after}"
