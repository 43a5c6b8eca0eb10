"""Prompts that change while they are drawn: A1111's prompt editing and alternating words.

[from:to:when], [to:when] and [from::when] change once; [a|b|c] is another one at each step. They nest. `when` is a
share of the steps where it has a point (0.5), else a number of steps (12). A bracket that is none of these stays as it
is, for `weights`; a mark behind a backslash is a character. A bracket that closes another kind than was opened last
makes text of all that is open. Reading takes time that grows with the prompt's length alone.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from tintype.errors import RequestError
from tintype.prompt.weights import NUMBER, demand_depth

MAX_EDITED_CHARS = 2**17  # of all the texts that a request's prompts become after their first ones

_MARK = re.compile(r"\\.|[()\[\]:|]", re.DOTALL)
_WHEN = re.compile(rf"\s*+({NUMBER})\s*+")


@dataclass(frozen=True, slots=True)
class Edit:
    """[before:after:when]"""

    before: Edited
    after: Edited
    when: str


@dataclass(frozen=True, slots=True)
class Alternation:
    """[a|b|c]"""

    options: tuple[Edited, ...]


Edited: TypeAlias = "tuple[str | Edit | Alternation, ...]"


@dataclass(frozen=True, slots=True)
class StepCount:
    """The steps that the numbers in a prompt count.

    A picture's steps are counted from the first one that is taken, and a share is one of `num_inference_steps`: of a
    picture to begin with, or with pndm's extra step, that is not how many are taken. So A1111 counts. The enlarged
    picture of `hires` goes on from the smaller one: step 25 is its fifth where that had 20, and 1.5 is its middle.
    """

    steps: int  # that a share is of
    taken: int
    steps_before: int = 0  # of the smaller picture
    pictures_before: int = 0

    def step_of(self, when: str) -> int:
        """The step, 0 to `taken`, from which on the later words hold."""
        number = float(when)
        shared = (number - self.pictures_before) * self.steps
        return max(0, min(int(shared if "." in when else number - self.steps_before), self.taken))


@dataclass(frozen=True, slots=True)
class Wording:
    """A prompt as a text encoder takes it."""

    text: str | None  # None: zeros in the place of its embeddings
    clip_skip: int = 0  # of the encoder's last layers that are left out
    unwanted: bool = False  # guidance leads away from it, and the model is told so


@dataclass(frozen=True, slots=True)
class EditedPrompts:
    """What several prompts say at each step."""

    wordings: tuple[Wording, ...]  # each once, in the order in which they come
    changes: tuple[tuple[tuple[int, int], ...], ...]  # by prompt: from which step on which of the wordings; 0 the first

    def at(self, prompts: Sequence[int], step: int) -> tuple[int, ...]:
        """The wording of each of these prompts at a step."""
        return tuple(
            self.changes[prompt][bisect.bisect_right(self.changes[prompt], step, key=lambda change: change[0]) - 1][1]
            for prompt in prompts
        )


def edited_prompts(prompts: Sequence[Wording], count: StepCount) -> EditedPrompts:
    """Several prompts, each with what it becomes. Raises RequestError where that is too much."""
    known: dict[Wording, int] = {}
    changes, budget = [], _Budget()
    for prompt in prompts:
        texts = ((0, None),) if prompt.text is None else edited_texts(prompt.text, count, budget)
        changes.append(tuple((step, known.setdefault(replace(prompt, text=text), len(known))) for step, text in texts))
    return EditedPrompts(tuple(known), tuple(changes))


def edited_texts(prompt: str, count: StepCount, budget: _Budget | None = None) -> tuple[tuple[int, str], ...]:
    """From which step on a prompt says what, rising from step 0; neighbours differ. Raises RequestError."""
    edited = parse_edited(prompt)
    if all(isinstance(piece, str) for piece in edited):
        return ((0, prompt),)
    budget = budget or _Budget()
    texts: dict[tuple[int, ...], str] = {}
    said: list[tuple[int, str]] = []
    for step, state in _states(edited, count):
        if state not in texts:
            texts[state] = "".join(_pieces(edited, step, count, budget.take if said else _free))
        if not said or said[-1][1] != texts[state]:
            said.append((step, texts[state]))
    return tuple(said)


def parse_edited(prompt: str) -> Edited:
    """A prompt as text and what changes in it. Raises RequestError for brackets 65 deep."""
    if "[" not in prompt:
        return (prompt,)
    frames = [_Frame("")]
    end = 0
    for match in _MARK.finditer(prompt):
        if match.start() > end:
            frames[-1].items.append(prompt[end : match.start()])
        end = match.end()
        mark = match[0]
        if mark in "([":
            frames.append(_Frame(mark))
            demand_depth(sum(frame.opened_by == mark for frame in frames))
        elif mark in _OPENED_BY and frames[-1].opened_by == _OPENED_BY[mark]:
            closed = frames.pop()
            frames[-1].items += closed.closed() if mark == "]" else closed.as_text(")")
        elif mark in _OPENED_BY:
            _open_to_text(frames)
            frames[-1].items.append(mark)
        else:
            frames[-1].items.append(_SEPARATORS.get(mark, mark) if frames[-1].opened_by == "[" else mark)
    frames[-1].items.append(prompt[end:])
    _open_to_text(frames)
    return _joined(frames[0].items)


@dataclass(frozen=True, slots=True)
class _Separator:
    mark: str


_SEPARATORS = {mark: _Separator(mark) for mark in ":|"}
_OPENED_BY = {")": "(", "]": "["}

_Item: TypeAlias = "str | Edit | Alternation | _Separator"


class _Frame:
    """A bracket that is open, and what stands in it."""

    def __init__(self, opened_by: str) -> None:
        self.opened_by = opened_by
        self.items: list[_Item] = []

    def as_text(self, end: str) -> list[_Item]:
        return [self.opened_by, *(item.mark if isinstance(item, _Separator) else item for item in self.items), end]

    def closed(self) -> Sequence[_Item]:
        """What a square bracket is, now that it is closed."""
        last = self.items[-1] if self.items else None
        when = _WHEN.fullmatch(last) if isinstance(last, str) else None
        fields = self._split(":") if when is not None else []
        if when is not None and len(fields) in (2, 3) and len(fields[-1]) == 1:
            before, after = ([], fields[0]) if len(fields) == 2 else fields[:2]
            return [Edit(_joined(before), _joined(after), when[1])]
        if _SEPARATORS["|"] in self.items:
            return [Alternation(tuple(map(_joined, self._split("|"))))]
        return self.as_text("]")

    def _split(self, mark: str) -> list[list[_Item]]:
        """What stands between marks of a kind."""
        separator = _SEPARATORS[mark]
        ends = [index for index, item in enumerate(self.items) if item is separator]
        return [
            self.items[start:end] for start, end in zip([0, *(end + 1 for end in ends)], [*ends, None], strict=True)
        ]


def _open_to_text(frames: list[_Frame]) -> None:
    while len(frames) > 1:
        frame = frames.pop()
        frames[-1].items += frame.as_text("")


def _joined(items: Sequence[_Item]) -> Edited:
    """Neighbouring texts as one."""
    found: list[str | Edit | Alternation] = []
    texts: list[str] = []
    for item in items:
        if isinstance(item, str | _Separator):
            texts.append(item if isinstance(item, str) else item.mark)
            continue
        if any(texts):
            found.append("".join(texts))
        found.append(item)
        texts = []
    if any(texts):
        found.append("".join(texts))
    return tuple(found)


def _states(edited: Edited, count: StepCount) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Each step at which a prompt may say something else, with what decides it: steps of one state say the same."""
    whens, lengths = set[int](), set[int]()
    open_pieces = list(edited)
    while open_pieces:
        piece = open_pieces.pop()
        if isinstance(piece, Edit):
            whens.add(count.step_of(piece.when))
            open_pieces += (*piece.before, *piece.after)
        elif isinstance(piece, Alternation):
            lengths.add(len(piece.options))
            open_pieces += (each for option in piece.options for each in option)
    rising = sorted(whens)
    for step in range(count.taken) if lengths else sorted({0, *(when for when in whens if when < count.taken)}):
        yield step, (bisect.bisect_right(rising, step), *(step % length for length in sorted(lengths)))


def _pieces(edited: Edited, step: int, count: StepCount, take: Callable[[int], None]) -> Iterator[str]:
    """The text of a step. take: is told of what each piece takes."""
    for piece in edited:
        if isinstance(piece, str):
            take(len(piece))
            yield piece
            continue
        take(1)
        if isinstance(piece, Edit):
            chosen = piece.before if step < count.step_of(piece.when) else piece.after
        else:
            chosen = piece.options[step % len(piece.options)]
        yield from _pieces(chosen, step, count, take)


def _free(_: int) -> None:
    """A prompt's first text is bounded as the prompt is."""


class _Budget:
    """How much more the prompts of a request may become."""

    def __init__(self) -> None:
        self.left = MAX_EDITED_CHARS

    def take(self, chars: int) -> None:
        self.left -= chars
        if self.left < 0:
            raise RequestError(
                f"what the prompt becomes has more than {MAX_EDITED_CHARS:,} characters in all",
                fix="let less of it change, or shorten what stays the same",
            )
