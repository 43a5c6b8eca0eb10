"""Edits beside those of diffusers: what both sides are asked for, at the same noise and the encoder's mean."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pictures import PROMPT, photo
from PIL import Image

NEGATIVE, SEED, STEPS = "snow", 7, 8
GATE_DB = 50.0
# clip_sample is what Stable Diffusion's own config says; diffusers' default for ddim is for models of pixels.
SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "euler": ("EulerDiscreteScheduler", {}),
    "ddim": ("DDIMScheduler", {"clip_sample": False}),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", {}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),  # whose second call redoes the first step
}
MARKS = [
    pytest.mark.reference,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # diffusers with numpy 2
    pytest.mark.filterwarnings("ignore:.*max_length.*"),
]


def take_the_encoders_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    """The encoder's distribution enters diffusers' pipelines by its mean."""
    vae = pytest.importorskip("diffusers.models.autoencoders.vae")
    monkeypatch.setattr(
        vae.DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode(), raising=True
    )


def mask(width: int, height: int) -> Image.Image:
    """White in the middle, on the borders of latent cells."""
    values = np.zeros((height, width), np.uint8)
    values[8 : height - 16, 16 : width - 24] = 255
    return Image.fromarray(values)


def asked(size: tuple[int, int], strength: float, sampler: str = "euler") -> dict[str, Any]:
    """Of Tintype, beside words and mask."""
    width, height = size
    return {
        "negative_prompt": NEGATIVE,
        "width": width,
        "height": height,
        "num_inference_steps": STEPS,
        "guidance_scale": 7.5,
        "sampler": sampler,
        "noise": "torch-cpu",
        "seed": SEED,
        "image": photo(*size),
        "strength": strength,
    }


def theirs(
    reference: Any,
    size: tuple[int, int],
    strength: float,
    mask: Image.Image | None = None,
    sampler: str = "euler",
    **more: Any,
) -> list[np.ndarray]:
    """The pictures of one of diffusers' pipelines for the same; without a mask those of image to image."""
    import diffusers
    import torch

    kind, settings = SCHEDULERS[sampler]
    reference.scheduler = getattr(diffusers, kind).from_config(reference.scheduler.config, **settings)
    fields = {"guidance_scale": 7.5, "generator": torch.Generator().manual_seed(SEED), **more}
    if mask is not None:
        fields |= {"mask_image": mask, "width": size[0], "height": size[1]}
    made = reference(
        PROMPT,
        negative_prompt=NEGATIVE,
        image=photo(*size),
        num_inference_steps=STEPS,
        strength=strength,
        **fields,
    )
    return [np.asarray(image) for image in made.images]
