"""Where a prompt names an operator's nouns, and the prompt with words put beside them, its notation untouched.

A noun is found as a policy's words are (`trust.wordlist`): as a whole word or phrase, in the three readings of
`trust.fold`, and with an English plural's ending. Words of one with hyphens are one word: `car-park` is no car.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from tintype.trust import fold
from tintype.trust.wordings import without_notation
from tintype.trust.wordlist import Rule, WordList, pieces_of, tokens_of

MAX_NOUN_WORDS = 4

Noun: TypeAlias = tuple[str, str]  # its group's name, and the noun as the file has it

_TOKEN = re.compile(r"[^\s()\[\]:|\\,;.!?\"<>{}]+")
_WITHIN_PHRASE = re.compile(r"[\s()\[\]]*")  # what may stand between its words
_ARTICLE = re.compile(r"(?<!\w)(a|an)([\s()\[\]]+)\Z", re.IGNORECASE)
_SPOKEN_AS_CONSONANT = ("eu", "uni", "one", "ug", "uk", "uru")


@dataclass(frozen=True, slots=True)
class Place:
    """A stretch of a prompt, and the nouns of several groups that it is, in the order of the groups."""

    start: int
    end: int
    nouns: tuple[Noun, ...]


class Nouns:
    """The nouns of all groups, and the words that leave a prompt alone."""

    def __init__(self) -> None:
        self._by_length: dict[int, WordList] = {1: WordList()}  # by how many words a noun has
        self._first_words = WordList()  # of those that have several
        self._named = WordList()

    def add(self, group: str, nouns: Sequence[str], named: Sequence[str]) -> str:
        """A group's; returns what is wrong with one of its words, or nothing. named: * is for a word's beginning."""
        for noun in nouns:
            if problem := self._add_noun(noun, Rule(noun, group)):
                return f"the noun {noun[:60]!r}: {problem}"
        for word in named:
            if problem := self._named.add(word, Rule(word, group)):
                return f"the word {word[:60]!r}: {problem}"
        return ""

    def _add_noun(self, noun: str, rule: Rule) -> str:
        if "*" in noun:
            return "* has no meaning here"
        for form in _with_plurals(noun):
            for words in tokens_of(fold.plain(form)):  # with hyphens as blanks, and left out
                if problem := self._by_length.setdefault(len(words), WordList()).add(" ".join(words), rule):
                    return problem
                if len(words) > 1:
                    self._first_words.add(words[0], rule)
        return ""

    def places_in(self, prompt: str, negative_prompt: str = "") -> list[Place]:
        """Where nouns stand whose groups have no word in either prompt, from the first on."""
        texts = map(without_notation, (prompt, negative_prompt))
        named = {rule.action for text in texts for rule in _rules(self._named, text)}
        places: dict[tuple[int, int], list[Noun]] = {}
        ends: dict[str, int] = {}  # by group, of what it has found last
        for (start, end), rules in self._found_in(prompt):
            for rule in rules:
                if rule.action not in named and ends.get(rule.action, 0) <= start:
                    ends[rule.action] = end
                    places.setdefault((start, end), []).append((rule.action, rule.name))
        return [Place(*span, tuple(nouns)) for span, nouns in sorted(places.items())]

    def _found_in(self, prompt: str) -> Iterator[tuple[tuple[int, int], list[Rule]]]:
        """Stretches of a prompt with the rules that they meet, from the first word on, of each the longest first."""
        tokens = list(_TOKEN.finditer(prompt))
        words = [_one_word(token[0]) for token in tokens]
        begins = {word: any(_rules(self._first_words, word)) for word in set(words)}
        known: dict[str, list[Rule]] = {}
        for first, word in enumerate(words):
            for length in sorted(self._by_length, reverse=True) if begins[word] else (1,):
                phrase = tokens[first : first + length]
                if len(phrase) < length or not _are_phrase(prompt, phrase):
                    continue
                text = " ".join(words[first : first + length])
                if text not in known:
                    known[text] = list(_rules(self._by_length[length], text))
                if known[text]:
                    yield (phrase[0].start(), phrase[-1].end()), known[text]


def insert_words(
    prompt: str, places: Sequence[Place], words: Mapping[Noun, str], is_after: Callable[[str], bool]
) -> str:
    """The prompt with each noun's word beside it. is_after: whether those of a group stand behind the noun.

    An English article right before a word is that word's: a house becomes an orange house.
    """
    inserts = []
    for place in places:
        for after in (False, True):
            put = " ".join(words[noun] for noun in place.nouns if is_after(noun[0]) is after)
            if put:
                inserts.append((place.end if after else place.start, after, put))
    pieces, copied = [], 0
    for position, after, put in sorted(inserts):
        text = prompt[copied:position]
        pieces.append(f"{text} {put}" if after else f"{_with_article_for(put, text)}{put} ")
        copied = position
    return "".join([*pieces, prompt[copied:]])


def _with_article_for(word: str, text: str) -> str:
    """A text that ends in a or an, as it reads before a word."""
    article = _ARTICLE.search(text)
    if article is None:
        return text
    begun = fold.latin(word)
    wanted = "an" if begun[:1] in "aeiou" and not begun.startswith(_SPOKEN_AS_CONSONANT) else "a"
    if article[1].lower() == wanted:
        return text
    cased = wanted.upper() if article[1] == "AN" else wanted.capitalize() if article[1][0] == "A" else wanted
    return f"{text[: article.start(1)]}{cased}{article[2]}"


def _with_plurals(noun: str) -> list[str]:
    """A noun as it stands, and as English makes many of it; irregular ones are the file's to list."""
    forms = [noun, f"{noun}s", f"{noun}es"]
    if noun[-1:] in "yY" and noun[-2:-1].lower() not in "aeiou":
        forms.append(f"{noun[:-1]}ies")
    return forms


def _are_phrase(prompt: str, tokens: Sequence[re.Match[str]]) -> bool:
    """Whether nothing parts words that follow one another."""
    pairs = itertools.pairwise(tokens)
    return all(_WITHIN_PHRASE.fullmatch(prompt, left.end(), right.start()) for left, right in pairs)


def _one_word(token: str) -> str:
    """A token without the marks within; where these may stand for letters, as it is."""
    plain, latin = fold.readings(token)
    return token if plain.isalnum() or fold.may_be_leet(latin) else "".join(pieces_of(plain))


def _rules(words: WordList, text: str) -> Iterator[Rule]:
    return words.rules_in(*fold.readings(text))
