"""The LoRAs of a request: those that are given and those that its prompt names, and what they are drawn with."""

from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING

from tintype.request import checks
from tintype.request.fields import Request
from tintype.request.inputs import Opened

if TYPE_CHECKING:
    from tintype.bundle.manifest import DefaultRequest


def without_tags(request: Request) -> Request:
    """The LoRAs that a prompt names, <lora:NAME:WEIGHT>, as those that are given. Raises LoraError."""
    if not isinstance(request.prompt, str) or "<lora:" not in request.prompt.lower():
        return request
    from tintype.adapters.given import split_tags

    prompt, named = split_tags(checks.words("prompt", request.prompt), request.lora_dir)
    loras = [request.loras] if isinstance(request.loras, str | os.PathLike) else list(request.loras)
    return dataclasses.replace(request, prompt=prompt, loras=(*loras, *named))


def with_loras(opened: Opened, request: Request) -> Opened:
    """What a request begins with, and its LoRAs, opened too. Raises LoraError."""
    if request.loras in (None, ()):
        return opened
    from tintype.adapters.given import open_loras

    loras = open_loras(request.loras)
    inputs = dataclasses.replace(opened.inputs, loras=loras)
    return dataclasses.replace(opened, loras=tuple(lora.facts for lora in loras), inputs=inputs)


def default_with(opened: Opened, default: DefaultRequest) -> DefaultRequest:
    """What a request that leaves a field out gets: as the bundle has it, or a LoRA that was distilled to few steps."""
    if not opened.inputs.loras:
        return default
    from tintype.adapters.few_steps import asked_by

    asked = asked_by(opened.inputs.loras)
    if asked is None:
        return default
    _, few = asked
    return dataclasses.replace(
        default,
        num_inference_steps=few.num_inference_steps,
        sampler=few.sampler,
        sigmas=few.sigmas,
        guidance_scale=few.guidance_scale,
        guidance_rescale=0.0,
    )
