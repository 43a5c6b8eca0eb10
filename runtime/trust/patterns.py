"""Regular expressions that never take longer than their text's length allows: no backtracking, so no bomb.

The standard library's `re` tries again and again: `(a+)+$` takes it 2^n steps. Here a pattern becomes an automaton
(Thompson 1968) that reads each character once, in all the ways at once; sets of states that were met are remembered.

A pattern finds whole words: it begins and ends where a word does. It has letters, `.`, classes as [a-f], \\w \\d \\s
and their opposites, groups, `|`, `*`, `+`, `?`, {2,5}, and `^` and `$` for the text's ends. It has nothing that looks
back or ahead, and remembers nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

MAX_PATTERN_CHARS = 500
MAX_PATTERN_STATES = 500  # of its automaton; {20} counts 20 times
MAX_PATTERN_DEPTH = 16  # of groups
MAX_KNOWN_SETS = 4096  # of states; then they are forgotten and met anew

_BEGIN, _END = "\x02", "\x03"  # stand for the text's ends, which hold no controls
_COUNT = re.compile(r"\{(\d{1,4})(,?)(\d{0,4})\}")

Test: TypeAlias = Callable[[str], bool]


class PatternError(ValueError):
    """A pattern that isn't one; the message says why."""


@dataclass(slots=True)
class _State:
    """One of an automaton's. test: of the character that leads on to `after`; None: they are reached at once."""

    test: Test | None = None
    after: list[int] = field(default_factory=list)


def _is_word(char: str) -> bool:
    return char.isalnum()


_CLASSES: dict[str, Test] = {"w": lambda char: char.isalnum() or char == "_", "d": str.isdecimal, "s": str.isspace}


def _opposite(test: Test) -> Test:
    return lambda char: char not in (_BEGIN, _END) and not test(char)


_ANY = _opposite(lambda char: False)


class Pattern:
    """A pattern, ready to be searched for."""

    def __init__(self, text: str, fold: Callable[[str], str] = str.casefold) -> None:
        """fold: what was done to the texts that are searched. Raises PatternError."""
        if len(text) > MAX_PATTERN_CHARS:
            raise PatternError(f"it has {len(text):,} characters; {MAX_PATTERN_CHARS} are the most")
        builder = _Builder(text, fold)
        self._states, self._first, self._last = builder.states, builder.first, builder.last
        self._start = self._closure([self._first])
        if self._last in self._start:
            raise PatternError("it matches nothing at all, and so everything")
        self._known: dict[tuple[frozenset[int], str, bool], frozenset[int]] = {}

    def search(self, text: str) -> bool:
        """Whether it is anywhere in a text."""
        current, before = frozenset[int](), ""
        for char in f"{_BEGIN}{text}{_END}":
            is_edge = not (before and _is_word(before) and _is_word(char))
            if is_edge and self._last in current:
                return True
            current, before = self._step(current, char, is_edge), char
        return self._last in current

    def _step(self, current: frozenset[int], char: str, may_begin: bool) -> frozenset[int]:
        key = (current, char, may_begin)
        found = self._known.get(key)
        if found is None:
            if len(self._known) >= MAX_KNOWN_SETS:
                self._known.clear()
            here = current | self._start if may_begin else current
            states = [self._states[number] for number in here]
            found = self._closure([to for state in states if state.test and state.test(char) for to in state.after])
            self._known[key] = found
        return found

    def _closure(self, numbers: list[int]) -> frozenset[int]:
        """These states and all that are reached from them at once."""
        seen, waiting = set(numbers), list(numbers)
        while waiting:
            state = self._states[waiting.pop()]
            if state.test is None:
                new = [number for number in state.after if number not in seen]
                seen.update(new)
                waiting += new
        return frozenset(seen)


