"""A1111's notation means here what it means there, and nothing that was typed gets lost."""

from __future__ import annotations

import numpy as np
import pytest

from tintype.errors import RequestError
from tintype.prompt import parse_weights, weigh


def said(prompt: str) -> list[tuple[str | None, float]]:
    return [(fragment.text, round(fragment.weight, 6)) for fragment in parse_weights(prompt)]


@pytest.mark.parametrize(
    ("prompt", "meaning"),
    [
        ("a red house", [("a red house", 1.0)]),
        ("a (red) house", [("a ", 1.0), ("red", 1.1), (" house", 1.0)]),
        ("a ((red)) house", [("a ", 1.0), ("red", 1.21), (" house", 1.0)]),
        ("a [red] house", [("a ", 1.0), ("red", 0.909091), (" house", 1.0)]),
        ("a (red:1.5) house", [("a ", 1.0), ("red", 1.5), (" house", 1.0)]),
        ("a (red: 1.5 ) house", [("a ", 1.0), ("red", 1.5), (" house", 1.0)]),
        ("(red:0)", [("red", 0.0)]),
        ("(red:-.5)", [("red", -0.5)]),
        ("(a (red:2) house:0.5)", [("a ", 0.5), ("red", 1.0), (" house", 0.5)]),
        ("(a [red] house)", [("a ", 1.1), ("red", 1.0), (" house", 1.1)]),
        (r"\(red\) \[a\] \\", [(r"(red) [a] \ "[:-1], 1.0)]),
        ("(red", [("red", 1.1)]),
        ("red)", [("red)", 1.0)]),
        ("[red", [("red", 0.909091)]),
        ("red]", [("red]", 1.0)]),
        ("red:1.5)", [("red:1.5)", 1.0)]),
        ("(red:house)", [("red:house", 1.1)]),
        ("at 12:30", [("at 12:30", 1.0)]),
        ("a BREAK red", [("a ", 1.0), (None, 1.0), (" red", 1.0)]),
        ("aBREAK", [("aBREAK", 1.0)]),
        ("", []),
        ("()", []),
        ("\\", [("\\", 1.0)]),
    ],
)
def test_what_a_prompt_means(prompt, meaning):
    assert said(prompt) == meaning


@pytest.mark.parametrize("prompt", ["(red:101)", "(red:" + "9" * 20 + ")", "(" * 200 + "red", "((red:99):99)"])
def test_weights_beyond_sense_are_refused(prompt):
    with pytest.raises(RequestError, match="weight"):
        parse_weights(prompt)


def test_weights_of_one_change_nothing():
    embeddings = np.random.default_rng(0).normal(size=(2, 5, 3)).astype(np.float32)
    assert weigh(embeddings, np.ones((2, 5), np.float32)).tobytes() == embeddings.tobytes()


def test_weighing_scales_tokens_and_keeps_the_mean():
    embeddings = np.random.default_rng(0).normal(0.5, 1, size=(2, 5, 3)).astype(np.float32)
    weights = np.ones((2, 5), np.float32)
    weights[0, 2] = 1.5
    weighed = weigh(embeddings, weights)
    assert weighed.dtype == np.float32
    np.testing.assert_allclose(weighed[0].mean(), embeddings[0].mean(), rtol=1e-5)
    ratio = weighed[0] / embeddings[0]
    np.testing.assert_allclose(ratio[2] / ratio[1], 1.5, rtol=1e-5)
    assert weighed[1].tobytes() == embeddings[1].tobytes()  # a chunk without weights is left alone


def test_weighing_does_not_write_into_what_it_was_given():
    embeddings = np.ones((1, 4, 2), np.float32)
    weigh(embeddings, np.full((1, 4), 2.0, np.float32))
    assert (embeddings == 1).all()


def test_a_mean_of_zero_is_left_there():
    embeddings = np.array([[[1.0], [-1.0]]], np.float32)
    weighed = weigh(embeddings, np.array([[2.0, 2.0]], np.float32))
    np.testing.assert_array_equal(weighed, 2 * embeddings)
