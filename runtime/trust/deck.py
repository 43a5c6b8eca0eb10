"""An operator's deck: words that are dealt to prompts which name a thing and leave open what kind of it. DEAL.md.

    {"name": "kiosk", "groups": [{
        "name": "colour of cars",
        "nouns": ["car", "motor car"],
        "deck": {"red": 1, "blue": 1, "dark green": 2},
        "named": ["silver", "crimson"]}]}

Cards are dealt without replacement: of n pictures each card gets its share of n, rounded up or down, and which of the
two is by chance, so that over many runs every share is met. (By largest remainders, one picture would be given the
commonest word every time.) The order is a shuffle by the request's seed.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from tintype import strict_json
from tintype.bounds import MAX_DECK_BYTES, MAX_DECK_GROUPS, MAX_DECK_WORDS
from tintype.errors import RequestError
from tintype.files import read_given
from tintype.record.record import DealFacts
from tintype.request import ResolvedRequest
from tintype.trust.nouns import MAX_NOUN_WORDS, Nouns, insert_words
from tintype.trust.wordlist import MAX_WORD_CHARS, tokens_of

PLACES = ("before", "after")
MAX_SHARE = 1e6

_MARKS = re.compile(r"[()\[\]:|\\,;<>{}\"]|\b(?:AND|BREAK)\b")  # of the notation of prompts
_GROUP_NAME = re.compile(r"\w[\w .-]{0,59}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Nouns, and the words of which one is put before (or after) each of them."""

    name: str
    nouns: tuple[str, ...]
    deck: Mapping[str, float]  # share by word; shares of any sum
    named: tuple[str, ...] = ()  # further words that leave a prompt alone, as those of the deck do
    place: str = "before"

    def __post_init__(self) -> None:
        strict_json.require(_GROUP_NAME.fullmatch(self.name) is not None, f"{self.name[:60]!r} is no name of a group")
        strict_json.require(self.place in PLACES, f"place is {self.place[:60]!r}, not {' or '.join(PLACES)}")
        strict_json.require(bool(self.nouns), f"{self.name} has no nouns")
        strict_json.require(len(self.deck) >= 2, f"the deck of {self.name} has {len(self.deck)} words; 2 are the least")
        for word, share in self.deck.items():
            strict_json.require(
                _is_word(word), f"{word[:60]!r} can't be put into a prompt: letters and blanks, 60 at most"
            )
            is_sane = 1 / MAX_SHARE <= share <= MAX_SHARE
            strict_json.require(is_sane, f"the share of {word!r} is {share:g}; 0.000001 to 1000000 are sane")
        for noun in self.nouns:
            is_short = len(tokens_of(noun)[0]) <= MAX_NOUN_WORDS
            strict_json.require(is_short, f"the noun {noun[:60]!r} has more than {MAX_NOUN_WORDS} words")

    @property
    def shares(self) -> tuple[Fraction, ...]:
        """By card, with a sum of 1; decimals as they were written."""
        written = [Fraction(repr(share)) for share in self.deck.values()]
        return tuple(each / sum(written) for each in written)


@dataclass(frozen=True, slots=True, kw_only=True)
class _File:
    name: str | None = None
    groups: tuple[Group, ...]

    def __post_init__(self) -> None:
        names = [group.name for group in self.groups]
        strict_json.require(
            0 < len(names) <= MAX_DECK_GROUPS, f"it has {len(names):,} groups; 1 to {MAX_DECK_GROUPS} are sane"
        )
        strict_json.require(len(set(names)) == len(names), "two groups have one name")
        words = sum(len(group.nouns) + len(group.deck) + len(group.named) for group in self.groups)
        strict_json.require(words <= MAX_DECK_WORDS, f"it has {words:,} words; {MAX_DECK_WORDS:,} are the most")
        if self.name is not None:
            strict_json.require(
                _GROUP_NAME.fullmatch(self.name) is not None, f"{self.name[:60]!r} is no name of a deck"
            )


@dataclass(frozen=True, slots=True)
class Dealing:
    """One picture's prompt, and what its record says of it."""

    prompt: str
    facts: DealFacts


