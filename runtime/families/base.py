"""What a family of models is: which prompts a request computes, which graphs it uses, and what the denoiser is told.

A family is stateless, one module each, and the only place that knows how its graphs belong together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tintype.arrays import Arrays
from tintype.bundle import Manifest
from tintype.prompt import EncodedPrompt, PromptTokenizer, encode_prompt, pad_chunks, weigh
from tintype.request import ResolvedRequest
from tintype.sampling import Guidance, Parametrization, Schedule
from tintype.uses import GraphUse

# The denoiser's inputs that stay the same from step to step, (branches, ...) each.
Conditioning: TypeAlias = Mapping[str, NDArray[np.float32]]
CallEncoder: TypeAlias = Callable[[str, Arrays], Arrays]  # (role, inputs) -> outputs

EMBEDDINGS = "encoder_hidden_states"


@dataclass(frozen=True, slots=True)
class Branch:
    """One prediction of the denoiser, which guidance combines with the others."""

    name: str
    prompt: str | None  # None: zeros in the place of its embeddings
    sees_picture: bool = True  # of a denoiser that takes a picture beside the noise: False is zeros in its place


@dataclass(frozen=True, slots=True)
class Tokens:
    """By text encoder the ids of each branch's prompt that is one, all in as many chunks as the longest has."""

    encoded: Mapping[str, Sequence[EncodedPrompt]]

    @property
    def chunks(self) -> int:
        return len(self._first.input_ids)

    @property
    def length(self) -> int:
        """Tokens along the embeddings."""
        return int(self._first.input_ids.size)

    @property
    def prompts(self) -> int:
        return len(next(iter(self.encoded.values())))

    @property
    def _first(self) -> EncodedPrompt:
        return next(iter(self.encoded.values()))[0]


class Family(Protocol):
    """What the runtime asks of a family."""

    @property
    def parametrizations(self) -> Mapping[str, Parametrization]:
        """What its denoisers may be trained to give, by the prediction_type of a manifest."""
        ...

    def branches(self, request: ResolvedRequest, manifest: Manifest) -> tuple[Branch, ...]:
        """What is predicted: with guidance the negative prompt first."""
        ...

    def guidance(self, request: ResolvedRequest, manifest: Manifest) -> Guidance:
        """Which of these branches each step takes, and how they become one. Raises RequestError."""
        ...

    def uses(
        self, request: ResolvedRequest, manifest: Manifest, tokens: Tokens, schedule: Schedule
    ) -> tuple[GraphUse, ...]:
        """The graphs that a request uses, in the order of their phases, with the dims of its first batch."""
        ...

    def encode(
        self,
        request: ResolvedRequest,
        manifest: Manifest,
        branches: Sequence[Branch],
        tokens: Tokens,
        call: CallEncoder,
    ) -> Conditioning:
        """Words -> what the denoiser is told."""
        ...


@dataclass(frozen=True, slots=True)
class TextEncoding:
    """Prompts as one text encoder gives them."""

    states: NDArray[np.float32]  # (prompts, tokens, dim)
    text_embeds: NDArray[np.float32] | None  # (prompts, projection), of the encoder that has them


def tokenize(tokenizers: Mapping[str, PromptTokenizer], branches: Sequence[Branch]) -> Tokens:
    """The prompts of all branches for each text encoder."""
    texts = [branch.prompt for branch in branches if branch.prompt is not None]
    encoded = {role: [encode_prompt(tokenizer, text) for text in texts] for role, tokenizer in tokenizers.items()}
    longest = max(len(prompt.input_ids) for each in encoded.values() for prompt in each)
    return Tokens(
        {role: [pad_chunks(tokenizers[role], prompt, longest) for prompt in each] for role, each in encoded.items()}
    )


def run_text_encoder(role: str, prompts: Sequence[EncodedPrompt], call: CallEncoder) -> TextEncoding:
    """Run one text encoder over the chunks of each prompt. What a prompt is as a whole, its first chunk says."""
    states, wholes = [], []
    for prompt in prompts:
        chunks = [call(role, {"input_ids": row[np.newaxis]}) for row in prompt.input_ids]
        name = "last_hidden_state" if "last_hidden_state" in chunks[0] else "hidden_states"
        weighed = weigh(np.concatenate([_float32(chunk[name]) for chunk in chunks]), prompt.weights)
        states.append(weighed.reshape(1, -1, weighed.shape[-1]))
        if "text_embeds" in chunks[0]:
            wholes.append(_float32(chunks[0]["text_embeds"]))
    return TextEncoding(np.concatenate(states), np.concatenate(wholes) if wholes else None)


def with_zeros(rows: NDArray[np.float32], branches: Sequence[Branch]) -> NDArray[np.float32]:
    """A row a branch: those of its prompts in turn, zeros for a branch without one."""
    left = iter(rows)
    return np.stack([np.zeros_like(rows[0]) if branch.prompt is None else next(left) for branch in branches])


def _float32(array: NDArray[Any]) -> NDArray[np.float32]:
    return array.astype(np.float32, copy=False)
