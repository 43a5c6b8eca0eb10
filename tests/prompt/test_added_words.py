"""Words of embeddings in a prompt: where one stands, whole in its chunk, with the weight that is written there."""

from __future__ import annotations

import numpy as np
import pytest

from tintype.prompt import AddedWords, encode_prompt, padded_rows
from tintype.prompt.added_words import pieces
from tintype.uses import FIRST_ADDED_ID

WORDS = ("wobble", "wobble-2", "<cat-toy>", "easy (v2)")
ADDED = AddedWords({"one": {word: np.full((3, 2), index, np.float32) for index, word in enumerate(WORDS)}})


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a wobble boat", ["wobble"]),
        ("a WOBBLE, wobble-2", ["wobble", "wobble-2"]),
        ("wobbles unwobble wobble_ wobble2", []),
        ("a<cat-toy>s", ["<cat-toy>"]),
        ("easy (v2)wobble", ["easy (v2)", "wobble"]),
        ("cat toy", []),
        ("", []),
    ],
)
def test_a_word_is_found_as_it_is_written(text, found):
    said = list(pieces(text, WORDS))
    assert [word for _, word in said if word is not None] == found
    assert "".join(piece for piece, _ in said) == text
    assert set(ADDED.unused_in(text)) == set(WORDS) - set(found)


def test_letters_that_only_fold_alike_break_nothing():
    for word in ("ıi", "Straße", "K", "ſ"):
        for text in (word, word.upper(), word.lower(), word.casefold()):
            assert "".join(piece for piece, _ in pieces(f"a {text} b", (word,))) == f"a {text} b"


def test_ids_count_up_in_the_order_of_the_words(tokenizer):
    added = tokenizer.with_added(ADDED.ids("one"))
    encoded = encode_prompt(added, r"a (wobble:1.2) <cat-toy> easy \(v2\)")
    first = FIRST_ADDED_ID
    ids = [int(token) for token in encoded.input_ids[0] if token >= first]
    assert ids == [first, first + 1, first + 2, *range(first + 6, first + 12)]
    weights = dict(zip(encoded.input_ids[0].tolist(), encoded.weights[0].tolist(), strict=True))
    assert all(weights[first + row] == pytest.approx(1.2) for row in range(3))
    assert weights[first + 6] == 1.0
    plain = encode_prompt(tokenizer, "a boat")
    assert np.array_equal(encode_prompt(added, "a boat").input_ids, plain.input_ids)


def test_a_word_of_many_rows_stays_whole(tokenizer):
    capacity = tokenizer.capacity
    words = AddedWords({"one": {"wobble": np.zeros((capacity - 5, 2), np.float32)}})
    added = tokenizer.with_added(words.ids("one"))
    encoded = encode_prompt(added, f"{'a ' * 10}wobble {'a ' * 10}")
    held = (encoded.input_ids >= FIRST_ADDED_ID).sum(axis=1).tolist()
    assert held == [0, capacity - 5, 0]
    whole = tokenizer.with_added(AddedWords({"one": {"wobble": np.zeros((capacity, 2), np.float32)}}).ids("one"))
    assert (encode_prompt(whole, "a, wobble wobble").input_ids >= FIRST_ADDED_ID).sum(axis=1).tolist() == [
        0, capacity, capacity,
    ]  # fmt: skip


def test_rows_are_padded_to_what_others_fit_too():
    assert [padded_rows(count) for count in (0, 1, 8, 9, 75, 128)] == [0, 8, 8, 16, 128, 128]
    (given,) = ADDED.input("one", 16).values()
    np.testing.assert_array_equal(given[:, 0], [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3 + [0] * 4)
