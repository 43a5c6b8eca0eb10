"""A prompt says at each step what A1111 says that it does; the schedules are those that its documentation gives."""

from __future__ import annotations

import contextlib
import time

import pytest
from deadline import deadline

from tintype.errors import RequestError
from tintype.prompt import StepCount, Wording, edited_prompts
from tintype.prompt.editing import MAX_EDITED_CHARS, edited_texts

TEN = StepCount(10, 10)

# Of A1111's documentation: ten steps, and each text with the step from which on it holds, counted from 0.
DOCUMENTED: dict[str, list[tuple[int, str]]] = {
    "test": [(0, "test")],
    "a [b:3]": [(0, "a "), (3, "a b")],
    "a [b: 3]": [(0, "a "), (3, "a b")],
    "a [[[b]]:2]": [(0, "a "), (2, "a [[b]]")],
    "[(a:2):3]": [(0, ""), (3, "(a:2)")],
    "a [b : c : 1] d": [(0, "a b  d"), (1, "a  c  d")],
    "a[b:[c:d:2]:1]e": [(0, "abe"), (1, "ace"), (2, "ade")],
    "a [unbalanced": [(0, "a [unbalanced")],
    "a [b:.5] c": [(0, "a  c"), (5, "a b c")],
    "a [{b|d{:.5] c": [(0, "a  c"), (5, "a {b|d{ c")],
    "((a][:b:c [d:3]": [(0, "((a][:b:c "), (3, "((a][:b:c d")],
    "[a|(b:1.1)]": [(step, ("a", "(b:1.1)")[step % 2]) for step in range(10)],
    "[fe|]male": [(step, ("female", "male")[step % 2]) for step in range(10)],
    "[fe|||]male": [(0, "female"), (1, "male"), (4, "female"), (5, "male"), (8, "female"), (9, "male")],
    "a [landscape:0.25] of [dogs::0.8]": [(0, "a  of dogs"), (2, "a landscape of dogs"), (8, "a landscape of ")],
}
OURS: dict[str, list[tuple[int, str]]] = {
    "a house": [(0, "a house")],
    "[red]": [(0, "[red]")],
    "(red:1.2) [tiny]": [(0, "(red:1.2) [tiny]")],
    "[a:b:0]": [(0, "b")],
    "[a:b:-3]": [(0, "b")],
    "[a:b:10]": [(0, "a")],
    "[a:b:1.0]": [(0, "a")],
    "[a:b:99]": [(0, "a")],
    r"\[a:b:3\]": [(0, r"\[a:b:3\]")],
    r"[a\:b:3]": [(0, ""), (3, r"a\:b")],
    r"[a\|b|c]": [(step, (r"a\|b", "c")[step % 2]) for step in range(10)],
    "[a:b:c:3]": [(0, "[a:b:c:3]")],
    "[a:b:red]": [(0, "[a:b:red]")],
    "(a|b) c|d": [(0, "(a|b) c|d")],
    "[a (b:c:3]": [(0, "[a (b:c:3]")],
    "[[a|b]:c:4]": [(0, "a"), (1, "b"), (2, "a"), (3, "b"), (4, "c")],
    "[a|b|[c:d:5]]": [(step, ("a", "b", "c" if step < 5 else "d")[step % 3]) for step in range(10)],
    "[x|x]": [(0, "x")],
    "([a:b:5]:1.3) [(c:1.2):[d]:3]": [(0, "(a:1.3) (c:1.2)"), (3, "(a:1.3) [d]"), (5, "(b:1.3) [d]")],
}


@pytest.mark.parametrize(("prompt", "texts"), {**DOCUMENTED, **OURS}.items(), ids={**DOCUMENTED, **OURS})
def test_a_prompt_says_what_is_documented_at_each_step(prompt: str, texts: list[tuple[int, str]]) -> None:
    assert list(edited_texts(prompt, TEN)) == texts


def test_an_enlarged_picture_goes_on_from_the_smaller_one() -> None:
    """As A1111's documentation has it: shares from 1 on are of the second picture, and so are steps after the first."""
    second = StepCount(10, 10, steps_before=10, pictures_before=1)
    assert edited_texts("a [b:.5] c", second) == ((0, "a b c"),)
    assert edited_texts("a [b:1.5] c", second) == ((0, "a  c"), (5, "a b c"))
    assert edited_texts("a [b:14] c", second) == ((0, "a  c"), (4, "a b c"))
    assert edited_texts("a [b:1.5] c", TEN) == ((0, "a  c"),)


def test_a_picture_to_begin_with_counts_the_steps_that_it_takes() -> None:
    """Of 20 steps at a strength of 0.5 ten are taken; half of 20 is then never reached, as in A1111."""
    assert edited_texts("[a:b:0.5]", StepCount(20, 10)) == ((0, "a"),)
    assert edited_texts("[a:b:0.25]", StepCount(20, 10)) == ((0, "a"), (5, "b"))
    assert edited_texts("[a:b:4]", StepCount(20, 10)) == ((0, "a"), (4, "b"))


def test_each_wording_comes_once_whoever_says_it() -> None:
    prompts = [Wording(None), Wording("[a|b]"), Wording("[b|a|c]"), Wording("[a|b]", clip_skip=1)]
    edited = edited_prompts(prompts, StepCount(4, 4))
    texts = [(wording.text, wording.clip_skip) for wording in edited.wordings]
    assert texts == [(None, 0), ("a", 0), ("b", 0), ("c", 0), ("a", 1), ("b", 1)]
    said = [[texts[row][0] for row in edited.at((0, 1, 2, 3), step)] for step in range(4)]
    assert said == [[None, "a", "b", "a"], [None, "b", "a", "b"], [None, "a", "c", "a"], [None, "b", "b", "b"]]
    assert edited.at((2,), 2) == (3,)


def test_what_a_prompt_may_become_is_bounded() -> None:
    wide = "a" * 30_000
    assert len(edited_texts(f"{wide}[a|b|c|d]", TEN)) == 10
    with pytest.raises(RequestError, match="131,072 characters"):
        edited_texts(f"{wide}[a|b|c|d|e|f]", TEN)
    with pytest.raises(RequestError, match="131,072 characters"):
        edited_prompts([Wording(f"{wide}[{word}:b:3]") for word in "acdefg"], TEN)
    assert len(wide) * 4 < MAX_EDITED_CHARS


LONG = StepCount(1000, 1000)
HOSTILE = {
    "open": "[a" * 32_000,
    "closed": "[a:" * 60 + ":1]" * 21_000,
    "pairs": "[|]" * 21_800,
    "options": "[" + "|" * 65_000 + "]",
    "periods": "".join("[" + "|" * length + "]" for length in range(1, 350)),
    "edits": "".join(f"[a:b:{step % 1000}]" for step in range(7000)),
    "mixed": "([" * 30 + "a|" * 30_000 + ")",
    "mismatched": "([" * 15_000 + ")]" * 15_000,
    "colons": "[" + ":" * 65_000 + "1]",
    "escapes": "[" + "\\|" * 32_000 + "]",
}


@pytest.mark.parametrize("prompt", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_prompt_is_read_or_refused_at_once(prompt: str) -> None:
    assert len(prompt) <= 2**16
    started = time.process_time()
    with deadline(), contextlib.suppress(RequestError):
        edited_texts(prompt, LONG)
    assert time.process_time() - started < 2.0


def test_brackets_that_nest_too_deep_are_refused() -> None:
    edited_texts("[" * 64 + "a:b:1]" + "]" * 63, TEN)
    with pytest.raises(RequestError, match="more than 64 deep"):
        edited_texts("[" * 65 + "a", TEN)