class _Builder:
    """Reads a pattern from left to right and lays the states of its automaton, from `first` to `last`."""

    def __init__(self, text: str, fold: Callable[[str], str]) -> None:
        self.states: list[_State] = []
        self._text, self._at, self._fold = text, 0, fold
        self.first, self.last = self._choice(0)
        if self._at < len(text):
            raise PatternError("a bracket closes that was never opened")

    def _state(self, test: Test | None = None, after: int | None = None) -> int:
        if len(self.states) >= MAX_PATTERN_STATES:
            raise PatternError(f"it has more than {MAX_PATTERN_STATES} states: shorten it, or its counts")
        self.states.append(_State(test, [] if after is None else [after]))
        return len(self.states) - 1

    def _peek(self) -> str:
        return self._text[self._at] if self._at < len(self._text) else ""

    def _next(self) -> str:
        char = self._peek()
        if not char:
            raise PatternError("it ends too soon")
        self._at += 1
        return char

    def _choice(self, depth: int) -> tuple[int, int]:
        """What stands between `|`, to the end of the group."""
        if depth > MAX_PATTERN_DEPTH:
            raise PatternError(f"its groups nest more than {MAX_PATTERN_DEPTH} deep")
        first, last = self._state(), self._state()
        while True:
            begin, end = self._sequence(depth)
            self.states[first].after.append(begin)
            self.states[end].after.append(last)
            if self._peek() != "|":
                return first, last
            self._at += 1

    def _sequence(self, depth: int) -> tuple[int, int]:
        first = last = self._state()
        while self._peek() not in ("", "|", ")"):
            begin, end = self._repeated(depth)
            self.states[last].after.append(begin)
            last = end
        return first, last

    def _repeated(self, depth: int) -> tuple[int, int]:
        start = self._at
        begin, end = self._atom(depth)
        stop = self._at
        least, most = self._counts()
        if (least, most) == (1, 1):
            return begin, end

        def again() -> tuple[int, int]:  # the same once more: reading is the one way to lay its states
            after, self._at = self._at, start
            copy = self._atom(depth)
            assert self._at == stop
            self._at = after
            return copy

        first = last = self._state()
        for count in range(max(least, 1 if most is None else most)):
            begin, end = (begin, end) if count == 0 else again()
            self.states[last].after.append(begin)
            joint = self._state()
            self.states[end].after.append(joint)
            if count >= least:
                self.states[last].after.append(joint)
            last = joint
            if most is None and count >= least - 1:
                self.states[joint].after.append(begin)
        return first, last

    def _counts(self) -> tuple[int, int | None]:
        """How often what was read may come: at least, and at most."""
        sign = self._peek()
        counts = _COUNT.match(self._text, self._at)
        if counts is not None:
            self._at = counts.end()
            least = int(counts[1])
            most = least if not counts[2] else int(counts[3]) if counts[3] else None
            if most is not None and not 1 <= most >= least:
                raise PatternError(f"{counts[0]} is no count")
            found: tuple[int, int | None] = least, most
        elif sign in ("*", "+", "?"):
            self._at += 1
            found = (1 if sign == "+" else 0), (1 if sign == "?" else None)
        else:
            return 1, 1
        if self._peek() in ("*", "+", "?", "{") and self._peek():
            raise PatternError("one count follows another")
        return found

    def _atom(self, depth: int) -> tuple[int, int]:
        char = self._next()
        if char == "(":
            if self._text.startswith("?:", self._at):
                self._at += 2
            elif self._peek() == "?":
                raise PatternError("groups that begin with (? are not known here, but for (?:")
            found = self._choice(depth + 1)
            if self._next() != ")":
                raise PatternError("a bracket is never closed")
            return found
        if char in "*+?{":
            raise PatternError(f"nothing stands before {char}")
        if char == "[":
            return self._tested(self._class())
        if char == "\\":
            return self._escaped(self._next())
        if char in ".^$":
            return self._tested({".": _ANY, "^": _BEGIN.__eq__, "$": _END.__eq__}[char])
        return self._letters(char)

    def _tested(self, test: Test) -> tuple[int, int]:
        end = self._state()
        return self._state(test, end), end

    def _letters(self, char: str) -> tuple[int, int]:
        """One character, as it is in the texts that are searched: it may be several there, or none."""
        first = last = self._state()
        for letter in self._fold(char):
            begin, end = self._tested(letter.__eq__)
            self.states[last].after.append(begin)
            last = end
        return first, last

    def _escaped(self, char: str) -> tuple[int, int]:
        test = _class_of(char)
        return self._letters(char) if test is None else self._tested(test)

    def _class(self) -> Test:
        """What stands in square brackets."""
        is_opposite = self._peek() == "^"
        self._at += is_opposite
        tests: list[Test] = []
        ranges: list[tuple[str, str]] = []
        while True:
            char = self._next()
            if char == "]" and (tests or ranges):
                break
            test = None
            if char == "\\":
                char = self._next()
                test = _class_of(char)
            if test is not None:
                tests.append(test)
            elif self._peek() == "-" and self._text[self._at + 1 : self._at + 2] not in ("", "]"):
                self._at += 1
                ranges.append((char.casefold()[:1], self._next().casefold()[:1]))
            else:
                ranges += [(letter, letter) for letter in self._fold(char) or char]

        def test_all(char: str) -> bool:
            return any(low <= char <= high for low, high in ranges) or any(test(char) for test in tests)

        return _opposite(test_all) if is_opposite else test_all


def _class_of(char: str) -> Test | None:
    """What a letter behind a backslash stands for; None: for itself. PatternError for what isn't known."""
    test = _CLASSES.get(char.lower())
    if test is not None:
        return test if char.islower() else _opposite(test)
    if char.isalnum():
        raise PatternError(f"\\{char} is not known here")
    return None
