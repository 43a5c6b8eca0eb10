"""Words and phrases, found in a text in time that grows with its length and hardly with how many they are.

A word is kept as its letters without repeats and how often each repeats: `boobs` is bobs and 1 2 1 1. A text's token is
it where the letters are the same and each comes as often, or three times and more, or all but one more often; so
`nuuude` and `nnuuddee` are nude, and `shoot` isn't shot.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from tintype.trust import fold

MAX_WORD_CHARS = 60
LEAST_SPELLED = 3  # letters, of a word that stands as single ones

_PIECE = re.compile(r"[^\W_]+")
_RUN = re.compile(r"(.)\1*", re.DOTALL)
_PARTING = re.compile(r"[,;]")  # these end a word even without a space

Runs = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Rule:
    """A name, and what happens where one of its words is found."""

    name: str
    action: str


def pieces_of(token: str) -> list[str]:
    """What stands between the marks of a token."""
    return _PIECE.findall(token)


def tokens_of(text: str) -> tuple[list[str], list[str]]:
    """A text's words, once parted by every mark, and once by spaces alone, without the marks within."""
    all_pieces, joined = list[str](), list[str]()
    for token in text.split():
        if token.isalnum():
            all_pieces.append(token)
            joined.append(token)
            continue
        for part in _PARTING.split(token):
            pieces = pieces_of(part)
            if pieces:
                all_pieces += pieces
                joined.append("".join(pieces))
    return all_pieces, joined


def spelled_out(pieces: Sequence[str]) -> list[str]:
    """The single letters that stand one after another, as one word."""
    found, letters = list[str](), list[str]()
    for piece in (*pieces, "  "):
        if len(piece) == 1:
            letters.append(piece)
            continue
        if len(letters) >= LEAST_SPELLED:
            found.append("".join(letters))
        letters = []
    return found


def _runs(word: str) -> tuple[str, Runs]:
    found = [(match[1], len(match[0])) for match in _RUN.finditer(word)]
    return "".join(letter for letter, _ in found), tuple(length for _, length in found)


def _is_as(there: Runs, wanted: Runs) -> bool:
    """Whether letters that repeat so often read as a word's."""
    if there == wanted:
        return True
    longer = sum(length > least for length, least in zip(there, wanted, strict=True))
    if any(length < least for length, least in zip(there, wanted, strict=True)):
        return False
    stretched = any(length > max(least, 2) for length, least in zip(there, wanted, strict=True))
    at_end = len(wanted) >= 4 and there[:-1] == wanted[:-1]
    return stretched or at_end or longer >= max(2, len(wanted) - 1)


@dataclass(slots=True)
class _Words:
    """The words of one reading."""

    whole: dict[str, list[tuple[Runs, Rule]]] = field(default_factory=dict)  # by letters without repeats
    begun: dict[str, list[tuple[Runs, Rule]]] = field(default_factory=dict)
    phrases: dict[str, list[tuple[list[tuple[str, Runs]], Rule]]] = field(default_factory=dict)  # by the first
    spelled: dict[str, Rule] = field(default_factory=dict)
    longest_begun: int = 0

    def add(self, words: Sequence[str], rule: Rule, *, is_begun: bool) -> None:
        letters, runs = _runs(words[0])
        if len(words) > 1:
            self.phrases.setdefault(letters, []).append((list(map(_runs, words)), rule))
            self.spelled.setdefault("".join(words), rule)
            return
        (self.begun if is_begun else self.whole).setdefault(letters, []).append((runs, rule))
        self.longest_begun = max(self.longest_begun, len(letters) if is_begun else 0)
        if len(words[0]) >= LEAST_SPELLED:
            self.spelled.setdefault(words[0], rule)

    def rules_of(self, token: str) -> Iterator[Rule]:
        letters, runs = _runs(token)
        for wanted, rule in self.whole.get(letters, ()):
            if _is_as(runs, wanted):
                yield rule
        for length in range(1, min(len(letters), self.longest_begun) + 1):
            for wanted, rule in self.begun.get(letters[:length], ()):
                begun = (*runs[: length - 1], min(runs[length - 1], wanted[-1]))
                if _is_as(begun, wanted) or _is_as(runs[:length], wanted):
                    yield rule

    def phrases_in(self, tokens: Sequence[str]) -> Iterator[Rule]:
        if not self.phrases:
            return
        known = {token: _runs(token) for token in set(tokens)}
        as_runs = [known[token] for token in tokens]
        for start, (letters, _) in enumerate(as_runs):
            for words, rule in self.phrases.get(letters, ()):
                there = as_runs[start : start + len(words)]
                if len(there) == len(words) and all(
                    here[0] == wanted[0] and _is_as(here[1], wanted[1])
                    for here, wanted in zip(there, words, strict=True)
                ):
                    yield rule

    def spelled_in(self, letters: str) -> Iterator[Rule]:
        return (rule for word, rule in self.spelled.items() if word in letters)


class WordList:
    """Words and phrases with their rules, in the three readings of `trust.fold`."""

    def __init__(self) -> None:
        self._plain, self._latin, self._leet = _Words(), _Words(), _Words()

    def add(self, line: str, rule: Rule) -> str:
        """A word, a phrase, or a word's beginning with `*`; returns what is wrong with it, or nothing."""
        is_begun = line.endswith("*")
        if "*" in line[:-1] or (is_begun and len(tokens_of(line)[1]) != 1):
            return "* stands at the end of a single word"
        for words_of, reading in ((self._plain, fold.plain), (self._latin, fold.latin)):
            words, joined = tokens_of(reading(line))
            if not words or max(map(len, words)) > MAX_WORD_CHARS:
                return f"a word has 1 to {MAX_WORD_CHARS} letters"
            for form in dict.fromkeys((tuple(words), tuple(joined))):  # self-harm is selfharm as well
                words_of.add(form, rule, is_begun=is_begun)
                if words_of is self._latin and not any(char.isdecimal() for char in line):
                    self._leet.add([fold.leet(word) for word in form], rule, is_begun=is_begun)
        return ""

    def rules_in(self, plain: str, latin: str) -> Iterator[Rule]:
        """plain, latin: one text in both readings, with single spaces."""
        readings = [(self._plain, plain)]
        if latin != plain:
            readings.append((self._latin, latin))
        for words, text in readings:
            yield from self._found(words, *tokens_of(text))
        if fold.may_be_leet(latin):
            yield from self._in_leet([fold.without_ends(token) for token in latin.split()])

    def _in_leet(self, tokens: list[str]) -> Iterator[Rule]:
        for token in {fold.leet(token) for token in set(tokens) if fold.may_be_leet(token)}:
            pieces, joined = tokens_of(token)
            for part in {*pieces, *joined}:
                yield from self._leet.rules_of(part)
        yield from self._leet.phrases_in(tokens_of(fold.leet(" ".join(tokens)))[1])

    @staticmethod
    def _found(words: _Words, pieces: list[str], joined: list[str]) -> Iterator[Rule]:
        for token in {*pieces, *joined}:
            yield from words.rules_of(token)
        yield from words.phrases_in(pieces)
        if joined != pieces:
            yield from words.phrases_in(joined)
        for letters in spelled_out(pieces):
            yield from words.spelled_in(letters)
