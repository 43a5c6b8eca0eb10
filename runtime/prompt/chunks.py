"""Prompts of any length: token ids in chunks that a text encoder of fixed length takes one by one.

The embeddings of the chunks are joined along the tokens, as A1111 does. A prompt that fits one chunk has exactly the
ids that the checkpoint's own tokenizer gives: start, words, end, padding.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tintype.bounds import MAX_PROMPT_BYTES
from tintype.errors import RequestError
from tintype.prompt.tokenizer import PromptTokenizer
from tintype.prompt.weights import parse_weights

MAX_CHUNKS = 32
COMMA_REACH = 20  # words after the last comma that move to the next chunk with it rather than be torn apart

_Word = tuple[int, float]  # token id, weight


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """Token ids and weights, a row a chunk."""

    input_ids: NDArray[np.int64]  # (chunks, max_length)
    weights: NDArray[np.float32]  # (chunks, max_length); 1.0 for marks and padding
    clip_skip: int = 0  # of the encoder's last layers that are left out

    @property
    def is_weighted(self) -> bool:
        return bool(np.any(self.weights != 1.0))


def encode_prompt(tokenizer: PromptTokenizer, text: str) -> EncodedPrompt:
    """A prompt in A1111's notation as chunks. Raises RequestError when it is too long or no text."""
    if len(text) > MAX_PROMPT_BYTES or len(text.encode("utf-8", "replace")) > MAX_PROMPT_BYTES:
        raise RequestError(
            f"the prompt has more than {MAX_PROMPT_BYTES:,} bytes",
            fix=f"shorten it to about {MAX_CHUNKS * tokenizer.capacity:,} tokens",
        )
    return _with_marks(tokenizer, _cut(tokenizer, text))


def pad_chunks(tokenizer: PromptTokenizer, encoded: EncodedPrompt, count: int) -> EncodedPrompt:
    """`encoded` with empty chunks behind it, `count` in all, so that two prompts can share one batch."""
    missing = count - len(encoded.input_ids)
    if missing <= 0:
        return encoded
    empty = _with_marks(tokenizer, [[] for _ in range(missing)])
    return replace(
        encoded,
        input_ids=np.concatenate([encoded.input_ids, empty.input_ids]),
        weights=np.concatenate([encoded.weights, empty.weights]),
    )


def _cut(tokenizer: PromptTokenizer, text: str) -> list[list[_Word]]:
    """The words of a prompt in chunks of at most `capacity`, cut after a comma where one is near.

    Raises RequestError for more than MAX_CHUNKS of them.
    """
    capacity, comma = tokenizer.capacity, tokenizer.comma_token_id
    chunks: list[list[_Word]] = [[]]
    after_comma: int | None = None  # how many words of the last chunk there are up to its last comma
    for fragment in parse_weights(text):
        if fragment.text is None:
            chunks.append([])
            after_comma = None
            _demand_room(tokenizer, chunks)
            continue
        for unit in tokenizer.units(fragment.text):
            filled = len(chunks[-1])
            if filled + len(unit) > capacity:
                keep = filled
                if unit != (comma,) and after_comma is not None and filled - after_comma < COMMA_REACH:
                    keep = after_comma
                if filled - keep + len(unit) > capacity:  # a word of many ids has a chunk of its own
                    keep = filled
                chunks[-1:] = [chunks[-1][:keep], chunks[-1][keep:]]
                after_comma = None
                _demand_room(tokenizer, chunks)
            chunks[-1].extend((token, fragment.weight) for token in unit)
            if unit == (comma,):
                after_comma = len(chunks[-1])
    return chunks


def _demand_room(tokenizer: PromptTokenizer, chunks: list[list[_Word]]) -> None:
    if len(chunks) > MAX_CHUNKS:
        tokens = sum(len(chunk) for chunk in chunks)
        raise RequestError(
            f"the prompt has more than {tokens:,} tokens; {MAX_CHUNKS} chunks of {tokenizer.capacity} are the most",
            fix=f"shorten it to about {MAX_CHUNKS * tokenizer.capacity:,} tokens",
        )


def _with_marks(tokenizer: PromptTokenizer, chunks: list[list[_Word]]) -> EncodedPrompt:
    shape = (len(chunks), tokenizer.max_length)
    input_ids = np.full(shape, tokenizer.pad_token_id, dtype=np.int64)
    weights = np.ones(shape, dtype=np.float32)
    for row, chunk in enumerate(chunks):
        end = len(chunk) + 1
        input_ids[row, 0] = tokenizer.bos_token_id
        input_ids[row, 1:end] = [token for token, _ in chunk]
        input_ids[row, end] = tokenizer.eos_token_id
        weights[row, 1:end] = [weight for _, weight in chunk]
    return EncodedPrompt(input_ids, weights)
