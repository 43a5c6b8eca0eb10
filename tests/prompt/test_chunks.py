"""Prompts of any length become rows of start, words, end and padding; no word is lost or doubled."""

from __future__ import annotations

import numpy as np
import pytest

from tintype.errors import BundleError, RequestError
from tintype.prompt import PromptTokenizer, encode_prompt, pad_chunks

A, RED, HOUSE, COMMA = 4, 5, 6, 7
CAPACITY = 10


def words_of(encoded) -> list[list[int]]:
    return [[int(token) for token in row if token not in (0, 1, 2)] for row in encoded.input_ids]


@pytest.mark.parametrize("prompt", ["", "   ", "()"])
def test_an_empty_prompt_is_one_chunk_of_marks(tokenizer, prompt):
    encoded = encode_prompt(tokenizer, prompt)
    assert encoded.input_ids.tolist() == [[0, 1, *[2] * 10]]
    assert encoded.input_ids.dtype == np.int64
    assert not encoded.is_weighted


def test_a_short_prompt_is_start_words_end_padding(tokenizer):
    encoded = encode_prompt(tokenizer, "a red house")
    assert encoded.input_ids.tolist() == [[0, A, RED, HOUSE, 1, *[2] * 7]]
    assert (encoded.weights == 1).all()


def test_weights_stand_at_their_words(tokenizer):
    encoded = encode_prompt(tokenizer, "a (red:1.5) house")
    assert encoded.weights[0].tolist() == [1, 1, 1.5, *[1] * 9]
    assert encoded.is_weighted


@pytest.mark.parametrize("count", range(1, 45))
def test_no_word_is_lost_at_any_length(tokenizer, count):
    encoded = encode_prompt(tokenizer, " ".join(["red"] * count))
    rows = words_of(encoded)
    assert len(rows) == -(-count // CAPACITY)
    assert [word for row in rows for word in row] == [RED] * count
    assert encoded.input_ids.shape == encoded.weights.shape == (len(rows), 12)
    assert (encoded.input_ids[:, 0] == 0).all()
    for row in encoded.input_ids:
        assert (row == 1).sum() == 1


def test_a_long_prompt_is_cut_after_its_last_comma(tokenizer):
    encoded = encode_prompt(tokenizer, "a a a a a ,</w> red red red red house house")
    assert words_of(encoded) == [[A] * 5 + [COMMA], [RED] * 4 + [HOUSE] * 2]


def test_a_comma_that_fills_a_chunk_ends_it(tokenizer):
    encoded = encode_prompt(tokenizer, "a a a a a a a a a ,</w> red")
    assert words_of(encoded) == [[A] * 9 + [COMMA], [RED]]


def test_weights_move_with_their_words(tokenizer):
    encoded = encode_prompt(tokenizer, "a a a a a ,</w> red (red:1.5) red red house house")
    assert encoded.weights[0].tolist() == [1.0] * 12
    assert encoded.weights[1].tolist() == [1, 1, 1.5, *[1] * 9]


def test_break_starts_a_chunk(tokenizer):
    assert words_of(encode_prompt(tokenizer, "a BREAK red BREAK house")) == [[A], [RED], [HOUSE]]


def test_padding_adds_empty_chunks(tokenizer):
    encoded = encode_prompt(tokenizer, "(a:2)")
    padded = pad_chunks(tokenizer, encoded, 3)
    assert words_of(padded) == [[A], [], []]
    assert padded.weights[1:].tolist() == [[1.0] * 12] * 2
    assert pad_chunks(tokenizer, encoded, 1) is encoded


def test_a_prompt_beyond_all_chunks_says_how_long_it_may_be(tokenizer):
    assert len(encode_prompt(tokenizer, "a " * 320).input_ids) == 32
    with pytest.raises(RequestError, match="more than 320 tokens") as caught:
        encode_prompt(tokenizer, "a " * 321)
    assert "320" in caught.value.fix


def test_half_a_character_is_no_text(tokenizer):
    with pytest.raises(RequestError, match="half"):
        encode_prompt(tokenizer, "a \ud83d")


def test_a_file_that_is_no_tokenizer(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(BundleError, match="tokenizer"):
        PromptTokenizer.open(tmp_path / "tokenizer.json", max_length=77, bos_token_id=0, eos_token_id=1, pad_token_id=1)