@dataclass(frozen=True, slots=True)
class Deck:
    """A deck, ready to deal."""

    name: str
    sha256: str  # of its file
    groups: Mapping[str, Group]  # by name, in the order of the file
    nouns: Nouns

    def deal(self, request: ResolvedRequest) -> tuple[Dealing, ...]:
        """A prompt for each of a request's pictures; none where no word has to be dealt.

        Each noun that the prompt names has a deck of its own: where it is named again, the same picture has the same
        word there. A group of which the prompt, or the negative prompt, names a word already deals nothing.
        """
        places = self.nouns.places_in(request.prompt, request.negative_prompt)
        cards = {
            key: deal_cards(self.groups[key[0]].shares, request.count, f"{request.seed}|{key[0]}|{key[1]}")
            for key in dict.fromkeys(key for place in places for key in place.nouns)
        }
        if not cards:
            return ()
        words = {key: list(self.groups[key[0]].deck) for key in cards}
        made: dict[tuple[int, ...], Dealing] = {}  # by cards
        dealings = []
        for hand in zip(*cards.values(), strict=True):
            if hand not in made:
                chosen = {key: words[key][card] for key, card in zip(cards, hand, strict=True)}
                prompt = insert_words(request.prompt, places, chosen, self._is_after)
                made[hand] = Dealing(prompt, DealFacts.of(self.name, self.sha256, request.prompt, chosen))
            dealings.append(made[hand])
        return tuple(dealings)

    def _is_after(self, group: str) -> bool:
        return self.groups[group].place == "after"


def deal_cards(shares: Sequence[Fraction], count: int, seed: str) -> list[int]:
    """Which card each of `count` pictures gets. shares: by card, with a sum of 1.

    Cards beyond the whole ones of each share are drawn by systematic sampling (Madow 1949) from a shuffled order: each
    with the probability of its fraction, at most one a card, and exactly as many as are missing.
    """
    stream = _Stream(seed)
    begun = Fraction(stream.next(), 2**64)
    cards = list[int]()
    for card in stream.shuffled(list(range(len(shares)))):
        whole, fraction = divmod(shares[card] * count, 1)
        extra = math.floor(begun + fraction) - math.floor(begun)
        begun += fraction
        cards += [card] * (int(whole) + extra)
    return stream.shuffled(cards)


class _Stream:
    """Whole numbers of 64 bits by a seed: those of Philox, which numpy promises to stay the same."""

    def __init__(self, seed: str) -> None:
        digest = hashlib.sha256(f"tintype deal|{seed}".encode("utf-8", "surrogatepass")).digest()
        self._philox = np.random.Philox(key=int.from_bytes(digest[:16], "little"))

    def next(self) -> int:
        return int(self._philox.random_raw())

    def shuffled(self, items: list[int]) -> list[int]:
        """By Fisher and Yates."""
        for last in range(len(items) - 1, 0, -1):
            other = self.next() * (last + 1) >> 64
            items[last], items[other] = items[other], items[last]
        return items


def read_deck(file: str | os.PathLike[str]) -> Deck:
    """An operator's file. Raises RequestError for what is none."""
    return parse_deck(
        read_given(file, MAX_DECK_BYTES, what="deck", fix="give a deck: runtime/DEAL.md has the form"), Path(file).stem
    )


def parse_deck(content: bytes, name: str) -> Deck:
    """name: of one that says none. Raises RequestError."""
    try:
        value = strict_json.parse(content)
        _demand_known_keys(value)
        file = strict_json.read(_File, value)
        groups = {group.name: group for group in file.groups}
        nouns = Nouns()
        for group in groups.values():
            problem = nouns.add(group.name, group.nouns, (*group.deck, *group.named))
            strict_json.require(not problem, f"{group.name}: {problem}")
    except strict_json.Misfit as misfit:
        raise RequestError(f"the deck {name}: {misfit}", fix="mend it; runtime/DEAL.md has the form") from None
    return Deck(file.name or name, hashlib.sha256(content).hexdigest(), groups, nouns)


def _demand_known_keys(value: Any) -> None:
    """Misfit for a key that is none: misspelt, it would count for nothing in silence."""
    _demand_keys(value, [field.name for field in fields(_File)])
    groups = value.get("groups") if isinstance(value, dict) else None
    for group in groups if isinstance(groups, list) else ():
        _demand_keys(group, [field.name for field in fields(Group)])


def _demand_keys(value: Any, known: Sequence[str]) -> None:
    for key in value if isinstance(value, dict) else ():
        strict_json.require(key in known, f"{key[:60]!r} is none of {', '.join(known)}")


def _is_word(word: str) -> bool:
    """Whether a prompt says the same about everything else once this stands in it."""
    return (
        word == word.strip()
        and word.isprintable()
        and len(word) <= MAX_WORD_CHARS
        and any(map(str.isalpha, word))
        and _MARKS.search(word) is None
    )
