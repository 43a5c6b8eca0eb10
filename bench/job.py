"""What is drawn while it is measured: the same picture for every runtime."""

from __future__ import annotations

from dataclasses import dataclass

PROMPT = "a red sailboat on a calm sea at sunset"


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One picture; `model` is a bundle, `checkpoint` the diffusers folder that it was exported from."""

    model: str = "postcard"
    checkpoint: str | None = None
    prompt: str = PROMPT
    num_inference_steps: int = 20
    guidance_scale: float = 7.5
    width: int | None = None  # pixels; None is the model's own size
    height: int | None = None
    threads: int | None = None
