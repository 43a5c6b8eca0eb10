"""What the denoiser is told besides noisy latents: the words, and with SDXL the whole prompt and the picture's sizes.

A `Conditioning` has one row a prompt: without guidance the prompt alone, else the negative prompt first. How a bundle
reads a prompt is its family's: one text encoder's last state, or two encoders' last states but one side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tintype.manifest import XL, Manifest
from tintype.prompt import EncodedPrompt, PromptTokenizer, encode_prompt, pad_chunks, weigh
from tintype.request import ResolvedRequest

Embeddings = NDArray[np.float32]  # (prompts, tokens, dim)
Encoder = Callable[[Mapping[str, NDArray[Any]]], Mapping[str, NDArray[Any]]]  # a graph: inputs to outputs by name


@dataclass(frozen=True, slots=True)
class Conditioning:
    """The denoiser's inputs that stay the same from step to step."""

    embeddings: Embeddings
    added: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)  # further inputs, (prompts, ...) each

    @property
    def arrays(self) -> tuple[NDArray[np.float32], ...]:
        return (self.embeddings, *self.added.values())


@dataclass(frozen=True, slots=True)
class Read:
    """Prompts as one text encoder reads them."""

    states: Embeddings
    text_embeds: NDArray[np.float32] | None  # (prompts, projection), of the encoder that gives them


def is_guided(request: ResolvedRequest, manifest: Manifest) -> bool:
    """Whether a request takes two predictions a step.

    1 is off. 0 is the negative prompt alone; but a bundle that by default has no guidance was distilled to do without,
    as SDXL-Turbo was, and there 0 is off too: that is how its users say it.
    """
    distilled = manifest.default_request.guidance_scale in (0.0, 1.0)
    return request.guidance_scale != 1.0 and not (distilled and request.guidance_scale == 0.0)


def prompts_of(request: ResolvedRequest, manifest: Manifest) -> list[str | None]:
    """What the text encoders read, the negative prompt first; None is zeros in the place of an empty one."""
    if not is_guided(request, manifest):
        return [request.prompt]
    zeros = manifest.force_zeros_for_empty_prompt and request.negative_prompt == ""
    return [None if zeros else request.negative_prompt, request.prompt]


def chunked(tokenizers: Mapping[str, PromptTokenizer], prompts: list[str | None]) -> dict[str, list[EncodedPrompt]]:
    """By text encoder the ids of each prompt that is one, all with as many chunks as the longest has."""
    texts = [prompt for prompt in prompts if prompt is not None]
    encoded = {role: [encode_prompt(tokenizer, text) for text in texts] for role, tokenizer in tokenizers.items()}
    longest = max(len(prompt.input_ids) for each in encoded.values() for prompt in each)
    return {role: [pad_chunks(tokenizers[role], prompt, longest) for prompt in each] for role, each in encoded.items()}


def read(encoder: Encoder, prompts: list[EncodedPrompt]) -> Read:
    """Run one text encoder over the chunks of each prompt. What a prompt is as a whole, its first chunk says."""
    states, wholes = [], []
    for prompt in prompts:
        told = [encoder({"input_ids": row[np.newaxis]}) for row in prompt.input_ids]
        name = "last_hidden_state" if "last_hidden_state" in told[0] else "hidden_states"
        weighed = weigh(np.concatenate([_float32(chunk[name]) for chunk in told]), prompt.weights)
        states.append(weighed.reshape(1, -1, weighed.shape[-1]))
        if "text_embeds" in told[0]:
            wholes.append(_float32(told[0]["text_embeds"]))
    return Read(np.concatenate(states), np.concatenate(wholes) if wholes else None)


def condition(
    readings: list[Read], prompts: list[str | None], request: ResolvedRequest, manifest: Manifest
) -> Conditioning:
    """The readings of all text encoders together, with zeros where a prompt is None."""
    rows = _with_zeros(np.concatenate([reading.states for reading in readings], axis=-1), prompts)
    if manifest.family != XL:
        return Conditioning(rows)
    text_embeds = readings[-1].text_embeds
    assert text_embeds is not None  # the manifest has text_encoder_2 give them
    # Original size, crop and target size: the picture is asked for as one that was never cut, as diffusers does.
    size = (float(request.height), float(request.width))
    time_ids = np.array([[*size, 0.0, 0.0, *size]] * len(prompts), np.float32)
    return Conditioning(rows, {"text_embeds": _with_zeros(text_embeds, prompts), "time_ids": time_ids})


def _with_zeros(rows: NDArray[np.float32], prompts: list[str | None]) -> NDArray[np.float32]:
    left = iter(rows)
    return np.stack([np.zeros_like(rows[0]) if prompt is None else next(left) for prompt in prompts])


def _float32(array: NDArray[Any]) -> NDArray[np.float32]:
    return array.astype(np.float32, copy=False)
