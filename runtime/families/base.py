"""What a family of models is: which prompts a request computes, which graphs it uses, and what the denoiser is told.

A family is stateless, one module each, and the only place that knows how its graphs belong together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tintype.arrays import Arrays
from tintype.bundle import Manifest, PreviewFactors
from tintype.bundle.manifest import CLIP_SKIP
from tintype.errors import RequestError
from tintype.prompt import EncodedPrompt, PromptTokenizer, Wording, encode_prompt, pad_chunks, weigh
from tintype.request import ResolvedRequest
from tintype.sampling import Guidance, Parametrization, Schedule
from tintype.uses import GraphUse

# The denoiser's inputs that don't depend on the latents, (wordings, ...) each: a row for each of a request's wordings.
Conditioning: TypeAlias = Mapping[str, NDArray[np.float32]]
CallEncoder: TypeAlias = Callable[[str, Arrays], Arrays]  # (role, inputs) -> outputs

EMBEDDINGS = "encoder_hidden_states"
MAX_ENCODED_CHUNKS = 256  # of all wordings of a request; their embeddings are in memory together


@dataclass(frozen=True, slots=True)
class Branch:
    """One prediction of the denoiser, which guidance combines with the others."""

    name: str
    prompt: str | None  # that may change while it is drawn, see `prompt.editing`; None: zeros in its embeddings' place
    weight: float = 1.0  # of this one among those that guidance goes to
    clip_skip: int = 0  # of a text encoder's last layers that are left out for it
    unwanted: bool = False  # of a model that is told so: guidance leads away from it
    sees_picture: bool = True  # of a denoiser that takes a picture beside the noise: False is zeros in its place

    @property
    def wording(self) -> Wording:
        """Its prompt as it was written."""
        return Wording(self.prompt, self.clip_skip, self.unwanted)


@dataclass(frozen=True, slots=True)
class Tokens:
    """By text encoder the ids of each wording that has a text, all in as many chunks as the longest has."""

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

    @property
    def preview(self) -> PreviewFactors | None:
        """What its usual latents look like without a decoder, for bundles that don't say it themselves."""
        ...

    def branches(self, request: ResolvedRequest, manifest: Manifest) -> tuple[Branch, ...]:
        """What is predicted: with guidance the negative prompt first, then each part of the prompt."""
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
        wordings: Sequence[Wording],
        tokens: Tokens,
        call: CallEncoder,
    ) -> Conditioning:
        """Words -> what the denoiser is told, a row a wording."""
        ...


@dataclass(frozen=True, slots=True)
class TextEncoding:
    """Prompts as one text encoder gives them."""

    states: NDArray[np.float32]  # (prompts, tokens, dim)
    text_embeds: NDArray[np.float32] | None  # (prompts, projection), of the encoder that has them


def tokenize(tokenizers: Mapping[str, PromptTokenizer], wordings: Sequence[Wording]) -> Tokens:
    """Every wording for each text encoder. Raises RequestError for too many tokens."""
    encoded = {
        role: [
            replace(encode_prompt(tokenizer, wording.text), clip_skip=wording.clip_skip)
            for wording in wordings
            if wording.text is not None
        ]
        for role, tokenizer in tokenizers.items()
    }
    longest = max(len(prompt.input_ids) for each in encoded.values() for prompt in each)
    if longest * len(wordings) > MAX_ENCODED_CHUNKS:
        raise RequestError(
            f"the prompts become {len(wordings):,} of {longest} chunks each; {MAX_ENCODED_CHUNKS} chunks are the most",
            fix="let less of them change from step to step, or shorten them",
        )
    return Tokens(
        {role: [pad_chunks(tokenizers[role], prompt, longest) for prompt in each] for role, each in encoded.items()}
    )


def run_text_encoder(role: str, prompts: Sequence[EncodedPrompt], call: CallEncoder) -> TextEncoding:
    """Run one text encoder over the chunks of each prompt. What a prompt is as a whole, its first chunk says."""
    states, wholes = [], []
    for prompt in prompts:
        chunks = [call(role, {"input_ids": row[np.newaxis]}) for row in prompt.input_ids]
        name = next(name for name in state_names(prompt.clip_skip) if name in chunks[0])
        weighed = weigh(np.concatenate([_float32(chunk[name]) for chunk in chunks]), prompt.weights)
        states.append(weighed.reshape(1, -1, weighed.shape[-1]))
        if "text_embeds" in chunks[0]:
            wholes.append(_float32(chunks[0]["text_embeds"]))
    return TextEncoding(np.concatenate(states), np.concatenate(wholes) if wholes else None)


def state_names(clip_skip: int) -> tuple[str, ...]:
    """The names that the output of a text encoder without so many of its last layers may have."""
    return (f"{CLIP_SKIP}{clip_skip}",) if clip_skip else ("last_hidden_state", "hidden_states")


def with_zeros(rows: NDArray[np.float32], wordings: Sequence[Wording]) -> NDArray[np.float32]:
    """A row a wording: those of texts in turn, zeros for one without."""
    left = iter(rows)
    return np.stack([np.zeros_like(rows[0]) if wording.text is None else next(left) for wording in wordings])


def _float32(array: NDArray[Any]) -> NDArray[np.float32]:
    return array.astype(np.float32, copy=False)
